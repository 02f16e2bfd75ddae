"""From a Program to the two plans of its derivatives.

The plan of the point computes the activations x and the cotangents g = dL/dx that the loss sends
back. The plan along a direction computes their tangents, x' and g', and sums the products of both
that are derivatives in the parameters. For y = W x and a direction V of W:

    x and y = W x                        y' = W x' + V x
    g_x = W^T g_y                        g_x' = W^T g_y' + V^T g_y
    gradient g_y x^T                     Hessian-vector product g_y' x^T + g_y x'^T

The Gauss-Newton and the Fisher matrix leave the terms with g out and start from another g_y' at the
outputs. A gradient has no tangents at all. The layers are the kernels of `evaluate_points`; the
backward pass of a convolution is a convolution with turned filters, of a Linear a Linear.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.derivatives.records import ChannelGradient, Combine, Pairs, Slope
from pylandscape.engines.layout import Slot, round_up
from pylandscape.engines.lowering import Draft, Folded, Lowering, State
from pylandscape.engines.program import Node, Program, Value
from pylandscape.engines.records import NONE, Activation

MIN_BLOCK = 4  # samples, a power of two
DIRECTION = 1 << 40  # kDirection in csrc/common/plan.h
_WITHOUT_CURVATURE = (
    Activation.NONE, Activation.RELU, Activation.LEAKY_RELU, Activation.HARDTANH,
    Activation.HARDSIGMOID, Activation.AFFINE,
)  # fmt: skip


@dataclass
class Part:
    """Some derivatives in the kernels' order, and how they become gradients of tensors by name.

    Attributes:
        moved: the tensor to whose elements they belong one by one, if that is all, and its packing.
    """

    offset: int
    size: int
    unpack: Callable[[Tensor, State], dict[str, Tensor]]
    moved: tuple[str, packing.Movement] | None = None


class Tape(Lowering):
    """A Program on its way to the plans of its derivatives.

    Args:
        program, shapes, lanes, precision: see `make_plan`.
        trainable: names of the tensors that derivatives are taken in.
        kind: `gradient`, `hessian`, `ggn` or `fisher`.
    """

    def __init__(
        self,
        program: Program,
        shapes: Mapping[str, tuple[int, ...]],
        lanes: int,
        precision: str,
        trainable: frozenset[str],
        kind: str,
    ) -> None:
        super().__init__(program, shapes, lanes, precision)
        self.trainable, self.kind = trainable, kind
        self.point, self.along = self.drafts, list[Draft]()
        self.vector_steps: set[int] = set()  # ids of drafts that run for a whole block
        self.tangents: dict[int, int] = {}
        self.cotangents: dict[int, int] = {}
        self.cotangent_tangents: dict[int, int] = {}
        self.backward: list[Callable[[], None]] = []
        self.parts: list[Part] = []
        self.gradient_size = 0
        self.active = _active_values(program, trainable)
        self.rectified_by_pool: set[int] = set()  # values whose relu the pooling behind derives
        self.moved: dict[tuple[int, str], int] = {}  # (value, order): the value that holds it so
        self.formed_again: dict[int, int] = {}  # see `form`
        self.flat_reads: list[int] = []  # slots that a Linear reads as one run of memory
        self.alike: list[list[int]] = []  # slots that must have the same pitches

    @property
    def has_tangents(self) -> bool:
        return self.kind != "gradient"

    @property
    def has_cotangents(self) -> bool:
        """Whether cotangents of the point enter: not in what is linear in those of the outputs."""
        return self.kind in ("gradient", "hessian")

    def slot(self, value: int, order: str) -> int:
        held = self.slot_of.get(value)
        assert held is None or order in held, "a move without derivatives"  # see movement.ordered
        return super().slot(value, order)

    def add_value(self, shape: tuple[int, ...], like: int) -> int:
        """A value of the program that holds elements of another one."""
        values = (*self.program.values, Value(shape))
        self.program = replace(self.program, values=values)
        if like in self.active:
            self.active.add(len(values) - 1)
        return len(values) - 1

    def like(self, index: int) -> int:
        """A slot for a tangent or a cotangent of another slot."""
        found = self.slots[index]
        self.slots.append(
            Slot(found.channels, found.height, found.width, found.order, lanes=self.lanes)
        )
        return len(self.slots) - 1

    def settle_halos(self) -> None:
        """Slots that must be alike get the halo that any of them needs."""
        before = None
        while before != (now := [slot.geometry() for slot in self.slots]):
            before = now
            for indices in self.alike:
                for one in indices:
                    found = self.slots[one]
                    for other in indices:
                        self.slots[other].need_halo(
                            found.top, found.bottom, found.left, found.right
                        )

    def emit(
        self,
        steps: list[Draft],
        reads: list[int | None],
        writes: int | None,
        make: Callable[[], records.Step],
        label: str,
        scratch: Callable[[], int] = lambda: 0,
        vectors: bool = False,
    ) -> None:
        draft = Draft([r for r in reads if r is not None], writes, make, label, scratch)
        steps.append(draft)
        if vectors or all(self.slots[i].is_flat for i in draft.touched):
            self.vector_steps.add(id(draft))

    def weights_at(self, offset: int, along: bool = False) -> int:
        """Of a packed or folded vector, known when everything is packed."""
        if offset == NONE:
            return NONE
        absolute = offset + self.packed if isinstance(offset, Folded) else offset
        return absolute + (DIRECTION if along else 0)

    def is_trained(self, node: Node) -> bool:
        roles = ("weight", "bias")
        return any(node.tensors.get(role) in self.trainable for role in roles)

    def give(self, table: dict[int, int], steps: list[Draft], value: int, slot: int) -> None:
        """Adds a cotangent to those that the other readers of `value` gave."""
        if value not in table:
            table[value] = slot
            return
        total = self.like(slot)
        self.combine(steps, table[value], slot, total)
        table[value] = total

    def form(self, source: int, like: int, make: Callable[[list[Draft], int, int], None]) -> int:
        """A cotangent of the point that is cheaply made of another one, `source`.

        Both plans make it, so that it need not be kept: steps along a direction read `again` of it.
        """
        out = self.like(like)
        make(self.point, source, out)
        self.formed_again[out] = self.like(like)
        make(self.along, self.again(source), self.formed_again[out])
        return out

    @overload
    def again(self, cotangent: int) -> int: ...
    @overload
    def again(self, cotangent: int | None) -> int | None: ...
    def again(self, cotangent: int | None) -> int | None:
        """A cotangent of the point, for steps along a direction."""
        return None if cotangent is None else self.formed_again.get(cotangent, cotangent)

    def summed(self, g: int | None, h: int | None) -> int | None:
        """The cotangent or its tangent that is summed for a layer's bias."""
        return self.again(g) if self.kind == "gradient" else h

    def combine(
        self,
        steps: list[Draft],
        left: int | None,
        right: int | None,
        out: int,
        left_scale: tuple[int, bool] = (NONE, False),
        right_scale: tuple[int, bool] = (NONE, False),
        shift: tuple[int, bool] = (NONE, False),
        pitch: int = 0,
    ) -> None:
        """Scales and shift: (offset, whether of the direction)."""
        self.emit(
            steps,
            [left, right],
            out,
            lambda: Combine(
                NONE if left is None else left, NONE if right is None else right, out,
                self.weights_at(*left_scale), self.weights_at(*right_scale),
                self.weights_at(*shift), pitch,
            ),
            "combine",
        )  # fmt: skip

    def slope(
        self, steps: list[Draft], source: int, given: int, kind: int, constants: int,
        tangent: int | None = None, cotangent: int | None = None,
    ) -> int:  # fmt: skip
        """f'(source) given [+ f''(source) tangent cotangent], in a slot of its own."""
        out = self.like(given)
        second = tangent is not None and cotangent is not None and kind not in _WITHOUT_CURVATURE
        tangent, cotangent = (tangent, cotangent) if second else (None, None)
        self.emit(
            steps,
            [source, given, tangent, cotangent],
            out,
            lambda: Slope(
                source, given, NONE if tangent is None else tangent,
                NONE if cotangent is None else cotangent, out, kind, constants,
            ),
            f"slope {Activation(kind).name.lower()}",
        )  # fmt: skip
        return out

    def rectify(self, value: int) -> tuple[int, Activation]:
        """Takes a relu that comes next: what it returns tells its slope as well."""
        follower = self.sole_consumer(value)
        if follower is None or follower.attrs.get("kind") != "relu":
            return value, Activation.NONE
        value = self.absorb(follower)
        reader = self.sole_consumer(value)
        if reader is not None and reader.op == "max_pool":
            self.rectified_by_pool.add(value)
        return value, Activation.RELU

    def handed_back(self, value: int, out: int, activation: int) -> tuple[int | None, int | None]:
        """The cotangent of a layer's sum and its tangent, from those behind its relu."""
        g, h = self.cotangents.get(value), self.cotangent_tangents.get(value)
        if activation == Activation.RELU and value not in self.rectified_by_pool:
            g = None if g is None else self.slope(self.point, out, g, activation, 0)
            h = None if h is None else self.slope(self.along, out, h, activation, 0)
        return g, h

    def pairs(self, x: int, tangent: int | None, g: int | None, h: int | None) -> Pairs | None:
        """Which products make up the derivative in a layer's weights."""
        g = self.again(g)
        if self.kind == "gradient":
            return None if g is None else Pairs(x, g)
        if h is None:
            return Pairs(tangent, g) if tangent is not None and g is not None else None
        if self.kind == "hessian" and tangent is not None and g is not None:
            return Pairs(x, h, tangent, g)
        return Pairs(x, h)

    def add_part(
        self, size: int, unpack: Callable[[Tensor, State], dict[str, Tensor]],
        moved: tuple[str, packing.Movement] | None = None,
    ) -> int:  # fmt: skip
        offset = self.gradient_size
        self.gradient_size += round_up(size, 16)
        self.parts.append(Part(offset, size, unpack, moved))
        return offset

    def add_moved_part(self, size: int, name: str, movement: packing.Movement) -> int:
        return self.add_part(size, lambda flat, _: {name: movement.undo(flat)}, (name, movement))

    def sum_products(
        self, pairs: Pairs, make: Callable[[], records.Step], label: str,
        scratch: Callable[[], int] = lambda: 0, vectors: bool = False, others: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """`others`: slots that are read beside those of the pairs."""
        touched = (pairs.left, pairs.right, pairs.second_left, pairs.second_right)
        reads: list[int | None] = [*others, *(i for i in touched if i != NONE)]
        self.emit(self.along, reads, None, make, label, scratch, vectors)

    def bias_room(self, node: Node, source: int | None) -> int:
        """Where the derivative in a layer's bias goes, if there is one: the sums of `source`."""
        name = node.tensors.get("bias")
        if name not in self.trainable or source is None:
            return NONE
        assert name is not None
        as_it_is = packing.Movement(lambda bias: bias, self.shapes[name])
        return self.add_moved_part(self.slots[source].pixel_pitch, name, as_it_is)

    def bias_part(self, node: Node, source: int | None) -> None:
        offset = self.bias_room(node, source)
        if source is not None and offset != NONE:
            pairs = Pairs(source, NONE)
            self.sum_products(pairs, lambda: ChannelGradient(pairs, offset), "bias gradient")

    def set_tangent(self, value: int, out: int, sums: int, activation: int) -> None:
        if activation == Activation.RELU and value not in self.rectified_by_pool:
            sums = self.slope(self.along, out, sums, activation, 0)
        self.tangents[value] = sums

    def needs_cotangent(self, value: int) -> bool:
        """Whether something that is trained comes before `value`."""
        return value in self.active

    def move(
        self, steps: list[Draft], source: int, target: int, chosen: Tensor, places: Tensor
    ) -> None:
        """Copies elements `chosen` of a slot, in torch's order, to `places` of another."""
        before, self.drafts = self.drafts, []
        self.draft_runs(source, target, chosen, places)
        draft = self.drafts.pop()
        self.drafts = before
        self.emit(steps, [*draft.reads], target, draft.make, draft.label)


def _active_values(program: Program, trainable: frozenset[str]) -> set[int]:
    """The values that depend on a trained tensor."""
    active: set[int] = set()
    for node in program.nodes:
        if trainable & set(node.tensors.values()) or active & set(node.inputs):
            active.add(node.output)
    return active
