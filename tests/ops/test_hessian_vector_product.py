"""hessian_vector_product called as an operator; more of its products in test_derivatives.py."""

from typing import Any

import pytest
import torch
from models import labels, normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops
from pylandscape.engines.derivatives.engine import NativeDerivatives

SAMPLES = 200


class Case:
    """A softmax regression, its closed-form Hessian, and the arguments of the operator."""

    def __init__(self, directions: int = 2) -> None:
        torch.manual_seed(0)
        model, self.data = nn.Linear(4, 5, bias=False), (normal(SAMPLES, 4), labels(SAMPLES, 5))
        inputs, targets = self.data
        objective = pl.Objective(model, nn.CrossEntropyLoss(), (inputs.float(), targets))
        native: NativeDerivatives = objective.native_derivatives
        self.weight = model.weight.detach().double()
        self.vectors = normal(directions, 20, seed=1)
        self.tape = tape = native._tape("hessian")
        state = native.native._state(objective.center)
        self.state = state
        self.packed = torch.zeros(1 + directions, tape.packed + tape.folded)
        for row, vector in zip(self.packed, [objective.center, *self.vectors.float()], strict=True):
            tape.pack_point(vector, {"weight": vector.view(5, 4)}, row)
        self.chunk = 1
        self.arguments: list[Any] = [
            self.packed, native.native._inputs, native.native._targets, tape.point, tape.along,
            tape.constants(state), tape.indices,
        ]  # fmt: skip

    def run(self, *ranges: tuple[int, int], kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        products = torch.zeros(max(1, len(self.packed) - 1), self.tape.gradient).double()
        sums = torch.zeros(7, dtype=torch.float64)
        given = torch.zeros(0, 0) if kept is None else kept
        for first, last in ranges:
            _ops.hessian_vector_product(
                products, sums, *self.arguments, given, self.tape.kept, False, self.chunk,
                first, last,
            )  # fmt: skip
        found = torch.zeros(len(products), 20)
        for row, out in zip(products, found, strict=True):
            self.tape.unpack(row, self.state, 1.0, out)
        return found.double(), sums

    def naive(self, first: int = 0, last: int = SAMPLES) -> Tensor:
        """sum_i (diag p - p p') V x x' for each direction."""
        x = self.data[0][first:last]
        p = (x @ self.weight.T).softmax(1)
        rows = []
        for v in self.vectors.view(-1, 5, 4):
            z = x @ v.T
            rows.append(((p * z - p * (p * z).sum(1, keepdim=True)).T @ x).reshape(-1))
        return torch.stack(rows)


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_against_the_closed_form(level: str, directions: int) -> None:
    case = Case(directions)
    found, sums = case.run((0, SAMPLES))
    torch.testing.assert_close(found, case.naive(), rtol=2e-5, atol=2e-5)
    assert sums[3] == sums[6] == SAMPLES


def test_ranges_add_up(level: str) -> None:
    case = Case()
    block = case.tape.block
    assert block < SAMPLES
    found, sums = case.run((0, block), (block, SAMPLES), (0, 0))
    torch.testing.assert_close(found, case.naive(), rtol=2e-5, atol=2e-5)
    whole, all_sums = case.run((0, SAMPLES))
    assert torch.equal(found, whole)
    torch.testing.assert_close(sums, all_sums, rtol=1e-12, atol=0)
    part, _ = case.run((block, block + 7))
    torch.testing.assert_close(part, case.naive(block, block + 7), rtol=2e-5, atol=2e-5)


def test_chunks_change_rounding_only() -> None:
    case = Case()
    one, _ = case.run((0, SAMPLES))
    case.chunk = 100
    torch.testing.assert_close(case.run((0, SAMPLES))[0], one, rtol=1e-5, atol=1e-5)


def test_what_is_kept_is_written(level: str) -> None:
    case = Case()
    kept = torch.zeros(-(-SAMPLES // case.tape.block), case.tape.kept)
    found, _ = case.run((0, SAMPLES), kept=kept)
    assert torch.equal(found, case.run((0, SAMPLES))[0])
    assert bool((kept != 0).any(1).all())


def test_bad_arguments() -> None:
    case = Case()
    case.arguments[0] = case.packed[:, :-16].contiguous()
    with pytest.raises(ValueError, match="packed must have"):
        case.run((0, SAMPLES))
    case = Case()
    case.chunk = 2
    with pytest.raises(ValueError, match="must start with a chunk"):
        case.run((case.tape.block, SAMPLES))
    case.arguments[4] = case.arguments[4][:9]
    with pytest.raises(ValueError, match="plan must be whole"):
        case.run((0, SAMPLES))


def test_opcheck() -> None:
    case = Case()
    products, sums = torch.zeros(2, case.tape.gradient).double(), torch.zeros(7).double()
    kept = torch.zeros(-(-SAMPLES // case.tape.block), case.tape.kept)
    torch.library.opcheck(
        torch.ops.pylandscape.hessian_vector_product.default,
        (products, sums, *case.arguments, kept, case.tape.kept, False, 1, 0, SAMPLES),
    )
