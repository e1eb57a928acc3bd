"""The serving core: what happens between a request and a reward model. No Ray, no HTTP."""
