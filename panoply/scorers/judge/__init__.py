"""A language model that is asked for verdicts, as a scorer: `judge:FILE.yaml`."""
