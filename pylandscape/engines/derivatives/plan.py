"""The two plans of a program's derivatives: what is needed of a tape, on memory, in sections."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines import simple_layers as simple
from pylandscape.engines.derivatives import layers, linear, movement, norms, products
from pylandscape.engines.derivatives.tape import DIRECTION, MIN_BLOCK, Part, Tape
from pylandscape.engines.layout import assign_memory, round_up
from pylandscape.engines.lowering import Draft, Pack, Packing, State
from pylandscape.engines.plan import cache_bytes, encoded
from pylandscape.engines.program import Node, NotCovered, Program
from pylandscape.engines.records import Room
from pylandscape.engines.simple_layers import LossSpec

KINDS = ("gradient", "hessian", "ggn", "fisher")
BLOCK = 32  # samples, a power of two
# Bytes. What is kept of a block then leaves the near caches, but weights are read less often.
KEPT_OF_BLOCK = 32 << 20


@dataclass
class TapePlans(Packing):
    """What `hessian_vector_product` runs, its parameters, and what becomes of its derivatives.

    Attributes:
        kind: `gradient`, `hessian`, `ggn` or `fisher`.
        point, along: the plans, as int64 numbers.
        indices: of moves.
        block: samples per block.
        kept: floats that are kept of the point per block.
        gradient: floats of derivatives per direction.
        folded: floats that the operator forms behind the packed ones.
        trained: where in vectors of parameters those of each tensor are.
        steps: of both plans, for people.
    """

    kind: str
    point: Tensor
    along: Tensor
    indices: Tensor
    block: int
    kept: int
    gradient: int
    folded: int
    trained: Mapping[str, slice]
    steps: list[str]
    _parts: list[Part] = field(repr=False)
    _direction_packs: list[Pack] = field(repr=False)

    def pack_point(self, vector: Tensor, state: State, out: Tensor) -> None:
        """Writes parameters [P], and those of `state` that are fixed, into `out` [packed]."""
        moves, others = self._point_packing
        moves(vector, out)
        for pack in others:
            pack.write(state, out)

    def pack_direction(self, vector: Tensor, state: State, out: Tensor) -> None:
        """The same, but for what is only read of the point."""
        moves, others = self._direction_packing
        moves(vector, out)
        for pack in others:
            pack.write(state, out)

    def unpack(self, derivatives: Tensor, state: State, scale: float, out: Tensor) -> None:
        """Writes `scale` times float64 derivatives [gradient] to zeros [P] in float32."""
        moves, others = self._unpacking
        moves(derivatives, out, scale)
        for part in others:
            flat = derivatives[part.offset : part.offset + part.size]
            for name, gradient in part.unpack(flat, state).items():
                out[self.trained[name]] += scale * gradient.reshape(-1)

    @cached_property
    def _point_packing(self) -> tuple[packing.Rearrangement, list[Pack]]:
        """The packs that only move trained parameters, as one rearrangement, and the others."""
        moves, others = [], []
        for pack in self._packs:
            name, movement = pack.moved or ("", None)
            if movement is None or name not in self.trained:
                others.append(pack)
                continue
            elements = packing.numbered_from(self.trained[name].start, movement.elements())
            moves.append((pack.offset, elements))
        return packing.Rearrangement(moves), others

    @cached_property
    def _direction_packing(self) -> tuple[packing.Rearrangement, list[Pack]]:
        moves, others = self._point_packing
        offsets = {pack.offset for pack in self._direction_packs}
        return moves.only(offsets), [pack for pack in others if pack.offset in offsets]

    @cached_property
    def _unpacking(self) -> tuple[packing.Rearrangement, list[Part]]:
        """The same for derivatives; the others are added to what was moved."""
        moves, others, done = [], [], set[str]()
        for part in self._parts:
            name, movement = part.moved or ("", None)
            if movement is None or name in done:
                others.append(part)
                continue
            done.add(name)
            places = packing.numbered_from(part.offset, movement.places())
            moves.append((self.trained[name].start, places))
        return packing.Rearrangement(moves), others


def make_tape(
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    input_strides: tuple[int, ...],
    lanes: int,
    precision: str,
    trained: Mapping[str, slice],
    kind: str,
) -> TapePlans:
    """Plans the derivatives of `program`; arguments as for `make_plan`, `TapePlans` and `Tape`.

    Raises:
        NotCovered: something in the program has no native derivatives.
    """
    tape = Tape(program, shapes, lanes, precision, frozenset(trained), kind)
    run(tape, input_strides, loss)
    return _assemble(tape, trained)


def run(tape: Tape, input_strides: tuple[int, ...], spec: LossSpec) -> None:
    simple.lower_input(tape, input_strides)
    handlers: Mapping[str, Callable[[Tape, Node], None]] = {
        "conv": products.conv,
        "linear": linear.linear,
        "batch_norm": norms.batch_norm,
        "layer_norm": norms.layer_norm,
        "group_norm": norms.group_norm,
        "activation": layers.activate,
        "scale": layers.activate,
        "add": layers.binary,
        "sub": layers.binary,
        "mul": layers.binary,
        "max_pool": layers.pool,
        "avg_pool": layers.pool,
        "adaptive_avg_pool": layers.pool,
        "reindex": movement.reindex,
        "log_softmax": layers.log_softmax,
    }
    for node in tape.program.nodes:
        if node.output in tape.fused:
            continue
        if node.op not in handlers:
            raise NotCovered("has no native derivatives", node.op, node.source)
        order = input_order(tape, node)
        handlers[node.op](tape, node if order is None else movement.ordered(tape, node, order))
    layers.loss(tape, spec)
    for step in reversed(tape.backward):
        step()
    tape.settle_halos()
    for index in tape.flat_reads:
        slot = tape.slots[index]
        if slot.top or slot.bottom or slot.left or slot.right:
            raise NotCovered("a Linear shares its input with a convolution")


def input_order(tape: Tape, node: Node) -> str | None:
    """The order of dimensions in which a layer reads its inputs; None where it takes any."""
    if node.op in ("reindex", "log_softmax"):
        return None
    if node.op in ("activation", "scale"):
        return tape.elementwise_order(node)
    if node.op in ("add", "sub", "mul"):
        return simple.broadcast_order(tape, node)
    return "last" if node.op == "linear" or node.attrs.get("dims") == 1 else "first"


def _assemble(tape: Tape, trained: Mapping[str, slice]) -> TapePlans:
    along = _needed(tape.along, set())
    reads_of_along = {i for draft in along for i in draft.reads}
    point = _needed(tape.point, set(reads_of_along))
    written_at_point = {draft.writes for draft in point}
    kept = reads_of_along & written_at_point
    kept_floats = sum(tape.slots[i].sample_pitch for i in kept)
    block = KEPT_OF_BLOCK // (4 * max(1, kept_floats))
    block = max(MIN_BLOCK, min(BLOCK, 1 << block.bit_length() >> 1))
    sections = {}
    for name, steps in (("point", point), ("along", along)):
        _lifetimes(tape, steps)
        sections[name] = _sections(tape, steps, block)
        _choose_rooms(tape, steps, sections[name], block)
    sub_block = max(
        (s.samples for found in sections.values() for s in found if s.samples < block), default=1
    )
    for index in kept:
        tape.slots[index].room, tape.slots[index].dedicated = Room.KEPT, True
    room = {Room.WHOLE_BLOCK: block, Room.SUB_BLOCK: sub_block, Room.KEPT: block}
    kept_size = round_up(assign_memory([tape.slots[i] for i in sorted(kept)], room), 16)
    arena = 0
    for steps in (point, along):
        mine = sorted({d.writes for d in steps if d.writes is not None} - kept)
        arena = round_up(assign_memory([tape.slots[i] for i in mine], room, arena), 16)
    tape.block, tape.scratch_offset = block, arena
    arena += max(draft.scratch() for draft in [*point, *along])
    plans = {}
    for slot in tape.slots:
        slot.offset = max(slot.offset, 0)  # of those that nobody needs
    for name, steps in (("point", point), ("along", along)):
        made = [draft.make() for draft in steps]
        plans[name] = encoded(tape, made, sections[name], arena, block)
    return TapePlans(
        packed=tape.packed,
        _packs=tape.packs,
        _constants=tape.constants,
        kind=tape.kind,
        point=plans["point"],
        along=plans["along"],
        indices=tape.all_indices(),
        block=block,
        kept=kept_size,
        gradient=max(tape.gradient_size, 16),
        folded=tape.folded,
        trained=trained,
        steps=[draft.label for draft in [*point, *along]],
        _parts=tape.parts,
        _direction_packs=_packs_along(tape, plans["along"]),
    )


def _packs_along(tape: Tape, along: Tensor) -> list[Pack]:
    """Those of which the plan along a direction names the direction's."""
    read = along[along >= DIRECTION] - DIRECTION
    for fold in tape.folds:
        read = torch.cat((read, torch.tensor([fold.gamma, fold.beta, fold.bias])))
    starts = torch.tensor([pack.offset for pack in tape.packs])
    numbers = torch.searchsorted(starts, read[read >= 0], right=True) - 1
    return [tape.packs[number] for number in numbers.unique().tolist()]


