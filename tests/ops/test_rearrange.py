"""rearrange against indexing."""

import pytest
import torch
from models import normal
from torch import Tensor

from pylandscape import _ops


def by_indexing(source: Tensor, elements: Tensor, segments: Tensor, out: Tensor) -> Tensor:
    """In float64, times three."""
    found = 3 * torch.cat((source.new_zeros(1), source)).double()[elements.long()]
    expected, used = out.double(), 0
    for first, count in segments.tolist():
        expected[first : first + count] = found[used : used + count]
        used += count
    return expected.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "segments",
    [
        [],
        [(0, 0)],
        [(4, 1)],
        [(3, 2), (0, 1), (9, 1)],
        [(0, 16_383), (16_384, 16_384), (40_000, 40_001)],
    ],
)
def test_elements_are_found(segments: list[tuple[int, int]], dtype: torch.dtype) -> None:
    source, table = normal(333).to(dtype), torch.tensor(segments).long().view(-1, 2)
    count = int(table[:, 1].sum())
    generator = torch.Generator().manual_seed(count)
    elements = torch.randint(0, 334, (count,), generator=generator, dtype=torch.int32)
    out = torch.full((80_010,), 7.0)
    expected = by_indexing(source, elements, table, out)
    assert _ops.rearrange(source, elements, table, out, 3.0) is out
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=0)


def test_bad_arguments() -> None:
    right = {
        "source": torch.zeros(4),
        "elements": torch.zeros(3, dtype=torch.int32),
        "segments": torch.tensor([[0, 3]]),
        "out": torch.zeros(3),
    }
    wrong = {
        "source": (torch.zeros(2, 2), torch.zeros(4).half(), torch.zeros(8)[::2]),
        "elements": (torch.zeros(3), torch.zeros(3).long(), right["elements"][:2]),
        "segments": (
            torch.tensor([0, 3]),
            torch.tensor([[0, 3]]).int(),
            torch.tensor([[1, 3]]),
            torch.tensor([[-1, 3]]),
            torch.tensor([[0, 4], [0, -1]]),
        ),
        "out": (torch.zeros(3).double(), torch.zeros(3, 1), torch.zeros(6)[::2]),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"rearrange: {name} must"):
                _ops.rearrange(**{**right, name: value})


def test_opcheck() -> None:
    elements = torch.tensor([2, 0, 1], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.pylandscape.rearrange.default,
        (torch.zeros(4), torch.ones(2), elements, torch.tensor([[0, 2], [3, 1]]), 2.0),
    )
