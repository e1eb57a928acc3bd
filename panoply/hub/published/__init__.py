"""Reward models that others published, in their own layouts."""
