"""Data made by rule: a planted world, raters, and prompts with verifiable answers."""
