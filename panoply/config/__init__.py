"""Dataclasses of every run's settings, on the standard library alone."""
