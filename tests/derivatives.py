"""Native derivatives beside those of the torch engine in float64."""

import copy
from typing import Any

import pytest
import torch
from models import normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.derivatives import engine
from pylandscape.engines.derivatives.engine import NativeDerivatives

KINDS = ("hessian", "ggn", "fisher")


def natively(objective: pl.Objective) -> NativeDerivatives:
    return objective.native_derivatives


def objectives(
    model: nn.Module, loss: Any, data: tuple[Tensor, Tensor], **settings: Any
) -> tuple[pl.Objective, pl.Objective]:
    """One in float32 with these settings, and the torch engine in float64."""
    exact, exact_loss = copy.deepcopy(model).double().eval(), copy.deepcopy(loss).double()
    inputs, targets = data
    as_float = targets.float() if targets.is_floating_point() else targets
    mine = pl.Objective(model.float().eval(), loss, (inputs.float(), as_float), **settings)
    return mine, pl.Objective(exact, exact_loss, (inputs.double(), targets), engine="torch")


def pair(
    model: nn.Module, loss: Any, data: tuple[Tensor, Tensor], precision: str = "fast"
) -> tuple[NativeDerivatives, pl.Objective]:
    """Native derivatives in float32 and the torch engine in float64."""
    mine, exact = objectives(model, loss, data, engine="native", precision=precision)
    return natively(mine), exact


def relative(found: Tensor, expected: Tensor) -> float:
    scale = torch.linalg.vector_norm(expected)
    return float(torch.linalg.vector_norm(found.double() - expected) / (scale + 1e-12))


def assert_agree(
    native: NativeDerivatives, exact: pl.Objective, columns: int = 2, bound: float = 2e-5
) -> None:
    point = exact.center.float()
    loss, gradient = native.loss_and_gradient(point)
    expected_loss, expected = exact.loss_and_gradient(point.double())
    assert abs(float(loss) - expected_loss) < 1e-5 * abs(expected_loss) + 1e-6
    assert relative(gradient, expected) < bound
    vectors = normal(exact.space.size, columns, seed=3)
    for kind in KINDS:
        name = f"{kind}_vector_product"
        found = getattr(native, name)(point, vectors.float())
        right = getattr(exact, name)(vectors, at=point.double())
        # the product may be small beside the terms that cancel in it
        floor = 1e-6 * float(torch.linalg.vector_norm(vectors))
        difference = float(torch.linalg.vector_norm(found.double() - right))
        assert difference < bound * float(torch.linalg.vector_norm(right)) + floor, kind


def assert_nearer_than_torch(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, loss: Any, data: tuple[Tensor, Tensor]
) -> None:
    """Of native derivatives that were refused: torch's float32 is further from float64."""
    monkeypatch.setattr(engine, "TOLERANCE", float("inf"))
    native, exact = pair(model, loss, data)
    torchs, _ = objectives(model, loss, data, engine="torch")
    point, v = exact.center, normal(exact.space.size, seed=3)
    right = exact.hessian_vector_product(v)
    found = native.hessian_vector_product(point.float(), v.float())
    assert relative(found, right) < relative(torchs.hessian_vector_product(v.float()), right)


def products(native: NativeDerivatives, columns: int = 3) -> Tensor:
    point = native.space.flatten(native.reference.module.model)
    vectors = normal(len(point), columns, seed=5).float()
    return torch.cat([getattr(native, f"{k}_vector_product")(point, vectors) for k in KINDS])


def assert_threads_change_no_bit(native: NativeDerivatives) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        native.forget()
        results.append(products(native, columns=1))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
