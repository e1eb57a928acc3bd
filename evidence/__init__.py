"""Claims of papers, tested again: `python -m evidence.NAME --json FILE`."""
