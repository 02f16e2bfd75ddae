"""A loss whose descent is known in closed form, and its recording."""

import torch
from torch import nn

import pylandscape as pl

LEARNING_RATE = 0.1


class Bowl(nn.Module):
    """L(w) = |w|^2 / 2: the gradient is w, and SGD multiplies w by 1 - learning rate."""

    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, size + 1, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.w.square().sum() / 2


def descend(model, optimizer, run, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        run.log(loss=loss)
        optimizer.step()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, **options)


def steps_of(directory):
    return pl.Trajectory(directory).steps
