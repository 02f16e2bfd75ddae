"""Gradients and curvature products by compiled kernels, over the Program of the native engine."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape._checks import all_finite
from pylandscape.engines.derivatives.plan import KINDS, TapePlans, make_tape
from pylandscape.engines.native import (
    LANES,
    PROBE_SAMPLES,
    NativeEngine,
    loss_spec,
)
from pylandscape.engines.program import NotCovered

KEPT_BYTES = 1 << 30  # of the point's pass, kept for further products at the same point
# Between two looks at Ctrl-C. Longer than in planes: at its end a call waits for its last chunk.
SECONDS_PER_CALL = 0.4
VECTORS = 8  # directions that share a pass, at most
PASS_BYTES = 32 << 20  # of weights and derivatives along them: what a last-level cache may hold
# What a thread sums in float32: so many samples, fewer of a large network, whose share of a call
# between two looks for Ctrl-C would take long otherwise.
CHUNK_SAMPLES, CHUNK_FLOPS = 128, 3e9  # of losses; a product takes some eight times as many
SINGLE_SAMPLES = 8  # that are compared with torch's one at a time
TOLERANCE = 1e-3  # of a gradient and a product against torch, relative to their norm


class NativeDerivatives:
    """Gradients and products with the Hessian, the Gauss-Newton and the Fisher matrix.

    What a product needs of the point, activations and cotangents, is kept from one call to the next
    where it fits `KEPT_BYTES`, and computed again in every call where it does not.

    Args:
        native: the native engine of the same objective.

    Raises:
        NotCovered: an operator has no native derivatives, or they are not those of torch, as for a
            model that detaches a part of itself.
    """

    name = "native"

    def __init__(self, native: NativeEngine) -> None:
        if native.device != "cpu":
            raise NotCovered("derivatives have no kernels on a GPU")
        self.native, self.reference = native, native.reference
        self.space = native.space
        self._tapes: dict[str, TapePlans] = {}
        self._kept = torch.zeros(0, 0)
        self._kept_kind = ""
        self._kept_for: list[Tensor] | None = None  # the point and the model's other tensors
        self._packed: dict[str, Tensor] = {}  # parameters for the kernels, by kind; see `_rows`
        self._seconds: dict[str, float] = {}  # of one sample and direction, as last measured
        self._verify()

    def __reduce__(self) -> Any:
        """Where it is unpickled it is made anew, like the native engine."""
        return NativeDerivatives, (self.native,)

    def forget(self) -> None:
        """Lets the next product compute what it needs of the point, as if the point were new."""
        self._kept_for = None

    @property
    def bytes_per_sample(self) -> int:
        """Of activations and cotangents that a Hessian-vector product needs of the point."""
        tape = self._tape("hessian")
        return 4 * tape.kept // tape.block

    def loss_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss (float64 scalar) and its gradient [P] in float32."""
        sums, (gradient,) = self._products("gradient", vector, vector.new_zeros(0, len(vector)))
        if not all_finite(gradient):
            return self.reference.loss_and_gradient(vector)
        return sums[0] / self.reference.total_weight, gradient

    def hessian_vector_product(self, vector: Tensor, directions: Tensor) -> Tensor:
        """H(vector) times directions [P] or [P, K]."""
        found = self._product("hessian", vector, directions)
        return self.reference.hessian_vector_product(vector, directions) if found is None else found

    def ggn_vector_product(self, vector: Tensor, directions: Tensor) -> Tensor:
        """The Gauss-Newton matrix times directions [P] or [P, K]."""
        found = self._product("ggn", vector, directions)
        return self.reference.ggn_vector_product(vector, directions) if found is None else found

    def fisher_vector_product(self, vector: Tensor, directions: Tensor) -> Tensor:
        """The empirical Fisher matrix times directions [P] or [P, K]."""
        found = self._product("fisher", vector, directions)
        return self.reference.fisher_vector_product(vector, directions) if found is None else found

    # -- inner -----------------------------------------------------------------------------------

    def _product(self, kind: str, vector: Tensor, directions: Tensor) -> Tensor | None:
        """None where it is not finite: what NaN and inf become is for torch to say."""
        rows = directions[None] if directions.ndim == 1 else directions.T.contiguous()
        if len(rows) == 0:
            return directions
        together = self._vectors_per_pass(self._tape(kind))
        parts = [self._products(kind, vector, part)[1] for part in rows.split(together)]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not all_finite(found):
            return None
        return found[0] if directions.ndim == 1 else found.T.contiguous()

    @staticmethod
    def _vectors_per_pass(tape: TapePlans) -> int:
        """A pass reads all of them per block of samples, which pays while they stay in a cache."""
        per_vector = 4 * (tape.packed + torch.get_num_threads() * tape.gradient)
        return max(1, min(VECTORS, PASS_BYTES // per_vector))

    def _products(self, kind: str, vector: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [7] of the loss, if the point was run, and means of derivatives [max(V, 1), P]."""
        tape, state = self._tape(kind), self.native._state(vector)
        constants = tape.constants(state)
        trained = {entry.name for entry in self.space.entries}
        others = [tensor for name, tensor in state.items() if name not in trained]
        known = self._is_kept(kind, [vector, *others])
        if not known:
            self._make_room(kind, tape)
            tape.pack_point(vector, state, self._rows(tape, 0)[0])
        weight = self.reference.total_weight
        sums, means = self._sums(tape, state, constants, directions, self._samples, weight)
        if len(self._kept) and not known:
            self._kept_for = [tensor.clone() for tensor in (vector, *others)]
        return sums, means

    @property
    def _samples(self) -> tuple[Tensor, Tensor]:
        return self.native._inputs, self.native._targets

    def _sums(
        self,
        tape: TapePlans,
        state: dict[str, Tensor],
        constants: Tensor,
        directions: Tensor,
        batch: tuple[Tensor, Tensor],
        divisor: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Over the inputs and targets of `batch`, at the point that was packed.

        Returns sums [7] of the loss and derivatives [max(V, 1), P] over `divisor`, in float32.
        """
        native, samples = self.native, len(batch[0])
        packed = self._rows(tape, len(directions))
        fixed = native.fixed_along_directions(state)
        for row, direction in zip(packed[1:], directions, strict=True):
            tape.pack_direction(direction, fixed | self.space.unflatten(direction), row)
        products = torch.zeros(max(1, len(directions)), tape.gradient, dtype=torch.float64)
        sums = torch.zeros(7, dtype=torch.float64)
        at_once = min(CHUNK_SAMPLES, CHUNK_FLOPS / max(1, native.program.flops))
        # a power of two: data sets often have such sizes, and all threads end together then
        chunk = 1 << max(1, int(at_once) // tape.block).bit_length() >> 1
        first, step, threads = 0, chunk * tape.block, torch.get_num_threads()
        while first < samples:
            # not long, so that Ctrl-C is seen, and a chunk for every thread
            within = SECONDS_PER_CALL / self._seconds.get(tape.kind, 1e-3) / len(products)
            rounds = max(1, int(within / step / threads))
            last = min(samples, first + rounds * threads * step)
            start = time.perf_counter()
            _ops.hessian_vector_product(
                products, sums, packed, *batch, tape.point, tape.along, constants, tape.indices,
                self._kept, tape.kept, self._kept_for is not None, chunk, first, last,
            )  # fmt: skip
            spent = time.perf_counter() - start
            self._seconds[tape.kind] = spent / ((last - first) * len(products))
            first = last
        derivatives = torch.zeros(len(products), self.space.size)
        for row, flat in zip(products, derivatives, strict=True):
            tape.unpack(row, state, 1 / divisor, flat)
        return sums, derivatives

    def _rows(self, tape: TapePlans, directions: int) -> Tensor:
        """[1 + V, packed + folded]: the point, which stays, and directions for the kernels.

        The same memory for all products: to get new pages takes longer than to fill them. Nothing
        is ever written between the parts, where there must be zeros.
        """
        rows = self._packed.get(tape.kind)
        if rows is None or len(rows) <= directions:
            room = zeros(1 + directions, tape.packed + tape.folded)
            if rows is not None:
                room[: len(rows)] = rows
            self._packed[tape.kind] = rows = room
        return rows[: 1 + directions]

    def _is_kept(self, kind: str, tensors: list[Tensor]) -> bool:
        known = self._kept_for
        return (
            known is not None and self._kept_kind == kind and all(map(torch.equal, known, tensors))
        )

    def _make_room(self, kind: str, tape: TapePlans) -> None:
        """For what is kept of another point; halos and paddings must be zeros."""
        self._kept_for = None
        shape = (-(-self.native.samples // tape.block), tape.kept)
        if kind == "gradient" or 4 * shape[0] * shape[1] > KEPT_BYTES:
            shape = (0, 0)
        if self._kept.shape != shape or self._kept_kind != kind:
            self._kept = zeros(*shape)
            self._kept_kind = kind

    def _tape(self, kind: str) -> TapePlans:
        assert kind in KINDS
        if kind not in self._tapes:
            native = self.native
            shapes = {name: tuple(tensor.shape) for name, tensor in native._state().items()}
            self._tapes[kind] = make_tape(
                native.program,
                shapes,
                loss_spec(native.program, self.reference, native._targets),
                native._inputs.stride(),
                LANES[_ops.isa()],
                native._precision,
                {entry.name: entry.slice for entry in self.space.entries},
                kind,
            )
        return self._tapes[kind]

    def _verify(self) -> None:
        """Compares a gradient and a Hessian-vector product of a few samples with torch's.

        Where they disagree, sample by sample. One at the kink of a relu or a max_pool, which falls
        on the other side by rounding, has derivatives of its own; a wrong plan is wrong for most.
        """
        inputs, targets = (tensor[:PROBE_SAMPLES] for tensor in self._samples)
        kind = self._disagrees((inputs, targets))
        if kind is None:
            return
        ones = list(zip(inputs.split(1), targets.split(1), strict=True))[:SINGLE_SAMPLES]
        if sum(self._disagrees(one) is not None for one in ones) > len(ones) // 4:
            raise NotCovered(f"the native {kind} is not that of torch")

    def _disagrees(self, batch: tuple[Tensor, Tensor]) -> str | None:
        """The kind of derivative of a batch that is not torch's, if one is not."""
        vector = self.space.flatten(self.reference.module.model).float()
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(self.space.size, generator=generator)
        try:
            expected = self.reference.derivatives_of(batch, vector, direction)
        except RuntimeError:  # what is wrong, torch says where it is asked
            raise NotCovered("torch has no second derivatives to compare with") from None
        state = self.native._state(vector)
        for kind, right in zip(("gradient", "hessian"), expected, strict=True):
            tape = self._tape(kind)
            tape.pack_point(vector, state, self._rows(tape, 0)[0])
            directions = direction[None] if kind == "hessian" else vector.new_zeros(0, len(vector))
            found = self._sums(tape, state, tape.constants(state), directions, batch)[1][0]
            error = torch.linalg.vector_norm(found - right)
            if not error <= TOLERANCE * torch.linalg.vector_norm(right) + 1e-6:
                return kind
        return None


def zeros(*shape: int) -> Tensor:
    """In float32 and at the start of a cache line, which vectors then do not cross.

    On huge pages where there is much: numpy asks the system for them, torch does not.
    """
    count, line = torch.Size(shape).numel(), 64
    room = np.empty(count + line // 4, np.float32)
    skipped = -room.ctypes.data % line // 4
    return torch.from_numpy(room)[skipped : skipped + count].view(shape).zero_()
