"""filter_norms against the best PyTorch: one norm per filter of every tensor of a net."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pylandscape import _ops

Compare = Callable[..., dict[str, float]]

# (rows, inner) of every parameter: the study's CNN, VGG-11 without its first Linear, a wide Linear
SMALL = [(16, 9), (1, 16), (32, 144), (1, 32), (128, 1568), (1, 128), (10, 128), (1, 10)]
VGG = [
    (64, 27), (128, 576), (256, 1152), (256, 2304), (512, 2304), (512, 4608), (512, 4608),
    (512, 4608),
]  # fmt: skip
NETS = {"small": SMALL, "vgg": [part for rows, n in VGG for part in ((rows, n), (1, rows))],
        "linear": [(4096, 4096)]}  # fmt: skip


def make(net: str) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """A vector, its filter table, and (offset, rows, inner) of every tensor."""
    offset, parts = 0, []
    for rows, inner in NETS[net]:
        parts.append((offset, rows, inner))
        offset += rows * inner
    table = torch.tensor([(start, 1, rows, inner) for start, rows, inner in parts])
    return torch.randn(offset, generator=torch.Generator().manual_seed(0)), table, parts


def norms(vector: Tensor, parts: list[tuple[int, int, int]]) -> Tensor:
    """In float32, which is less work."""
    return torch.cat(
        [
            torch.linalg.vector_norm(vector[start : start + rows * n].view(rows, n), dim=1)
            for start, rows, n in parts
        ]
    )


@pytest.mark.parametrize("net", NETS)
def test_stored(compare: Compare, net: str) -> None:
    vector, table, parts = make(net)
    compiled = torch.compile(lambda v: norms(v, parts), dynamic=False)
    expected = norms(vector.double(), parts)
    torch.testing.assert_close(_ops.filter_norms(vector, table), expected)
    torch.testing.assert_close(compiled(vector).double(), expected, rtol=1e-4, atol=0)
    compare(
        {
            "ours": lambda: _ops.filter_norms(vector, table),
            "torch": lambda: norms(vector, parts),
            "torch.compile": lambda: compiled(vector),
        },
        figures=lambda s: {"gigabytes_per_second": 4e-9 * len(vector) / s["ours"]},
    )


@pytest.mark.parametrize("net", NETS)
def test_generated(compare: Compare, net: str) -> None:
    """The norms of a random direction that is never stored."""
    vector, table, parts = make(net)
    generator = torch.Generator()

    def draw() -> Tensor:
        return norms(torch.randn(len(vector), generator=generator.manual_seed(3)), parts)

    expected = norms(_ops.random_normal(3, len(vector)).double(), parts)
    torch.testing.assert_close(_ops.normal_filter_norms(3, table), expected)
    compare({"ours": lambda: _ops.normal_filter_norms(3, table), "torch": draw})
