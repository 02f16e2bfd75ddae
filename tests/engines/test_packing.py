"""Movements of parameters into the kernels' order, and back."""

from collections.abc import Callable

import pytest
import torch
from models import normal
from torch import Tensor

from pylandscape.engines import packing

Pack = Callable[[Tensor], Tensor]

# by the layout they have, a strided one where that exists
PACKINGS: dict[str, tuple[bool, tuple[int, ...], Pack]] = {
    "as it is": (True, (3, 5), lambda w: w.reshape(-1)),
    "transposed": (True, (3, 5), lambda w: w.T.reshape(-1)),
    "one element": (True, (1, 1), lambda w: w.reshape(-1)),
    "one panel": (True, (8, 6), lambda w: packing.panels(w, 4)),
    "whole panels": (True, (16, 6), lambda w: packing.panels(w, 4)),
    "filters": (True, (16, 3, 2, 3), lambda w: packing.direct_filters(w, 1, 3, True, 4)),
    "columns of an image": (
        True,
        (8, 12),
        lambda w: packing.linear_weights(w, torch.arange(12).view(3, 4).T.reshape(-1), 4),
    ),
    "half a panel behind": (False, (12, 6), lambda w: packing.panels(w, 4)),
    "padded": (False, (5, 6), lambda w: packing.panels(w, 4)),
    "turned": (False, (2, 3), lambda w: w.flip(0, 1).reshape(-1)),
    "rolled": (False, (6,), lambda w: w.roll(2)),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_movements(name: str) -> None:
    is_strided, shape, pack = PACKINGS[name]
    movement = packing.Movement(pack, shape)
    assert (movement._strides is not None) == is_strided
    tensor = normal(*shape)
    wide = normal(*shape, 3)[..., 1]  # a column of a block of directions
    turned = normal(*reversed(shape)).permute(*reversed(range(len(shape))))
    for each in (tensor, wide, turned, tensor.float()):
        packed = movement(each)
        assert torch.equal(packed, pack(each))
        assert torch.equal(movement.undo(packed), each)


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
