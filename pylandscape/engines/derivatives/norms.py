"""Derivatives of normalisation: by statistics of the data, of a sample's groups, of a pixel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.derivatives.records import ChannelGradient, NormSlope, Pairs
from pylandscape.engines.derivatives.tape import Tape
from pylandscape.engines.lowering import Draft, State
from pylandscape.engines.program import Node, NotCovered
from pylandscape.engines.records import NONE, Activation, Epilogue

_FACTORS = 8  # of NormFactors in csrc/cpu/layers/norm_slopes.inc


def batch_norm(tape: Tape, node: Node) -> None:
    x_value = node.inputs[0]
    x = tape.slot(x_value, "first")
    scale, shift = tape.fold(node, NONE)
    value, activation = tape.rectify(node.output)
    out = tape.add_slot(value, "first")
    tape.emit(
        tape.point,
        [x],
        out,
        lambda: records.Pointwise(x, out, Epilogue(scale, shift, activation=activation)),
        "batch_norm",
    )
    tangent, trained = tape.tangents.get(x_value), tape.is_trained(node)
    if tape.has_tangents and (tangent is not None or trained):
        sums = tape.like(out)
        if not trained:
            assert tangent is not None
            tape.combine(tape.along, tangent, None, sums, (scale, False))
        else:
            tape.combine(tape.along, x, tangent, sums, (scale, True), (scale, False), (shift, True))
        tape.set_tangent(value, out, sums, activation)

    def back() -> None:
        g, h = tape.handed_back(value, out, activation)
        batch_norm_gradient(tape, node, x, tangent, g, h)
        if not tape.needs_cotangent(x_value):
            return
        if g is not None and tape.has_cotangents:
            target = tape.form(g, x, lambda steps, source, to: tape.combine(
                steps, source, None, to, (scale, False)))  # fmt: skip
            tape.give(tape.cotangents, tape.point, x_value, target)
        crossed = tape.again(g) if tape.kind == "hessian" and trained else None
        if h is not None:
            sums = tape.like(x)
            tape.combine(tape.along, h, crossed, sums, (scale, False), (scale, True))
            tape.give(tape.cotangent_tangents, tape.along, x_value, sums)

    tape.backward.append(back)


def batch_norm_gradient(
    tape: Tape, node: Node, x: int, tangent: int | None, g: int | None, h: int | None
) -> None:
    """d gamma = sum (x - mean) / sqrt(var + eps) g, d beta = sum g."""
    if not tape.is_trained(node):
        return
    gamma, beta = node.tensors.get("weight"), node.tensors.get("bias")
    mean, var, eps = node.tensors["mean"], node.tensors["var"], node.attrs["eps"]
    pairs, source = tape.pairs(x, tangent, g, h), tape.summed(g, h)
    if pairs is None or source is None:
        return
    channels, room = tape.shapes[mean][0], tape.slots[source].pixel_pitch

    def unpack(flat: Tensor, state: State) -> dict[str, Tensor]:
        sums, products_ = flat[:channels], flat[room : room + channels]
        inverse = (state[var].double() + eps).rsqrt()
        found = {gamma: inverse * (products_ - state[mean].double() * sums), beta: sums}
        return {name: value for name, value in found.items()
                if name is not None and name in tape.trainable}  # fmt: skip

    offset = tape.add_part(2 * room, unpack)
    plain = Pairs(source, NONE)
    tape.sum_products(plain, lambda: ChannelGradient(plain, offset), "shift gradient")
    tape.sum_products(pairs, lambda: ChannelGradient(pairs, offset + room), "scale gradient")


@dataclass
class Scaling:
    """The weight and bias behind a norm: where they are packed, and the floats between two pixels.

    With `pitch` 0 all pixels have the same.
    """

    weight: int
    bias: int
    pitch: int


@dataclass
class Standard:
    """A norm without its weight and bias: what it reads, what it returns, and its groups."""

    source: int
    out: int
    groups: int
    by_pixel: bool
    epsilon: int


def layer_norm(tape: Tape, node: Node) -> None:
    dims, rank = node.attrs["dims"], len(tape.program.values[node.inputs[0]].shape)
    if dims == 1:
        return norm(tape, node, "last", groups=1, by_pixel=True, per_element=False)
    if dims != rank:
        raise NotCovered("normalises dimensions without a kernel", node.op, node.source)
    return norm(tape, node, "first", groups=1, by_pixel=False, per_element=True)


def group_norm(tape: Tape, node: Node) -> None:
    norm(tape, node, "first", node.attrs["groups"], by_pixel=False, per_element=False)


def norm(
    tape: Tape, node: Node, order: str, groups: int, by_pixel: bool, per_element: bool
) -> None:
    """y = w x^ + b of x^ = (x - mean) r, r = 1 / sqrt(var + eps); d x^ = r P d x by NormSlope.

    With q = w g:

        x^' = r P x'                         y' = w x^' + w' x^ + b'
        g_x = r P q                          g_x' = r P q' + (r P)' q,  q' = w g' + w' g
        gradient x^ g                        Hessian-vector product x^ g' + x^' g
    """
    x_value = node.inputs[0]
    x = tape.slot(x_value, order)
    epsilon = tape.constant(1, lambda _: torch.tensor([node.attrs["eps"]]))
    plain = Standard(x, tape.like(x), groups, by_pixel, epsilon)
    tape.slots[plain.out].dedicated = True
    kind = records.PixelNorm if by_pixel else records.GroupNorm
    tape.emit(
        tape.point, [x], plain.out,
        lambda: kind(x, plain.out, NONE, NONE, groups, 0, epsilon), node.op,
    )  # fmt: skip
    scaling = pack_scaling(tape, node, tape.slots[x].pixel_pitch if per_element else 0)
    value, activation = node.output, Activation.NONE
    if not per_element:
        value, activation = tape.rectify(value)
    out = tape.add_slot(value, order)
    scale(tape, scaling, plain.out, out, activation)
    tangent, moved = tape.tangents.get(x_value), None
    if tape.has_tangents and (tangent is not None or tape.is_trained(node)):
        if tangent is not None:
            moved = norm_slope(tape, tape.along, plain, tangent)
        sums = tape.like(out)
        crossed = plain.out if node.tensors.get("weight") in tape.trainable else None
        tape.combine(
            tape.along, moved, crossed, sums, (scaling.weight, False), (scaling.weight, True),
            (scaling.bias if tape.is_trained(node) else NONE, True), scaling.pitch,
        )  # fmt: skip
        tape.set_tangent(value, out, sums, activation)

    def back() -> None:
        g, h = tape.handed_back(value, out, activation)
        source = tape.summed(g, h)
        if source is not None:
            parameter_part(tape, node.tensors.get("bias"), Pairs(source, NONE), scaling.pitch)
        pairs = tape.pairs(plain.out, moved, g, h)
        if pairs is not None:
            parameter_part(tape, node.tensors.get("weight"), pairs, scaling.pitch)
        if tape.needs_cotangent(x_value):
            norm_back(tape, node, plain, scaling, tangent, g, h)

    tape.backward.append(back)


def norm_back(
    tape: Tape, node: Node, plain: Standard, scaling: Scaling, tangent: int | None,
    g: int | None, h: int | None,
) -> None:  # fmt: skip
    x_value, weight = node.inputs[0], scaling.weight
    q: int | None = None
    if g is not None and tape.has_cotangents:
        q = g
        if weight != NONE:
            q = tape.form(g, plain.out, lambda steps, source, to: tape.combine(
                steps, source, None, to, (weight, False), pitch=scaling.pitch))  # fmt: skip
        slot = norm_slope(tape, tape.point, plain, q)
        tape.give(tape.cotangents, tape.point, x_value, slot)
    if h is None:
        return
    q_tangent = h
    if weight != NONE:
        trained = tape.kind == "hessian" and node.tensors["weight"] in tape.trainable
        crossed = tape.again(g) if trained else None
        q_tangent = tape.like(plain.out)
        tape.combine(
            tape.along, h, crossed, q_tangent, (weight, False), (weight, True),
            pitch=scaling.pitch,
        )  # fmt: skip
    slot = norm_slope(tape, tape.along, plain, q_tangent, tangent, tape.again(q))
    tape.give(tape.cotangent_tangents, tape.along, x_value, slot)


def pack_scaling(tape: Tape, node: Node, pitch: int) -> Scaling:
    def pack(name: str | None) -> int:
        if name is None or not pitch:
            return tape.pack_vector(name)
        size = torch.Size(tape.shapes[name][1:]).numel() * pitch
        return tape.pack(size, lambda state: elements(state[name], pitch))

    weight, bias = (pack(node.tensors.get(role)) for role in ("weight", "bias"))
    return Scaling(weight, bias, pitch)


def elements(tensor: Tensor, pitch: int) -> Tensor:
    """A tensor [channels, ...] in the order of an activation, pixels `pitch` floats apart."""
    return packing.padded(tensor.movedim(0, -1), pitch).reshape(-1)


def scale(tape: Tape, scaling: Scaling, source: int, out: int, activation: int) -> None:
    weight, bias, pitch = scaling.weight, scaling.bias, scaling.pitch
    if pitch:
        tape.combine(tape.point, source, None, out, (weight, False), shift=(bias, False),
                     pitch=pitch)  # fmt: skip
        return
    epilogue = Epilogue(weight, bias, activation=activation)
    tape.emit(tape.point, [source], out, lambda: records.Pointwise(source, out, epilogue), "scale")


def norm_slope(
    tape: Tape, steps: list[Draft], plain: Standard, source: int,
    tangent: int | None = None, cotangent: int | None = None,
) -> int:  # fmt: skip
    """r P source [+ the derivative of r P along `tangent`, times `cotangent`], in a slot."""
    out = tape.like(plain.source)
    if tangent is None or cotangent is None:
        tangent = cotangent = None
    pitch = tape.slots[out].pixel_pitch
    tape.emit(
        steps,
        [plain.source, source, tangent, cotangent],
        out,
        lambda: NormSlope(
            plain.source, source, NONE if tangent is None else tangent,
            NONE if cotangent is None else cotangent, out, plain.groups, int(plain.by_pixel),
            plain.epsilon, tape.scratch_offset,
        ),
        "norm slope",
        scratch=lambda: 0 if plain.by_pixel else _FACTORS * pitch,
    )  # fmt: skip
    return out


def parameter_part(tape: Tape, name: str | None, pairs: Pairs, pitch: int) -> None:
    """Sums the derivative in the weight or bias of a norm, if it is trained."""
    if name is None or name not in tape.trainable:
        return
    shape = tape.shapes[name]
    channels, room = shape[0], pitch or tape.slots[pairs.left].pixel_pitch
    pixels = torch.Size(shape[1:]).numel() if pitch else 1

    def unpack(flat: Tensor, _: State) -> dict[str, Tensor]:
        found = flat[: pixels * room].view(pixels, room)[:, :channels]
        return {name: found.T.reshape(shape)}

    offset = tape.add_part(pixels * room, unpack)
    tape.sum_products(pairs, lambda: ChannelGradient(pairs, offset, pitch), "channel gradient")
