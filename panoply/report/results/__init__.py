"""The sections of a report by what was run, each a function of a part of `metrics.json`."""
