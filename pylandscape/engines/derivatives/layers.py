"""Derivatives of layers without parameters: functions, sums, pooling, the loss."""

from collections.abc import Callable
from dataclasses import replace

import torch

from pylandscape.engines import records
from pylandscape.engines import simple_layers as simple
from pylandscape.engines.derivatives.movement import flattened
from pylandscape.engines.derivatives.records import (
    AdaptivePoolGradient,
    AveragePoolGradient,
    LossGradient,
    MaxPoolChoice,
    MaxPoolGradient,
)
from pylandscape.engines.derivatives.tape import Tape
from pylandscape.engines.lowering import Draft, paddings
from pylandscape.engines.program import Node, NotCovered
from pylandscape.engines.records import NONE, Activation, BinaryKind, Epilogue, LossKind
from pylandscape.engines.simple_layers import LossSpec


def activate(tape: Tape, node: Node) -> None:
    x_value = node.inputs[0]
    order = tape.elementwise_order(node)
    kind, constants = tape.activation(node)
    x = tape.slot(x_value, order)
    out = tape.add_slot(node.output, order)
    epilogue = Epilogue(activation=kind, constants=constants)
    tape.emit(tape.point, [x], out, lambda: records.Pointwise(x, out, epilogue), "activation")
    sloped = out if kind == Activation.RELU else x  # which then is not kept
    tangent = tape.tangents.get(x_value)
    if tape.has_tangents and tangent is not None:
        tape.tangents[node.output] = tape.slope(tape.along, sloped, tangent, kind, constants)

    def back() -> None:
        if not tape.needs_cotangent(x_value):
            return
        g, h = (t.get(node.output) for t in (tape.cotangents, tape.cotangent_tangents))
        if g is not None and tape.has_cotangents:
            slot = tape.slope(tape.point, sloped, g, kind, constants)
            tape.give(tape.cotangents, tape.point, x_value, slot)
        if h is not None:
            crossed = tape.again(g) if tape.kind == "hessian" else None
            slot = tape.slope(tape.along, sloped, h, kind, constants, tangent, crossed)
            tape.give(tape.cotangent_tangents, tape.along, x_value, slot)

    tape.backward.append(back)


def binary(tape: Tape, node: Node) -> None:
    order = simple.broadcast_order(tape, node)
    left, right = (tape.slot(v, order) for v in node.inputs)
    out = tape.add_slot(node.output, order)
    kind = BinaryKind[node.op.upper()]
    pairwise(tape, tape.point, left, right, out, kind)
    tangents = [tape.tangents.get(v) for v in node.inputs]
    if tape.has_tangents:
        total: dict[int, int] = {}
        for mine, other, sign in ((0, right, 1), (1, left, -1)):
            found = tangents[mine]
            if found is not None:
                term = through(tape, tape.along, kind, found, other, sign, out)
                tape.give(total, tape.along, node.output, term)
        tape.tangents |= total

    def back() -> None:
        g, h = (t.get(node.output) for t in (tape.cotangents, tape.cotangent_tangents))
        others = ((left, right, tangents[1], 1), (right, left, tangents[0], -1))
        for value, (mine, other, crossed, sign) in zip(node.inputs, others, strict=True):
            if not tape.needs_cotangent(value):
                continue
            if g is not None and tape.has_cotangents:
                slot = through(tape, tape.point, kind, g, other, sign, mine)
                tape.give(tape.cotangents, tape.point, value, slot)
            if h is not None:
                slot = through(tape, tape.along, kind, h, other, sign, mine)
                tape.give(tape.cotangent_tangents, tape.along, value, slot)
            product = kind == BinaryKind.MUL and tape.kind == "hessian"
            if product and g is not None and crossed is not None:
                slot = through(tape, tape.along, kind, tape.again(g), crossed, sign, mine)
                tape.give(tape.cotangent_tangents, tape.along, value, slot)

    tape.backward.append(back)


def pairwise(
    tape: Tape, steps: list[Draft], left: int, right: int, out: int, kind: BinaryKind
) -> None:
    tape.emit(
        steps, [left, right], out,
        lambda: records.Binary(left, right, out, kind, Epilogue()), kind.name.lower(),
    )  # fmt: skip


def through(
    tape: Tape, steps: list[Draft], kind: BinaryKind, given: int, other: int, sign: int, like: int
) -> int:
    """What one operand of a sum, difference or product contributes: given, -given or a product.

    `sign` is -1 for the second operand. The contribution is to a slot `like`.
    """
    if kind == BinaryKind.MUL:
        out = tape.like(max(given, other, key=lambda index: tape.slots[index].pixels))
        pairwise(tape, steps, given, other, out, kind)
        return fitted(tape, steps, out, like)
    if kind == BinaryKind.SUB and sign < 0:
        out = tape.like(given)
        minus = tape.constant(3, lambda _: torch.tensor([-1.0, 0.0, 0.0]))
        epilogue = Epilogue(activation=Activation.AFFINE, constants=minus)
        tape.emit(steps, [given], out, lambda: records.Pointwise(given, out, epilogue), "negate")
        return fitted(tape, steps, out, like)
    return fitted(tape, steps, given, like)


def fitted(tape: Tape, steps: list[Draft], source: int, like: int) -> int:
    """What goes with every pixel of a slot `like`, or the sum over pixels where it has but one."""
    found, wanted = tape.slots[source], tape.slots[like]
    if found.pixels == wanted.pixels:
        return source
    kind = records.AveragePool if wanted.is_flat else AveragePoolGradient
    image, out = found if wanted.is_flat else wanted, tape.like(like)
    window = {"kernel_h": image.height, "kernel_w": image.width, "stride_h": 1, "stride_w": 1}
    tape.emit(
        steps, [source], out,
        lambda: kind(source, out, **window, pad_h=0, pad_w=0, count_padding=0, divisor=1),
        "sum of pixels" if wanted.is_flat else "spread over pixels",
    )  # fmt: skip
    return out


