"""perturb against the best PyTorch: points center + coordinates @ directions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pylandscape import _ops

Compare = Callable[..., dict[str, float]]

# parameters and points: `small` of the study with a few points and with many, a larger net
SIZES = [(218_000, 1), (218_000, 16), (4_000_000, 1), (4_000_000, 4)]


def make(size: int, points: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    center, directions, coordinates = (
        torch.randn(shape, generator=generator)
        for shape in ((size,), (count, size), (points, count))
    )
    return center, directions, coordinates, torch.empty(points, size)


def one_pass(center: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    """What torch.compile fuses best."""
    return center + (coordinates.unsqueeze(2) * directions).sum(dim=1)


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize(("size", "points"), SIZES)
def test_stored(compare: Compare, size: int, points: int, count: int) -> None:
    center, directions, coordinates, out = make(size, points, count)
    compiled = torch.compile(one_pass, dynamic=False)

    def ours() -> Tensor:
        return _ops.perturb(center, directions, coordinates, out=out)

    def addmm() -> Tensor:
        return torch.addmm(center, coordinates, directions, out=out)

    def fused() -> Tensor:
        return compiled(center, directions, coordinates)

    mine = ours().clone()
    for peer in (addmm, fused):
        torch.testing.assert_close(mine, peer(), rtol=1e-5, atol=1e-5)
    traffic = 4e-9 * size * (1 + count + points)
    compare(
        {"ours": ours, "torch addmm": addmm, "torch.compile": fused},
        figures=lambda s: {"gigabytes_per_second": traffic / s["ours"]},
    )


@pytest.mark.parametrize(("size", "points"), SIZES)
def test_generated(compare: Compare, size: int, points: int) -> None:
    """Two random filter-normalised directions: no memory, against drawing or storing them."""
    center, _, coordinates, out = make(size, points, 2)
    inner = 500
    table = torch.tensor([[0, 1, size // inner, inner]])
    seeds = torch.tensor([1, 2])
    scales = torch.rand(2, size // inner, dtype=torch.float64)
    per_filter = scales.float().unsqueeze(2)
    stored = (_ops.random_normal(seeds, size).view(2, -1, inner) * per_filter).view(2, size)
    generator = torch.Generator()

    def ours() -> Tensor:
        return _ops.perturb_random(center, seeds, scales, table, coordinates, out=out)

    def draw() -> Tensor:
        raw = torch.stack(
            [torch.randn(size, generator=generator.manual_seed(seed)) for seed in (1, 2)]
        )
        directions = (raw.view(2, -1, inner) * per_filter).view(2, size)
        return torch.addmm(center, coordinates, directions, out=out)

    torch.testing.assert_close(
        ours(), torch.addmm(center, coordinates, stored), rtol=1e-5, atol=1e-5
    )
    compare(
        {"ours": ours, "torch randn and addmm": draw},
        figures=lambda s: {"million_normals_per_second": 2e-6 * size / s["ours"]},
    )
