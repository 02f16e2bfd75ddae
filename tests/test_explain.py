"""What pl.explain says of covered and of other objectives."""

from typing import Any

import pytest
import torch
from models import convnet, labels, mlp, normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops


def images(model: nn.Module | None = None, **options: Any) -> pl.Objective:
    model = convnet() if model is None else model
    data = normal(12, 1, 6, 6), labels(12, 3)
    return pl.Objective(model.float(), nn.CrossEntropyLoss(), data, **options)


def test_a_covered_model() -> None:
    text = str(pl.explain(images()))
    head, operators, kernels, memory = text.split("\n\n")
    assert head.startswith(f"engine: native from 16 points on, {_ops.isa()}, precision 'fast'")
    assert [line.split()[0] for line in operators.splitlines()[1:-1]] == [
        "input", "conv", "relu", "max_pool", "reindex", "linear",
    ]  # fmt: skip
    assert "3: weight, bias" not in operators
    assert "4: weight, bias" in operators
    lines = kernels.splitlines()
    assert lines[1].split() == ["1", "load"]
    assert "conv 3x3" in lines[2]
    assert "pool 2x2" in lines[2]
    assert lines[-1].split()[1:] == ["loss", "cross_entropy"]
    assert "samples" in memory
    assert "per thread" in memory


def test_it_shows_as_it_prints() -> None:
    text = pl.explain(images(engine="native"))
    assert repr(text) == str(text)
    assert text.startswith("engine: native, ")


def test_it_does_not_change_the_engine_in_use() -> None:
    objective = images()
    pl.explain(objective)
    assert objective.engine == "torch"
    assert objective.loss() == images(engine="torch").loss()


def test_a_linear_layer_that_comes_first() -> None:
    data = normal(12, 4), labels(12, 3)
    text = pl.explain(pl.Objective(mlp().float(), nn.CrossEntropyLoss(), data))
    assert "one product per direction" in text


def test_what_is_in_the_way() -> None:
    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    line = Cube.forward.__code__.co_firstlineno + 1
    text = pl.explain(images(nn.Sequential(convnet(), Cube())))
    assert text == (
        f"engine: PyTorch, because aten.pow at test_explain.py:{line} (return x**3) has a native "
        "kernel for squares only."
    )


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "chosen": ({"engine": "torch"}, "as chosen by engine='torch'"),
    "dtype": ({"dtype": torch.float64}, "computes in float32, not torch.float64"),
    "batchnorm": ({"model": convnet(norm=True), "batchnorm": "batch"}, "policy 'batch'"),
    "metric": ({"metrics": {"top": lambda outputs, targets: outputs.amax(1)}}, "metric 'top'"),
}


@pytest.mark.parametrize("name", REASONS)
def test_choices(name: str) -> None:
    options, reason = REASONS[name]
    text = pl.explain(images(**options))
    assert text.startswith("engine: PyTorch, ")
    assert reason in text
    assert "\n" not in text


def test_something_else() -> None:
    with pytest.raises(TypeError, match="explain: objective must be an Objective, got Linear"):
        pl.explain(nn.Linear(2, 2))  # type: ignore[arg-type]
