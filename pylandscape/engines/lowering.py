"""The state of planning: activations, packed parameters, steps to come, and what may be fused.

`Lowering` offers what every operator needs; how each operator becomes steps is in `products.py`
(convolutions and linear layers) and `simple_layers.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.layout import Slot, image_shape, round_up
from pylandscape.engines.program import Node, Program
from pylandscape.engines.records import NONE, Activation, Epilogue, FusedPool

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pack:
    """Parameters in the kernels' order, at `offset` of a packed vector.

    Attributes:
        moved: the tensor whose elements are moved, where that is all, and how.
    """

    offset: int
    make: Callable[[State], Tensor]
    moved: tuple[str, packing.Movement] | None = None

    def write(self, state: State, packed: Tensor) -> None:
        part = self.make(state)
        packed[self.offset : self.offset + part.numel()].view(part.shape).copy_(part)


@dataclass
class Packing:
    """How parameters are put in the kernels' order.

    Attributes:
        packed: floats of a packed parameter vector.
    """

    packed: int
    _packs: list[Pack] = field(repr=False)
    _constants: list[Callable[[State], Tensor]] = field(repr=False)

    def pack(self, state: State, out: Tensor) -> None:
        """Writes the tensors of `state` into `out` [packed] in the kernels' order."""
        for pack in self._packs:
            pack.write(state, out)

    def constants(self, state: State) -> Tensor:
        """What does not depend on the point: float32, among it the statistics of batch_norm."""
        return torch.cat([make(state).reshape(-1).float() for make in self._constants])


class Folded(int):
    """An offset among the folded vectors, which stand behind the packed ones."""


@dataclass
class Draft:
    """A step before memory is assigned: what it reads and writes, and how its record is made."""

    reads: list[int]
    writes: int | None
    make: Callable[[], records.Step]
    label: str
    scratch: Callable[[], int] = lambda: 0  # floats

    @property
    def touched(self) -> set[int]:
        """The slots that the step reads or writes."""
        return {*self.reads, *([] if self.writes is None else [self.writes])}


