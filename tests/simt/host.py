"""The CUDA engine with its kernels run on the host by the SIMT layer, and networks to run."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume
from models import labels, normal, seeded
from random_models import randomised
from simt.kernels import load
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops
from pylandscape.engines.cuda import CudaEngine, Generated
from pylandscape.engines.cuda_plan import CudaPlan
from pylandscape.engines.program import NotCovered

simt = load()


class HostEngine(CudaEngine):
    """The engine for GPUs with its kernels on the host; `room` and `reverse` are for tests."""

    device = "cpu"
    room = 1 << 30
    reverse = False

    def _check_precision(self) -> None:
        pass

    def _room(self) -> int:
        return self.room


@pytest.fixture(autouse=True)
def kernels_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any) -> None:
        arrays = [a.numpy() if isinstance(a, Tensor) else a for a in arguments]
        for array in arguments[1:3]:
            array.fill_(float("nan"))  # what a kernel reads there it must have written
        simt.evaluate_points(*arrays, HostEngine.reverse)

    monkeypatch.setattr(_ops, "evaluate_points_on_device", run)
    monkeypatch.setattr(HostEngine, "room", 1 << 30)
    monkeypatch.setattr(HostEngine, "reverse", False)


@contextlib.contextmanager
def but_for_uneven_padding() -> Iterator[None]:
    """Leaves out random networks with what has no kernels on a GPU."""
    try:
        yield
    except NotCovered as obstacle:
        assume("pads its two sides differently" not in str(obstacle))
        raise


def on_host(model: nn.Module, loss: Any, data: Any, precision: str = "fast") -> pl.Objective:
    """An objective in float32 that runs at all points on the engine for GPUs."""
    objective = pl.Objective(copy.deepcopy(model).float(), loss, data, engine="torch")
    objective._native = HostEngine(objective._engine, precision)
    return objective


def exact(model: nn.Module, loss: Any, data: Any) -> pl.Objective:
    return pl.Objective(copy.deepcopy(model).double(), loss, data, engine="torch")


def classifier(model: nn.Module, samples: int, *shape: int) -> tuple[Tensor, Tensor]:
    inputs = normal(samples, *shape, seed=samples)
    with torch.no_grad():
        classes = copy.deepcopy(model).eval()(inputs[:1]).shape[1]
    return inputs, labels(samples, classes)


def both_ways(
    objective: pl.Objective, directions: pl.Directions, points: int = 3
) -> tuple[Tensor, Tensor]:
    """Losses with the directions stored and with them generated in the kernels."""
    count, losses = len(directions), []
    coordinates = torch.randn(points, count, dtype=torch.float64, generator=seeded())
    engine = objective._native
    assert isinstance(engine, HostEngine)
    for stored in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CudaPlan, "stores", lambda *_: stored)  # noqa: B023
            packed = engine._pack_along(objective.center, directions)
            assert isinstance(packed, Generated) is not stored
            found = objective.evaluate_along(objective.center, directions, coordinates)
        losses.append(found["loss"])
    return losses[0], losses[1]


CONVOLUTIONS = {
    "a fused max-pool, odd sides": (nn.Conv2d(3, 7, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
    "a fused mean": (nn.Conv2d(3, 18, 3), nn.BatchNorm2d(18), nn.ReLU(), nn.AvgPool2d(2)),
    "groups, stride, dilation": (nn.Conv2d(3, 6, (3, 2), 2, (1, 0), (2, 1), groups=3), nn.SiLU()),
    "many outputs": (nn.Conv2d(3, 70, 1, bias=False), nn.ReLU(), nn.AvgPool2d(3)),
}


def convnet(name: str) -> nn.Module:
    torch.manual_seed(1)
    head = nn.Sequential(*copy.deepcopy(CONVOLUTIONS[name]), nn.Flatten(), nn.LazyLinear(5))
    head(torch.zeros(2, 3, 9, 7))
    return randomised(head)
