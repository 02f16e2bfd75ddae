"""Derivatives of convolutions, and of a Linear on every pixel, which is one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pylandscape.engines import packing, products, records
from pylandscape.engines.derivatives.records import (
    ConvolutionGradient,
    DepthwiseGradient,
    Pairs,
    WinogradGradient,
)
from pylandscape.engines.derivatives.tape import DIRECTION, Tape
from pylandscape.engines.layout import Slot, round_up
from pylandscape.engines.lowering import Draft, State, paddings
from pylandscape.engines.program import Node, NotCovered
from pylandscape.engines.records import NONE, Epilogue, Tiles


@dataclass(frozen=True)
class Geometry:
    """What windows of a convolution reach; as it is by default, a Linear on every pixel."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)  # above and left; negative ones leave pixels out
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


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


def conv(tape: Tape, node: Node) -> None:
    a, (pads, _) = node.attrs, paddings(node)
    geometry = Geometry(a["kernel"], a["stride"], pads, a["dilation"], a["groups"])
    convolution(tape, node, "first", geometry)


def convolution(tape: Tape, node: Node, order: str, geometry: Geometry) -> None:
    """A convolution over slots whose channels are in `order`, or a Linear on every pixel."""
    name, x_value = node.tensors["weight"], node.inputs[0]
    x = tape.slot(x_value, order)
    outputs, inputs, *_ = tape.shapes[name]
    bias = tape.pack_vector(node.tensors.get("bias"))
    value, activation = tape.rectify(node.output)
    out = tape.add_slot(value, order)
    weights = conv_weights(tape, x, out, geometry, inputs * geometry.groups, outputs,
                           lambda s: as_filters(s[name]))  # fmt: skip
    epilogue = Epilogue(shift=bias, activation=activation)
    convolve(tape, tape.point, weights, x, out, epilogue)
    tangent = tape.tangents.get(x_value)
    if tape.has_tangents and (tangent is not None or tape.is_trained(node)):
        conv_tangent(tape, node, weights, x, tangent, value, out, activation, bias)

    def back() -> None:
        g, h = tape.handed_back(value, out, activation)
        tape.bias_part(node, g, h)
        pairs = tape.pairs(x, tangent, g, h)
        if pairs is not None and name in tape.trainable:
            conv_gradient(tape, name, weights, pairs)
        if tape.needs_cotangent(x_value):
            conv_back(tape, name, weights, x_value, x, g, h)

    tape.backward.append(back)


def conv_weights(
    tape: Tape, source: int, out: int, geometry: Geometry, inputs: int, outputs: int,
    filters: Callable[[State], Tensor],
) -> Weights:  # fmt: skip
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
            lambda s: packing.winograd_filters(filters(s), tile, pitch, lanes),
        )
    else:
        weights.offset = tape.pack(weights.size(lanes), lambda s: weights.pack(filters(s), lanes))
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
            source, out, at, epilogue, *windows, groups, w.group_in, group_out, w.by_row, 0
        )

    scratch = at_once * (len(sources) * in_pitch + out_pitch) + tape.lanes if w.tile else 0
    label = f"conv {kh}x{kw}" + (f" Winograd F({w.tile}x{w.tile})" if w.tile else "")
    label += " depthwise" if w.is_depthwise else " in groups" if groups > 1 else ""
    label += " of the direction" if along else ""
    tape.emit(steps, [*reads], out, make, label, scratch=lambda: scratch)


def covered(w: Weights, out: Slot) -> tuple[int, int]:
    """Height and width of the outputs that a kernel makes: those of an image, in whole tiles."""
    tile = w.tile or 1
    return round_up(out.height, tile), round_up(out.width, tile)


def conv_tangent(
    tape: Tape, node: Node, w: Weights, x: int, tangent: int | None, value: int, out: int,
    activation: int, bias: int,
) -> None:  # fmt: skip
    sums = tape.like(out)
    epilogue = Epilogue(shift=NONE if bias == NONE else bias + DIRECTION)
    if not tape.is_trained(node):
        assert tangent is not None
        convolve(tape, tape.along, w, tangent, sums, Epilogue())
    elif tangent is None:
        convolve(tape, tape.along, w, x, sums, epilogue, along=True)
    else:
        convolve(tape, tape.along, w, tangent, sums, epilogue, second=x)
    tape.set_tangent(value, out, sums, activation)


