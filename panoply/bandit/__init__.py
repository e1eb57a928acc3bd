"""Bandits over reward models: init, choose, update."""
