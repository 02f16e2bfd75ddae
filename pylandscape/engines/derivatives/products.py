"""Derivatives of convolutions and linear layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pylandscape.engines import packing, products, records
from pylandscape.engines.derivatives.records import (
    ConvolutionGradient,
    LinearGradient,
    Pairs,
    WinogradGradient,
)
from pylandscape.engines.derivatives.tape import DIRECTION, Tape
from pylandscape.engines.layout import Slot, round_up
from pylandscape.engines.lowering import Draft, State, paddings
from pylandscape.engines.program import Node, NotCovered
from pylandscape.engines.records import NONE, Epilogue, Tiles


@dataclass
class Weights:
    """A convolution's filters, packed, and the kernel that reads them."""

    offset: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int]
    dilation: tuple[int, int]
    inputs: int
    outputs: int
    tile: int  # of Winograd, or 0
    by_row: bool


def conv(tape: Tape, node: Node) -> None:
    if node.attrs["groups"] != 1:
        raise NotCovered("in groups has no native derivatives", node.op, node.source)
    name, attrs = node.tensors["weight"], node.attrs
    x_value = node.inputs[0]
    x = tape.slot(x_value, "first")
    outputs, inputs, *_ = tape.shapes[name]
    (top, left), _ = paddings(node)
    bias = tape.pack_vector(node.tensors.get("bias"))
    sizes = attrs["kernel"], attrs["stride"], (top, left), attrs["dilation"]
    value, activation = tape.rectify(node.output)
    out = tape.add_slot(value, "first")
    weights = conv_weights(tape, x, out, *sizes, inputs, outputs, lambda s: s[name])
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
            conv_back(tape, node, weights, x_value, g, h)

    tape.backward.append(back)


