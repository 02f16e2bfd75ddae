"""The filters of convolutions in derivatives, and the kernels that apply them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pylandscape.engines import packing, products, records
from pylandscape.engines.derivatives.records import Window
from pylandscape.engines.derivatives.tape import Tape
from pylandscape.engines.layout import Slot, round_up
from pylandscape.engines.lowering import Draft
from pylandscape.engines.program import NotCovered
from pylandscape.engines.records import NONE, Epilogue, FusedPool, Tiles


@dataclass(frozen=True)
class Geometry:
    """What windows of a convolution reach; as it is by default, a Linear on every pixel."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)  # above and left; negative ones leave pixels out
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def window(self) -> Window:
        return Window(*self.kernel, *self.stride, *self.pads, *self.dilation)


@dataclass
class Weights:
    """A convolution's filters, and the kernel that reads them."""

    geometry: Geometry
    inputs: int
    outputs: int
    pitch: int  # of the pixels that are read
    tile: int  # of Winograd, or 0
    offset: int = NONE  # of the packed filters

    @property
    def is_depthwise(self) -> bool:
        return self.geometry.groups > 1 and self.inputs == self.outputs == self.geometry.groups

    @property
    def by_row(self) -> bool:
        """Whether a kernel row is one run of memory: all channels, side by side."""
        return self.geometry.groups == 1 and self.geometry.dilation[1] == 1

    @property
    def group_in(self) -> int:
        """Channels of a group that are read; of a single group with those that pad a pixel."""
        groups = self.geometry.groups
        return self.pitch if groups == 1 else self.inputs // groups

    def size(self, lanes: int) -> int:
        """Of packed filters for direct sums."""
        (kh, kw), groups = self.geometry.kernel, self.geometry.groups
        if self.is_depthwise:
            return kh * kw * round_up(self.outputs, lanes)
        return groups * round_up(self.outputs // groups, lanes) * kh * kw * self.group_in

    def pack(self, filters: Tensor, lanes: int) -> Tensor:
        if self.is_depthwise:
            return packing.depthwise_filters(filters, lanes)
        groups = self.geometry.groups
        whole = padded_inputs(filters, self.pitch) if groups == 1 else filters
        return packing.direct_filters(whole, groups, self.pitch, self.by_row, lanes)

    def movement(
        self, shape: tuple[int, ...], lanes: int, filters: Callable[[Tensor], Tensor]
    ) -> packing.Movement:
        """The packing for direct sums, of the `filters` that are made of a weight."""
        return packing.Movement(lambda weight: self.pack(filters(weight), lanes), shape)


def conv_weights(
    tape: Tape, source: int, out: int, geometry: Geometry, inputs: int, outputs: int, name: str,
    filters: Callable[[Tensor], Tensor],
) -> Weights:  # fmt: skip
    """Packs the `filters` that are made of the weight `name`."""
    slot, result, lanes = tape.slots[source], tape.slots[out], tape.lanes
    pitch, (kh, kw) = slot.pixel_pitch, geometry.kernel
    tile = 0
    if tape.precision == "fast" and geometry == Geometry((3, 3), pads=geometry.pads):
        tile = products.winograd_tile(inputs, pitch, result.height, result.width)
    weights = Weights(geometry, inputs, outputs, pitch, tile)
    if (kh if weights.by_row else kh * kw) > products.MAX_SEGMENTS:
        raise NotCovered("a kernel is too large for the native engine", "conv")
    if tile:
        weights.offset = tape.pack(
            (tile + 2) ** 2 * round_up(outputs, lanes) * pitch,
            lambda s: packing.winograd_filters(filters(s[name]), tile, pitch, lanes),
        )
    else:
        movement = weights.movement(tape.shapes[name], lanes, filters)
        weights.offset = tape.pack_moved(weights.size(lanes), name, movement)
    return weights


def convolve(
    tape: Tape, steps: list[Draft], w: Weights, source: int, out: int, epilogue: Epilogue,
    along: bool = False, second: int | None = None,
) -> None:  # fmt: skip
    """A convolution with the filters of the point or of the direction.

    Given a `second` input, that of it with the filters of the direction is added.
    """
    if second is not None and not w.tile:
        convolve(tape, steps, w, source, out, Epilogue())
        residual = replace(epilogue, residual=out)
        convolve(tape, steps, w, second, out, residual, along=True)
        return
    sources = [source] if second is None else [source, second]
    slot, result, groups = tape.slots[source], tape.slots[out], w.geometry.groups
    (kh, kw), (top, left) = w.geometry.kernel, w.geometry.pads
    (sh, sw), (dh, dw) = w.geometry.stride, w.geometry.dilation
    covered_h, covered_w = covered(w, result)
    bottom = (covered_h - 1) * sh + (kh - 1) * dh + 1 - top - slot.height
    right = (covered_w - 1) * sw + (kw - 1) * dw + 1 - left - slot.width
    for index in sources:
        tape.slots[index].need_halo(top, max(0, bottom), left, max(0, right))
    group_out = w.outputs // groups
    if groups > 1 and not w.is_depthwise and group_out % tape.lanes:
        result.dedicated = True  # the channels that pad a pixel are not written
    reads = [*sources, *([epilogue.residual] if epilogue.residual != NONE else [])]
    in_pitch, out_pitch, at_once = products.winograd_room(
        w.tile, slot.pixel_pitch, result.pixel_pitch, len(sources)
    )

    def make() -> records.Step:
        at = tape.weights_at(w.offset, along)
        if w.tile:
            return records.Winograd(
                source, out, at, epilogue,
                Tiles(w.tile, top, left, covered_h // w.tile, covered_w // w.tile, at_once,
                      tape.scratch_offset, in_pitch, out_pitch),
                0, *(() if second is None else (second, tape.weights_at(w.offset, along=True))),
            )  # fmt: skip
        windows = kh, kw, sh, sw, top, left, dh, dw
        if w.is_depthwise:
            return records.Depthwise(source, out, at, epilogue, *windows)
        return records.Convolution(
            source, out, at, epilogue, *windows, groups, w.group_in, group_out, w.by_row,
            FusedPool.NONE,
        )  # fmt: skip

    scratch = at_once * (len(sources) * in_pitch + out_pitch) + tape.lanes if w.tile else 0
    label = f"conv {kh}x{kw}" + (f" Winograd F({w.tile}x{w.tile})" if w.tile else "")
    label += " depthwise" if w.is_depthwise else " in groups" if groups > 1 else ""
    label += " of the direction" if along else ""
    tape.emit(steps, [*reads], out, make, label, scratch=lambda: scratch)


def covered(w: Weights, out: Slot) -> tuple[int, int]:
    """Height and width of the outputs that a kernel makes: those of an image, in whole tiles."""
    tile = w.tile or 1
    return round_up(out.height, tile), round_up(out.width, tile)


def padded_inputs(weight: Tensor, pitch: int) -> Tensor:
    """Filters [out, in, ...] with zeros for the channels that only pad a pixel."""
    extra = pitch - weight.shape[1]
    return torch.cat([weight, weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])], 1)


def as_filters(weight: Tensor) -> Tensor:
    """Those of a convolution as they are, those of a Linear [out, in] as filters of one pixel."""
    return weight if weight.ndim > 2 else weight[..., None, None]


def turned_filters(weight: Tensor, groups: int) -> Tensor:
    """[in, out / groups, h, w]: the filters of the backward pass."""
    grouped = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return grouped.flatten(0, 1).flip(*range(2, weight.ndim))
