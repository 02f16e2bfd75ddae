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

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pylandscape.engines import packing, products, records
from pylandscape.engines import simple_layers as simple
from pylandscape.engines.layout import Slot, assign_memory, image_shape, round_up
from pylandscape.engines.lowering import Draft, Folded, Lowering, State, paddings
from pylandscape.engines.plan import cache_bytes
from pylandscape.engines.program import Node, NotCovered, Program
from pylandscape.engines.records import (
    NONE, Activation, BinaryKind, Epilogue, Pairs, Room,
)  # fmt: skip
from pylandscape.engines.simple_layers import LossSpec

KINDS = ("gradient", "hessian", "ggn", "fisher")
DIRECTION = 1 << 40  # kDirection in csrc/common/plan.h
BLOCK, MIN_BLOCK = 32, 4  # samples, powers of two
KEPT_OF_BLOCK = 8 << 20  # bytes: what is kept of a block should stay in the caches
_WITHOUT_CURVATURE = (
    Activation.NONE, Activation.RELU, Activation.LEAKY_RELU, Activation.HARDTANH,
    Activation.HARDSIGMOID, Activation.AFFINE,
)  # fmt: skip


@dataclass
class Part:
    """Some derivatives in the kernels' order, and how they become gradients of tensors by name."""

    offset: int
    size: int
    unpack: Callable[[Tensor, State], dict[str, Tensor]]


@dataclass
class TapePlans:
    """What `hessian_vector_product` runs.

    Attributes:
        point, along: the plans, as int64 numbers.
        indices: of moves.
        packed: floats of a packed parameter vector.
        block: samples per block.
        kept: floats that are kept of the point per block.
        gradient: floats of derivatives per direction.
        steps: of both plans, for people.
    """

    point: Tensor
    along: Tensor
    indices: Tensor
    packed: int
    block: int
    kept: int
    gradient: int
    steps: list[str]
    _packs: list[tuple[int, Callable[[State], Tensor]]] = field(repr=False)
    _constants: list[Callable[[State], Tensor]] = field(repr=False)
    _parts: list[Part] = field(repr=False)

    def pack(self, state: State, out: Tensor) -> None:
        """Writes the tensors of `state` into `out` [packed] in the kernels' order."""
        for offset, pack in self._packs:
            part = pack(state)
            out[offset : offset + part.numel()] = part

    def constants(self, state: State) -> Tensor:
        return torch.cat([make(state).reshape(-1).float() for make in self._constants])

    def unpack(self, derivatives: Tensor, state: State) -> dict[str, Tensor]:
        """Float64 derivatives [gradient] as tensors by name; tied uses of a tensor are added."""
        found: dict[str, Tensor] = {}
        for part in self._parts:
            flat = derivatives[part.offset : part.offset + part.size]
            for name, gradient in part.unpack(flat, state).items():
                found[name] = found[name] + gradient if name in found else gradient
        return found