def conv_weights(
    tape: Tape, source: int, out: int, kernel: tuple[int, int], stride: tuple[int, int],
    pads: tuple[int, int], dilation: tuple[int, int], inputs: int, outputs: int,
    filters: Callable[[State], Tensor],
) -> Weights:  # fmt: skip
    slot, result, lanes = tape.slots[source], tape.slots[out], tape.lanes
    pitch, (kh, kw) = slot.pixel_pitch, kernel
    tile = 0
    if tape.precision == "fast" and kernel == (3, 3) and stride == dilation == (1, 1):
        tile = products.winograd_tile(inputs, pitch, result.height, result.width)
    by_row = dilation[1] == 1
    if (kh if by_row else kh * kw) > products.MAX_SEGMENTS:
        raise NotCovered("a kernel is too large for the native engine", "conv")
    if tile:
        offset = tape.pack(
            (tile + 2) ** 2 * round_up(outputs, lanes) * pitch,
            lambda s: packing.winograd_filters(filters(s), tile, pitch, lanes),
        )
    else:
        offset = tape.pack(
            round_up(outputs, lanes) * kh * kw * pitch,
            lambda s: packing.direct_filters(padded_inputs(filters(s), pitch), 1, pitch,
                                             by_row, lanes),
        )  # fmt: skip
    return Weights(offset, kernel, stride, pads, dilation, inputs, outputs, tile, by_row)


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
    slot, result = tape.slots[source], tape.slots[out]
    (kh, kw), (sh, sw), (dh, dw), (top, left) = w.kernel, w.stride, w.dilation, w.pads
    covered_h, covered_w = covered(w, result)
    bottom = (covered_h - 1) * sh + (kh - 1) * dh + 1 - top - slot.height
    right = (covered_w - 1) * sw + (kw - 1) * dw + 1 - left - slot.width
    for index in sources:
        tape.slots[index].need_halo(top, max(0, bottom), left, max(0, right))
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
        return records.Convolution(
            source, out, at, epilogue, kh, kw, sh, sw, top, left, dh, dw, 1,
            slot.pixel_pitch, w.outputs, w.by_row, 0,
        )  # fmt: skip

    scratch = at_once * (len(sources) * in_pitch + out_pitch) + tape.lanes if w.tile else 0
    label = f"conv {kh}x{kw}" + (f" Winograd F({w.tile}x{w.tile})" if w.tile else "")
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
    tape: Tape, node: Node, w: Weights, x_value: int, g: int | None, h: int | None
) -> None:
    name = node.tensors["weight"]
    x = tape.slot_of[x_value]["first"]
    (kh, kw), (dh, dw) = w.kernel, w.dilation
    pads = dh * (kh - 1) - w.pads[0], dw * (kw - 1) - w.pads[1]
    if min(pads) < 0:
        raise NotCovered("pads by more than its kernel", node.op, node.source)
    g, h = (
        None if c is None else dilated(tape, steps, c, w.stride)
        for c, steps in ((g, tape.point), (h, tape.along))
    )
    source = g if g is not None else h
    if source is None:
        return
    target = tape.like(x)
    turned = conv_weights(tape,
        source, target, w.kernel, (1, 1), pads, w.dilation, w.outputs, w.inputs,
        lambda s: turned_filters(s[name]),
    )  # fmt: skip
    if g is not None and tape.has_cotangents:
        convolve(tape, tape.point, turned, g, target, Epilogue())
        tape.give(tape.cotangents, tape.point, x_value, target)
    if not tape.has_tangents:
        return
    crossed = g if tape.kind == "hessian" and name in tape.trainable else None
    if h is None and crossed is None:
        return
    sums = tape.like(x)
    if h is not None:
        convolve(tape, tape.along, turned, h, sums, Epilogue(), second=crossed)
    elif crossed is not None:
        convolve(tape, tape.along, turned, crossed, sums, Epilogue(), along=True)
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
    slot = tape.slots[pairs.left]
    pitch, lanes, shape = slot.pixel_pitch, tape.lanes, tape.shapes[name]

    def pack(weight: Tensor) -> Tensor:
        filters = padded_inputs(weight, pitch)
        return packing.direct_filters(filters, 1, pitch, w.by_row, lanes)

    size = round_up(w.outputs, lanes) * w.kernel[0] * w.kernel[1] * pitch
    movement = packing.Movement(pack, shape)
    offset = tape.add_part(size, lambda flat, _: {name: movement.undo(flat)})
    tape.sum_products(
        pairs,
        lambda: ConvolutionGradient(pairs, offset, *w.kernel, *w.stride, *w.pads, *w.dilation),
        "conv gradient",
    )


def winograd_gradient(tape: Tape, name: str, w: Weights, pairs: Pairs) -> None:
    """The same, summed in the Winograd domain; cotangents are zeros where a tile overhangs."""
    pitch, lanes, tile = tape.slots[pairs.left].pixel_pitch, tape.lanes, w.tile
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
            Tiles(tile, *w.pads, height // tile, width // tile, at_once, tape.scratch_offset,
                  in_pitch, out_pitch),
        ),
        f"conv gradient Winograd F({tile}x{tile})",
        scratch=lambda: count * at_once * (in_pitch + out_pitch) + lanes,
    )  # fmt: skip


