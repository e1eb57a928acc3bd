"""Token trees, their shared-prefix forward, and the heads on top of it, in plain torch."""
