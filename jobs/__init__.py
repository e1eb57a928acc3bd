"""One command a file: `python -m jobs.NAME`."""
