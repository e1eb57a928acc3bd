"""The device that models run on."""

import torch


def best_device() -> torch.device:
    """Returns the first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
