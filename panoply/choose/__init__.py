"""Bandits that choose a reward model: pure functions on a frozen state of arrays."""
