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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.layout import Slot, assign_memory, image_shape, round_up
from pylandscape.engines.program import Node, NotCovered, Program
from pylandscape.engines.records import (
    NONE,
    Activation,
    BinaryKind,
    Epilogue,
    LossKind,
    NarrowPool,
)

State = Mapping[str, Tensor]

# Samples per block. The weights of a Linear are read once per block, perhaps from a cache further
# out, so a block is not made smaller than this where its activations overflow the near one.
MIN_BLOCK = 64
MAX_BLOCK = 256
MAX_SUB_BLOCK = 64
WINOGRAD_BYTES = 384 << 10  # of transformed tiles at once
MAX_SEGMENTS = 256  # of the segment GEMM
# Work per output of F(2x2) and F(4x4) with their transforms, against 9 products for direct sums.
WINOGRAD_COST = {2: 16 / 4 * 1.5, 4: 36 / 16 * 1.4}
WINOGRAD_CHANNELS = 16
TILE_ROWS = 16  # of the processor's bfloat16 tiles
MAX_NARROW = 8  # output channels of the kernel for one input channel
_MONOTONE = (Activation.NONE, Activation.RELU)


@dataclass(frozen=True)
class LossSpec:
    """The loss as the kernels know it: `kind`, constants, and whether predictions are counted."""

    kind: LossKind
    weights: Tensor | None = None
    smoothing: float = 0.0
    ignore_index: int = -(2**62)
    count_correct: bool = False


