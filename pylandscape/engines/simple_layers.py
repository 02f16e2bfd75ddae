"""Everything but products: the input, elementwise layers, normalisation, pooling, the loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.layout import Slot, image_shape
from pylandscape.engines.lowering import Lowering, paddings
from pylandscape.engines.program import Node, NotCovered
from pylandscape.engines.records import NONE, Activation, BinaryKind, Epilogue, LossKind


@dataclass(frozen=True)
class LossSpec:
    """The loss as the kernels know it: `kind`, constants, and whether predictions are counted."""

    kind: LossKind
    weights: Tensor | None = None
    smoothing: float = 0.0
    ignore_index: int = -(2**62)
    count_correct: bool = False


def lower_input(low: Lowering, input_strides: tuple[int, ...]) -> None:
    value = low.program.input
    order = low.preferred_order(value) or "first"
    shape = low.program.values[value].shape
    dense = all(low.reads_dense(node, value) for node in low.consumers.get(value, []))
    out = low.add_slot(value, order, dense=dense)
    each = list(input_strides[1:])
    channel = each.pop(0 if order == "first" else -1) if each else 1
    if low.slots[out].channels == 1:
        channel = 1  # a stride that is never used: say that the pixels lie side by side
    pixel = each[-1] if each else 0
    row = each[0] if len(shape) == 3 else 0
    low.draft([], out, lambda: records.Load(out, channel, row, pixel), "load")


def lower_batch_norm(low: Lowering, node: Node) -> None:
    source = low.slot(node.inputs[0], "first")
    scale, shift = low.fold(node, NONE)
    epilogue, value = Epilogue(scale, shift), node.output
    follower = low.sole_consumer(value)
    if follower is not None and follower.op in ("activation", "scale"):
        epilogue.activation, epilogue.constants = low.activation(follower)
        value = low.absorb(follower)
    _pointwise(low, source, value, "first", epilogue, "batch_norm")


def lower_activation(low: Lowering, node: Node) -> None:
    order = low.elementwise_order(node)
    kind, constants = low.activation(node)
    epilogue = Epilogue(activation=kind, constants=constants)
    source = low.slot(node.inputs[0], order)
    _pointwise(low, source, node.output, order, epilogue, Activation(kind).name.lower())


def _pointwise(
    low: Lowering, source: int, value: int, order: str, epilogue: Epilogue, label: str
) -> None:
    out = low.add_slot(value, order)
    low.draft([source], out, lambda: records.Pointwise(source, out, epilogue), label)


def lower_binary(low: Lowering, node: Node) -> None:
    order = broadcast_order(low, node)
    left, right = (low.slot(v, order) for v in node.inputs)
    value, epilogue = node.output, Epilogue()
    follower = low.sole_consumer(value)
    if follower is not None and follower.op in ("activation", "scale"):
        epilogue.activation, epilogue.constants = low.activation(follower)
        value = low.absorb(follower)
    out = low.add_slot(value, order)
    kind = BinaryKind[node.op.upper()]
    low.draft(
        [left, right],
        out,
        lambda: records.Binary(left, right, out, kind, epilogue),
        node.op,
    )


def broadcast_order(low: Lowering, node: Node) -> str:
    """An order in which each operand has the shape of the result, or one pixel for all of it."""
    for order in (low.elementwise_order(node), "first", "last"):
        shape = image_shape(low.program.values[node.output].shape, order)
        sides = [image_shape(low.program.values[v].shape, order) for v in node.inputs]
        if all(side in (shape, (shape[0], 1, 1)) for side in sides):
            return order
    raise NotCovered("broadcasts in a way without a kernel", node.op, node.source)


def lower_layer_norm(low: Lowering, node: Node) -> None:
    dims, rank = node.attrs["dims"], len(low.program.values[node.inputs[0]].shape)
    if dims == 1:
        return _norm(low, node, "last", records.PixelNorm, per_element=False)
    if dims != rank:
        raise NotCovered("normalises dimensions without a kernel", "layer_norm", node.source)
    return _norm(low, node, "first", records.GroupNorm, per_element=True)


def lower_group_norm(low: Lowering, node: Node) -> None:
    _norm(low, node, "first", records.GroupNorm, False, node.attrs["groups"])


def _norm(
    low: Lowering, node: Node, order: str, kind: Any, per_element: bool, groups: int = 1
) -> None:
    source = low.slot(node.inputs[0], order)
    lanes = low.lanes

    def pack(name: str | None) -> int:
        if name is None:
            return NONE
        size = torch.Size(low.shapes[name]).numel()
        return low.pack(
            packing.vector_room(size, lanes),
            lambda state: packing.per_element(state[name], order, lanes),
        )

    weight, bias = (pack(node.tensors.get(role)) for role in ("weight", "bias"))
    epsilon = low.constant(1, lambda _: torch.tensor([node.attrs["eps"]]))
    out = low.add_slot(node.output, order)
    low.slots[out].dedicated = True
    low.draft(
        [source],
        out,
        lambda: kind(source, out, weight, bias, groups, per_element, epsilon),
        node.op,
    )


def _pool(low: Lowering, node: Node, kind: Any, **options: int) -> None:
    source = low.slot(node.inputs[0], "first")
    out = low.add_slot(node.output, "first")
    (top, left), trailing = paddings(node)
    if (top, left) != trailing:
        raise NotCovered("pads its two sides differently", node.op, node.source)
    fields = (*node.attrs["kernel"], *node.attrs["stride"], top, left)
    low.draft(
        [source],
        out,
        lambda: kind(source, out, *fields, *node.attrs.get("dilation", (1, 1)), **options),
        node.op,
    )


def lower_max_pool(low: Lowering, node: Node) -> None:
    _pool(low, node, records.MaxPool)


def lower_avg_pool(low: Lowering, node: Node) -> None:
    _pool(
        low,
        node,
        records.AveragePool,
        count_padding=int(node.attrs["count_include_pad"]),
        divisor=node.attrs["divisor"] or 0,
    )


def lower_adaptive_avg_pool(low: Lowering, node: Node) -> None:
    source = low.slot(node.inputs[0], "first")
    out = low.add_slot(node.output, "first")
    low.draft([source], out, lambda: records.AdaptivePool(source, out), node.op)


def lower_log_softmax(low: Lowering, node: Node) -> None:
    low.any_slot(node.inputs[0])
    low.slot_of[node.output] = low.slot_of[node.inputs[0]]  # part of the loss


def lower_loss(low: Lowering, loss: LossSpec) -> None:
    value = low.program.output
    shape = low.program.values[value].shape
    if loss.kind == LossKind.CROSS_ENTROPY and len(shape) != 1:
        raise NotCovered(f"cross-entropy of outputs {list(shape)} has no native kernel")
    flat = low.any_slot(value)
    if len(shape) > 1 or low.slots[flat].dense:
        flat = _flattened(low, value)
    outputs = low.program.values[value].size
    weights, given = NONE, loss.weights
    if given is not None:
        weights = low.constant(outputs, lambda _: given.expand(shape))
    smoothing = NONE
    if loss.smoothing:
        smoothing = low.constant(1, lambda _: torch.tensor([loss.smoothing]))
    low.draft(
        [flat],
        None,
        lambda: records.Loss(
            flat, loss.kind, outputs, weights, smoothing, loss.ignore_index,
            loss.count_correct,
        ),
        f"loss {loss.kind.name.lower()}",
    )  # fmt: skip


def _flattened(low: Lowering, value: int) -> int:
    """The outputs as one vector in torch's order, as the targets are."""
    source = low.any_slot(value)
    size = low.program.values[value].size
    low.slots.append(Slot(size, 1, 1, "first", dedicated=True, lanes=low.lanes))
    target = len(low.slots) - 1
    everything = torch.arange(size)
    low.draft_runs(source, target, everything, everything)
    return target