def linear(tape: Tape, node: Node) -> None:
    if len(tape.program.values[node.inputs[0]].shape) > 1:
        raise NotCovered("of every pixel has no native derivatives", node.op, node.source)
    name = node.tensors["weight"]
    outputs, inputs = tape.shapes[name]
    source, features = products.linear_source(tape, node, inputs)
    x_value = next(v for v, held in tape.slot_of.items() if source in held.values())
    slot, lanes = tape.slots[source], tape.lanes
    tape.flat_reads.append(source)
    columns = products.linear_columns(slot, features, inputs, by_pixel=False)
    depth = len(columns)
    size = round_up(outputs, lanes) * depth
    panels = packing.Movement(
        lambda w: packing.linear_weights(w, columns, lanes), (outputs, inputs)
    )
    forward = tape.pack(size, lambda s: panels(s[name]))
    bias = tape.pack_vector(node.tensors.get("bias"))
    value, activation = tape.rectify(node.output)
    out = tape.add_slot(value, "first")
    multiply(tape, tape.point, forward, source, out, depth, outputs,
                  Epilogue(shift=bias, activation=activation))  # fmt: skip
    tangent = tape.tangents.get(x_value)
    if tape.has_tangents and (tangent is not None or tape.is_trained(node)):
        sums, begun = tape.like(out), False
        trained = tape.is_trained(node)
        if tangent is not None:
            tape.flat_reads.append(tangent)
            multiply(tape, tape.along, forward, tangent, sums, depth, outputs, Epilogue())
            begun = True
        if trained:
            shift = NONE if bias == NONE else bias + DIRECTION
            multiply(tape, tape.along, forward, source, sums, depth, outputs,
                          Epilogue(shift=shift), along=True, accumulate=begun)  # fmt: skip
        tape.set_tangent(value, out, sums, activation)

    def back() -> None:
        g, h = tape.handed_back(value, out, activation)
        tape.bias_part(node, g, h)
        pairs = tape.pairs(source, tangent, g, h)
        if pairs is not None and name in tape.trainable:
            part = tape.add_part(size, lambda flat, _: {name: panels.undo(flat)})
            tape.sum_products(
                pairs, lambda: LinearGradient(pairs, part, depth), "linear gradient",
                vectors=True,
            )  # fmt: skip
        if tape.needs_cotangent(x_value):
            linear_back(tape, name, columns, outputs, x_value, source, g, h)

    tape.backward.append(back)


def multiply(
    tape: Tape, steps: list[Draft], weights: int, source: int, out: int, depth: int, outputs: int,
    epilogue: Epilogue, along: bool = False, accumulate: bool = False,
) -> None:  # fmt: skip
    label = "linear" + (" of the direction" if along else "")
    tape.emit(
        steps,
        [source, *([out] if accumulate else [])],
        out,
        lambda: records.Linear(
            source, out, tape.weights_at(weights, along), epilogue, 1, depth, 0, outputs, 0,
            int(accumulate),
        ),
        label,
        vectors=True,
    )  # fmt: skip


def linear_back(
    tape: Tape, name: str, columns: Tensor, outputs: int, x_value: int, x: int,
    g: int | None, h: int | None,
) -> None:  # fmt: skip
    lanes, depth = tape.lanes, len(columns)
    rows = round_up(outputs, lanes)
    order = torch.cat((torch.arange(outputs), torch.full((rows - outputs,), -1)))

    def transposed(weight: Tensor) -> Tensor:
        matrix = packing.padded(weight, weight.shape[1] + 1)[:, columns]
        return packing.linear_weights(matrix.T, order, lanes)

    movement = packing.Movement(transposed, tape.shapes[name])
    weights = tape.pack(round_up(depth, lanes) * rows, lambda s: movement(s[name]))
    if g is not None and tape.has_cotangents:
        target = tape.like(x)
        tape.flat_reads.append(target)
        multiply(tape, tape.point, weights, g, target, rows, depth, Epilogue())
        tape.give(tape.cotangents, tape.point, x_value, target)
    if not tape.has_tangents:
        return
    sums, begun = tape.like(x), False
    if h is not None:
        multiply(tape, tape.along, weights, h, sums, rows, depth, Epilogue())
        begun = True
    if g is not None and tape.kind == "hessian" and name in tape.trainable:
        multiply(tape, tape.along, weights, g, sums, rows, depth, Epilogue(), along=True,
                      accumulate=begun)  # fmt: skip
        begun = True
    if begun:
        tape.flat_reads.append(sums)
        tape.give(tape.cotangent_tangents, tape.along, x_value, sums)


def padded_inputs(weight: Tensor, pitch: int) -> Tensor:
    """Filters [out, in, ...] with zeros for the channels that only pad a pixel."""
    extra = pitch - weight.shape[1]
    return torch.cat([weight, weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])], 1)


def turned_filters(weight: Tensor) -> Tensor:
    """[in, out, h, w]: the filters of the backward pass."""
    return weight.transpose(0, 1).flip(*range(2, weight.ndim))
