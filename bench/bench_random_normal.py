"""random_normal against torch.randn; the numbers differ, so their moments are compared."""

from collections.abc import Callable

import pytest
import torch

from pylandscape import _ops


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_random_normal(compare: Callable[..., dict[str, float]], size: int) -> None:
    seeds = torch.tensor([7])
    generator = torch.Generator()
    for numbers in (_ops.random_normal(seeds, size), torch.randn(size)):
        assert abs(float(numbers.mean())) < 5 / size**0.5
        assert abs(float(numbers.std()) - 1) < 5 / size**0.5
    compare(
        {
            "ours": lambda: _ops.random_normal(seeds, size),
            "torch.randn": lambda: torch.randn(size, generator=generator.manual_seed(7)),
        },
        figures=lambda s: {"million_per_second": 1e-6 * size / s["ours"]},
    )
