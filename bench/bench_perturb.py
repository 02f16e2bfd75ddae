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


def _unrolled(center: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    """What torch.compile fuses into one pass."""
    points = center.expand(len(coordinates), -1)
    for j in range(len(directions)):
        points = points + coordinates[:, j : j + 1] * directions[j]
    return points


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize(("size", "points"), SIZES)
def test_stored(compare: Compare, size: int, points: int, count: int) -> None:
    center, directions, coordinates, out = make(size, points, count)
    mine, theirs = torch.empty_like(out), torch.empty_like(out)
    compiled = torch.compile(_unrolled, dynamic=False)

    def ours() -> Tensor:
        return _ops.perturb(center, directions, coordinates, out=mine)

    def addmm() -> Tensor:
        return torch.addmm(center, coordinates, directions, out=theirs)

    def fused() -> Tensor:
        return theirs.copy_(compiled(center, directions, coordinates))

    def fused_new_memory() -> Tensor:
        return compiled(center, directions, coordinates)

    for theirs_too in (addmm, fused):
        torch.testing.assert_close(ours(), theirs_too(), rtol=1e-5, atol=1e-5)
    candidates = {
        "ours": ours,
        "torch addmm": addmm,
        "torch.compile": fused_new_memory,
        "torch.compile into out": fused,
    }
    traffic = 4e-9 * size * (1 + count + points)
    compare(candidates, figures=lambda s: {"gigabytes_per_second": traffic / s["ours"]})


@pytest.mark.parametrize(("size", "points"), SIZES)
def test_generated(compare: Compare, size: int, points: int) -> None:
    """Two random filter-normalised directions: no memory, against drawing or storing them."""
    center, _, coordinates, mine = make(size, points, 2)
    theirs = torch.empty_like(mine)
    inner = 500
    table = torch.tensor([[0, 1, size // inner, inner]])
    seeds = torch.tensor([1, 2])
    scales = torch.rand(2, size // inner, dtype=torch.float64)
    per_filter = scales.float().unsqueeze(2)
    stored = (_ops.random_normal(seeds, size).view(2, -1, inner) * per_filter).view(2, size)
    generator = torch.Generator()

    def ours() -> Tensor:
        return _ops.perturb_random(center, seeds, scales, table, coordinates, out=mine)

    def draw() -> Tensor:
        raw = torch.stack(
            [torch.randn(size, generator=generator.manual_seed(seed)) for seed in (1, 2)]
        )
        directions = (raw.view(2, -1, inner) * per_filter).view(2, size)
        return torch.addmm(center, coordinates, directions, out=theirs)

    torch.testing.assert_close(
        ours(), torch.addmm(center, coordinates, stored), rtol=1e-5, atol=1e-5
    )
    compare(
        {"ours": ours, "torch randn and addmm": draw},
        figures=lambda s: {"million_normals_per_second": 2e-6 * size / s["ours"]},
    )
