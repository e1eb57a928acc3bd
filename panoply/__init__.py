"""Panoply: reward models, trained, gated, served and chosen among on a Ray cluster."""
