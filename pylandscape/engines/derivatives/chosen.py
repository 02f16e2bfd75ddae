"""Derivatives of a convolution in front of a max_pool: only the outputs that it chose have any.

The outputs are formed at the point like those of any convolution. Their tangents and cotangents
have the pixels of the pooling, and lists made at the point tell which outputs they belong to.
"""

from pylandscape.engines import packing, records
from pylandscape.engines.derivatives import layers
from pylandscape.engines.derivatives.filters import Weights
from pylandscape.engines.derivatives.records import (
    ChosenBack,
    ChosenConvolution,
    ChosenGradient,
    Pairs,
    Winners,
)
from pylandscape.engines.derivatives.tape import DIRECTION, Tape
from pylandscape.engines.layout import Slot, image_shape
from pylandscape.engines.lowering import Draft
from pylandscape.engines.plan import cache_bytes
from pylandscape.engines.program import Node
from pylandscape.engines.records import NONE, Activation

# Outputs per window from which on the chosen ones are less work than all in the Winograd domain:
# there 16 outputs take 36 products per pair of channels and the transforms, here each takes 9.
OUTPUTS_PER_WINDOW = 4
NEAR_BYTES = 1.5  # of two inputs, per byte of the first-level cache: what was fastest

Factors = list[tuple[int, bool]]  # slots, each with whether it meets the direction's filters


def pool_behind(tape: Tape, value: int, order: str, w: Weights) -> Node | None:
    """The max_pool that alone reads a convolution's outputs, if this is the better way."""
    node = tape.sole_consumer(value)
    if node is None or node.op != "max_pool" or order != "first" or not w.by_row:
        return None
    size, windows = (
        image_shape(tape.program.values[v].shape, order) for v in (value, node.output)
    )
    suits = (
        w.pitch % tape.lanes == 0  # pixels of few channels may be dense
        and OUTPUTS_PER_WINDOW * windows[1] * windows[2] <= size[1] * size[2]
        and 2 * 4 * filters_size(w) <= cache_bytes(2)  # a sample reads the point's and another's
    )
    return node if suits else None


def filters_size(w: Weights) -> int:
    (kh, kw) = w.geometry.kernel
    return w.outputs * kh * kw * w.pitch


