"""Derivatives of layers of whose outputs only some have any.

Behind a convolution with a max_pool these are the outputs that it chose, behind a Linear with a
relu those where the relu let something pass. The point's outputs are formed as ever; lists made of
them tell the steps along a direction where products are to be formed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.derivatives import layers
from pylandscape.engines.derivatives.filters import Weights
from pylandscape.engines.derivatives.records import (
    ChosenBack,
    ChosenGradient,
    ChosenSums,
    Lists,
    Pairs,
    Products,
    Rectified,
    Winners,
)
from pylandscape.engines.derivatives.tape import DIRECTION, MIN_BLOCK, Tape
from pylandscape.engines.layout import Slot, image_shape
from pylandscape.engines.lowering import Draft
from pylandscape.engines.plan import cache_bytes
from pylandscape.engines.program import Node
from pylandscape.engines.records import NONE, Activation

# Outputs per window from which on the chosen ones are less work than all in the Winograd domain:
# there 16 outputs take 36 products per pair of channels and the transforms, here each takes 9.
OUTPUTS_PER_WINDOW = 4
NEAR_BYTES = 1.5  # of two inputs, per byte of the first-level cache: what was fastest
MOST_PLACES = 64  # of a window; kMostPlaces in csrc/cpu/layers/chosen.inc
PANEL_VECTORS = 6  # kPanelVectors in csrc/cpu/layers/chosen.inc

Factors = list[tuple[int, bool]]  # slots, each with whether it meets the direction's filters


class ChosenOutputs(ABC):
    """The outputs of a layer that have derivatives, on the way to both plans.

    Args:
        node: the layer.
        x, out: slots of its input, and of its outputs or of what a max_pool chose of them.
        bias: offset of the packed bias, or -1.
        activation: relu or none.
        filters: puts the weight in the kernels' order, `size` floats.
        entries: how many of lists there is room for per sample.
    """

    vectors = False  # whether steps run for a whole block

    def __init__(
        self, tape: Tape, node: Node, x: int, out: int, bias: int, activation: int,
        filters: packing.Movement, size: int, entries: int,
    ) -> None:  # fmt: skip
        self.tape, self.node, self.x, self.out = tape, node, x, out
        self.bias, self.activation = bias, activation
        self.movement, self.size, name = filters, size, node.tensors["weight"]
        self.filters = tape.pack_moved(size, name, filters)
        tape.slots.append(Slot(2 * entries, 1, 1, "first", lanes=tape.lanes))
        self.lists = len(tape.slots) - 1
        # lists hold places in these, which therefore must have the same pitches
        self.inputs, self.outputs = [x], [out]
        tape.alike += [self.inputs, self.outputs]

    @abstractmethod
    def fields(self) -> Lists:
        """What all steps share."""

    @abstractmethod
    def longest(self) -> int:
        """Winners of a list, at most."""

    def reach(self) -> tuple[int, int, int, int]:
        """The pixels above, below, before and behind an input over which filters are laid."""
        return 0, 0, 0, 0

    def derive(self, x_value: int, value: int) -> None:
        """Tangents and cotangents of the layer, given the values that `x` and `out` hold."""
        tape, name = self.tape, self.node.tensors["weight"]
        tangent = tape.tangents.get(x_value)
        if tape.has_tangents and (tangent is not None or tape.is_trained(self.node)):
            tape.tangents[value] = self._tangent(tangent)

        def back() -> None:
            g, h = (t.get(value) for t in (tape.cotangents, tape.cotangent_tangents))
            pairs, summed = tape.pairs(self.x, tangent, g, h), tape.summed(g, h)
            if pairs is not None and name in tape.trainable:
                self._gradient(pairs, tape.bias_room(self.node, summed))
            else:
                tape.bias_part(self.node, of_chosen(tape, summed, self.out, self.activation))
            if not tape.needs_cotangent(x_value):
                return
            if g is not None and tape.has_cotangents:
                given = self._back(tape.point, [(g, False)])
                tape.give(tape.cotangents, tape.point, x_value, given)
            if h is not None:
                factors: Factors = [(h, False)]
                if g is not None and tape.kind == "hessian" and name in tape.trainable:
                    factors.append((tape.again(g), True))
                given = self._back(tape.along, factors)
                tape.give(tape.cotangent_tangents, tape.along, x_value, given)

        tape.backward.append(back)

    def _tangent(self, tangent: int | None) -> int:
        tape, trained = self.tape, self.tape.is_trained(self.node)
        factors: Factors = [] if tangent is None else [(tangent, False)]
        factors += [(self.x, True)] if trained else []
        shift = self.bias + DIRECTION if trained and self.bias != NONE else NONE
        out = tape.like(self.out)
        self.inputs += [slot for slot, _ in factors]
        self.outputs.append(out)
        self._emit(
            tape.along, factors, out,
            lambda: ChosenSums(self.fields(), self._products(factors, out), shift,
                               tape.scratch_offset),
            "sums of chosen outputs",
        )  # fmt: skip
        return out

    def _gradient(self, pairs: Pairs, bias: int) -> None:
        name = self.node.tensors["weight"]
        self.outputs += [i for i in (pairs.right, pairs.second_right) if i != NONE]
        part = self.tape.add_moved_part(self.size, name, self.movement)
        self.tape.sum_products(
            pairs, lambda: ChosenGradient(self.fields(), pairs, part, bias),
            "gradient of chosen outputs", vectors=self.vectors, others=[self.lists],
        )  # fmt: skip

    def _back(self, steps: list[Draft], factors: Factors) -> int:
        out = self.tape.like(self.x)
        self.inputs.append(out)
        self.outputs += [slot for slot, _ in factors]
        self._emit(
            steps, factors, out,
            lambda: ChosenBack(self.fields(), self._products(factors, out), *self.reach()),
            "back from chosen outputs",
        )  # fmt: skip
        return out

    def _emit(
        self, steps: list[Draft], factors: Factors, out: int, make: Callable[[], records.Step],
        label: str,
    ) -> None:  # fmt: skip
        self.tape.emit(
            steps, [*dict(factors), self.lists], out, make, label,
            lambda: (self.longest() + 3) * self.tape.lanes,  # sums are taken four at a time
            self.vectors,
        )  # fmt: skip

    def _products(self, factors: Factors, out: int) -> Products:
        weights = [(slot, self.tape.weights_at(self.filters, along)) for slot, along in factors]
        (first, at), *more = weights
        return Products(first, out, at, *(more[0] if more else ()))


def of_chosen(tape: Tape, summed: int | None, out: int, activation: int) -> int | None:
    """The cotangents that are summed for a bias: none where a relu let nothing pass to `out`."""
    if summed is None or activation != Activation.RELU:
        return summed
    return tape.slope(tape.along, out, summed, activation, 0)


class PooledConvolution(ChosenOutputs):
    """A convolution with a max_pool behind it.

    Args:
        node, pool: the two layers.
        w: the convolution's filters.
        x, image: slots of its input, and of its outputs behind the relu, if there is one.
    """

    def __init__(
        self, tape: Tape, node: Node, pool: Node, w: Weights, x: int, image: int, bias: int,
        activation: int,
    ) -> None:  # fmt: skip
        self.w, self.image = w, tape.slots[image]
        tape.absorb(pool)
        out = tape.add_slot(pool.output, "first")
        make, _, (choice,) = layers.pool_steps(tape, pool, image, out)
        tape.emit(tape.point, [image], out, make(image, out), pool.op)
        found = tape.slots[out]
        self.width, self.band = found.width, self._band(tape.slots[x].width, found.height)
        bands = -(-found.height // self.band)
        filters = packing.Movement(
            lambda weight: packing.filter_rows(weight, w.pitch), tape.shapes[node.tensors["weight"]]
        )
        super().__init__(
            tape, node, x, out, bias, activation, filters, filters_size(w),
            bands * found.channels * (1 + self.longest()),
        )  # fmt: skip
        tape.slots[x].need_halo(*self.reach())
        (sh, sw), (top, left), window = w.geometry.stride, w.geometry.pads, layers.pool_window(pool)

        def lists() -> records.Step:
            return Winners(
                choice, self.lists, **window, image=image, like_input=x, like_output=out,
                list=1 + self.longest(), band=self.band,
                conv_stride_h=sh, conv_stride_w=sw, conv_pad_h=top, conv_pad_w=left,
            )  # fmt: skip

        tape.emit(tape.point, [choice], self.lists, lists, "winners of a max_pool")

    def fields(self) -> Lists:
        (kh, kw), (dh, _) = self.w.geometry.kernel, self.w.geometry.dilation
        return Lists(self.lists, 1 + self.longest(), self.band, kh, kw, dh)

    def longest(self) -> int:
        return self.band * self.width

    def reach(self) -> tuple[int, int, int, int]:
        (kh, kw), (sh, sw), (dh, _) = (
            self.w.geometry.kernel, self.w.geometry.stride, self.w.geometry.dilation,
        )  # fmt: skip
        (top, left), image, x = self.w.geometry.pads, self.image, self.tape.slots[self.x]
        below = (image.height - 1) * sh + (kh - 1) * dh + 1 - top - x.height
        behind = (image.width - 1) * sw + kw - left - x.width
        return top, max(0, below), left, max(0, behind)

    def _band(self, width: int, windows: int) -> int:
        """Rows of windows whose two inputs fit the nearest cache; all bands alike."""
        (kh, kw), (sh, _), (dh, _) = (
            self.w.geometry.kernel, self.w.geometry.stride, self.w.geometry.dilation,
        )  # fmt: skip
        row_bytes = 2 * 4 * self.w.pitch * (width + kw - 1)
        per_window = self.image.height * sh / windows
        fitting = (NEAR_BYTES * cache_bytes(1) / row_bytes - (kh - 1) * dh) / per_window
        bands = -(-windows // max(1, int(fitting)))
        return -(-windows // bands)


def pool_behind(tape: Tape, value: int, order: str, w: Weights) -> Node | None:
    """The max_pool that alone reads a convolution's outputs, if this is the better way."""
    node = tape.sole_consumer(value)
    if node is None or node.op != "max_pool" or order != "first" or not w.by_row:
        return None
    shapes = (tape.program.values[v].shape for v in (value, node.output))
    (_, height, width), (_, down, across) = (image_shape(shape, order) for shape in shapes)
    kh, kw = node.attrs["kernel"]
    suits = (
        kh * kw <= MOST_PLACES
        and w.pitch % tape.lanes == 0  # pixels of few channels may be dense
        and OUTPUTS_PER_WINDOW * down * across <= height * width
        # every sample reads the filters, the point's and the direction's: they must stay in the
        # cache, or those that are left out save nothing
        and 2 * 4 * filters_size(w) <= cache_bytes(2)
    )
    return node if suits else None


