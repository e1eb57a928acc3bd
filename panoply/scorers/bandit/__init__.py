"""Composites: several scorers in one, by a rule that a file names."""
