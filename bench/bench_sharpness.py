"""The measures of sharpness that take many gradients, as they run and through PyTorch alone.

On `small` with 2,000 digits and the default number of steps. The ceiling is 20 s for each; the
values are compared first. Losses and gradients run through whatever engine `Objective` has for
them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from digits import mnist
from networks import small, trained
from torch import nn

import pylandscape as pl

MEASURES: dict[str, Callable[[pl.Objective], Any]] = {
    "ball": pl.sharpness.ball,
    "keskar": pl.sharpness.keskar,
    "adaptive_l2": lambda objective: pl.sharpness.adaptive(objective, "l2"),
    "adaptive_linf": lambda objective: pl.sharpness.adaptive(objective, "linf"),
}
CEILING = 20.0  # seconds
SAMPLES = 2000


@pytest.mark.parametrize("measure", MEASURES)
def test_sharpness(compare: Callable[..., dict[str, float]], measure: str) -> None:
    torch.manual_seed(0)
    data = mnist(SAMPLES)
    model = trained(small(), *data)
    function = MEASURES[measure]
    objectives = {
        name: pl.Objective(model, nn.CrossEntropyLoss(), data, engine=engine)
        for name, engine in (("native", "native"), ("torch", "torch"))
    }
    found = {name: function(objective) for name, objective in objectives.items()}
    values = [each.value for each in found.values()]
    assert abs(values[0] / values[1] - 1) < 0.02  # another rounding, another path of the ascent

    def figures(seconds: dict[str, float]) -> dict[str, float]:
        return {
            "ceiling_seconds": CEILING,
            "seconds": seconds["native"],
            "ms_per_gradient": 1e3 * seconds["native"] / found["native"].evaluations,
        }

    candidates = {name: lambda o=o: function(o) for name, o in objectives.items()}
    compare(candidates, repeats=1, figures=figures)  # long ones: two readings with the first
