"""The network of the study."""

from collections import OrderedDict

import torch
from torch import nn


class SmallCNN(nn.Sequential):
    """The small MNIST net: two 3 x 3 convolutions with pooling and two linear layers, P = 206,922.

    PyTorch's default initialisation, drawn from `seed`; the global generator is left as it was.

    Example:
        >>> sum(p.numel() for p in SmallCNN(seed=0).parameters())
        206922
    """

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = OrderedDict[str, nn.Module](
                conv1=nn.Conv2d(1, 16, 3, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(16, 32, 3, padding=1),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(1568, 128),
                relu3=nn.ReLU(),
                linear2=nn.Linear(128, 10),
            )
        super().__init__(layers)
