"""Side-by-side measurements: `python -m benchmarks.NAME --json FILE`."""

# Sets what Ray reads when it is imported, before a benchmark imports Ray.
import workflows  # noqa: F401  # pyright: ignore[reportUnusedImport]
