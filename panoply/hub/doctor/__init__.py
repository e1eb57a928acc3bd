"""Checks of a reward model before it is used."""

from panoply.hub.doctor.checks import examine, examine_loaded

__all__ = ["examine", "examine_loaded"]
