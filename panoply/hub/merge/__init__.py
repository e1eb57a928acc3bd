"""Merging of models: several sets of weights of one base become those of one reward model."""