def _needed(steps: list[Draft], wanted: set[int]) -> list[Draft]:
    """Without the steps whose results nobody reads; sums and the loss are results themselves."""
    kept = []
    for draft in reversed(steps):
        if draft.writes is None or draft.writes in wanted:
            kept.append(draft)
            wanted |= set(draft.reads)
    return kept[::-1]


def _lifetimes(tape: Tape, steps: list[Draft]) -> None:
    written = {draft.writes for draft in steps}
    for position, draft in enumerate(steps):
        for index in draft.touched:
            if index in written:
                slot = tape.slots[index]
                slot.first_step = position if slot.first_step < 0 else slot.first_step
                slot.last_step = position


def _sections(tape: Tape, steps: list[Draft], block: int) -> list[records.Section]:
    """Runs of steps on images, some samples at a time, and of steps on vectors, for a block."""
    found: list[records.Section] = []
    for position, draft in enumerate(steps):
        vectors = id(draft) in tape.vector_steps
        samples = block if vectors else min(block, _sub_block(tape, draft))
        if found and found[-1].samples == samples:
            found[-1].last_step = position + 1
        else:
            found.append(records.Section(samples, position, position + 1))
    return found


def _sub_block(tape: Tape, draft: Draft) -> int:
    """A power of two for which four values like the largest of a step fill half of the cache."""
    most = max(tape.slots[i].sample_pitch for i in draft.touched)
    fitting = cache_bytes() // 2 // (4 * 4 * most)
    return 1 << max(0, fitting.bit_length() - 1)


def _choose_rooms(
    tape: Tape, steps: list[Draft], sections: list[records.Section], block: int
) -> None:
    """What is used in one section of images only needs room for a sub-block."""
    used: dict[int, set[int]] = {}
    for number, section in enumerate(sections):
        for draft in steps[section.first_step : section.last_step]:
            for index in draft.touched:
                used.setdefault(index, set()).add(number)
    written = {draft.writes for draft in steps if draft.writes is not None}
    for index in used.keys() & written:
        numbers = used[index]
        whole = len(numbers) > 1 or any(sections[n].samples == block for n in numbers)
        tape.slots[index].room = Room.WHOLE_BLOCK if whole else Room.SUB_BLOCK