def conv_back(
    tape: Tape, name: str, w: Weights, x_value: int, x: int, g: int | None, h: int | None
) -> None:
    (kh, kw), (dh, dw), (top, left) = w.geometry.kernel, w.geometry.dilation, w.geometry.pads
    crossed = g if tape.kind == "hessian" and name in tape.trainable else None
    g, h, crossed = (
        None if c is None else dilated(tape, steps, c, w.geometry.stride)
        for c, steps in ((g, tape.point), (h, tape.along), (tape.again(crossed), tape.along))
    )
    source = g if g is not None else h
    if source is None:
        return
    target = tape.like(x)
    back = replace(w.geometry, stride=(1, 1), pads=(dh * (kh - 1) - top, dw * (kw - 1) - left))
    turned = conv_weights(tape, source, target, back, w.outputs, w.inputs,
                          lambda s: turned_filters(as_filters(s[name]), back.groups))  # fmt: skip
    if g is not None and tape.has_cotangents:
        convolve(tape, tape.point, turned, g, target, Epilogue())
        tape.give(tape.cotangents, tape.point, x_value, target)
    if h is not None:
        sums = tape.like(x)
        convolve(tape, tape.along, turned, h, sums, Epilogue(), second=crossed)
        tape.give(tape.cotangent_tangents, tape.along, x_value, sums)


def dilated(tape: Tape, steps: list[Draft], source: int, stride: tuple[int, int]) -> int:
    """The pixels of a slot `stride` apart, zeros between: turns strides into steps of one."""
    if stride == (1, 1):
        return source
    found = tape.slots[source]
    height, width = ((n - 1) * s + 1 for n, s in zip((found.height, found.width), stride,
                                                      strict=True))  # fmt: skip
    tape.slots.append(
        Slot(found.channels, height, width, found.order, dedicated=True, lanes=tape.lanes)
    )
    target = len(tape.slots) - 1
    rows = torch.arange(found.height) * stride[0] * width
    pixels = rows[:, None] + torch.arange(found.width) * stride[1]
    planes = torch.arange(found.channels)[:, None, None] * (height * width)
    tape.move(steps, source, target, torch.arange(pixels.numel() * found.channels),
              (planes + pixels).reshape(-1))  # fmt: skip
    return target


def conv_gradient(tape: Tape, name: str, w: Weights, pairs: Pairs) -> None:
    if w.tile and not {pairs.right, pairs.second_right} & set(tape.flat_reads):
        winograd_gradient(tape, name, w, pairs)
        return
    lanes, a = tape.lanes, w.geometry
    movement = packing.Movement(lambda t: w.pack(as_filters(t), lanes), tape.shapes[name])
    offset = tape.add_part(w.size(lanes), lambda flat, _: {name: movement.undo(flat)})

    def make() -> records.Step:
        windows = *a.kernel, *a.stride, *a.pads, *a.dilation
        if w.is_depthwise:
            return DepthwiseGradient(pairs, offset, *windows)
        return ConvolutionGradient(
            pairs, offset, *windows, a.groups, w.group_in, w.outputs // a.groups, w.by_row
        )

    tape.sum_products(pairs, make, "conv gradient" + (" depthwise" if w.is_depthwise else ""))


def winograd_gradient(tape: Tape, name: str, w: Weights, pairs: Pairs) -> None:
    """The same, summed in the Winograd domain; cotangents are zeros where a tile overhangs."""
    pitch, lanes, tile = w.pitch, tape.lanes, w.tile
    out = tape.slots[pairs.right]
    height, width = covered(w, out)
    for index in {pairs.right, pairs.second_right} - {NONE}:
        tape.slots[index].need_halo(0, height - out.height, 0, width - out.width)
    frequencies = (tile + 2) ** 2
    size = frequencies * round_up(w.outputs, lanes) * pitch
    movement = packing.Movement(
        lambda domain: packing.frequency_panels(domain, pitch, lanes),
        (frequencies, w.outputs, w.inputs),
    )
    offset = tape.add_part(
        size, lambda flat, _: {name: packing.from_winograd(movement.undo(flat), tile)}
    )
    count = 1 if pairs.second_left == NONE else 2
    in_pitch, out_pitch, room = products.winograd_room(tile, pitch, out.pixel_pitch)
    at_once = max(8, room // count)
    tape.sum_products(
        pairs,
        lambda: WinogradGradient(
            pairs, offset,
            Tiles(tile, *w.geometry.pads, height // tile, width // tile, at_once,
                  tape.scratch_offset, in_pitch, out_pitch),
        ),
        f"conv gradient Winograd F({tile}x{tile})",
        scratch=lambda: count * at_once * (in_pitch + out_pitch) + lanes,
    )  # fmt: skip


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
