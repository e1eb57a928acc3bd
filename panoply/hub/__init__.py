"""The only package that loads transformers: backbones in, reward models out."""
