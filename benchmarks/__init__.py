"""Side-by-side measurements: `python -m benchmarks.NAME --json FILE`."""

import workflows  # noqa: F401  sets what Ray reads when it is imported, before a benchmark imports it