def pool(tape: Tape, node: Node) -> None:
    x_value = node.inputs[0]
    x = tape.slot(x_value, "first")
    out = tape.add_slot(node.output, "first")
    forward, back_through, needed = pool_steps(tape, node, x, out)
    tape.emit(tape.point, [x], out, forward(x, out), node.op)
    tangent = tape.tangents.get(x_value)
    if tape.has_tangents and tangent is not None:
        sums = tape.like(out)
        if node.op == "max_pool":
            tape.emit(tape.along, [*needed, tangent], sums, back_through(tangent, sums, 0), node.op)
        else:
            tape.emit(tape.along, [tangent], sums, forward(tangent, sums), node.op)
        tape.tangents[node.output] = sums

    def back() -> None:
        if not tape.needs_cotangent(x_value):
            return

        def spread(steps: list[Draft], source: int, to: int) -> None:
            make = back_through(source, to, 1)
            tape.emit(steps, [*needed, source], to, make, f"{node.op} gradient")

        g, h = (t.get(node.output) for t in (tape.cotangents, tape.cotangent_tangents))
        if g is not None:
            tape.give(tape.cotangents, tape.point, x_value, tape.form(g, x, spread))
        if h is not None:
            target = tape.like(x)
            spread(tape.along, h, target)
            tape.give(tape.cotangent_tangents, tape.along, x_value, target)

    tape.backward.append(back)


def pool_steps(
    tape: Tape, node: Node, x: int, out: int
) -> tuple[
    Callable[[int, int], Callable[[], records.Step]],
    Callable[[int, int, int], Callable[[], records.Step]],
    list[int],
]:
    """(source, out) -> the pooling; (source, out, spread) -> its derivative; what that needs."""
    if node.op == "adaptive_avg_pool":
        return (
            lambda a, b: lambda: records.AdaptivePool(a, b),
            lambda a, b, _: lambda: AdaptivePoolGradient(a, b),
            [],
        )
    fields = pool_window(node)
    if node.op == "max_pool":
        rectified = int(node.inputs[0] in tape.rectified_by_pool)
        choice = tape.like(out)  # all that the derivatives need of x
        tape.emit(tape.point, [x], choice, lambda: MaxPoolChoice(x, choice, **fields,
                  rectified=rectified), "max_pool choice")  # fmt: skip
        return (
            lambda a, b: lambda: records.MaxPool(a, b, **fields),
            lambda a, b, spread: (
                lambda: MaxPoolGradient(choice, b, **fields, source=a, spread=spread)
            ),
            [choice],
        )
    fields["count_padding"] = int(node.attrs["count_include_pad"])
    fields["divisor"] = node.attrs["divisor"] or 0
    return (
        lambda a, b: lambda: records.AveragePool(a, b, **fields),
        lambda a, b, _: lambda: AveragePoolGradient(a, b, **fields),
        [],
    )


def pool_window(node: Node) -> dict[str, int]:
    """The fields of a record that tell where the windows of a pooling lie."""
    (top, left), trailing = paddings(node)
    if (top, left) != trailing:
        raise NotCovered("pads its two sides differently", node.op, node.source)
    (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
    fields = {"kernel_h": kh, "kernel_w": kw, "stride_h": sh, "stride_w": sw}
    fields |= {"pad_h": top, "pad_w": left}
    if node.op == "max_pool":
        fields["dilation_h"], fields["dilation_w"] = node.attrs["dilation"]
    return fields


def log_softmax(tape: Tape, node: Node) -> None:
    value = node.inputs[0]
    simple.lower_log_softmax(tape, node)  # part of the loss
    if value in tape.tangents:
        tape.tangents[node.output] = tape.tangents[value]

    def back() -> None:
        for table in (tape.cotangents, tape.cotangent_tangents):
            if node.output in table:
                table[value] = table[node.output]

    tape.backward.append(back)


def loss(tape: Tape, spec: LossSpec) -> None:
    value = tape.program.output
    shape = tape.program.values[value].shape
    if len(shape) != 1 and spec.kind != LossKind.CROSS_ENTROPY:
        value = flattened(tape, value)
        tape.program = replace(tape.program, output=value)
        weights = spec.weights
        spec = replace(spec, weights=None if weights is None else weights.expand(shape).flatten())
    flat = tape.any_slot(value)
    simple.lower_loss(tape, spec)
    tape.vector_steps.add(id(tape.point[-1]))
    loss_record = tape.point[-1]

    def gradient(tangent: int, out: int, fisher: bool) -> Callable[[], records.Step]:
        def make() -> records.Step:
            loss = loss_record.make()
            assert isinstance(loss, records.Loss)
            return LossGradient(
                flat, tangent, out, loss.loss, loss.outputs, loss.weights, loss.smoothing,
                loss.ignore_index, int(fisher),
            )  # fmt: skip

        return make

    if tape.has_cotangents:
        out = tape.like(flat)
        tape.slots[out].dedicated = True
        tape.emit(tape.point, [flat], out, gradient(NONE, out, False), "loss gradient")
        tape.cotangents[value] = out
    tangent = tape.tangents.get(value)
    if tape.has_tangents:
        if tangent is None:
            raise NotCovered("the outputs do not depend on the parameters")
        out = tape.like(flat)
        tape.slots[out].dedicated = True
        make = gradient(tangent, out, tape.kind == "fisher")
        tape.emit(tape.along, [flat, tangent], out, make, "loss gradient")
        tape.cotangent_tangents[value] = out
