"""Directions that the CUDA kernels generate where they use them, against the stored ones."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import mlp, seeded
from random_models import Problem, problems, randomised
from simt.host import (
    CONVOLUTIONS,
    HostEngine,
    both_ways,
    but_for_uneven_padding,
    classifier,
    convnet,
    exact,
    kernels_on_the_host,
    on_host,
)
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.cuda import Generated
from pylandscape.engines.cuda_plan import STORED_SHARE

__all__ = ["kernels_on_the_host"]


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(problems(9), st.integers(1, 3), st.sampled_from(["filter", "model"]))
def test_generated_directions_are_the_stored_ones_to_the_bit(
    problem: Problem, count: int, normalize: str
) -> None:
    with but_for_uneven_padding():
        objective = on_host(*problem)
    directions = pl.random_directions(objective, count, objective.samples, normalize, ignore=None)
    stored, generated = both_ways(objective, directions)
    assert torch.equal(stored, generated)


@pytest.mark.parametrize("precision", ["fast", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["mlp", *CONVOLUTIONS])
def test_generated_directions_in_every_product(name: str, precision: str) -> None:
    model = mlp(6, 3) if name == "mlp" else convnet(name)
    data = classifier(model, 9, *((6,) if name == "mlp" else (3, 9, 7)))
    objective = on_host(model, nn.CrossEntropyLoss(), data, precision)
    directions = pl.random_directions(objective, 2, seed=5)
    stored, generated = both_ways(objective, directions)
    assert torch.equal(stored, generated)
    if precision == "fast":
        at = torch.randn(3, 2, dtype=torch.float64, generator=seeded())
        there = exact(model, nn.CrossEntropyLoss(), data)
        expected = there.evaluate_along(there.center, directions, at)["loss"]
        torch.testing.assert_close(generated, expected, rtol=2e-5, atol=0)


class Tied(nn.Module):
    """A weight that two layers share, a layer that is fixed, and norms of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7, bias=False)
        self.second.weight = self.first.weight
        self.fixed = nn.Linear(7, 5).requires_grad_(False)
        self.norm, self.last = nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).tanh()).tanh()
        return self.last(self.norm(self.fixed(x)))


@pytest.mark.parametrize("count", [1, 3])
def test_generated_directions_of_tied_and_fixed_layers(count: int) -> None:
    model = randomised(Tied())
    data = classifier(model, 20, 7)
    objective = on_host(model, nn.CrossEntropyLoss(), data)
    stored, generated = both_ways(objective, pl.random_directions(objective, count, ignore=None))
    assert torch.equal(stored, generated)


def test_directions_are_generated_where_they_would_take_much_memory() -> None:
    model = mlp(6, 3)
    objective = on_host(model, nn.CrossEntropyLoss(), classifier(model, 10, 6))
    engine = objective._native
    assert isinstance(engine, HostEngine)
    taken = 4 * 2 * engine.plan.packed
    drawn = pl.random_directions(objective, 2)
    for room, generated in [(taken / STORED_SHARE, False), (taken / STORED_SHARE - 1, True)]:
        HostEngine.room = int(room)
        packed = engine._pack_along(objective.center, drawn)
        assert isinstance(packed, Generated) is generated
        if generated:
            assert packed.packed.shape == (1, engine.plan.packed)
            vectors = drawn.vectors.double().abs().sum(1)
            assert bool((packed.norms[1:] >= vectors).all())
        given_vectors = pl.Directions.from_vectors(objective, drawn.vectors)
        assert isinstance(engine._pack_along(objective.center, given_vectors), Tensor)
