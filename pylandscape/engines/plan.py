"""From a Program to a plan: which kernel runs which operator, on what memory, in which order.

The plan is made once per objective. Its parts:

- steps, each one call of a kernel; a batch_norm that follows a convolution, an addition, an
  activation and a 2x2 max-pool behind a Winograd convolution become part of the step before them;
- slots, the activations in a thread's arena (`layout.py`);
- packs, how the parameters are put in the kernels' order (`packing.py`), and folds, the scale and
  shift of each batch_norm, formed from the packed parameters at every point;
- sections: layers on images run for a few samples at a time, so that their activations stay in the
  cache; layers on vectors run for a whole block, so that their weights are read once per block.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pylandscape.engines import products, records
from pylandscape.engines import simple_layers as simple
from pylandscape.engines.layout import Slot, assign_memory, round_up
from pylandscape.engines.lowering import Draft, Folded, Lowering, Packing
from pylandscape.engines.program import Node, NotCovered, Program
from pylandscape.engines.records import NONE, Activation, Epilogue, Room
from pylandscape.engines.simple_layers import LossSpec

# Samples per block. The weights of a Linear are read once per block, perhaps from a cache further
# out, so a block is not made smaller than this where its activations overflow the near one.
MIN_BLOCK = 64
MAX_BLOCK = 256
MAX_SUB_BLOCK = 64

OPERATORS: Mapping[str, Callable[[Lowering, Node], None]] = {
    "conv": products.lower_conv,
    "linear": products.lower_linear,
    "batch_norm": simple.lower_batch_norm,
    "layer_norm": simple.lower_layer_norm,
    "group_norm": simple.lower_group_norm,
    "activation": simple.lower_activation,
    "scale": simple.lower_activation,
    "add": simple.lower_binary,
    "sub": simple.lower_binary,
    "mul": simple.lower_binary,
    "max_pool": simple.lower_max_pool,
    "avg_pool": simple.lower_avg_pool,
    "adaptive_avg_pool": simple.lower_adaptive_avg_pool,
    "log_softmax": simple.lower_log_softmax,
}


@dataclass
class Plan(Packing):
    """What `evaluate_points` runs. `numbers` is the plan itself, `pack` makes its parameters.

    Attributes:
        block, sub_block: samples that layers on vectors, and on images, run for at a time.
        linear_first: the products of the first layer are formed per direction, not per point.
        arena_bytes: of activations and scratch, per thread.
        slots: the activations in the arena.
        steps: the kernels in order, for people.
    """

    numbers: Tensor
    indices: Tensor
    lanes: int
    block: int
    sub_block: int
    linear_first: bool
    arena_bytes: int
    slots: list[Slot]
    steps: list[str]


def make_plan(
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    input_strides: tuple[int, ...],
    samples: int,
    lanes: int,
    precision: str = "fast",
) -> Plan:
    """Plans `program` for data with `input_strides` and machines with vectors of `lanes` floats.

    Args:
        shapes: of the model's tensors by name.
        samples: N, which limits the block.
        precision: `fast` - float32, 3x3 convolutions in the Winograd domain where that is less
            work; `exact` - never that; `bf16` - products in bfloat16 on matrix tiles, sums in
            float32.

    Raises:
        NotCovered: what the program asks for has no kernel.
    """
    low = Lowering(program, shapes, lanes, precision)
    simple.lower_input(low, input_strides)
    for node in program.nodes:
        if node.output in low.fused or node.op == "reindex":
            continue  # data movement happens where its result is read
        if node.op not in OPERATORS:
            raise NotCovered("has no native kernel", node.op, node.source)
        OPERATORS[node.op](low, node)
    simple.lower_loss(low, loss)
    return _assemble(low, samples)


def _assemble(low: Lowering, samples: int) -> Plan:
    boundary = _boundary(low)
    block, sub_block = _choose_blocks(low, boundary, samples)
    low.block = block
    room = {Room.WHOLE_BLOCK: block, Room.SUB_BLOCK: sub_block}
    arena = assign_memory([s for s in low.slots if s.first_step >= 0], room)
    scratch = round_up(arena, 16)
    low.scratch_offset = scratch
    steps = [draft.make() for draft in low.drafts]
    sections = []
    if boundary > 0:
        sections.append(records.Section(sub_block, 0, boundary))
    sections.append(records.Section(block, boundary, len(steps)))
    linear_first = _starts_linear(low, steps)
    arena = scratch + max(draft.scratch() for draft in low.drafts)
    tail = low.first_linear_size if linear_first else 0
    return Plan(
        packed=low.packed,
        _packs=low.packs,
        _constants=low.constants,
        numbers=encoded(low, steps, sections, arena, block, linear_first, tail),
        indices=low.all_indices(),
        lanes=low.lanes,
        block=block,
        sub_block=sub_block if boundary else block,
        linear_first=linear_first,
        arena_bytes=4 * arena,
        slots=low.slots,
        steps=list(map(_label, low.drafts, steps)),
    )


def encoded(
    low: Lowering,
    steps: Sequence[records.Step],
    sections: Sequence[records.Section],
    arena: int,
    block: int,
    linear_first: bool = False,
    tail: int = 0,
) -> Tensor:
    """A plan as the int64 numbers that `read_plan` in csrc/cpu/layers/reading.h reads."""
    folds = [  # the folded vectors stand behind the packed ones
        replace(fold, scale=fold.scale + low.packed, shift=fold.shift + low.packed)
        for fold in low.folds
    ]
    head = records.Head(
        lanes=low.lanes,
        arena=arena,
        block=block,
        packed=low.packed,
        folded=low.folded,
        linear_first=linear_first,
        tail=tail,
        values=len(low.slots),
        sections=len(sections),
        folds=len(folds),
        roundings=len(low.roundings),
        steps=len(steps),
    )
    slots = (slot.record() for slot in low.slots)
    parts: list[Any] = [head, *slots, *sections, *folds, *low.roundings]
    flat = [n for part in parts for n in records.numbers(part)]
    for step in steps:
        epilogue = getattr(step, "epilogue", None)
        if epilogue is not None:
            _settle(low, epilogue)
        flat += step.numbers()
    return torch.tensor(flat, dtype=torch.int64)


def _label(draft: Draft, step: records.Step) -> str:
    """The kernel of a step and what its epilogue does."""
    epilogue = getattr(step, "epilogue", None)
    if epilogue is None or isinstance(step, records.Pointwise):
        return draft.label
    fused = ["batch_norm"] * (epilogue.scale != NONE) + ["add"] * (epilogue.residual != NONE)
    if epilogue.activation != Activation.NONE:
        fused.append(Activation(epilogue.activation).name.lower())
    return ", ".join([draft.label, *fused])


def _settle(low: Lowering, epilogue: Epilogue) -> None:
    """Folded vectors were numbered from zero; they stand behind the packed ones."""
    for name in ("scale", "shift"):
        at = getattr(epilogue, name)
        if isinstance(at, Folded):
            setattr(epilogue, name, at + low.packed)


def _boundary(low: Lowering) -> int:
    """The first step from which on every activation is a vector."""
    boundary = len(low.drafts)
    while boundary > 0:
        draft = low.drafts[boundary - 1]
        if draft.writes is not None and not low.slots[draft.writes].is_flat:
            break
        boundary -= 1
    return boundary


def _choose_blocks(low: Lowering, boundary: int, samples: int) -> tuple[int, int]:
    """(samples per block, per sub-block): what is used together should fill half the cache."""
    for position, draft in enumerate(low.drafts):
        for index in [*draft.reads, *([] if draft.writes is None else [draft.writes])]:
            slot = low.slots[index]
            if slot.first_step < 0:
                slot.first_step = position
            slot.last_step = position
    for slot in low.slots:
        slot.room = Room.WHOLE_BLOCK if slot.last_step >= boundary else Room.SUB_BLOCK
    budget = cache_bytes() // 2 // 4
    images = _peak(low, Room.SUB_BLOCK)
    vectors = _peak(low, Room.WHOLE_BLOCK)
    sub_block = max(1, min(MAX_SUB_BLOCK, budget // images)) if images else 1
    block = max(MIN_BLOCK, min(MAX_BLOCK, budget // max(1, vectors)))
    block = min(block, max(16, -(-samples // 8)))  # enough blocks for a few threads
    sub_block = min(sub_block, block)
    return (round_up(block, sub_block) if boundary else block), sub_block


def _peak(low: Lowering, room: Room) -> int:
    """The most floats per sample that are in use at one step."""
    slots = [s for s in low.slots if s.room == room and s.first_step >= 0]
    return max(
        (
            sum(s.sample_pitch for s in slots if s.first_step <= step <= s.last_step)
            for step in range(len(low.drafts))
        ),
        default=0,
    )


def _starts_linear(low: Lowering, steps: list[records.Step]) -> bool:
    """Whether the first layer's product can be formed per direction instead of per point."""
    return (
        len(steps) > 1
        and isinstance(steps[1], records.Linear)
        and not steps[1].by_pixel
        and steps[1].weights == 0
        and steps[1].epilogue.residual == NONE
        and low.drafts[1].reads == [low.drafts[0].writes]
        and len({d.writes for d in low.drafts if d.writes is not None}) > 1
        and all(low.drafts[0].writes not in d.reads for d in low.drafts[2:])
    )


def cache_bytes(level: int = 2) -> int:
    """Of a core's data cache of this level, 1 or 2."""
    name, usual = {
        1: ("SC_LEVEL1_DCACHE_SIZE", 32 << 10), 2: ("SC_LEVEL2_CACHE_SIZE", 1 << 20),
    }[level]  # fmt: skip
    found = os.sysconf(name) if name in os.sysconf_names else 0
    return found if found > 0 else usual
