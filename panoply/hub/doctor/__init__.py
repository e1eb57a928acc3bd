"""Checks of a reward model before it is used."""
