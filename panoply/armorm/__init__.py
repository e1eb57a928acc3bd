"""ArmoRM (arXiv 2406.12845): ridge regression per objective, length debiasing, a gate."""

from panoply.armorm.in_memory import ArmoRM, ComparedResponses, RatedResponses, fit

__all__ = ["ArmoRM", "ComparedResponses", "RatedResponses", "fit"]
