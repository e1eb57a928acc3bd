"""Token trees, the shared-prefix forward and the heads on top of it."""
