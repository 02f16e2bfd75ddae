"""A step of training a curve against an ordinary step of training, both in PyTorch.

The curve's step adds to the ordinary one the point of the curve, three readings of vectors [P], and
the chain rule to its bend. `cost` is its time over that of the ordinary step; the ceiling is 1.3 on
the study's net. A step of `mlp` takes half a millisecond, beside which the same vectors and the
calls from Python weigh more.
The gradients are compared first.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from digits import images, mnist
from networks import mlp, resnet20
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.study.model import SmallCNN

CASES = {  # network, steps in one reading of the clock
    "study": (SmallCNN, 20),
    "mlp": (mlp, 250),  # what a call costs once, 3 ms, must not count
    "resnet20": (resnet20, 3),
}
CEILING = 1.3
BATCH, SAMPLES = 128, 2048


def ordinary(model: nn.Module, data: tuple[Tensor, Tensor], steps: int) -> None:
    """Training as the study does it: shuffled batches, SGD with momentum, convolutions
    channels-last."""
    inputs, targets = data
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    order = torch.randperm(len(targets)).split(BATCH)
    for step in range(steps):
        index = order[step % len(order)]
        batch = inputs[index]
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        F.cross_entropy(model(batch), targets[index]).backward()
        optimizer.step()


@pytest.mark.parametrize("case", CASES)
def test_connect(compare: Callable[..., dict[str, float]], case: str) -> None:
    build, steps = CASES[case]
    data = images(SAMPLES) if case == "resnet20" else mnist(SAMPLES)
    torch.manual_seed(0)
    a, b = build(), build()
    objective = pl.Objective(a, nn.CrossEntropyLoss(), data)
    check_gradient(a, data)
    model = build().to(memory_format=torch.channels_last).train()

    def curve() -> pl.Curve:
        return pl.connect(objective, a, b, steps=steps, batch_size=BATCH, learning_rate=1e-3)

    def figures(seconds: dict[str, float]) -> dict[str, float]:
        return {
            "cost": seconds["curve"] / seconds["torch, ordinary training"],
            "ms_per_step": 1e3 * seconds["curve"] / steps,
        } | ({"ceiling": CEILING} if case == "study" else {})

    candidates = {
        "curve": curve,
        "torch, ordinary training": lambda: ordinary(model, data, steps),
    }
    compare(candidates, repeats=10, figures=figures)


def check_gradient(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """In float64: in float32 the two memory formats differ in what is rounded to zero."""
    model = copy.deepcopy(model).double().train()
    batch = data[0][:BATCH].double(), data[1][:BATCH]
    with pl.Objective(model, nn.CrossEntropyLoss(), batch).training() as step:
        loss, gradient = step(pl.ParameterSpace.from_model(model).flatten(model), batch)
    expected = F.cross_entropy(model(batch[0]), batch[1])
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.cat([slope.reshape(-1) for slope in slopes]))
