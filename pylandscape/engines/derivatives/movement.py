"""Derivatives of data movement, and values in the order of dimensions that a layer reads."""

from dataclasses import replace

import torch

from pylandscape.engines.derivatives.tape import Tape
from pylandscape.engines.program import Node, NotCovered


def reindex(tape: Tape, node: Node) -> None:
    """Data movement: the same for tangents, and backwards for cotangents."""
    readers = tape.consumers.get(node.output, [])
    for_linear = bool(readers) and all(n.op == "linear" for n in readers)
    vector = len(tape.program.values[node.output].shape) == 1
    if for_linear and vector and tape.columns(node) is not None:
        return  # the Linear reads the elements where they are
    order = tape.preferred_order(node.output) or "first"
    move_elements(tape, node, order)


def move_elements(tape: Tape, node: Node, order: str) -> None:
    index = node.attrs["index"]
    kept = index[index >= 0]
    if len(kept.unique()) != len(kept):
        raise NotCovered("repeats elements, which has no native derivatives", node.op,
                         node.source)  # fmt: skip
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


def ordered(tape: Tape, node: Node, order: str) -> Node:
    """`node` with inputs held in `order`; what is held in the other one is moved."""
    inputs = [_in_order(tape, value, order) for value in node.inputs]
    return replace(node, inputs=tuple(inputs))


def _in_order(tape: Tape, value: int, order: str) -> int:
    held = tape.slot_of.get(value)
    if held is None or order in held:  # a Linear reads what has no slot where it comes from
        return value
    if (value, order) not in tape.moved:
        moved = _copied(tape, value, tape.program.values[value].shape, order)
        tape.moved[value, order] = moved
        if value in tape.rectified_by_pool:
            tape.rectified_by_pool.add(moved)
    return tape.moved[value, order]


def flattened(tape: Tape, value: int) -> int:
    """The elements of a value as a vector, in torch's order."""
    return _copied(tape, value, (tape.program.values[value].size,), "first")


def _copied(tape: Tape, value: int, shape: tuple[int, ...], order: str) -> int:
    copy = tape.add_value(shape, like=value)
    everything = torch.arange(tape.program.values[value].size)
    move_elements(tape, Node("reindex", (value,), copy, {"index": everything}), order)
    return copy
