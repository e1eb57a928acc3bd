"""Bandits over reward models: init, select_arms, update."""
