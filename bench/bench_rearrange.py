"""rearrange against what torch has for elements in another order.

The weights of a Linear behind an image into the panels of the kernels, and derivatives back, from
float64 to float32 and divided.
"""

from collections.abc import Callable

import pytest
import torch

from pylandscape import _ops
from pylandscape.engines import packing


@pytest.mark.parametrize("back", [False, True], ids=["to the kernels", "back"])
@pytest.mark.parametrize("outputs", [128, 1024])
def test_rearrange(compare: Callable[..., dict[str, float]], outputs: int, back: bool) -> None:
    columns = torch.arange(32 * 49).view(32, 49).T.reshape(-1)
    movement = packing.Movement(
        lambda weight: packing.linear_weights(weight, columns, 16), (outputs, 32 * 49)
    )
    elements = movement.places() if back else movement.elements()
    source = torch.randn(len(elements), dtype=torch.float64 if back else torch.float32)
    scale = 1 / 1024 if back else 1.0
    segments, out = torch.tensor([[0, len(elements), 0]]), torch.empty(len(elements))
    index, wide, room = elements - 1, elements.long() - 1, torch.empty_like(source)

    compiled = torch.compile(lambda given: (given[wide] * scale).float(), dynamic=False)

    def gathered(take: Callable[[], object]) -> torch.Tensor:
        take()
        return out.copy_(room.mul_(scale)) if back else room

    ways = {
        "ours": lambda: _ops.rearrange(source, elements, segments, out, scale),
        "torch.index_select": lambda: gathered(
            lambda: torch.index_select(source, 0, index, out=room)
        ),
        "torch.take": lambda: gathered(lambda: torch.take(source, wide, out=room)),
        "torch.compile": lambda: compiled(source),
    }
    expected = (source.double()[wide] * scale).float()
    for way in ways.values():
        torch.testing.assert_close(way(), expected, rtol=1e-6, atol=0)
    compare(ways, figures=lambda s: {"million_per_second": 1e-6 * len(elements) / s["ours"]})
