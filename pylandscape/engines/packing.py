"""Parameters in the order in which the kernels read them.

Every function here is linear in its tensor, so that packing the centre and the directions once and
adding the packed vectors gives the packed parameters of any point.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

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


Piece = tuple[int, list[int], list[int]]  # the first element, sizes and strides


class Movement:
    """A packing that puts every element of a tensor in one place, and back.

    Where it only permutes dimensions, once they are split in the right way, it is a strided copy:
    several times faster than a gather of the elements, which it is elsewhere.

    Args:
        pack: the packing; it is called once, with the numbers of the elements.
        shape: of its tensor.
        cut: a place at which the order may change, as where a last panel is narrower.
    """

    def __init__(
        self, pack: Callable[[Tensor], Tensor], shape: tuple[int, ...], cut: int = 0
    ) -> None:
        self._pack, self._shape, self._cut = pack, shape, cut

    @functools.cached_property
    def _elements(self) -> Tensor:
        """The number of the element in every place, counted from 1; 0 is a zero."""
        count = torch.Size(self._shape).numel()
        return self._pack(torch.arange(1, 1 + count, dtype=torch.float64).view(self._shape)).int()

    @functools.cached_property
    def _places(self) -> Tensor:
        """The place of every element."""
        taken = self._elements.nonzero().flatten()
        places = torch.zeros(torch.Size(self._shape).numel(), dtype=torch.int32)
        places[self._elements[taken].long() - 1] = taken.int()
        return places

    @functools.cached_property
    def _pieces(self) -> list[Piece] | None:
        """Strided copies that together are the packing, if there are some."""
        if len(self._elements) != torch.Size(self._shape).numel():
            return None
        places = self._elements - 1
        for cut in (0, self._cut):
            parts = [part for part in (places[:cut], places[cut:]) if len(part)]
            found = [(int(part[0]), strides(part - part[0])) for part in parts]
            pieces = [(start, *piece) for start, piece in found if piece is not None]
            if len(pieces) == len(parts):
                return pieces
        return None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Of any shape, in the order of the places."""
        flat = tensor.contiguous().view(-1)
        if self._pieces is None:
            return torch.cat((flat.new_zeros(1), flat)).index_select(0, self._elements)
        parts = [flat[start:].as_strided(sizes, steps) for start, sizes, steps in self._pieces]
        return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])

    def undo(self, packed: Tensor) -> Tensor:
        if self._pieces is None:
            return packed.index_select(0, self._places).view(self._shape)
        tensor = packed.new_empty(self._shape)
        lengths = [torch.Size(sizes).numel() for _, sizes, _ in self._pieces]
        for (start, sizes, steps), part in zip(self._pieces, packed.split(lengths), strict=True):
            tensor.view(-1)[start:].as_strided(sizes, steps).copy_(part.view(sizes))
        return tensor


def strides(numbers: Tensor) -> tuple[list[int], list[int]] | None:
    """Sizes and strides, not negative, that count from 0 in this order, or None."""
    sizes, steps = list[int](), list[int]()
    while len(numbers) > 1:
        step = int(numbers[1] - numbers[0])
        ends = (numbers.diff() != step).nonzero()
        run = int(ends[0]) + 1 if len(ends) else len(numbers)
        if step < 0 or len(numbers) % run:
            return None
        rows = numbers.view(-1, run)
        if not torch.equal(rows, rows[:, :1] + step * torch.arange(run)):
            return None
        sizes.insert(0, run)
        steps.insert(0, step)
        numbers = rows[:, 0]
    return (sizes, steps) if numbers[0] == 0 else None
