"""Derivatives of layers without parameters: functions, sums, pooling, movement, the loss."""

from collections.abc import Callable

import torch

from pylandscape.engines import records
from pylandscape.engines import simple_layers as simple
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
from pylandscape.engines.records import NONE, Activation, BinaryKind, Epilogue
from pylandscape.engines.simple_layers import LossSpec


def activate(tape: Tape, node: Node) -> None:
    x_value = node.inputs[0]
    order = tape.elementwise_order(node)
    kind, constants = tape.activation(node)
    x = tape.slot(x_value, order)
    out = tape.add_slot(node.output, order)
    epilogue = Epilogue(activation=kind, constants=constants)
    tape.emit(tape.point, [x], out, lambda: records.Pointwise(x, out, epilogue), "activation")
    tangent = tape.tangents.get(x_value)
    if tape.has_tangents and tangent is not None:
        tape.tangents[node.output] = tape.slope(tape.along, x, tangent, kind, constants)

    def back() -> None:
        if not tape.needs_cotangent(x_value):
            return
        g, h = (t.get(node.output) for t in (tape.cotangents, tape.cotangent_tangents))
        if g is not None and tape.has_cotangents:
            slot = tape.slope(tape.point, x, g, kind, constants)
            tape.give(tape.cotangents, tape.point, x_value, slot)
        if h is not None:
            crossed = g if tape.kind == "hessian" else None
            slot = tape.slope(tape.along, x, h, kind, constants, tangent, crossed)
            tape.give(tape.cotangent_tangents, tape.along, x_value, slot)

    tape.backward.append(back)


def binary(tape: Tape, node: Node) -> None:
    order = tape.elementwise_order(node)
    shapes = {tape.program.values[v].shape for v in (*node.inputs, node.output)}
    if len(shapes) > 1:
        raise NotCovered("broadcasts, which has no native derivatives", node.op, node.source)
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
                term = through(tape, tape.along, kind, found, other, sign)
                tape.give(total, tape.along, node.output, term)
        tape.tangents |= total

    def back() -> None:
        g, h = (t.get(node.output) for t in (tape.cotangents, tape.cotangent_tangents))
        others = ((right, tangents[1], 1), (left, tangents[0], -1))
        for value, (other, crossed, sign) in zip(node.inputs, others, strict=True):
            if not tape.needs_cotangent(value):
                continue
            if g is not None and tape.has_cotangents:
                slot = through(tape, tape.point, kind, g, other, sign)
                tape.give(tape.cotangents, tape.point, value, slot)
            if h is not None:
                slot = through(tape, tape.along, kind, h, other, sign)
                tape.give(tape.cotangent_tangents, tape.along, value, slot)
            product = kind == BinaryKind.MUL and tape.kind == "hessian"
            if product and g is not None and crossed is not None:
                slot = through(tape, tape.along, kind, g, crossed, sign)
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
    tape: Tape, steps: list[Draft], kind: BinaryKind, given: int, other: int, sign: int
) -> int:
    """What one operand of a sum, difference or product contributes: given, -given or a product.

    `sign` is -1 for the second operand.
    """
    if kind == BinaryKind.ADD or (kind == BinaryKind.SUB and sign > 0):
        return given
    out = tape.like(given)
    if kind == BinaryKind.MUL:
        pairwise(tape, steps, given, other, out, kind)
        return out
    minus = tape.constant(3, lambda _: torch.tensor([-1.0, 0.0, 0.0]))
    epilogue = Epilogue(activation=Activation.AFFINE, constants=minus)
    tape.emit(steps, [given], out, lambda: records.Pointwise(given, out, epilogue), "negate")
    return out


def pool(tape: Tape, node: Node) -> None:
    x_value = node.inputs[0]
    x = tape.slot(x_value, "first")
    out = tape.add_slot(node.output, "first")
    choice = tape.like(out)  # of a max_pool, which is all that its derivatives need of x
    forward, back_through = pool_steps(tape, node, x, choice)
    tape.emit(tape.point, [x], out, forward(x, out), node.op)
    tangent = tape.tangents.get(x_value)
    if tape.has_tangents and tangent is not None:
        sums = tape.like(out)
        if node.op == "max_pool":
            tape.emit(tape.along, [choice, tangent], sums, back_through(tangent, sums, 0), node.op)
        else:
            tape.emit(tape.along, [tangent], sums, forward(tangent, sums), node.op)
        tape.tangents[node.output] = sums

    def back() -> None:
        if not tape.needs_cotangent(x_value):
            return
        for table, steps in ((tape.cotangents, tape.point),
                             (tape.cotangent_tangents, tape.along)):  # fmt: skip
            given = table.get(node.output)
            if given is not None:
                target = tape.like(x)
                reads = [choice, given] if node.op == "max_pool" else [given]
                make = back_through(given, target, 1)
                tape.emit(steps, [*reads], target, make, f"{node.op} gradient")
                tape.give(table, steps, x_value, target)

    tape.backward.append(back)


