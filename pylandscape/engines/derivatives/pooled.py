"""Derivatives of a first convolution with a max_pool over windows of 2x2 behind it.

The data has no tangents and needs no cotangents, so that of the outputs only those that were chosen
matter: tangents and cotangents of the others never reach memory.
"""

from pylandscape.engines.derivatives.chosen import of_chosen
from pylandscape.engines.derivatives.filters import Weights, as_filters
from pylandscape.engines.derivatives.layers import pool_steps
from pylandscape.engines.derivatives.records import PooledGradient, PooledSums
from pylandscape.engines.derivatives.tape import DIRECTION, Tape
from pylandscape.engines.program import Node
from pylandscape.engines.records import NONE


def suits_windows(tape: Tape, w: Weights) -> bool:
    """Whether the kernels find all that a window may choose from in one vector.

    Of that half is for the upper outputs; at least one in two floats of it should be of use.
    """
    across = w.geometry.stride[1] * w.pitch
    return w.by_row and not w.tile and 4 * across <= tape.lanes


def first_convolution(
    tape: Tape, node: Node, w: Weights, x: int, behind: int, image: int, activation: int, bias: int
) -> None:
    """The two layers: what was chosen, along a direction, and the derivatives in its filters.

    Args:
        w: the convolution's filters.
        behind: the value that the pooling returns.
        x, image: slots of the data, and of the outputs behind the relu, if there is one.
    """
    name, lanes = node.tensors["weight"], tape.lanes
    pool = next(n for n in tape.program.nodes if n.output == behind)
    out = tape.add_slot(behind, "first")
    make, _, (choice,) = pool_steps(tape, pool, image, out)
    tape.emit(tape.point, [image], out, make(image, out), pool.op)
    window = w.geometry.window
    if tape.has_tangents and tape.is_trained(node):
        sums = tape.like(out)
        shift = NONE if bias == NONE else bias + DIRECTION
        tape.emit(
            tape.along, [x, choice], sums,
            lambda: PooledSums(x, choice, sums, window, tape.weights_at(w.offset, along=True),
                               shift),
            "conv pooled of the direction",
        )  # fmt: skip
        tape.tangents[behind] = sums

    def back() -> None:
        g, h = (t.get(behind) for t in (tape.cotangents, tape.cotangent_tangents))
        pairs, summed = tape.pairs(x, None, g, h), tape.summed(g, h)
        if pairs is None or name not in tape.trainable:
            tape.bias_part(node, of_chosen(tape, summed, out, activation))
            return
        bias_part = tape.bias_room(node, summed)
        movement = w.movement(tape.shapes[name], lanes, as_filters)
        part = tape.add_moved_part(w.size(lanes), name, movement)
        tape.sum_products(
            pairs, lambda: PooledGradient(x, choice, pairs.right, window, part, bias_part),
            "conv gradient pooled", others=[choice],
        )  # fmt: skip

    tape.backward.append(back)
