"""Derivatives of convolutions, and of a Linear on every pixel, which is one."""

from dataclasses import replace

import torch

from pylandscape.engines import packing, products, records
from pylandscape.engines.derivatives.chosen import PooledConvolution, pool_behind
from pylandscape.engines.derivatives.filters import (
    Geometry,
    Weights,
    as_filters,
    conv_weights,
    convolve,
    covered,
    turned_filters,
)
from pylandscape.engines.derivatives.pooled import first_convolution, suits_windows
from pylandscape.engines.derivatives.records import (
    ConvolutionGradient,
    DepthwiseGradient,
    Pairs,
    WinogradGradient,
)
from pylandscape.engines.derivatives.tape import DIRECTION, Tape
from pylandscape.engines.layout import Slot, round_up
from pylandscape.engines.lowering import Draft, paddings
from pylandscape.engines.program import Node
from pylandscape.engines.records import NONE, Epilogue, FusedPool, Tiles


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
    weights = conv_weights(
        tape, x, out, geometry, inputs * geometry.groups, outputs, name, as_filters
    )
    epilogue = Epilogue(shift=bias, activation=activation)
    convolve(tape, tape.point, weights, x, out, epilogue)
    pool = pool_behind(tape, value, order, weights)
    if pool is not None:
        chosen = PooledConvolution(tape, node, pool, weights, x, out, bias, activation)
        chosen.derive(x_value, pool.output)
        return
    tangent = tape.tangents.get(x_value)
    is_first = tangent is None and not tape.needs_cotangent(x_value)
    if is_first and order == "first" and suits_windows(tape, weights):
        behind, fused = tape.fuse_pool(value, (FusedPool.MAX,))
        if fused:
            first_convolution(tape, node, weights, x, behind, out, activation, bias)
            return
    if tape.has_tangents and (tangent is not None or tape.is_trained(node)):
        conv_tangent(tape, node, weights, x, tangent, value, out, activation, bias)

    def back() -> None:
        g, h = tape.handed_back(value, out, activation)
        tape.bias_part(node, tape.summed(g, h))
        pairs = tape.pairs(x, tangent, g, h)
        if pairs is not None and name in tape.trainable:
            conv_gradient(tape, name, weights, pairs)
        if tape.needs_cotangent(x_value):
            conv_back(tape, name, weights, x_value, x, g, h)

    tape.backward.append(back)


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
    turned = conv_weights(
        tape, source, target, back, w.outputs, w.inputs, name,
        lambda weight: turned_filters(as_filters(weight), back.groups),
    )  # fmt: skip
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
    movement = w.movement(tape.shapes[name], lanes, as_filters)
    offset = tape.add_moved_part(w.size(lanes), name, movement)

    def make() -> records.Step:
        if w.is_depthwise:
            return DepthwiseGradient(pairs, offset, a.window)
        return ConvolutionGradient(
            pairs, offset, a.window, a.groups, w.group_in, w.outputs // a.groups, w.by_row
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
