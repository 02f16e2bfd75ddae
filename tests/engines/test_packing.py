"""Movements of parameters into the kernels' order, and back."""

from collections.abc import Callable

import pytest
import torch
from models import normal
from torch import Tensor

from pylandscape.engines import packing

Pack = Callable[[Tensor], Tensor]

# by the number of strided copies that they are, 0 where there are none
PACKINGS: dict[str, tuple[int, tuple[int, ...], Pack]] = {
    "as it is": (1, (3, 5), lambda w: w.reshape(-1)),
    "transposed": (1, (3, 5), lambda w: w.T.reshape(-1)),
    "one element": (1, (1, 1), lambda w: w.reshape(-1)),
    "one panel": (1, (8, 6), lambda w: packing.panels(w, 4)),
    "whole panels": (1, (16, 6), lambda w: packing.panels(w, 4)),
    "filters": (1, (16, 3, 2, 3), lambda w: packing.direct_filters(w, 1, 3, True, 4)),
    "columns of an image": (
        1,
        (8, 12),
        lambda w: packing.linear_weights(w, torch.arange(12).view(3, 4).T.reshape(-1), 4),
    ),
    "half a panel behind": (2, (12, 6), lambda w: packing.panels(w, 4)),
    "half a panel behind two": (0, (20, 6), lambda w: packing.panels(w, 4)),
    "inputs, half a panel behind": (
        2,
        (4, 15),
        lambda w: packing.input_panels(w, torch.arange(15), 1, 12),
    ),
    "padded": (0, (5, 6), lambda w: packing.panels(w, 4)),
    "turned": (0, (2, 3), lambda w: w.flip(0, 1).reshape(-1)),
    "rolled": (0, (6,), lambda w: w.roll(2)),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_movements(name: str) -> None:
    pieces, shape, pack = PACKINGS[name]
    movement = packing.Movement(pack, shape, cut=48)
    assert len(movement._pieces or []) == pieces
    tensor = normal(*shape)
    wide = normal(*shape, 3)[..., 1]  # a column of a block of directions
    turned = normal(*reversed(shape)).permute(*reversed(range(len(shape))))
    for each in (tensor, wide, turned, tensor.float()):
        packed = movement(each)
        assert torch.equal(packed.reshape(-1), pack(each))
        assert torch.equal(movement.undo(packed.reshape(-1)), each)


@pytest.mark.parametrize("numbers", [[0], [0, 1, 2], [0, 2, 1, 3], [0, 4, 1, 5, 2, 6, 3, 7]])
def test_strides(numbers: list[int]) -> None:
    found = packing.strides(torch.tensor(numbers))
    assert found is not None
    assert torch.arange(len(numbers)).as_strided(*found).reshape(-1).tolist() == numbers


@pytest.mark.parametrize(
    "numbers", [[1, 2], [2, 1, 0], [0, 1, 3], [0, 1, 3, 2], [0, 1, 2, 3, 5, 4]]
)
def test_without_strides(numbers: list[int]) -> None:
    assert packing.strides(torch.tensor(numbers)) is None
