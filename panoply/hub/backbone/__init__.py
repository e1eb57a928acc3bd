"""Language models as backbones: rendering, tokens, features."""
