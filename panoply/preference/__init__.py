"""Preference training: losses, one step, MORE's weighting, HaF-RM."""