@dataclass
class Weights:
    """A convolution's filters, packed, and the kernel that reads them."""

    offset: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int]
    dilation: tuple[int, int]
    inputs: int
    outputs: int
    tile: int  # of Winograd, or 0
    by_row: bool


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
        self.flat_reads: list[int] = []  # slots that a Linear reads as one run of memory

    # -- what every operator needs -----------------------------------------------------------------

    @property
    def has_tangents(self) -> bool:
        return self.kind != "gradient"

    @property
    def has_cotangents(self) -> bool:
        """Whether cotangents of the point enter: not in what is linear in those of the outputs."""
        return self.kind in ("gradient", "hessian")

    def slot(self, value: int, order: str) -> int:
        held = self.slot_of.get(value, {})
        if held and order not in held:
            raise NotCovered("has no native derivatives in this order of dimensions")
        return super().slot(value, order)

    def like(self, index: int) -> int:
        """A slot for a tangent or a cotangent of another slot."""
        found = self.slots[index]
        self.slots.append(
            Slot(found.channels, found.height, found.width, found.order, lanes=self.lanes)
        )
        return len(self.slots) - 1

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
        touched = [*draft.reads, *([] if writes is None else [writes])]
        if vectors or all(self.slots[i].is_flat for i in touched):
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

    def combine(
        self,
        steps: list[Draft],
        left: int,
        right: int | None,
        out: int,
        left_scale: tuple[int, bool] = (NONE, False),
        right_scale: tuple[int, bool] = (NONE, False),
        shift: tuple[int, bool] = (NONE, False),
    ) -> None:
        """Scales and shift: (offset, whether of the direction)."""
        self.emit(
            steps,
            [left, right],
            out,
            lambda: records.Combine(
                left, NONE if right is None else right, out,
                self.weights_at(*left_scale), self.weights_at(*right_scale), self.weights_at(*shift),
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
            lambda: records.Slope(
                source, given, NONE if tangent is None else tangent,
                NONE if cotangent is None else cotangent, out, kind, constants,
            ),
            f"slope {Activation(kind).name.lower()}",
        )  # fmt: skip
        return out

    def rectify(self, value: int) -> tuple[int, Activation]:
        """Takes a relu that comes next: what it returns tells its slope as well."""
        follower = self.sole_consumer(value)
        if follower is not None and follower.op == "activation":
            if self.activation(follower)[0] == Activation.RELU:
                value = self.absorb(follower)
                reader = self.sole_consumer(value)
                if reader is not None and reader.op == "max_pool":
                    self.rectified_by_pool.add(value)
                return value, Activation.RELU
        return value, Activation.NONE

    def handed_back(self, value: int, out: int, activation: int) -> tuple[int | None, int | None]:
        """The cotangent of a layer's sum and its tangent, from those behind its relu."""
        g, h = self.cotangents.get(value), self.cotangent_tangents.get(value)
        if activation == Activation.RELU and value not in self.rectified_by_pool:
            g = None if g is None else self.slope(self.point, out, g, activation, 0)
            h = None if h is None else self.slope(self.along, out, h, activation, 0)
        return g, h

    def pairs(
        self, x: int, tangent: int | None, g: int | None, h: int | None
    ) -> Pairs | None:
        """Which products make up the derivative in a layer's weights."""
        if self.kind == "gradient":
            return None if g is None else Pairs(x, g)
        if h is None:
            return Pairs(tangent, g) if tangent is not None and g is not None else None
        if self.kind == "hessian" and tangent is not None and g is not None:
            return Pairs(x, h, tangent, g)
        return Pairs(x, h)

    def add_part(self, size: int, unpack: Callable[[Tensor, State], dict[str, Tensor]]) -> int:
        offset = self.gradient_size
        self.gradient_size += round_up(size, 16)
        self.parts.append(Part(offset, size, unpack))
        return offset

    def sum_products(
        self, pairs: Pairs, make: Callable[[], records.Step], label: str, vectors: bool = False
    ) -> None:
        touched = [i for i in (pairs.left, pairs.right, pairs.second_left, pairs.second_right)]
        self.emit(
            self.along, [i for i in touched if i != NONE], None, make, label, vectors=vectors
        )

    def bias_part(self, node: Node, g: int | None, h: int | None) -> None:
        name = node.tensors.get("bias")
        source = g if self.kind == "gradient" else h
        if name not in self.trainable or source is None:
            return
        assert name is not None
        channels, slot = self.shapes[name][0], self.slots[source]
        offset = self.add_part(slot.pixel_pitch, lambda flat, _: {name: flat[:channels]})
        pairs = Pairs(source, NONE)
        self.sum_products(
            pairs, lambda: records.ChannelGradient(pairs, offset), "bias gradient"
        )

    # -- convolutions ------------------------------------------------------------------------------

    def conv(self, node: Node) -> None:
        if node.attrs["groups"] != 1:
            raise NotCovered("in groups has no native derivatives", node.op, node.source)
        name, attrs = node.tensors["weight"], node.attrs
        x_value = node.inputs[0]
        x = self.slot(x_value, "first")
        outputs, inputs, *_ = self.shapes[name]
        (top, left), _ = paddings(node)
        bias = self.pack_vector(node.tensors.get("bias"))
        sizes = attrs["kernel"], attrs["stride"], (top, left), attrs["dilation"]
        value, activation = self.rectify(node.output)
        out = self.add_slot(value, "first")
        weights = self.conv_weights(x, out, *sizes, inputs, outputs, lambda s: s[name])
        epilogue = Epilogue(shift=bias, activation=activation)
        self.convolve(self.point, weights, x, out, epilogue)
        tangent = self.tangents.get(x_value)
        if self.has_tangents and (tangent is not None or self.is_trained(node)):
            self.conv_tangent(node, weights, x, tangent, value, out, activation, bias)

        def back() -> None:
            g, h = self.handed_back(value, out, activation)
            self.bias_part(node, g, h)
            pairs = self.pairs(x, tangent, g, h)
            if pairs is not None and name in self.trainable:
                self.conv_gradient(name, weights, pairs)
            if self.needs_cotangent(x_value):
                self.conv_back(node, weights, x_value, g, h)

        self.backward.append(back)

    def conv_weights(
        self, source: int, out: int, kernel: tuple[int, int], stride: tuple[int, int],
        pads: tuple[int, int], dilation: tuple[int, int], inputs: int, outputs: int,
        filters: Callable[[State], Tensor],
    ) -> Weights:  # fmt: skip
        slot, result, lanes = self.slots[source], self.slots[out], self.lanes
        pitch, (kh, kw) = slot.pixel_pitch, kernel
        tile = 0
        if self.precision == "fast" and kernel == (3, 3) and stride == dilation == (1, 1):
            tile = products.winograd_tile(inputs, pitch, result.height, result.width)
        by_row = dilation[1] == 1
        if (kh if by_row else kh * kw) > products.MAX_SEGMENTS:
            raise NotCovered("a kernel is too large for the native engine", "conv")
        if tile:
            offset = self.pack(
                (tile + 2) ** 2 * round_up(outputs, lanes) * pitch,
                lambda s: packing.winograd_filters(filters(s), tile, pitch, lanes),
            )
        else:
            offset = self.pack(
                round_up(outputs, lanes) * kh * kw * pitch,
                lambda s: packing.direct_filters(padded_inputs(filters(s), pitch), 1, pitch,
                                                 by_row, lanes),
            )  # fmt: skip
        return Weights(
            offset, kernel, stride, pads, dilation, inputs, outputs, tile, by_row
        )

    def convolve(
        self, steps: list[Draft], w: Weights, source: int, out: int, epilogue: Epilogue,
        along: bool = False,
    ) -> None:  # fmt: skip
        """A convolution with the filters of the point or of the direction."""
        slot, result = self.slots[source], self.slots[out]
        (kh, kw), (sh, sw), (dh, dw), (top, left) = w.kernel, w.stride, w.dilation, w.pads
        covered_h, covered_w = result.height, result.width
        if w.tile:
            covered_h, covered_w = (round_up(n, w.tile) for n in (covered_h, covered_w))
        bottom = (covered_h - 1) * sh + (kh - 1) * dh + 1 - top - slot.height
        right = (covered_w - 1) * sw + (kw - 1) * dw + 1 - left - slot.width
        slot.need_halo(top, max(0, bottom), left, max(0, right))
        reads = [source, *([epilogue.residual] if epilogue.residual != NONE else [])]
        in_pitch, out_pitch, at_once = products.winograd_room(
            w.tile, slot.pixel_pitch, result.pixel_pitch
        )

        def make() -> records.Step:
            at = self.weights_at(w.offset, along)
            if w.tile:
                return records.Winograd(
                    source, out, at, epilogue, w.tile, top, left, covered_h // w.tile,
                    covered_w // w.tile, at_once, self.scratch_offset, in_pitch, out_pitch, 0,
                )  # fmt: skip
            return records.Convolution(
                source, out, at, epilogue, kh, kw, sh, sw, top, left, dh, dw, 1,
                slot.pixel_pitch, w.outputs, w.by_row, 0,
            )  # fmt: skip

        scratch = at_once * (in_pitch + out_pitch) + self.lanes if w.tile else 0
        label = f"conv {kh}x{kw}" + (f" Winograd F({w.tile}x{w.tile})" if w.tile else "")
        label += " of the direction" if along else ""
        self.emit(steps, [*reads], out, make, label, scratch=lambda: scratch)

    def conv_tangent(
        self, node: Node, w: Weights, x: int, tangent: int | None, value: int, out: int,
        activation: int, bias: int,
    ) -> None:  # fmt: skip
        sums = self.like(out)
        if tangent is not None:
            self.convolve(self.along, w, tangent, sums, Epilogue())
        if self.is_trained(node):
            epilogue = Epilogue(
                shift=NONE if bias == NONE else bias + DIRECTION,
                residual=NONE if tangent is None else sums,
            )
            self.convolve(self.along, w, x, sums, epilogue, along=True)
        self.set_tangent(value, out, sums, activation)

    def set_tangent(self, value: int, out: int, sums: int, activation: int) -> None:
        if activation == Activation.RELU and value not in self.rectified_by_pool:
            sums = self.slope(self.along, out, sums, activation, 0)
        self.tangents[value] = sums

    def needs_cotangent(self, value: int) -> bool:
        """Whether something that is trained comes before `value`."""
        return value in self.active

    def conv_back(
        self, node: Node, w: Weights, x_value: int, g: int | None, h: int | None
    ) -> None:
        name = node.tensors["weight"]
        x = self.slot_of[x_value]["first"]
        (kh, kw), (dh, dw) = w.kernel, w.dilation
        pads = dh * (kh - 1) - w.pads[0], dw * (kw - 1) - w.pads[1]
        if min(pads) < 0:
            raise NotCovered("pads by more than its kernel", node.op, node.source)
        g, h = (
            None if c is None else self.dilated(steps, c, w.stride)
            for c, steps in ((g, self.point), (h, self.along))
        )
        source = g if g is not None else h
        if source is None:
            return
        target = self.like(x)
        turned = self.conv_weights(
            source, target, w.kernel, (1, 1), pads, w.dilation, w.outputs, w.inputs,
            lambda s: turned_filters(s[name]),
        )  # fmt: skip
        if g is not None and self.has_cotangents:
            self.convolve(self.point, turned, g, target, Epilogue())
            self.give(self.cotangents, self.point, x_value, target)
        if not self.has_tangents:
            return
        sums, residual = self.like(x), NONE
        if h is not None:
            self.convolve(self.along, turned, h, sums, Epilogue())
            residual = sums
        if g is not None and self.kind == "hessian" and name in self.trainable:
            self.convolve(self.along, turned, g, sums, Epilogue(residual=residual), along=True)
            residual = sums
        if residual != NONE:
            self.give(self.cotangent_tangents, self.along, x_value, sums)

    def dilated(self, steps: list[Draft], source: int, stride: tuple[int, int]) -> int:
        """The pixels of a slot `stride` apart, zeros between: turns strides into steps of one."""
        if stride == (1, 1):
            return source
        found = self.slots[source]
        height, width = ((n - 1) * s + 1 for n, s in zip((found.height, found.width), stride,
                                                          strict=True))  # fmt: skip
        self.slots.append(
            Slot(found.channels, height, width, found.order, dedicated=True, lanes=self.lanes)
        )
        target = len(self.slots) - 1
        rows = torch.arange(found.height) * stride[0] * width
        pixels = rows[:, None] + torch.arange(found.width) * stride[1]
        planes = torch.arange(found.channels)[:, None, None] * (height * width)
        self.move(steps, source, target, torch.arange(pixels.numel() * found.channels),
                  (planes + pixels).reshape(-1))  # fmt: skip
        return target

    def move(
        self, steps: list[Draft], source: int, target: int, chosen: Tensor, places: Tensor
    ) -> None:
        """Copies elements `chosen` of a slot, in torch's order, to `places` of another."""
        before, self.drafts = self.drafts, []
        self.draft_runs(source, target, chosen, places)
        draft = self.drafts.pop()
        self.drafts = before
        self.emit(steps, [*draft.reads], target, draft.make, draft.label)

    def conv_gradient(self, name: str, w: Weights, pairs: Pairs) -> None:
        slot = self.slots[pairs.left]
        pitch, lanes, shape = slot.pixel_pitch, self.lanes, self.shapes[name]

        def pack(weight: Tensor) -> Tensor:
            filters = padded_inputs(weight, pitch)
            return packing.direct_filters(filters, 1, pitch, w.by_row, lanes)

        size = round_up(w.outputs, lanes) * w.kernel[0] * w.kernel[1] * pitch
        unpack = unpacking(pack, shape)
        offset = self.add_part(size, lambda flat, _: {name: unpack(flat)})
        self.sum_products(
            pairs,
            lambda: records.ConvolutionGradient(
                pairs, offset, *w.kernel, *w.stride, *w.pads, *w.dilation
            ),
            "conv gradient",
        )

    # -- linear layers -----------------------------------------------------------------------------

    def linear(self, node: Node) -> None:
        if len(self.program.values[node.inputs[0]].shape) > 1:
            raise NotCovered("of every pixel has no native derivatives", node.op, node.source)
        name = node.tensors["weight"]
        outputs, inputs = self.shapes[name]
        source, features = products.linear_source(self, node, inputs)
        x_value = next(v for v, held in self.slot_of.items() if source in held.values())
        slot, lanes = self.slots[source], self.lanes
        self.flat_reads.append(source)
        columns = products.linear_columns(slot, features, inputs, by_pixel=False)
        depth = len(columns)
        forward = self.pack(
            round_up(outputs, lanes) * depth,
            lambda s: packing.linear_weights(s[name], columns, lanes),
        )
        bias = self.pack_vector(node.tensors.get("bias"))
        value, activation = self.rectify(node.output)
        out = self.add_slot(value, "first")
        self.multiply(self.point, forward, source, out, depth, outputs,
                      Epilogue(shift=bias, activation=activation))  # fmt: skip
        tangent = self.tangents.get(x_value)
        if self.has_tangents and (tangent is not None or self.is_trained(node)):
            sums, begun = self.like(out), False
            trained = self.is_trained(node)
            if tangent is not None:
                self.flat_reads.append(tangent)
                self.multiply(self.along, forward, tangent, sums, depth, outputs, Epilogue())
                begun = True
            if trained:
                shift = NONE if bias == NONE else bias + DIRECTION
                self.multiply(self.along, forward, source, sums, depth, outputs,
                              Epilogue(shift=shift), along=True, accumulate=begun)  # fmt: skip
            self.set_tangent(value, out, sums, activation)

        def back() -> None:
            g, h = self.handed_back(value, out, activation)
            self.bias_part(node, g, h)
            pairs = self.pairs(source, tangent, g, h)
            if pairs is not None and name in self.trainable:
                unpack = unpacking(
                    lambda w: packing.linear_weights(w, columns, lanes), (outputs, inputs)
                )
                part = self.add_part(
                    round_up(outputs, lanes) * depth, lambda flat, _: {name: unpack(flat)}
                )
                self.sum_products(
                    pairs, lambda: records.LinearGradient(pairs, part, depth), "linear gradient",
                    vectors=True,
                )  # fmt: skip
            if self.needs_cotangent(x_value):
                self.linear_back(name, columns, outputs, x_value, source, g, h)

        self.backward.append(back)

    def multiply(
        self, steps: list[Draft], weights: int, source: int, out: int, depth: int, outputs: int,
        epilogue: Epilogue, along: bool = False, accumulate: bool = False,
    ) -> None:  # fmt: skip
        label = "linear" + (" of the direction" if along else "")
        self.emit(
            steps,
            [source, *([out] if accumulate else [])],
            out,
            lambda: records.Linear(
                source, out, self.weights_at(weights, along), epilogue, 1, depth, 0, outputs, 0,
                int(accumulate),
            ),
            label,
            vectors=True,
        )  # fmt: skip

    def linear_back(
        self, name: str, columns: Tensor, outputs: int, x_value: int, x: int,
        g: int | None, h: int | None,
    ) -> None:  # fmt: skip
        lanes, depth = self.lanes, len(columns)
        rows = round_up(outputs, lanes)
        order = torch.cat((torch.arange(outputs), torch.full((rows - outputs,), -1)))

        def transposed(s: State) -> Tensor:
            return packing.linear_weights(
                packing.padded(s[name], s[name].shape[1] + 1)[:, columns].T, order, lanes
            )

        weights = self.pack(round_up(depth, lanes) * rows, transposed)
        if g is not None and self.has_cotangents:
            target = self.like(x)
            self.flat_reads.append(target)
            self.multiply(self.point, weights, g, target, rows, depth, Epilogue())
            self.give(self.cotangents, self.point, x_value, target)
        if not self.has_tangents:
            return
        sums, begun = self.like(x), False
        if h is not None:
            self.multiply(self.along, weights, h, sums, rows, depth, Epilogue())
            begun = True
        if g is not None and self.kind == "hessian" and name in self.trainable:
            self.multiply(self.along, weights, g, sums, rows, depth, Epilogue(), along=True,
                          accumulate=begun)  # fmt: skip
            begun = True
        if begun:
            self.flat_reads.append(sums)
            self.give(self.cotangent_tangents, self.along, x_value, sums)

    # -- other layers ------------------------------------------------------------------------------

    def batch_norm(self, node: Node) -> None:
        x_value = node.inputs[0]
        x = self.slot(x_value, "first")
        scale, shift = self.fold(node, NONE)
        value, activation = self.rectify(node.output)
        out = self.add_slot(value, "first")
        self.emit(
            self.point,
            [x],
            out,
            lambda: records.Pointwise(
                x, out, Epilogue(self.weights_at(scale), self.weights_at(shift),
                                 activation=activation),
            ),
            "batch_norm",
        )  # fmt: skip
        tangent, trained = self.tangents.get(x_value), self.is_trained(node)
        if self.has_tangents and (tangent is not None or trained):
            sums = self.like(out)
            if not trained:
                assert tangent is not None
                self.combine(self.along, tangent, None, sums, (scale, False))
            else:
                self.combine(
                    self.along, x, tangent, sums, (scale, True), (scale, False), (shift, True)
                )
            self.set_tangent(value, out, sums, activation)

        def back() -> None:
            g, h = self.handed_back(value, out, activation)
            self.batch_norm_gradient(node, x, tangent, g, h)
            if not self.needs_cotangent(x_value):
                return
            if g is not None and self.has_cotangents:
                target = self.like(x)
                self.combine(self.point, g, None, target, (scale, False))
                self.give(self.cotangents, self.point, x_value, target)
            crossed = g if self.kind == "hessian" and trained else None
            if h is not None:
                sums = self.like(x)
                self.combine(self.along, h, crossed, sums, (scale, False), (scale, True))
                self.give(self.cotangent_tangents, self.along, x_value, sums)

        self.backward.append(back)

    def batch_norm_gradient(
        self, node: Node, x: int, tangent: int | None, g: int | None, h: int | None
    ) -> None:
        """d gamma = sum (x - mean) / sqrt(var + eps) g, d beta = sum g."""
        if not self.is_trained(node):
            return
        gamma, beta = node.tensors.get("weight"), node.tensors.get("bias")
        mean, var, eps = node.tensors["mean"], node.tensors["var"], node.attrs["eps"]
        pairs, source = self.pairs(x, tangent, g, h), g if self.kind == "gradient" else h
        if pairs is None or source is None:
            return
        channels, room = self.shapes[mean][0], self.slots[source].pixel_pitch

        def unpack(flat: Tensor, state: State) -> dict[str, Tensor]:
            sums, products_ = flat[:channels], flat[room : room + channels]
            inverse = (state[var].double() + eps).rsqrt()
            found = {gamma: inverse * (products_ - state[mean].double() * sums), beta: sums}
            return {name: value for name, value in found.items()
                    if name is not None and name in self.trainable}  # fmt: skip

        offset = self.add_part(2 * room, unpack)
        plain = Pairs(source, NONE)
        self.sum_products(plain, lambda: records.ChannelGradient(plain, offset), "shift gradient")
        self.sum_products(
            pairs, lambda: records.ChannelGradient(pairs, offset + room), "scale gradient"
        )

    def activate(self, node: Node) -> None:
        x_value = node.inputs[0]
        order = self.elementwise_order(node)
        kind, constants = self.activation(node)
        x = self.slot(x_value, order)
        out = self.add_slot(node.output, order)
        epilogue = Epilogue(activation=kind, constants=constants)
        self.emit(self.point, [x], out, lambda: records.Pointwise(x, out, epilogue), "activation")
        tangent = self.tangents.get(x_value)
        if self.has_tangents and tangent is not None:
            self.tangents[node.output] = self.slope(self.along, x, tangent, kind, constants)

        def back() -> None:
            if not self.needs_cotangent(x_value):
                return
            g, h = (t.get(node.output) for t in (self.cotangents, self.cotangent_tangents))
            if g is not None and self.has_cotangents:
                slot = self.slope(self.point, x, g, kind, constants)
                self.give(self.cotangents, self.point, x_value, slot)
            if h is not None:
                crossed = g if self.kind == "hessian" else None
                slot = self.slope(self.along, x, h, kind, constants, tangent, crossed)
                self.give(self.cotangent_tangents, self.along, x_value, slot)

        self.backward.append(back)

    def binary(self, node: Node) -> None:
        order = self.elementwise_order(node)
        shapes = {self.program.values[v].shape for v in (*node.inputs, node.output)}
        if len(shapes) > 1:
            raise NotCovered("broadcasts, which has no native derivatives", node.op, node.source)
        left, right = (self.slot(v, order) for v in node.inputs)
        out = self.add_slot(node.output, order)
        kind = BinaryKind[node.op.upper()]
        self.pairwise(self.point, left, right, out, kind)
        tangents = [self.tangents.get(v) for v in node.inputs]
        if self.has_tangents:
            total: dict[int, int] = {}
            for mine, other, sign in ((0, right, 1), (1, left, -1)):
                found = tangents[mine]
                if found is not None:
                    term = self.through(self.along, kind, found, other, sign)
                    self.give(total, self.along, node.output, term)
            self.tangents |= total

        def back() -> None:
            g, h = (t.get(node.output) for t in (self.cotangents, self.cotangent_tangents))
            others = ((right, tangents[1], 1), (left, tangents[0], -1))
            for value, (other, crossed, sign) in zip(node.inputs, others, strict=True):
                if not self.needs_cotangent(value):
                    continue
                if g is not None and self.has_cotangents:
                    slot = self.through(self.point, kind, g, other, sign)
                    self.give(self.cotangents, self.point, value, slot)
                if h is not None:
                    slot = self.through(self.along, kind, h, other, sign)
                    self.give(self.cotangent_tangents, self.along, value, slot)
                product = kind == BinaryKind.MUL and self.kind == "hessian"
                if product and g is not None and crossed is not None:
                    slot = self.through(self.along, kind, g, crossed, sign)
                    self.give(self.cotangent_tangents, self.along, value, slot)

        self.backward.append(back)

    def pairwise(
        self, steps: list[Draft], left: int, right: int, out: int, kind: BinaryKind
    ) -> None:
        self.emit(
            steps, [left, right], out,
            lambda: records.Binary(left, right, out, kind, Epilogue()), kind.name.lower(),
        )  # fmt: skip

    def through(
        self, steps: list[Draft], kind: BinaryKind, given: int, other: int, sign: int
    ) -> int:
        """What one operand of a sum, difference or product contributes: given, -given or a product.

        `sign` is -1 for the second operand.
        """
        if kind == BinaryKind.ADD or (kind == BinaryKind.SUB and sign > 0):
            return given
        out = self.like(given)
        if kind == BinaryKind.MUL:
            self.pairwise(steps, given, other, out, kind)
            return out
        minus = self.constant(3, lambda _: torch.tensor([-1.0, 0.0, 0.0]))
        epilogue = Epilogue(activation=Activation.AFFINE, constants=minus)
        self.emit(steps, [given], out, lambda: records.Pointwise(given, out, epilogue), "negate")
        return out

    def pool(self, node: Node) -> None:
        x_value = node.inputs[0]
        x = self.slot(x_value, "first")
        out = self.add_slot(node.output, "first")
        forward, back_through = self.pool_steps(node, x)
        self.emit(self.point, [x], out, forward(x, out), node.op)
        tangent = self.tangents.get(x_value)
        if self.has_tangents and tangent is not None:
            sums = self.like(out)
            if node.op == "max_pool":
                self.emit(self.along, [x, tangent], sums, back_through(tangent, sums, 0), node.op)
            else:
                self.emit(self.along, [tangent], sums, forward(tangent, sums), node.op)
            self.tangents[node.output] = sums

        def back() -> None:
            if not self.needs_cotangent(x_value):
                return
            for table, steps in ((self.cotangents, self.point),
                                 (self.cotangent_tangents, self.along)):  # fmt: skip
                given = table.get(node.output)
                if given is not None:
                    target = self.like(x)
                    reads = [x, given] if node.op == "max_pool" else [given]
                    make = back_through(given, target, 1)
                    self.emit(steps, [*reads], target, make, f"{node.op} gradient")
                    self.give(table, steps, x_value, target)

        self.backward.append(back)

    def pool_steps(
        self, node: Node, x: int
    ) -> tuple[
        Callable[[int, int], Callable[[], records.Step]],
        Callable[[int, int, int], Callable[[], records.Step]],
    ]:
        """(source, out) -> the pooling; (source, out, spread) -> its derivative."""
        if node.op == "adaptive_avg_pool":
            return (
                lambda a, b: lambda: records.AdaptivePool(a, b),
                lambda a, b, _: lambda: records.AdaptivePoolGradient(a, b),
            )
        (top, left), trailing = paddings(node)
        if (top, left) != trailing:
            raise NotCovered("pads its two sides differently", node.op, node.source)
        fields = (*node.attrs["kernel"], *node.attrs["stride"], top, left)
        dilation = node.attrs.get("dilation", (1, 1))
        if node.op == "max_pool":
            rectified = int(node.inputs[0] in self.rectified_by_pool)
            return (
                lambda a, b: lambda: records.MaxPool(a, b, *fields, *dilation),
                lambda a, b, spread: lambda: records.MaxPoolGradient(
                    x, a, b, *fields, *dilation, spread, rectified
                ),
            )
        counts = int(node.attrs["count_include_pad"]), node.attrs["divisor"] or 0
        return (
            lambda a, b: lambda: records.AveragePool(a, b, *fields, *dilation, *counts),
            lambda a, b, _: lambda: records.AveragePoolGradient(a, b, *fields, *counts),
        )

    def reindex(self, node: Node) -> None:
        """Data movement: the same for tangents, and backwards for cotangents."""
        readers = self.consumers.get(node.output, [])
        vector = len(self.program.values[node.output].shape) == 1
        if vector and readers and all(n.op == "linear" for n in readers):
            if self.columns(node) is not None:
                return  # the Linear reads the elements where they are
        index = node.attrs["index"]
        kept = index[index >= 0]
        if len(kept.unique()) != len(kept):
            raise NotCovered("repeats elements, which has no native derivatives", node.op,
                             node.source)  # fmt: skip
        order = self.preferred_order(node.output) or "first"
        sources = [self.any_slot(v) for v in node.inputs]
        out = self.add_slot(node.output, order)
        self.slots[out].dedicated = True
        parts, start = [], 0
        for value, source in zip(node.inputs, sources, strict=True):
            size = self._elements(source)
            places = ((index >= start) & (index < start + size)).nonzero().flatten()
            parts.append((value, source, index[places] - start, places))
            start += size
        for _, source, chosen, places in parts:
            if len(chosen):
                self.move(self.point, source, out, chosen, places)
        active = [(v, c, p) for v, _, c, p in parts if v in self.tangents and len(c)]
        if self.has_tangents and active:
            sums = self.like(out)
            self.slots[sums].dedicated = True
            for value, chosen, places in active:
                self.move(self.along, self.tangents[value], sums, chosen, places)
            self.tangents[node.output] = sums

        def back() -> None:
            for table, steps in ((self.cotangents, self.point),
                                 (self.cotangent_tangents, self.along)):  # fmt: skip
                given = table.get(node.output)
                for value, source, chosen, places in parts:
                    if given is None or not self.needs_cotangent(value) or not len(chosen):
                        continue
                    target = self.like(source)
                    self.slots[target].dedicated = True
                    self.move(steps, given, target, places, chosen)
                    self.give(table, steps, value, target)

        self.backward.append(back)

    def log_softmax(self, node: Node) -> None:
        value = node.inputs[0]
        simple.lower_log_softmax(self, node)  # part of the loss
        if value in self.tangents:
            self.tangents[node.output] = self.tangents[value]

        def back() -> None:
            for table in (self.cotangents, self.cotangent_tangents):
                if node.output in table:
                    table[value] = table[node.output]

        self.backward.append(back)

    def loss(self, spec: LossSpec) -> None:
        value = self.program.output
        flat = self.any_slot(value)
        shape = self.program.values[value].shape
        if len(shape) != 1 or self.slots[flat].dense:
            raise NotCovered("outputs of other than one dimension have no native derivatives")
        simple.lower_loss(self, spec)
        self.vector_steps.add(id(self.point[-1]))
        loss_record = self.point[-1]

        def gradient(tangent: int, out: int, fisher: bool) -> Callable[[], records.Step]:
            def make() -> records.Step:
                loss = loss_record.make()
                assert isinstance(loss, records.Loss)
                return records.LossGradient(
                    flat, tangent, out, loss.loss, loss.outputs, loss.weights, loss.smoothing,
                    loss.ignore_index, int(fisher),
                )  # fmt: skip

            return make

        if self.has_cotangents:
            out = self.like(flat)
            self.slots[out].dedicated = True
            self.emit(self.point, [flat], out, gradient(NONE, out, False), "loss gradient")
            self.cotangents[value] = out
        tangent = self.tangents.get(value)
        if self.has_tangents:
            if tangent is None:
                raise NotCovered("the outputs do not depend on the parameters")
            out = self.like(flat)
            self.slots[out].dedicated = True
            make = gradient(tangent, out, self.kind == "fisher")
            self.emit(self.along, [flat, tangent], out, make, "loss gradient")
            self.cotangent_tangents[value] = out

    # -- the whole ---------------------------------------------------------------------------------

    def run(self, input_strides: tuple[int, ...], spec: LossSpec) -> None:
        simple.lower_input(self, input_strides)
        handlers: Mapping[str, Callable[[Node], None]] = {
            "conv": self.conv,
            "linear": self.linear,
            "batch_norm": self.batch_norm,
            "activation": self.activate,
            "scale": self.activate,
            "add": self.binary,
            "sub": self.binary,
            "mul": self.binary,
            "max_pool": self.pool,
            "avg_pool": self.pool,
            "adaptive_avg_pool": self.pool,
            "reindex": self.reindex,
            "log_softmax": self.log_softmax,
        }
        for node in self.program.nodes:
            if node.output in self.fused:
                continue
            if node.op not in handlers:
                raise NotCovered("has no native derivatives", node.op, node.source)
            handlers[node.op](node)
        self.loss(spec)
        for step in reversed(self.backward):
            step()
        for index in self.flat_reads:
            slot = self.slots[index]
            if slot.top or slot.bottom or slot.left or slot.right:
                raise NotCovered("a Linear shares its input with a convolution")


def make_tape(
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    input_strides: tuple[int, ...],
    lanes: int,
    precision: str,
    trainable: frozenset[str],
    kind: str,
) -> TapePlans:
    """Plans the derivatives of `program`; arguments as for `make_plan` and `Tape`.

    Raises:
        NotCovered: something in the program has no native derivatives.
    """
    tape = Tape(program, shapes, lanes, precision, trainable, kind)
    tape.run(input_strides, loss)
    return _assemble(tape)


def _active_values(program: Program, trainable: frozenset[str]) -> set[int]:
    """The values that depend on a trained tensor."""
    active: set[int] = set()
    for node in program.nodes:
        if trainable & set(node.tensors.values()) or active & set(node.inputs):
            active.add(node.output)
    return active


def _assemble(tape: Tape) -> TapePlans:
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
    for name, steps in (("point", point), ("along", along)):
        plans[name] = _numbers(tape, steps, sections[name], arena, block, name == "point")
    empty = torch.zeros(0, dtype=torch.int32)
    return TapePlans(
        plans["point"],
        plans["along"],
        torch.cat([*tape.indices, empty]),
        tape.packed,
        block,
        kept_size,
        max(tape.gradient_size, 16),
        [draft.label for draft in [*point, *along]],
        tape.packs,
        tape.constants,
        tape.parts,
    )


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
        for index in {*draft.reads, draft.writes} - {None}:
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
    touched = {*draft.reads, draft.writes} - {None}
    most = max(tape.slots[i].sample_pitch for i in touched)
    fitting = cache_bytes() // 2 // (4 * 4 * most)
    return 1 << max(0, fitting.bit_length() - 1)


def _choose_rooms(
    tape: Tape, steps: list[Draft], sections: list[records.Section], block: int
) -> None:
    """What is used in one section of images only needs room for a sub-block."""
    used: dict[int, set[int]] = {}
    for number, section in enumerate(sections):
        for draft in steps[section.first_step : section.last_step]:
            for index in {*draft.reads, draft.writes} - {None}:
                used.setdefault(index, set()).add(number)
    written = {draft.writes for draft in steps}
    for index in used.keys() & written:
        numbers = used[index]
        whole = len(numbers) > 1 or any(sections[n].samples == block for n in numbers)
        tape.slots[index].room = Room.WHOLE_BLOCK if whole else Room.SUB_BLOCK


def _numbers(
    tape: Tape, steps: list[Draft], sections: list[records.Section], arena: int, block: int,
    with_folds: bool,
) -> Tensor:  # fmt: skip
    folds = []
    for fold in tape.folds if with_folds else []:
        fold.scale, fold.shift = fold.scale + tape.packed, fold.shift + tape.packed
        folds.append(fold)
    for slot in tape.slots:
        slot.offset = max(slot.offset, 0)  # of those that nobody needs
    head = records.Head(
        lanes=tape.lanes, arena=arena, block=block, packed=tape.packed, folded=tape.folded,
        linear_first=0, tail=0, values=len(tape.slots), sections=len(sections), folds=len(folds),
        roundings=0, steps=len(steps),
    )  # fmt: skip
    parts = [head, *(slot.record() for slot in tape.slots), *sections, *folds]
    flat = [n for part in parts for n in records.numbers(part)]
    for draft in steps:
        flat += draft.make().numbers()
    return torch.tensor(flat, dtype=torch.int64)


def padded_inputs(weight: Tensor, pitch: int) -> Tensor:
    """Filters [out, in, ...] with zeros for the channels that only pad a pixel."""
    extra = pitch - weight.shape[1]
    return torch.cat([weight, weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])], 1)


def turned_filters(weight: Tensor) -> Tensor:
    """[in, out, h, w]: the filters of the backward pass."""
    return weight.transpose(0, 1).flip(*range(2, weight.ndim))


def unpacking(
    pack: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """The inverse of a packing that puts every element of a tensor of `shape` in one place."""

    @functools.cache
    def places() -> tuple[Tensor, Tensor]:
        count = torch.Size(shape).numel()
        numbers = pack(torch.arange(1, 1 + count, dtype=torch.float64).reshape(shape)).long()
        taken = numbers.nonzero().flatten()
        return taken, numbers[taken] - 1

    def unpack(packed: Tensor) -> Tensor:
        taken, elements = places()
        flat = packed.new_zeros(torch.Size(shape).numel())
        flat[elements] = packed[taken]
        return flat.reshape(shape)

    return unpack
