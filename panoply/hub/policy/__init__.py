"""Policies: sampling with a shared prefix, LoRA adapters, trainable backbones."""
