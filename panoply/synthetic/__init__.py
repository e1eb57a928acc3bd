"""Synthetic data: a planted preference world, raters, and prompts with verifiable answers."""