class Lowering:
    """A Program on its way to a plan.

    Args:
        program, shapes, lanes, precision: see `make_plan`.
    """

    def __init__(
        self,
        program: Program,
        shapes: Mapping[str, tuple[int, ...]],
        lanes: int,
        precision: str,
    ) -> None:
        self.program, self.shapes = program, shapes
        self.lanes, self.precision = lanes, precision
        self.consumers: dict[int, list[Node]] = {}
        for node in program.nodes:
            for value in node.inputs:
                self.consumers.setdefault(value, []).append(node)
        self.slots: list[Slot] = []
        self.slot_of: dict[int, dict[str, int]] = {}  # program value: {order: slot}
        self.drafts: list[Draft] = []
        self.folds: list[records.Fold] = []
        self.roundings: list[records.Rounding] = []
        self.packs: list[Pack] = []
        self.packed = self.folded = 0
        # constants 0 to 2 serve activations without parameters
        self.constants: list[Callable[[State], Tensor]] = [lambda _: torch.zeros(3)]
        self.constant_count = 3
        self.indices: list[Tensor] = []
        self.index_count = 0
        self.fused: set[int] = set()  # outputs of nodes that are part of an earlier step
        self.first_linear_size = 0  # floats of the weights, where the first pack is a Linear's
        # known when memory has been assigned:
        self.block = self.scratch_offset = 0

    def add_slot(self, value: int, order: str, **options: Any) -> int:
        channels, height, width = image_shape(self.program.values[value].shape, order)
        slot = Slot(channels, height, width, order, lanes=self.lanes, **options)
        self.slots.append(slot)
        index = len(self.slots) - 1
        self.slot_of.setdefault(value, {})[order] = index
        if len(self.program.values[value].shape) <= 1:
            self.slot_of[value] = {"first": index, "last": index}
        return index

    def slot(self, value: int, order: str) -> int:
        """A slot that holds `value` with its channels in `order`, moved there if need be."""
        held = self.slot_of.get(value, {})
        if order in held:
            return held[order]
        producer = next((n for n in self.program.nodes if n.output == value), None)
        if held:
            sources = [next(iter(held.values()))]
            index = torch.arange(self.program.values[value].size)
        else:
            assert producer is not None
            assert producer.op == "reindex"
            sources = [self.any_slot(v) for v in producer.inputs]
            index = producer.attrs["index"]
            if self._is_alias(value, sources, index):
                self.slot_of[value] = {"first": sources[0], "last": sources[0]}
                return sources[0]
        return self._move(value, order, sources, index)

    def any_slot(self, value: int) -> int:
        held = self.slot_of.get(value)
        return next(iter(held.values())) if held else self.slot(value, "first")

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
        target = self.add_slot(value, order)
        slot = self.slots[target]
        slot.dedicated = True
        start = 0
        for source in sources:
            size = self._elements(source)
            mine = (index >= start) & (index < start + size)
            chosen = index[mine] - start
            if len(chosen):
                self.draft_runs(source, target, chosen, mine)
            start += size
        return target

    def _elements(self, slot: int) -> int:
        found = self.slots[slot]
        return found.channels * found.height * found.width

    def draft_runs(self, source: int, target: int, chosen: Tensor, mine: Tensor) -> None:
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

        self.draft([source], target, make, f"move {len(chosen)} elements")

    def all_indices(self) -> Tensor:
        """What the moves of the steps made so far read."""
        return torch.cat([*self.indices, torch.zeros(0, dtype=torch.int32)])

    def draft(
        self,
        reads: list[int],
        writes: int | None,
        make: Callable[[], records.Step],
        label: str,
        scratch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.drafts.append(Draft(reads, writes, make, label, scratch))

    def preferred_order(self, value: int, seen: frozenset[int] = frozenset()) -> str | None:
        """The order in which the layers that read `value` want its channels."""
        for node in self.consumers.get(value, []):
            if node.op in ("linear", "layer_norm"):
                return "last" if node.op == "linear" or node.attrs["dims"] == 1 else "first"
            if node.op in ("activation", "add", "sub", "mul", "scale") and value not in seen:
                found = self.preferred_order(node.output, seen | {value})
                if found is not None:
                    return found
            elif node.op != "reindex":
                return "first"
        return None

    def elementwise_order(self, node: Node) -> str:
        preferred = self.preferred_order(node.output)
        if preferred is not None:
            return preferred
        held = [order for v in node.inputs for order in self.slot_of.get(v, {})]
        return held[0] if held else "first"

    def pack(
        self,
        size: int,
        make: Callable[[State], Tensor],
        moved: tuple[str, packing.Movement] | None = None,
    ) -> int:
        offset, self.packed = self.packed, self.packed + round_up(size, 16)
        self.packs.append(Pack(offset, make, moved))
        return offset

    def pack_moved(self, size: int, name: str, movement: packing.Movement) -> int:
        return self.pack(size, lambda state: movement.pack(state[name]), (name, movement))

    def pack_vector(self, name: str | None) -> int:
        if name is None:
            return NONE
        movement = packing.Movement(
            lambda vector: packing.channel_vector(vector, self.lanes), self.shapes[name]
        )
        return self.pack_moved(packing.vector_room(movement.size, self.lanes), name, movement)

    def constant(self, count: int, make: Callable[[State], Tensor]) -> int:
        offset, self.constant_count = self.constant_count, self.constant_count + count
        self.constants.append(make)
        return offset

    def fold(self, norm: Node, bias: int) -> tuple[int, int]:
        """Scale and shift of a batch_norm, numbered from zero until all packs are known."""
        mean, var, eps = norm.tensors["mean"], norm.tensors["var"], norm.attrs["eps"]
        channels = self.shapes[mean][0]
        room = packing.vector_room(channels, self.lanes)
        scale = Folded(self.folded)
        shift = Folded(self.folded + room)
        self.folded += 2 * room
        self.folds.append(
            records.Fold(
                channels,
                scale,
                shift,
                self.pack_vector(norm.tensors.get("weight")),
                self.pack_vector(norm.tensors.get("bias")),
                bias,
                self.constant(channels, lambda state: state[mean]),
                self.constant(channels, lambda state: (state[var].double() + eps).rsqrt()),
            )
        )
        return scale, shift

    def activation(self, node: Node) -> tuple[int, int]:
        """(kind, offset of its parameters)."""
        if node.op == "scale":
            kind, values = Activation.AFFINE, [node.attrs["a"], node.attrs["b"], 0.0]
        else:
            kind = Activation[node.attrs["kind"].upper()]
            values = [float(node.attrs.get(name, 0.0)) for name in "abc"]
        if kind == Activation.RELU or not any(values):
            return kind, 0
        return kind, self.constant(3, lambda _: torch.tensor(values))

    def sole_consumer(self, value: int) -> Node | None:
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 and value != self.program.output else None

    def fuse(self, node: Node, bias: int, may_add: bool = True) -> tuple[int, Epilogue, int | None]:
        """Takes the nodes behind `node` that fit its epilogue: batch_norm, add, activation.

        Returns the program value that comes out, the epilogue, and the slot of a residual.
        """
        value, epilogue, residual = node.output, Epilogue(shift=bias), None
        follower = self.sole_consumer(value)
        # batch_norm is over the first dimension, which of several is not the features of a Linear
        by_feature = node.op == "conv" or len(self.program.values[value].shape) == 1
        if follower is not None and follower.op == "batch_norm" and by_feature:
            epilogue.scale, epilogue.shift = self.fold(follower, bias)
            value = self.absorb(follower)
            follower = self.sole_consumer(value)
        if may_add and follower is not None and follower.op == "add":
            other = next((v for v in follower.inputs if v != value), None)
            if other is not None and self._can_add(other, value):
                residual = self.slot(other, "last" if node.op == "linear" else "first")
                epilogue.residual = residual
                value = self.absorb(follower)
                follower = self.sole_consumer(value)
        if follower is not None and follower.op in ("activation", "scale"):
            epilogue.activation, epilogue.constants = self.activation(follower)
            value = self.absorb(follower)
        return value, epilogue, residual

    def absorb(self, node: Node) -> int:
        self.fused.add(node.output)
        return node.output

    def _can_add(self, value: int, alike: int) -> bool:
        """Whether `value` has been computed by now and has the shape of `alike`."""
        same = self.program.values[value].shape == self.program.values[alike].shape
        return same and value in self.slot_of

    def fuse_pool(self, value: int, kinds: tuple[FusedPool, ...]) -> tuple[int, FusedPool]:
        """Takes a pooling of one of `kinds` over 2x2 windows side by side, if it comes next."""
        node = self.sole_consumer(value)
        kind = FusedPool.NONE
        if node is not None and node.op in ("max_pool", "avg_pool"):
            kind = FusedPool.MAX if node.op == "max_pool" else FusedPool.AVERAGE
        if node is None or kind not in kinds:
            return value, FusedPool.NONE
        before = image_shape(self.program.values[value].shape, "first")
        after = image_shape(self.program.values[node.output].shape, "first")
        plain = (
            node.attrs["kernel"] == node.attrs["stride"] == (2, 2)
            and paddings(node) == ((0, 0), (0, 0))
            and node.attrs.get("dilation", (1, 1)) == (1, 1)
            and node.attrs.get("divisor") is None
            and after[1:] == (before[1] // 2, before[2] // 2)  # no windows that overhang
        )
        return (self.absorb(node), kind) if plain else (value, FusedPool.NONE)

    def reads_dense(self, node: Node, value: int) -> bool:
        """Whether a layer reads single floats, so that pixels need not be whole vectors."""
        if node.op == "conv":
            return node.attrs["groups"] == 1 and self.program.values[value].shape[0] < 16
        is_vector = len(self.program.values[node.output].shape) == 1
        if node.op == "reindex" and is_vector and self.columns(node) is not None:
            followers = self.consumers.get(node.output, [])
            return bool(followers) and all(n.op == "linear" for n in followers)
        return node.op == "linear" and is_vector

    def columns(self, node: Node) -> Tensor | None:
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


def paddings(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, left), (bottom, right)) of a convolution or a pooling."""
    first, second = node.attrs["padding"]
    if isinstance(first, tuple):
        return (first[0], second[0]), (first[1], second[1])
    return (first, second), (first, second)
