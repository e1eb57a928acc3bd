"""Preference training: losses, one step, MORE's weighting, HaF-RM; `fit` runs it in one process."""

from panoply.preference.in_memory import PreferenceModel, fit, fit_decoder

__all__ = ["PreferenceModel", "fit", "fit_decoder"]
