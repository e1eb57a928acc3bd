"""Reward models as folders: saving, loading, exporting and averaging them."""
