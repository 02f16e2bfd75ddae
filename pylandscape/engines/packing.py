"""Parameters in the order in which the kernels read them.

Every function here is linear in its tensor, so that packing the centre and the directions once and
adding the packed vectors gives the packed parameters of any point.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape.engines.layout import round_up

# Winograd's transform of a 3x3 filter, G w G', for outputs of 2x2 and of 4x4.
_WINOGRAD = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


def padded(tensor: Tensor, size: int) -> Tensor:
    """Zeros behind the last dimension, up to `size`."""
    return torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1]))


def channel_vector(vector: Tensor, lanes: int) -> Tensor:
    """One float per channel; a panel that starts at any channel may be read to its end."""
    return padded(vector.reshape(-1), vector_room(vector.numel(), lanes))


def vector_room(channels: int, lanes: int) -> int:
    return round_up(channels, lanes) + 2 * lanes


def pair_panels(panel_weights: Tensor, depth: int, lanes: int) -> Tensor:
    """Panels [depth][width] reordered to [depth / 2][width][2], as matrix tiles read bfloat16."""
    parts = []
    for panel in panel_weights.split(2 * lanes * depth):
        pairs = panel.reshape(depth // 2, 2, -1)
        parts.append(pairs.transpose(1, 2).reshape(-1))
    return torch.cat(parts)


def _in_2d(weight: Tensor) -> Tensor:
    """Filters of a conv1d as filters of height 1."""
    return weight if weight.ndim == 4 else weight.unsqueeze(2)


def panels(matrices: Tensor, lanes: int, vectors: int = 2) -> Tensor:
    """[..., outputs, depth] as panels [depth][width] of so many vectors of outputs, the last
    perhaps of fewer, for one matrix after another."""
    columns = padded(matrices.mT, round_up(matrices.shape[-2], lanes))
    parts = [part.flatten(-2) for part in columns.split(vectors * lanes, dim=-1)]
    return torch.cat(parts, dim=-1).reshape(-1)


def direct_filters(
    weight: Tensor, groups: int, pixel_pitch: int, by_row: bool, lanes: int
) -> Tensor:
    """[group][panel][kernel row, column, channel][width] of filters [out, in / group, h, w]."""
    taps = _in_2d(weight).permute(0, 2, 3, 1)
    if by_row:
        taps = padded(taps, pixel_pitch)
    matrices = taps.reshape(groups, weight.shape[0] // groups, -1)
    return panels(matrices, lanes)


def filter_rows(weight: Tensor, pixel_pitch: int) -> Tensor:
    """[out][kernel row, column, channel] of filters [out, in, h, w]."""
    return padded(_in_2d(weight).permute(0, 2, 3, 1), pixel_pitch).reshape(-1)


def winograd_filters(weight: Tensor, tile: int, pixel_pitch: int, lanes: int) -> Tensor:
    """[frequency][panel][in][width] of G w G', formed in float64."""
    transform = torch.tensor(_WINOGRAD[tile], dtype=torch.float64)
    domain = torch.kron(transform, transform) @ weight.double().flatten(0, 1).flatten(1).T
    return frequency_panels(domain.view(-1, *weight.shape[:2]), pixel_pitch, lanes)


def frequency_panels(domain: Tensor, pixel_pitch: int, lanes: int) -> Tensor:
    """[frequency][panel][in][width] of filters [frequency, out, in] in the Winograd domain."""
    return panels(padded(domain, pixel_pitch), lanes)


def from_winograd(domain: Tensor, tile: int) -> Tensor:
    """The adjoint of Winograd's transform: G' u G [out, in, 3, 3] of u [frequency, out, in]."""
    transform = torch.tensor(_WINOGRAD[tile], dtype=domain.dtype)
    taps = torch.kron(transform, transform).T @ domain.flatten(1)
    return taps.T.reshape(*domain.shape[1:], 3, 3)


def narrow_filters(weight: Tensor) -> Tensor:
    """[kernel position][channel] of filters [channels, 1, h, w], without padding."""
    return weight.reshape(weight.shape[0], -1).T.reshape(-1)


def depthwise_filters(weight: Tensor, lanes: int) -> Tensor:
    """[kernel position][channel] of a filter [channels, 1, h, w]."""
    taps = weight.reshape(weight.shape[0], -1).T
    return padded(taps, round_up(weight.shape[0], lanes)).reshape(-1)


def linear_weights(weight: Tensor, columns: Tensor, lanes: int) -> Tensor:
    """Panels of a matrix [outputs, inputs]: column j is input `columns[j]`, or zero at -1."""
    return panels(padded(weight, weight.shape[1] + 1)[:, columns], lanes)


def input_panels(weight: Tensor, columns: Tensor, lanes: int, vectors: int) -> Tensor:
    """[panel][output][width] of a matrix [outputs, inputs]: a panel is of so many vectors of
    columns, which are as in `linear_weights`."""
    return panels(padded(weight, weight.shape[1] + 1)[:, columns].T, lanes, vectors)


def per_element(tensor: Tensor, order: str, lanes: int) -> Tensor:
    """A tensor of an activation's shape, in the activation's layout without halo."""
    if order == "first" and tensor.ndim > 1:
        tensor = tensor.movedim(0, -1)
    return channel_vector(tensor, lanes)


class Movement:
    """A packing that puts every element of a tensor in one place.

    Args:
        pack: the packing of a tensor.
        shape: of its tensor.
    """

    def __init__(self, pack: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        self.pack, self.size = pack, torch.Size(shape).numel()
        self._shape = shape

    def elements(self) -> Tensor:
        """The number of the element in every place, counted from 1; 0 is a zero. Int32."""
        numbers = torch.arange(1, 1 + self.size, dtype=torch.float64)
        return self.pack(numbers.view(self._shape)).reshape(-1).int()

    def places(self) -> Tensor:
        """The place of every element, counted from 1. Int32."""
        elements = self.elements()
        taken = elements.nonzero().flatten()
        places = torch.zeros(self.size, dtype=torch.int32)
        places[elements[taken].long() - 1] = taken.int() + 1
        return places

    def undo(self, packed: Tensor) -> Tensor:
        """The tensor of a packed one."""
        return packed.index_select(0, self.places() - 1).view(self._shape)


class Rearrangement:
    """Movements of many tensors, parts of one vector, to or from their packings in another.

    Args:
        moves: first places, and the elements from there on, counted from 1 in the source; 0 is a
            zero.
    """

    def __init__(self, moves: Sequence[tuple[int, Tensor]]) -> None:
        self._elements = torch.cat([torch.zeros(0, dtype=torch.int32), *(e for _, e in moves)])
        rows, used = [], 0
        for first, elements in moves:
            rows.append((first, len(elements), used))
            used += len(elements)
        self._segments = torch.tensor(rows, dtype=torch.int64).view(-1, 3)

    def only(self, firsts: Iterable[int]) -> Self:
        """The moves to these first places. It shares the memory of this one."""
        some = copy.copy(self)
        some._segments = self._segments[torch.isin(self._segments[:, 0], torch.tensor([*firsts]))]
        return some

    def __call__(self, source: Tensor, out: Tensor, scale: float = 1.0) -> None:
        """Writes to `out`, float32, and leaves all other places of it as they are."""
        _ops.rearrange(source.contiguous(), self._elements, self._segments, out, scale)


def numbered_from(first: int, elements: Tensor) -> Tensor:
    """Elements of a part of a vector that begins at `first`, as elements of the vector."""
    return torch.where(elements > 0, elements + first, 0).int()
