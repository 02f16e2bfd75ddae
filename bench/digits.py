"""Data of the benchmarks: the study's digits, and images of CIFAR's shape."""

import torch
from torch import Tensor

from pylandscape.study.data import load_mnist


def mnist(samples: int) -> tuple[Tensor, Tensor]:
    """`samples` standardised digits [N, 1, 28, 28] and labels, repeated where there are fewer."""
    inputs, targets = load_mnist().train
    index = torch.arange(samples) % len(targets)
    return inputs[index].contiguous(), targets[index].contiguous()


def images(samples: int) -> tuple[Tensor, Tensor]:
    """Random images of CIFAR's shape, with random labels."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, 32, 32, generator=generator)
    return inputs, torch.randint(0, 10, (samples,), generator=generator)
