"""Small models, runs and servers that several tests need."""
