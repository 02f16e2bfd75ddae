"""Recorded runs with given parameters, for the tests of trajectories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pylandscape as pl


class Follow(torch.optim.Optimizer):
    """Steps from one given parameter vector to the next."""

    def __init__(self, model: nn.Module, vectors: Sequence[Tensor]) -> None:
        super().__init__(model.parameters(), {"lr": 1.0})
        self.model, self.vectors = model, iter(vectors)
        self.space = pl.ParameterSpace.from_model(model)

    def step(self, closure: Any = None) -> None:
        self.space.write_(self.model, next(self.vectors))


def record(folder: Path, model: nn.Module, vectors: Sequence[Tensor]) -> pl.Trajectory:
    """A run of `model` through `vectors`, each recorded."""
    pl.ParameterSpace.from_model(model).write_(model, vectors[0])
    optimizer = Follow(model, vectors[1:])
    with pl.Recorder(folder).attach(model, optimizer):
        for _ in vectors[1:]:
            optimizer.step()
    return pl.Trajectory(folder)
