"""One algorithm a file, read top to bottom."""
