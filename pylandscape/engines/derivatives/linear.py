"""Derivatives of linear layers on vectors."""

import torch
from torch import Tensor

from pylandscape.engines import packing, products, records
from pylandscape.engines.derivatives.chosen import RectifiedLinear
from pylandscape.engines.derivatives.filters import Geometry
from pylandscape.engines.derivatives.products import convolution
from pylandscape.engines.derivatives.records import LinearGradient
from pylandscape.engines.derivatives.tape import DIRECTION, Tape
from pylandscape.engines.layout import round_up
from pylandscape.engines.lowering import Draft
from pylandscape.engines.program import Node
from pylandscape.engines.records import NONE, Activation, Epilogue


def linear(tape: Tape, node: Node) -> None:
    if len(tape.program.values[node.inputs[0]].shape) > 1:
        convolution(tape, node, "last", Geometry())
        return
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
    forward = tape.pack_moved(size, name, panels)
    bias = tape.pack_vector(node.tensors.get("bias"))
    value, activation = tape.rectify(node.output)
    out = tape.add_slot(value, "first")
    multiply(tape, tape.point, forward, source, out, depth, outputs,
                  Epilogue(shift=bias, activation=activation))  # fmt: skip
    tangent = tape.tangents.get(x_value)
    if activation == Activation.RELU and tangent is not None:
        RectifiedLinear(tape, node, source, out, bias, columns).derive(x_value, value)
        return
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
        tape.bias_part(node, tape.summed(g, h))
        pairs = tape.pairs(source, tangent, g, h)
        if pairs is not None and name in tape.trainable:
            part = tape.add_moved_part(size, name, panels)
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
    weights = tape.pack_moved(round_up(depth, lanes) * rows, name, movement)
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
        multiply(tape, tape.along, weights, tape.again(g), sums, rows, depth, Epilogue(),
                      along=True, accumulate=begun)  # fmt: skip
        begun = True
    if begun:
        tape.flat_reads.append(sums)
        tape.give(tape.cotangent_tangents, tape.along, x_value, sums)