@dataclass
class Plan:
    """What `evaluate_points` runs. `numbers` is the plan itself, `pack` makes its parameters."""

    numbers: Tensor
    indices: Tensor
    packed: int
    lanes: int
    block: int
    linear_first: bool
    arena_bytes: int
    steps: list[str]
    _packs: list[tuple[int, Callable[[State], Tensor]]] = field(repr=False)
    _constants: list[Callable[[State], Tensor]] = field(repr=False)

    def pack(self, state: State, out: Tensor) -> None:
        """Writes the tensors of `state` into `out` [packed] in the kernels' order."""
        for offset, pack in self._packs:
            part = pack(state)
            out[offset : offset + part.numel()] = part

    def constants(self, state: State) -> Tensor:
        """What does not depend on the point: float32, among it the statistics of batch_norm."""
        return torch.cat([make(state).reshape(-1).float() for make in self._constants])


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
        precision: `fast` - float32, 3x3 convolutions in the Winograd domain where that is less work;
            `exact` - never that; `bf16` - products in bfloat16 on matrix tiles, sums in float32.

    Raises:
        NotCovered: what the program asks for has no kernel.
    """
    return _Planner(program, shapes, loss, input_strides, samples, lanes, precision).plan()


@dataclass
class _Draft:
    """A step before memory is assigned: what it reads and writes, and how its record is made."""

    reads: list[int]
    writes: int | None
    make: Callable[[], records.Step]
    label: str
    scratch: Callable[[], int] = lambda: 0  # floats


class _Planner:
    def __init__(
        self,
        program: Program,
        shapes: Mapping[str, tuple[int, ...]],
        loss: LossSpec,
        input_strides: tuple[int, ...],
        samples: int,
        lanes: int,
        precision: str,
    ) -> None:
        self.program, self.shapes, self.loss = program, shapes, loss
        self.input_strides, self.samples = input_strides, samples
        self.lanes, self.precision = lanes, precision
        self.consumers: dict[int, list[Node]] = {}
        for node in program.nodes:
            for value in node.inputs:
                self.consumers.setdefault(value, []).append(node)
        self.slots: list[Slot] = []
        self.slot_of: dict[int, dict[str, int]] = {}  # program value: {order: slot}
        self.drafts: list[_Draft] = []
        self.folds: list[records.Fold] = []
        self.roundings: list[records.Rounding] = []
        self.packs: list[tuple[int, Callable[[State], Tensor]]] = []
        self.packed = self.folded = 0
        # constants 0 to 2 serve activations without parameters
        self.constants: list[Callable[[State], Tensor]] = [lambda _: torch.zeros(3)]
        self.constant_count = 3
        self.indices: list[Tensor] = []
        self.index_count = 0
        self.fused: set[int] = set()  # outputs of nodes that are part of an earlier step

    # -- the whole ----------------------------------------------------------------------------------

    def plan(self) -> Plan:
        self._load()
        for node in self.program.nodes:
            if node.output in self.fused or node.op == "reindex":
                continue  # data movement happens where its result is read
            lower = getattr(self, f"_lower_{node.op}", None)
            if lower is None:
                raise NotCovered("has no native kernel", node.op, node.source)
            lower(node)
        self._lower_loss()
        return self._finish()

    def _finish(self) -> Plan:
        boundary = self._boundary()
        block, sub_block = self._choose_blocks(boundary)
        self.block = block
        room = {True: block, False: sub_block}
        arena = assign_memory([s for s in self.slots if s.first_step >= 0], room)
        scratch = round_up(arena, 16)
        self.scratch_offset = scratch
        steps = [draft.make() for draft in self.drafts]
        sections = []
        if boundary > 0:
            sections.append(records.Section(sub_block, 0, boundary))
        sections.append(records.Section(block, boundary, len(steps)))
        linear_first = self._starts_linear(steps)
        head = records.Head(
            lanes=self.lanes,
            arena=scratch + max(draft.scratch() for draft in self.drafts),
            block=block,
            packed=self.packed,
            folded=self.folded,
            linear_first=linear_first,
            tail=self._first_linear_size if linear_first else 0,
            values=len(self.slots),
            sections=len(sections),
            folds=len(self.folds),
            roundings=len(self.roundings),
            steps=len(steps),
        )
        parts: list[Any] = [head, *(s.record() for s in self.slots), *sections]
        for fold in self.folds:  # the folded vectors stand behind the packed ones
            fold.scale, fold.shift = fold.scale + self.packed, fold.shift + self.packed
            parts.append(fold)
        parts += self.roundings
        flat = [n for part in parts for n in records.numbers(part)]
        for step in steps:
            epilogue = getattr(step, "epilogue", None)
            if epilogue is not None:
                self._settle(epilogue)
            flat += step.numbers()
        empty = torch.zeros(0, dtype=torch.int32)
        return Plan(
            numbers=torch.tensor(flat, dtype=torch.int64),
            indices=torch.cat([*self.indices, empty]),
            packed=self.packed,
            lanes=self.lanes,
            block=block,
            linear_first=linear_first,
            arena_bytes=4 * head.arena,
            steps=[draft.label for draft in self.drafts],
            _packs=self.packs,
            _constants=self.constants,
        )

    def _settle(self, epilogue: Epilogue) -> None:
        """Folded vectors were numbered from zero; they stand behind the packed ones."""
        for name in ("scale", "shift"):
            at = getattr(epilogue, name)
            if isinstance(at, _Folded):
                setattr(epilogue, name, at + self.packed)

    def _boundary(self) -> int:
        """The first step from which on every activation is a vector."""
        boundary = len(self.drafts)
        while boundary > 0:
            draft = self.drafts[boundary - 1]
            if draft.writes is not None and not self.slots[draft.writes].is_flat:
                break
            boundary -= 1
        return boundary

    def _choose_blocks(self, boundary: int) -> tuple[int, int]:
        """(samples per block, per sub-block): what is used together should fill half the cache."""
        for position, draft in enumerate(self.drafts):
            for index in [*draft.reads, *([] if draft.writes is None else [draft.writes])]:
                slot = self.slots[index]
                if slot.first_step < 0:
                    slot.first_step = position
                slot.last_step = position
        for slot in self.slots:
            slot.per_block = slot.last_step >= boundary
        budget = _cache_bytes() // 2 // 4
        images = self._peak(per_block=False)
        vectors = self._peak(per_block=True)
        sub_block = max(1, min(MAX_SUB_BLOCK, budget // images)) if images else 1
        block = max(MIN_BLOCK, min(MAX_BLOCK, budget // max(1, vectors)))
        block = min(block, max(16, -(-self.samples // 8)))  # enough blocks for a few threads
        sub_block = min(sub_block, block)
        return (round_up(block, sub_block) if boundary else block), sub_block

    def _peak(self, per_block: bool) -> int:
        """The most floats per sample that are in use at one step."""
        slots = [s for s in self.slots if s.per_block == per_block and s.first_step >= 0]
        return max(
            (
                sum(s.sample_pitch for s in slots if s.first_step <= step <= s.last_step)
                for step in range(len(self.drafts))
            ),
            default=0,
        )

    def _starts_linear(self, steps: list[records.Step]) -> bool:
        """Whether the first layer's product can be formed per direction instead of per point."""
        return (
            len(steps) > 1
            and isinstance(steps[1], records.Linear)
            and not steps[1].by_pixel
            and steps[1].weights == 0
            and steps[1].epilogue.residual == NONE
            and self.drafts[1].reads == [self.drafts[0].writes]
            and len({d.writes for d in self.drafts if d.writes is not None}) > 1
            and all(self.drafts[0].writes not in d.reads for d in self.drafts[2:])
        )

    # -- slots and data movement ------------------------------------------------------------------

    def _add_slot(self, value: int, order: str, **options: Any) -> int:
        channels, height, width = image_shape(self.program.values[value].shape, order)
        slot = Slot(channels, height, width, order, lanes=self.lanes, **options)
        self.slots.append(slot)
        index = len(self.slots) - 1
        self.slot_of.setdefault(value, {})[order] = index
        if len(self.program.values[value].shape) <= 1:
            self.slot_of[value] = {"first": index, "last": index}
        return index

    def _slot(self, value: int, order: str) -> int:
        """A slot that holds `value` with its channels in `order`, moved there if need be."""
        held = self.slot_of.get(value, {})
        if order in held:
            return held[order]
        producer = next((n for n in self.program.nodes if n.output == value), None)
        if held:
            sources = [next(iter(held.values()))]
            index = torch.arange(self.program.values[value].size)
        else:
            assert producer is not None and producer.op == "reindex"
            sources = [self._any_slot(v) for v in producer.inputs]
            index = producer.attrs["index"]
            if self._is_alias(value, sources, index):
                self.slot_of[value] = {"first": sources[0], "last": sources[0]}
                return sources[0]
        return self._move(value, order, sources, index)

    def _any_slot(self, value: int) -> int:
        held = self.slot_of.get(value)
        return next(iter(held.values())) if held else self._slot(value, "first")

    def _is_alias(self, value: int, sources: list[int], index: Tensor) -> bool:
        """Only the shape changes, between vectors."""
        slot = self.slots[sources[0]]
        shape = self.program.values[value].shape
        return (
            len(sources) == 1
            and slot.is_flat
            and not slot.dense
            and image_shape(shape, "first") == (slot.channels, 1, 1)
            and torch.equal(index, torch.arange(slot.channels))
        )

    def _move(self, value: int, order: str, sources: list[int], index: Tensor) -> int:
        """Copies elements of several slots into a new one, contiguous runs at a time."""
        target = self._add_slot(value, order)
        slot = self.slots[target]
        slot.dedicated = True
        start = 0
        for source in sources:
            size = self._elements(source)
            mine = (index >= start) & (index < start + size)
            chosen = index[mine] - start
            if len(chosen):
                self._draft_runs(source, target, chosen, mine)
            start += size
        return target

    def _elements(self, slot: int) -> int:
        found = self.slots[slot]
        return found.channels * found.height * found.width

    def _draft_runs(self, source: int, target: int, chosen: Tensor, mine: Tensor) -> None:
        origin, slot = self.slots[source], self.slots[target]

        def make() -> records.Step:
            pairs = torch.stack((origin.positions()[chosen], slot.positions()[mine]))
            pairs = pairs[:, pairs[1].argsort()]
            breaks = ((pairs[:, 1:] - pairs[:, :-1]) != 1).any(0).nonzero().flatten() + 1
            starts = torch.cat((torch.zeros(1, dtype=torch.int64), breaks))
            ends = torch.cat((breaks, torch.tensor([pairs.shape[1]])))
            runs = torch.stack((pairs[0, starts], pairs[1, starts], ends - starts), 1)
            self.indices.append(runs.reshape(-1).int())
            offset, self.index_count = self.index_count, self.index_count + runs.numel()
            return records.Move(source, target, offset, len(runs))

        self._draft([source], target, make, f"move {len(chosen)} elements")

    def _draft(
        self,
        reads: list[int],
        writes: int | None,
        make: Callable[[], records.Step],
        label: str,
        scratch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.drafts.append(_Draft(reads, writes, make, label, scratch))

    def _preferred_order(self, value: int, seen: frozenset[int] = frozenset()) -> str | None:
        """The order in which the layers that read `value` want its channels."""
        for node in self.consumers.get(value, []):
            if node.op in ("linear", "layer_norm"):
                return "last" if node.op == "linear" or node.attrs["dims"] == 1 else "first"
            if node.op in ("activation", "add", "sub", "mul", "scale") and value not in seen:
                found = self._preferred_order(node.output, seen | {value})
                if found is not None:
                    return found
            elif node.op != "reindex":
                return "first"
        return None

    def _elementwise_order(self, node: Node) -> str:
        preferred = self._preferred_order(node.output)
        if preferred is not None:
            return preferred
        held = [order for v in node.inputs for order in self.slot_of.get(v, {})]
        return held[0] if held else "first"

    # -- parameters and constants ---------------------------------------------------------------------

    def _pack(self, size: int, make: Callable[[State], Tensor]) -> int:
        offset, self.packed = self.packed, self.packed + round_up(size, 16)
        self.packs.append((offset, make))
        return offset

    def _pack_vector(self, name: str | None) -> int:
        if name is None:
            return NONE
        lanes = self.lanes
        size = packing.vector_room(self.shapes[name][0], lanes)
        return self._pack(size, lambda state: packing.channel_vector(state[name], lanes))

    def _constant(self, count: int, make: Callable[[State], Tensor]) -> int:
        offset, self.constant_count = self.constant_count, self.constant_count + count
        self.constants.append(make)
        return offset

    def _fold(self, norm: Node, bias: int) -> tuple[int, int]:
        """Scale and shift of a batch_norm, numbered from zero until all packs are known."""
        mean, var, eps = norm.tensors["mean"], norm.tensors["var"], norm.attrs["eps"]
        channels = self.shapes[mean][0]
        room = packing.vector_room(channels, self.lanes)
        scale = _Folded(self.folded)
        shift = _Folded(self.folded + room)
        self.folded += 2 * room
        self.folds.append(
            records.Fold(
                channels,
                scale,
                shift,
                self._pack_vector(norm.tensors.get("weight")),
                self._pack_vector(norm.tensors.get("bias")),
                bias,
                self._constant(channels, lambda state: state[mean]),
                self._constant(channels, lambda state: (state[var].double() + eps).rsqrt()),
            )
        )
        return scale, shift

    def _activation(self, node: Node) -> tuple[int, int]:
        """(kind, offset of its parameters)."""
        if node.op == "scale":
            kind, values = Activation.AFFINE, [node.attrs["a"], node.attrs["b"], 0.0]
        else:
            kind = Activation[node.attrs["kind"].upper()]
            values = [float(node.attrs.get(name, 0.0)) for name in "abc"]
        if kind == Activation.RELU or not any(values):
            return kind, 0
        return kind, self._constant(3, lambda _: torch.tensor(values))

    # -- fusion ---------------------------------------------------------------------------------------

    def _sole_consumer(self, value: int) -> Node | None:
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 and value != self.program.output else None

    def _fuse(
        self, node: Node, bias: int, may_add: bool = True
    ) -> tuple[int, Epilogue, int | None]:
        """Takes the nodes behind `node` that fit its epilogue: batch_norm, add, activation.

        Returns the program value that comes out, the epilogue, and the slot of a residual.
        """
        value, epilogue, residual = node.output, Epilogue(shift=bias), None
        follower = self._sole_consumer(value)
        # batch_norm is over the first dimension, which of several is not the features of a Linear
        by_feature = node.op == "conv" or len(self.program.values[value].shape) == 1
        if follower is not None and follower.op == "batch_norm" and by_feature:
            epilogue.scale, epilogue.shift = self._fold(follower, bias)
            value = self._absorb(follower)
            follower = self._sole_consumer(value)
        if may_add and follower is not None and follower.op == "add":
            other = next((v for v in follower.inputs if v != value), None)
            if other is not None and self._can_add(other, value):
                residual = self._slot(other, "last" if node.op == "linear" else "first")
                epilogue.residual = residual
                value = self._absorb(follower)
                follower = self._sole_consumer(value)
        if follower is not None and follower.op in ("activation", "scale"):
            epilogue.activation, epilogue.constants = self._activation(follower)
            value = self._absorb(follower)
        return value, epilogue, residual

    def _absorb(self, node: Node) -> int:
        self.fused.add(node.output)
        return node.output

    def _can_add(self, value: int, alike: int) -> bool:
        """Whether `value` has been computed by now and has the shape of `alike`."""
        same = self.program.values[value].shape == self.program.values[alike].shape
        return same and value in self.slot_of

    # -- operators ------------------------------------------------------------------------------------

    def _load(self) -> None:
        value = self.program.input
        order = self._preferred_order(value) or "first"
        shape = self.program.values[value].shape
        dense = all(self._reads_dense(node, value) for node in self.consumers.get(value, []))
        out = self._add_slot(value, order, dense=dense)
        each = list(self.input_strides[1:])
        channel = each.pop(0 if order == "first" else -1) if each else 1
        if self.slots[out].channels == 1:
            channel = 1  # a stride that is never used: say that the pixels lie side by side
        pixel = each[-1] if each else 0
        row = each[0] if len(shape) == 3 else 0
        self._draft([], out, lambda: records.Load(out, channel, row, pixel), "load")

    def _reads_dense(self, node: Node, value: int) -> bool:
        """Whether a layer reads single floats, so that pixels need not be whole vectors."""
        if node.op == "conv":
            return node.attrs["groups"] == 1 and self.program.values[value].shape[0] < 16
        is_vector = len(self.program.values[node.output].shape) == 1
        if node.op == "reindex" and is_vector and self._columns(node) is not None:
            followers = self.consumers.get(node.output, [])
            return bool(followers) and all(n.op == "linear" for n in followers)
        return node.op == "linear" and is_vector

    def _lower_conv(self, node: Node) -> None:
        weight = node.tensors["weight"]
        out_channels, group_in, *kernel = self.shapes[weight]
        groups = node.attrs["groups"]
        source = self._slot(node.inputs[0], "first")
        bias = self._pack_vector(node.tensors.get("bias"))
        depthwise = groups > 1 and group_in == 1 and out_channels == groups
        even = groups == 1 or (out_channels // groups) % self.lanes == 0
        value, epilogue, residual = self._fuse(node, bias, may_add=even and not depthwise)
        reads = [source] + ([residual] if residual is not None else [])
        if depthwise:
            self._depthwise(node, source, value, epilogue, weight)
        elif residual is None and self._is_narrow(node, self.slots[source]):
            self._narrow(node, source, value, epilogue, weight)
        elif self._fits_tiles(node, source):
            self._tile_convolution(node, source, value, epilogue, reads)
        elif self._winograd_tile(node, source, group_in):
            self._winograd(node, source, value, epilogue, reads)
        else:
            self._direct(node, source, value, epilogue, reads)

    def _conv_halo(self, node: Node, slot: Slot) -> tuple[int, int]:
        """Makes room around the input for what the windows reach; returns the leading padding."""
        (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
        (dh, dw) = node.attrs["dilation"]
        shape = image_shape(self.program.values[node.output].shape, "first")
        (top, left), _ = _paddings(node)
        bottom = (shape[1] - 1) * sh + (kh - 1) * dh + 1 - top - slot.height
        right = (shape[2] - 1) * sw + (kw - 1) * dw + 1 - left - slot.width
        slot.need_halo(top, max(0, bottom), left, max(0, right))
        return top, left

    def _direct(
        self, node: Node, source: int, value: int, epilogue: Epilogue, reads: list[int]
    ) -> None:
        weight = node.tensors["weight"]
        out_channels, group_in, *_ = self.shapes[weight]
        (kh, kw), groups, slot = node.attrs["kernel"], node.attrs["groups"], self.slots[source]
        pads = self._conv_halo(node, slot)
        # Whole kernel rows are one run of memory; not where they would be mostly padding.
        by_row = groups == 1 and node.attrs["dilation"][1] == 1
        by_row = by_row and slot.pixel_pitch <= 1.25 * group_in
        if (kh if by_row else kh * kw) > MAX_SEGMENTS:
            raise NotCovered("has a kernel too large for the native engine", "conv", node.source)
        pitch, lanes = slot.pixel_pitch, self.lanes
        depth = kh * kw * (pitch if by_row else group_in)
        weights = self._pack(
            groups * round_up(out_channels // groups, lanes) * depth,
            lambda state: packing.direct_filters(state[weight], groups, pitch, by_row, lanes),
        )
        out = self._add_slot(value, "first")
        if groups > 1 and (out_channels // groups) % lanes:
            self.slots[out].dedicated = True
        self._draft(
            reads,
            out,
            lambda: records.Convolution(
                source, out, weights, epilogue, kh, kw, *node.attrs["stride"], *pads,
                *node.attrs["dilation"], groups, group_in, out_channels // groups, by_row,
            ),
            f"conv {kh}x{kw} direct",
        )  # fmt: skip

    def _is_narrow(self, node: Node, source: Slot) -> bool:
        """One channel in and few out: pixels fill the vectors better than channels do."""
        out_channels, group_in, *_ = self.shapes[node.tensors["weight"]]
        return (
            source.pixel_pitch == group_in == node.attrs["groups"] == 1
            and out_channels <= min(MAX_NARROW, self.lanes // 2)
            and node.attrs["stride"] == node.attrs["dilation"] == (1, 1)
        )

    def _narrow(self, node: Node, source: int, value: int, epilogue: Epilogue, weight: str) -> None:
        pads = self._conv_halo(node, self.slots[source])
        (kh, kw), size = node.attrs["kernel"], torch.Size(self.shapes[weight]).numel()
        weights = self._pack(size, lambda state: packing.narrow_filters(state[weight]))
        value, pool = self._fuse_pool(value, (NarrowPool.MAX, NarrowPool.AVERAGE))
        # Its pixels are stored float by float, so they need no padding for a reader of floats.
        dense = all(self._reads_dense(reader, value) for reader in self.consumers.get(value, []))
        out = self._add_slot(value, "first", dense=dense and value != self.program.output)
        self.slots[out].dedicated = not self.slots[out].dense
        self._draft(
            [source],
            out,
            lambda: records.Narrow(source, out, weights, epilogue, kh, kw, *pads, pool),
            f"conv {kh}x{kw} narrow" + (f" with {pool.name.lower()} pool 2x2" if pool else ""),
        )

    def _fits_tiles(self, node: Node, source: int) -> bool:
        """Whether a product may run in bfloat16 on tiles: whole vectors of input channels."""
        a, slot = node.attrs, self.slots[source]
        plain = node.op == "linear" or (a["groups"] == 1 and a["dilation"][1] == 1)
        return self.precision == "bf16" and plain and slot.pixel_pitch % 16 == 0

    def _pack_pairs(self, size: int, depth: int, make: Callable[[State], Tensor]) -> int:
        """Packs panels for tiles; every point rounds them."""
        offset = self._pack(size, lambda state: packing.pair_panels(make(state), depth, self.lanes))
        self.roundings.append(records.Rounding(offset, size))
        return offset

    def _tile_convolution(
        self, node: Node, source: int, value: int, epilogue: Epilogue, reads: list[int]
    ) -> None:
        weight, slot, lanes = node.tensors["weight"], self.slots[source], self.lanes
        (kh, kw), (sh, sw), dilation = (node.attrs[n] for n in ("kernel", "stride", "dilation"))
        pads, pitch = self._conv_halo(node, slot), slot.pixel_pitch
        depth = kh * kw * pitch
        weights = self._pack_pairs(
            round_up(self.shapes[weight][0], lanes) * depth,
            depth,
            lambda state: packing.direct_filters(state[weight], 1, pitch, True, lanes),
        )
        out = self._add_slot(value, "first")
        result = self.slots[out]

        def reach() -> int:  # from the first to the last float that a window covers
            rows = (result.height - 1) * sh + (kh - 1) * dilation[0]
            pixels = (result.width - 1) * sw + kw
            return round_up(rows * slot.row_pitch + pixels * pitch, 16)

        def scratch() -> int:  # two bfloat16 to a float; idle tile rows read on behind the end
            return (reach() + 2 * TILE_ROWS * sw * pitch) // 2 + 32

        self._draft(
            reads,
            out,
            lambda: records.TileConvolution(
                source, out, weights, epilogue, kh, kw, sh, sw, *pads, dilation[0],
                self.scratch_offset, reach(),
            ),
            f"conv {kh}x{kw} bfloat16",
            scratch=scratch,
        )  # fmt: skip

    def _depthwise(
        self, node: Node, source: int, value: int, epilogue: Epilogue, weight: str
    ) -> None:
        pads = self._conv_halo(node, self.slots[source])
        (kh, kw), lanes = node.attrs["kernel"], self.lanes
        weights = self._pack(
            kh * kw * round_up(self.shapes[weight][0], lanes),
            lambda state: packing.depthwise_filters(state[weight], lanes),
        )
        out = self._add_slot(value, "first")
        self._draft(
            [source],
            out,
            lambda: records.Depthwise(
                source, out, weights, epilogue, kh, kw, *node.attrs["stride"], *pads,
                *node.attrs["dilation"],
            ),
            f"conv {kh}x{kw} depthwise",
        )  # fmt: skip

    def _winograd_tile(self, node: Node, source: int, group_in: int) -> int:
        """2 or 4 where the Winograd domain takes less work than direct sums, else 0."""
        a = node.attrs
        simple = a["kernel"] == (3, 3) and a["stride"] == (1, 1) and a["dilation"] == (1, 1)
        if not (
            self.precision == "fast"
            and simple
            and a["groups"] == 1
            and group_in >= WINOGRAD_CHANNELS
        ):
            return 0
        _, height, width = image_shape(self.program.values[node.output].shape, "first")

        def cost(tile: int) -> float:
            covered = round_up(height, tile) * round_up(width, tile)
            return WINOGRAD_COST[tile] * covered * self.slots[source].pixel_pitch

        best = min(WINOGRAD_COST, key=cost)
        return best if cost(best) < 9 * height * width * group_in else 0

    def _winograd(
        self, node: Node, source: int, value: int, epilogue: Epilogue, reads: list[int]
    ) -> None:
        weight, slot, lanes = node.tensors["weight"], self.slots[source], self.lanes
        out_channels, group_in, *_ = self.shapes[weight]
        tile = self._winograd_tile(node, source, group_in)
        # the maximum may be taken before a monotone function
        monotone = epilogue.activation in _MONOTONE and epilogue.residual == NONE
        value, pool = self._fuse_pool(value, (NarrowPool.MAX,) if monotone else ())
        out = self._add_slot(value, "first")
        result = self.slots[out]
        covered = [n * (2 if pool else 1) for n in (result.height, result.width)]
        tiles_h, tiles_w = (-(-n // tile) for n in covered)
        (top, left), _ = _paddings(node)
        slot.need_halo(
            top, max(0, tiles_h * tile + 2 - top - slot.height),
            left, max(0, tiles_w * tile + 2 - left - slot.width),
        )  # fmt: skip
        pitch, frequencies = slot.pixel_pitch, (tile + 2) ** 2
        weights = self._pack(
            frequencies * round_up(out_channels, lanes) * pitch,
            lambda state: packing.winograd_filters(state[weight], tile, pitch, lanes),
        )
        floats = frequencies * (pitch + result.pixel_pitch)  # per tile
        at_once = max(8, min(MAX_SUB_BLOCK * tiles_h * tiles_w, WINOGRAD_BYTES // (4 * floats)))
        in_pitch = at_once * pitch + 16  # not whole pages apart
        out_pitch = at_once * result.pixel_pitch + 16
        self._draft(
            reads,
            out,
            lambda: records.Winograd(
                source, out, weights, epilogue, tile, top, left, tiles_h, tiles_w, at_once,
                self.scratch_offset, in_pitch, out_pitch, pool,
            ),
            f"conv 3x3 Winograd F({tile}x{tile})" + (" with max_pool 2x2" if pool else ""),
            scratch=lambda: frequencies * (in_pitch + out_pitch) + lanes,
        )  # fmt: skip

    def _fuse_pool(self, value: int, kinds: tuple[NarrowPool, ...]) -> tuple[int, NarrowPool]:
        """Takes a pooling of one of `kinds` over 2x2 windows side by side, if it comes next."""
        node = self._sole_consumer(value)
        kind = NarrowPool.NONE
        if node is not None and node.op in ("max_pool", "avg_pool"):
            kind = NarrowPool.MAX if node.op == "max_pool" else NarrowPool.AVERAGE
        if node is None or kind not in kinds:
            return value, NarrowPool.NONE
        before = image_shape(self.program.values[value].shape, "first")
        after = image_shape(self.program.values[node.output].shape, "first")
        plain = (
            node.attrs["kernel"] == node.attrs["stride"] == (2, 2)
            and _paddings(node) == ((0, 0), (0, 0))
            and node.attrs.get("dilation", (1, 1)) == (1, 1)
            and node.attrs.get("divisor") is None
            and after[1:] == (before[1] // 2, before[2] // 2)  # no windows that overhang
        )
        return (self._absorb(node), kind) if plain else (value, NarrowPool.NONE)

    def _columns(self, node: Node) -> Tensor | None:
        """For a flattening in front of a Linear: the feature of each element, if it is one of each.

        None where elements are left out, repeated or come from several values.
        """
        index = node.attrs["index"]
        size = self.program.values[node.inputs[0]].size
        if len(node.inputs) != 1 or len(index) != size or int(index.min()) < 0:
            return None
        if len(index.unique()) != size:
            return None
        return torch.empty(size, dtype=torch.int64).index_put_((index,), torch.arange(size))

    def _lower_linear(self, node: Node) -> None:
        weight = node.tensors["weight"]
        outputs, inputs = self.shapes[weight]
        by_pixel = len(self.program.values[node.inputs[0]].shape) > 1
        source, features = self._linear_source(node, inputs)
        slot, lanes = self.slots[source], self.lanes

        def columns() -> Tensor:  # of the physical depth of one row
            if by_pixel:
                room = torch.full((slot.pixel_pitch,), -1)
                room[:inputs] = torch.arange(inputs)
                return room
            room = torch.full((slot.height, slot.width, slot.pixel_pitch), -1)
            logical = features.reshape(slot.channels, slot.height, slot.width)
            if slot.order == "last":
                logical = features.reshape(slot.height, slot.width, slot.channels).movedim(2, 0)
            room[:, :, : slot.channels] = logical.permute(1, 2, 0)
            return room.reshape(-1)

        depth = (1 if by_pixel else slot.height * slot.width) * slot.pixel_pitch
        size = round_up(outputs, lanes) * depth

        def panels(state: State) -> Tensor:
            return packing.linear_weights(state[weight], columns(), lanes)

        # A Linear that comes first is formed per direction, in float32 and once for all points.
        on_tiles = (
            self._fits_tiles(node, source)
            and not by_pixel
            and depth % 16 == 0
            and self.packed > 0
            and self._is_sole_reader(node)
        )
        weights = self._pack_pairs(size, depth, panels) if on_tiles else self._pack(size, panels)
        if weights == 0:
            self._first_linear_size = self.packed
        bias = self._pack_vector(node.tensors.get("bias"))
        value, epilogue, residual = self._fuse(node, bias)
        out = self._add_slot(value, "last" if by_pixel else "first")

        def make() -> records.Step:
            if on_tiles:
                return records.TileLinear(
                    source, out, weights, epilogue, depth, outputs, self.scratch_offset
                )
            if by_pixel:
                segments = (1, slot.pixel_pitch, 0)
            elif slot.left == slot.right == 0:
                segments = (1, slot.height * slot.row_pitch, 0)
            else:
                segments = (slot.height, slot.width * slot.pixel_pitch, slot.row_pitch)
            return records.Linear(source, out, weights, epilogue, *segments, outputs, by_pixel)

        reads = [source] + ([residual] if residual is not None else [])
        label = f"linear {inputs} -> {outputs}" + (" bfloat16" if on_tiles else "")
        rows = (lambda: self.block + 2 * TILE_ROWS) if on_tiles else (lambda: 0)
        self._draft(reads, out, make, label, scratch=lambda: rows() * depth // 2 + 32)

    def _is_sole_reader(self, node: Node) -> bool:
        """Whether nothing else reads what a Linear reads, so that it has no halo."""
        value = node.inputs[0]
        producer = next((n for n in self.program.nodes if n.output == value), None)
        flattened = producer.inputs if producer is not None and producer.op == "reindex" else ()
        return all(len(self.consumers[v]) == 1 for v in (value, *flattened))

    def _linear_source(self, node: Node, inputs: int) -> tuple[int, Tensor]:
        """The slot a Linear reads, and the feature that each of its elements (torch order) is."""
        value = node.inputs[0]
        identity = torch.arange(inputs)
        if len(self.program.values[value].shape) == 1 and value not in self.slot_of:
            producer = next(n for n in self.program.nodes if n.output == value)
            features = self._columns(producer)
            if features is not None:
                return self._any_slot(producer.inputs[0]), features
        return self._slot(value, "last"), identity

    def _lower_batch_norm(self, node: Node) -> None:
        source = self._slot(node.inputs[0], "first")
        scale, shift = self._fold(node, NONE)
        epilogue, value = Epilogue(scale, shift), node.output
        follower = self._sole_consumer(value)
        if follower is not None and follower.op in ("activation", "scale"):
            epilogue.activation, epilogue.constants = self._activation(follower)
            value = self._absorb(follower)
        self._pointwise(source, value, "first", epilogue, "batch_norm")

    def _lower_activation(self, node: Node) -> None:
        order = self._elementwise_order(node)
        kind, constants = self._activation(node)
        epilogue = Epilogue(activation=kind, constants=constants)
        source = self._slot(node.inputs[0], order)
        self._pointwise(source, node.output, order, epilogue, Activation(kind).name.lower())

    _lower_scale = _lower_activation

    def _pointwise(
        self, source: int, value: int, order: str, epilogue: Epilogue, label: str
    ) -> None:
        out = self._add_slot(value, order)
        self._draft([source], out, lambda: records.Pointwise(source, out, epilogue), label)

    def _binary(self, node: Node) -> None:
        order = self._elementwise_order(node)
        left, right = (self._slot(v, order) for v in node.inputs)
        value, epilogue = node.output, Epilogue()
        follower = self._sole_consumer(value)
        if follower is not None and follower.op in ("activation", "scale"):
            epilogue.activation, epilogue.constants = self._activation(follower)
            value = self._absorb(follower)
        shape = image_shape(self.program.values[node.output].shape, order)
        for side in (left, right):
            slot = self.slots[side]
            alike = (slot.channels, slot.height, slot.width) == shape
            if not (alike or (slot.channels == shape[0] and slot.is_flat)):
                raise NotCovered("broadcasts in a way without a kernel", node.op, node.source)
        out = self._add_slot(value, order)
        kind = BinaryKind[node.op.upper()]
        self._draft(
            [left, right],
            out,
            lambda: records.Binary(left, right, out, kind, epilogue),
            node.op,
        )

    _lower_add = _lower_sub = _lower_mul = _binary

    def _lower_layer_norm(self, node: Node) -> None:
        dims, rank = node.attrs["dims"], len(self.program.values[node.inputs[0]].shape)
        if dims == 1:
            return self._norm(node, "last", records.PixelNorm, per_element=False)
        if dims != rank:
            raise NotCovered("normalises dimensions without a kernel", "layer_norm", node.source)
        return self._norm(node, "first", records.GroupNorm, per_element=True)

    def _lower_group_norm(self, node: Node) -> None:
        self._norm(node, "first", records.GroupNorm, False, node.attrs["groups"])

    def _norm(self, node: Node, order: str, kind: Any, per_element: bool, groups: int = 1) -> None:
        source = self._slot(node.inputs[0], order)
        lanes = self.lanes

        def pack(name: str | None) -> int:
            if name is None:
                return NONE
            size = torch.Size(self.shapes[name]).numel()
            return self._pack(
                packing.vector_room(size, lanes),
                lambda state: packing.per_element(state[name], order, lanes),
            )

        weight, bias = (pack(node.tensors.get(role)) for role in ("weight", "bias"))
        epsilon = self._constant(1, lambda _: torch.tensor([node.attrs["eps"]]))
        out = self._add_slot(node.output, order)
        self.slots[out].dedicated = True
        self._draft(
            [source],
            out,
            lambda: kind(source, out, weight, bias, groups, per_element, epsilon),
            node.op,
        )

    def _pool(self, node: Node, kind: Any, **options: int) -> None:
        source = self._slot(node.inputs[0], "first")
        out = self._add_slot(node.output, "first")
        (top, left), trailing = _paddings(node)
        if (top, left) != trailing:
            raise NotCovered("pads its two sides differently", node.op, node.source)
        fields = (*node.attrs["kernel"], *node.attrs["stride"], top, left)
        self._draft(
            [source],
            out,
            lambda: kind(source, out, *fields, *node.attrs.get("dilation", (1, 1)), **options),
            node.op,
        )

    def _lower_max_pool(self, node: Node) -> None:
        self._pool(node, records.MaxPool)

    def _lower_avg_pool(self, node: Node) -> None:
        self._pool(
            node,
            records.AveragePool,
            count_padding=int(node.attrs["count_include_pad"]),
            divisor=node.attrs["divisor"] or 0,
        )

    def _lower_adaptive_avg_pool(self, node: Node) -> None:
        source = self._slot(node.inputs[0], "first")
        out = self._add_slot(node.output, "first")
        self._draft([source], out, lambda: records.AdaptivePool(source, out), node.op)

    def _lower_log_softmax(self, node: Node) -> None:
        self._any_slot(node.inputs[0])
        self.slot_of[node.output] = self.slot_of[node.inputs[0]]  # part of the loss

    def _lower_loss(self) -> None:
        value = self.program.output
        shape = self.program.values[value].shape
        if self.loss.kind == LossKind.CROSS_ENTROPY and len(shape) != 1:
            raise NotCovered(f"cross-entropy of outputs {list(shape)} has no native kernel")
        flat = self._any_slot(value)
        if len(shape) > 1 or self.slots[flat].dense:
            flat = self._flattened(value)
        outputs = self.program.values[value].size
        weights, given = NONE, self.loss.weights
        if given is not None:
            weights = self._constant(outputs, lambda _: given.expand(shape))
        smoothing = NONE
        if self.loss.smoothing:
            smoothing = self._constant(1, lambda _: torch.tensor([self.loss.smoothing]))
        self._draft(
            [flat],
            None,
            lambda: records.Loss(
                flat, self.loss.kind, outputs, weights, smoothing, self.loss.ignore_index,
                self.loss.count_correct,
            ),
            f"loss {self.loss.kind.name.lower()}",
        )  # fmt: skip

    def _flattened(self, value: int) -> int:
        """The outputs as one vector in torch's order, as the targets are."""
        source = self._any_slot(value)
        size = self.program.values[value].size
        self.slots.append(Slot(size, 1, 1, "first", dedicated=True, lanes=self.lanes))
        target = len(self.slots) - 1
        everything = torch.arange(size)
        self._draft_runs(source, target, everything, everything)
        return target


class _Folded(int):
    """An offset among the folded vectors."""


def _paddings(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, left), (bottom, right))."""
    first, second = node.attrs["padding"]
    if isinstance(first, tuple):
        return (first[0], second[0]), (first[1], second[1])
    return (first, second), (first, second)


def _cache_bytes() -> int:
    """Of a core's second-level cache."""
    found = os.sysconf("SC_LEVEL2_CACHE_SIZE") if "SC_LEVEL2_CACHE_SIZE" in os.sysconf_names else 0
    return found if found > 0 else 1 << 20
