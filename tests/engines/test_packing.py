"""Movements of parameters into the kernels' order, and back."""

from collections.abc import Callable

import pytest
import torch
from models import normal
from torch import Tensor

from pylandscape.engines import packing

Pack = Callable[[Tensor], Tensor]

PACKINGS: dict[str, tuple[tuple[int, ...], Pack]] = {
    "as it is": ((3, 5), lambda w: w.reshape(-1)),
    "transposed": ((3, 5), lambda w: w.T.reshape(-1)),
    "one element": ((1, 1), lambda w: w.reshape(-1)),
    "whole panels": ((16, 6), lambda w: packing.panels(w, 4)),
    "half a panel behind": ((12, 6), lambda w: packing.panels(w, 4)),
    "padded": ((5, 6), lambda w: packing.panels(w, 4)),
    "filters": ((16, 3, 2, 3), lambda w: packing.direct_filters(w, 1, 3, True, 4)),
    "columns of an image": (
        (8, 12),
        lambda w: packing.linear_weights(w, torch.arange(12).view(3, 4).T.reshape(-1), 4),
    ),
    "inputs": ((4, 15), lambda w: packing.input_panels(w, torch.arange(15), 1, 12)),
    "many": ((300, 401), lambda w: packing.panels(w, 16)),
}


def movements() -> list[packing.Movement]:
    return [packing.Movement(pack, shape) for shape, pack in PACKINGS.values()]


@pytest.mark.parametrize("name", PACKINGS)
def test_a_movement_is_undone(name: str) -> None:
    shape, pack = PACKINGS[name]
    tensor = normal(*shape)
    assert torch.equal(packing.Movement(pack, shape).undo(pack(tensor)), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rearrangement_makes_all_packings_at_once(dtype: torch.dtype) -> None:
    """Into a vector with room between them, which stays as it is."""
    moved = movements()
    tensors = [normal(*shape).to(dtype) for shape, _ in PACKINGS.values()]
    vector = torch.cat([normal(3).to(dtype), *(t.reshape(-1) for t in tensors)])
    starts = [3, *(3 + torch.tensor([m.size for m in moved]).cumsum(0)).tolist()]
    expected, moves = [torch.full((5,), 7.0)], []
    for movement, tensor, start in zip(moved, tensors, starts, strict=False):
        moves.append((sum(map(len, expected)), packing.numbered_from(start, movement.elements())))
        expected += [movement.pack(tensor).float(), torch.full((5,), 7.0)]
    out = torch.full((sum(map(len, expected)),), 7.0)
    packing.Rearrangement(moves)(vector, out)
    assert torch.equal(out, torch.cat(expected))
    some = packing.Rearrangement(moves).only([moves[2][0], moves[5][0]])
    some(2 * vector, out)
    for index in (4 + 1, 10 + 1):
        expected[index] = 2 * expected[index]
    assert torch.equal(out, torch.cat(expected))


def test_a_rearrangement_takes_all_packings_back_at_once() -> None:
    moved = movements()
    packed = [movement.pack(normal(*shape)) for movement, (shape, _) in
              zip(moved, PACKINGS.values(), strict=True)]  # fmt: skip
    moves, read, written = [], 0, 0
    for movement, part in zip(moved, packed, strict=True):
        moves.append((written, packing.numbered_from(read, movement.places())))
        read, written = read + len(part), written + movement.size
    out = torch.full((written,), float("nan"))
    packing.Rearrangement(moves)(torch.cat(packed), out, 0.5)
    parts = [m.undo(part).reshape(-1) for m, part in zip(moved, packed, strict=True)]
    assert torch.equal(out, (0.5 * torch.cat(parts)).float())


def test_nothing_to_move() -> None:
    out = torch.full((3,), 7.0)
    packing.Rearrangement([])(torch.zeros(2), out)
    assert out.tolist() == [7.0] * 3
