"""rearrange against indexing."""

import pytest
import torch
from models import normal
from torch import Tensor

from pylandscape import _ops


def by_indexing(source: Tensor, elements: Tensor, segments: Tensor, out: Tensor) -> Tensor:
    """In float64, times three."""
    found = 3 * torch.cat((source.new_zeros(1), source)).double()[elements.long()]
    expected = out.double()
    for first, count, element in segments.tolist():
        expected[first : first + count] = found[element : element + count]
    return expected.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "segments",
    [
        [],
        [(0, 0, 0)],
        [(4, 1, 49_999)],
        [(3, 2, 1), (0, 1, 2), (9, 1, 0)],
        [(0, 16_383, 7), (16_384, 16_384, 0), (40_000, 40_001, 9_999)],
    ],
)
def test_elements_are_found(
    level: str, segments: list[tuple[int, int, int]], dtype: torch.dtype
) -> None:
    source, table = normal(333).to(dtype), torch.tensor(segments).long().view(-1, 3)
    generator = torch.Generator().manual_seed(0)
    elements = torch.randint(0, 334, (50_000,), generator=generator, dtype=torch.int32)
    out = torch.full((80_010,), 7.0)
    expected = by_indexing(source, elements, table, out)
    assert _ops.rearrange(source, elements, table, out, 3.0) is out
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=0)


def test_bad_arguments() -> None:
    right = {
        "source": torch.zeros(4),
        "elements": torch.zeros(3, dtype=torch.int32),
        "segments": torch.tensor([[0, 3, 0]]),
        "out": torch.zeros(3),
    }
    wrong = {
        "source": (torch.zeros(2, 2), torch.zeros(4).half(), torch.zeros(8)[::2]),
        "elements": (torch.zeros(3), torch.zeros(3).long()),
        "segments": (
            torch.tensor([0, 3, 0]),
            torch.tensor([[0, 3, 0]]).int(),
            torch.tensor([[1, 3, 0]]),
            torch.tensor([[0, 3, 1]]),
            torch.tensor([[-1, 3, 0]]),
            torch.tensor([[0, 3, -1]]),
            torch.tensor([[0, -1, 0]]),
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
        (torch.zeros(4), torch.ones(2), elements, torch.tensor([[0, 2, 0], [3, 1, 2]]), 2.0),
    )