class ChosenOutputs:
    """What a max_pool chose of a convolution's outputs, on the way to both plans.

    Args:
        node, pool: the two layers.
        w: the convolution's filters.
        x, image: slots of its input, and of its outputs behind the relu, if there is one.
        activation: relu or none.
        bias: offset of the packed bias, or -1.
    """

    def __init__(
        self, tape: Tape, node: Node, pool: Node, w: Weights, x: int, image: int,
        activation: int, bias: int,
    ) -> None:  # fmt: skip
        self.tape, self.node, self.pool, self.w, self.x = tape, node, pool, w, x
        self.activation, self.bias = activation, bias
        self.name = node.tensors["weight"]
        tape.absorb(pool)
        self.out = tape.add_slot(pool.output, "first")
        make, _, (choice,) = layers.pool_steps(tape, pool, image, self.out)
        tape.emit(tape.point, [image], self.out, make(image, self.out), pool.op)
        self.image_slot, self.image = image, tape.slots[image]
        tape.slots[x].need_halo(*self._reach())
        # what lists hold places of: slots of the same pitches
        self.inputs, self.outputs = [x], [self.out]
        tape.alike += [self.inputs, self.outputs]
        self.band = self._band()
        self.winners = self._lists(choice)
        self.movement = packing.Movement(
            lambda filters: packing.filter_rows(filters, w.pitch), tape.shapes[self.name]
        )
        self.filters = tape.pack(filters_size(w), lambda s: self.movement(s[self.name]))

    def tangent(self, tangent: int | None) -> int:
        """A slot of the tangents of what was chosen, given that of the input."""
        tape, trained = self.tape, self.tape.is_trained(self.node)
        factors: Factors = [] if tangent is None else [(tangent, False)]
        factors += [(self.x, True)] if trained else []
        shift = self.bias + DIRECTION if trained and self.bias != NONE else NONE
        out = tape.like(self.out)
        room = (self.band * tape.slots[out].width + 3) * tape.lanes  # sums are taken four at a time
        self.inputs += [slot for slot, _ in factors]
        self.outputs.append(out)
        tape.emit(
            tape.along, [*dict(factors), self.winners], out,
            lambda: ChosenConvolution(*self._products(factors, out), shift, tape.scratch_offset),
            "conv of chosen outputs", scratch=lambda: room,
        )  # fmt: skip
        return out

    def bias_cotangent(self, summed: int | None) -> int | None:
        """Without windows in which nothing was chosen, because the relu gave zeros alone."""
        if summed is None or self.activation != Activation.RELU:
            return summed
        return self.tape.slope(self.tape.along, self.out, summed, self.activation, 0)

    def gradient(self, pairs: Pairs) -> None:
        size = filters_size(self.w)
        self.outputs += [i for i in (pairs.right, pairs.second_right) if i != NONE]
        part = self.tape.add_part(size, lambda flat, _: {self.name: self.movement.undo(flat)})
        self.tape.sum_products(
            pairs, lambda: ChosenGradient(*self.common, pairs, part),
            "conv gradient of chosen outputs", others=[self.winners],
        )  # fmt: skip

    def back(self, steps: list[Draft], factors: Factors) -> int:
        """A slot of what cotangents of outputs hand back to the input."""
        out = self.tape.like(self.x)
        self.inputs.append(out)
        self.outputs += [slot for slot, _ in factors]
        self.tape.emit(
            steps, [*dict(factors), self.winners], out,
            lambda: ChosenBack(*self._products(factors, out), *self._reach()),
            "conv back from chosen outputs",
        )  # fmt: skip
        return out

    @property
    def common(self) -> tuple[int, int, int, int, int]:
        """The fields of all steps."""
        (kh, kw), (dh, _) = self.w.geometry.kernel, self.w.geometry.dilation
        return self.winners, self.band, kh, kw, dh

    def _products(self, factors: Factors, out: int) -> tuple[int, ...]:
        (first, along), *more = factors
        second, second_along = more[0] if more else (NONE, False)
        at = self.tape.weights_at(self.filters if more else NONE, second_along)
        return *self.common, first, out, self.tape.weights_at(self.filters, along), second, at

    def _reach(self) -> tuple[int, int, int, int]:
        """The pixels above, below, before and behind an input over which filters are laid."""
        (kh, kw), (sh, sw), (dh, _) = (
            self.w.geometry.kernel, self.w.geometry.stride, self.w.geometry.dilation,
        )  # fmt: skip
        (top, left), image, x = self.w.geometry.pads, self.image, self.tape.slots[self.x]
        below = (image.height - 1) * sh + (kh - 1) * dh + 1 - top - x.height
        behind = (image.width - 1) * sw + kw - left - x.width
        return top, max(0, below), left, max(0, behind)

    def _band(self) -> int:
        """Rows of windows whose inputs fit the nearest cache, for two inputs: evenly cut."""
        (kh, kw), (sh, _), (dh, _) = (
            self.w.geometry.kernel, self.w.geometry.stride, self.w.geometry.dilation,
        )  # fmt: skip
        windows, row = self.tape.slots[self.out].height, 2 * 4 * self.w.pitch
        row *= self.tape.slots[self.x].width + kw - 1
        per_window = self.image.height * sh / windows
        fitting = (NEAR_BYTES * cache_bytes(1) / row - (kh - 1) * dh) / per_window
        bands = -(-windows // max(1, int(fitting)))
        return -(-windows // bands)

    def _lists(self, choice: int) -> int:
        tape, found = self.tape, self.tape.slots[choice]
        bands = -(-found.height // self.band)
        lists = bands * found.channels * (1 + self.band * found.width)
        tape.slots.append(Slot(2 * lists, 1, 1, "first", lanes=tape.lanes))
        out = len(tape.slots) - 1
        window = layers.pool_window(self.pool)
        g = self.w.geometry

        def make() -> records.Step:
            return Winners(choice, out, **window, image=self.image_slot, like_input=self.x,
                           like_pooled=self.out, band=self.band, conv_stride_h=g.stride[0], conv_stride_w=g.stride[1],
                           conv_pad_h=g.pads[0], conv_pad_w=g.pads[1])  # fmt: skip

        tape.emit(tape.point, [choice], out, make, "winners")
        return out