def filters_size(w: Weights) -> int:
    (kh, kw) = w.geometry.kernel
    return w.outputs * kh * kw * w.pitch


class RectifiedLinear(ChosenOutputs):
    """A Linear on vectors with a relu behind it.

    Args:
        x, out: slots of its input and of what the relu returns.
        columns: see `packing.linear_weights`.
    """

    vectors = True

    def __init__(
        self, tape: Tape, node: Node, x: int, out: int, bias: int, columns: Tensor
    ) -> None:
        shape, lanes = tape.shapes[node.tensors["weight"]], tape.lanes
        outputs, depth = shape[0], len(columns)
        filters = packing.Movement(
            lambda weight: packing.input_panels(weight, columns, lanes, PANEL_VECTORS), shape
        )
        super().__init__(
            tape, node, x, out, bias, Activation.RELU, filters, outputs * depth,
            # of a block's samples, and their number
            outputs + -(-outputs // MIN_BLOCK),
        )  # fmt: skip
        tape.emit(
            tape.point, [out], self.lists,
            lambda: Rectified(out, self.lists, x, out, 1 + self.longest()), "rectified",
            vectors=True,
        )  # fmt: skip

    def fields(self) -> Lists:
        return Lists(self.lists, 1 + self.longest())

    def longest(self) -> int:
        return self.tape.block