def pool_steps(
    tape: Tape, node: Node, x: int, choice: int
) -> tuple[
    Callable[[int, int], Callable[[], records.Step]],
    Callable[[int, int, int], Callable[[], records.Step]],
]:
    """(source, out) -> the pooling; (source, out, spread) -> its derivative."""
    if node.op == "adaptive_avg_pool":
        return (
            lambda a, b: lambda: records.AdaptivePool(a, b),
            lambda a, b, _: lambda: AdaptivePoolGradient(a, b),
        )
    (top, left), trailing = paddings(node)
    if (top, left) != trailing:
        raise NotCovered("pads its two sides differently", node.op, node.source)
    (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
    fields = {"kernel_h": kh, "kernel_w": kw, "stride_h": sh, "stride_w": sw}
    fields |= {"pad_h": top, "pad_w": left}
    if node.op == "max_pool":
        fields["dilation_h"], fields["dilation_w"] = node.attrs["dilation"]
        rectified = int(node.inputs[0] in tape.rectified_by_pool)
        tape.emit(tape.point, [x], choice, lambda: MaxPoolChoice(x, choice, **fields,
                  rectified=rectified), "max_pool choice")  # fmt: skip
        return (
            lambda a, b: lambda: records.MaxPool(a, b, **fields),
            lambda a, b, spread: (
                lambda: MaxPoolGradient(choice, b, **fields, source=a, spread=spread)
            ),
        )
    fields["count_padding"] = int(node.attrs["count_include_pad"])
    fields["divisor"] = node.attrs["divisor"] or 0
    return (
        lambda a, b: lambda: records.AveragePool(a, b, **fields),
        lambda a, b, _: lambda: AveragePoolGradient(a, b, **fields),
    )


def reindex(tape: Tape, node: Node) -> None:
    """Data movement: the same for tangents, and backwards for cotangents."""
    readers = tape.consumers.get(node.output, [])
    for_linear = bool(readers) and all(n.op == "linear" for n in readers)
    vector = len(tape.program.values[node.output].shape) == 1
    if for_linear and vector and tape.columns(node) is not None:
        return  # the Linear reads the elements where they are
    index = node.attrs["index"]
    kept = index[index >= 0]
    if len(kept.unique()) != len(kept):
        raise NotCovered("repeats elements, which has no native derivatives", node.op,
                         node.source)  # fmt: skip
    order = tape.preferred_order(node.output) or "first"
    sources = [tape.any_slot(v) for v in node.inputs]
    out = tape.add_slot(node.output, order)
    tape.slots[out].dedicated = True
    parts, start = [], 0
    for value, source in zip(node.inputs, sources, strict=True):
        size = tape._elements(source)
        places = ((index >= start) & (index < start + size)).nonzero().flatten()
        parts.append((value, source, index[places] - start, places))
        start += size
    for _, source, chosen, places in parts:
        if len(chosen):
            tape.move(tape.point, source, out, chosen, places)
    active = [(v, c, p) for v, _, c, p in parts if v in tape.tangents and len(c)]
    if tape.has_tangents and active:
        sums = tape.like(out)
        tape.slots[sums].dedicated = True
        for value, chosen, places in active:
            tape.move(tape.along, tape.tangents[value], sums, chosen, places)
        tape.tangents[node.output] = sums

    def back() -> None:
        for table, steps in ((tape.cotangents, tape.point),
                             (tape.cotangent_tangents, tape.along)):  # fmt: skip
            given = table.get(node.output)
            for value, source, chosen, places in parts:
                if given is None or not tape.needs_cotangent(value) or not len(chosen):
                    continue
                target = tape.like(source)
                tape.slots[target].dedicated = True
                tape.move(steps, given, target, places, chosen)
                tape.give(table, steps, value, target)

    tape.backward.append(back)


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
    flat = tape.any_slot(value)
    shape = tape.program.values[value].shape
    if len(shape) != 1 or tape.slots[flat].dense:
        raise NotCovered("outputs of other than one dimension have no native derivatives")
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
