"""Preference pairs and ratings: schemas, readers, splits, quarantine, the planted world."""
