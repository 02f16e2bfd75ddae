"""The native engine: a Program planned for the machine's vectors and run by compiled kernels."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pylandscape import _ops
from pylandscape._checks import all_finite
from pylandscape.engines.capture import capture
from pylandscape.engines.eager import MOMENTS, EagerEngine
from pylandscape.engines.lowering import State
from pylandscape.engines.module import Buffers
from pylandscape.engines.plan import LossSpec, make_plan
from pylandscape.engines.points import DirectionSet, Points
from pylandscape.engines.program import NotCovered, Program
from pylandscape.engines.records import LossKind
from pylandscape.losses import is_accuracy

LANES = {"baseline": 4, "avx2": 8, "avx512": 16}
SECONDS_PER_CALL = 0.25  # between two looks at Ctrl-C and at the progress bar
SHARING_POINTS = 64  # points per call at least, where they share the products of the first layer
PROBE_SAMPLES = 32
LARGEST = 1e38  # of what the kernels form; a third of the largest float32
# Of the loss at the centre, native against torch, relative.
TOLERANCE = {"fast": 1e-4, "exact": 1e-4, "tf32": 5e-3, "bf16": 3e-2}

_ELEMENTWISE = {
    nn.BCEWithLogitsLoss: LossKind.BINARY_CROSS_ENTROPY,
    nn.MSELoss: LossKind.SQUARED,
    nn.L1Loss: LossKind.ABSOLUTE,
}


class NativeEngine:
    """Sums of losses at many points by compiled kernels; points that are not finite by torch.

    Args:
        reference: the torch engine of the same objective.
        precision: `fast`, `exact` or `bf16`, see `make_plan`.

    Raises:
        NotCovered: something in the model, the loss or the data has no kernel.
    """

    name = "native"
    device = "cpu"

    def __init__(self, reference: EagerEngine, precision: str = "fast") -> None:
        self.reference, self.space = reference, reference.space
        self.metrics, self._precision = reference.metrics, precision
        self._check_precision()
        self._inputs, self._targets = self._data()
        self.program = capture(reference.module.model, self._inputs[:PROBE_SAMPLES])
        shapes = {name: tuple(tensor.shape) for name, tensor in self._state().items()}
        loss = loss_spec(self.program, reference, self._targets)
        self.plan: Any = self._make_plan(shapes, loss)
        self._seconds = self._verify()  # of one sample at one point, as last measured

    @property
    def samples(self) -> int:
        return len(self._inputs)

    def __reduce__(self) -> Any:
        """Where it is unpickled it is made anew: the vectors of another machine may be others."""
        return type(self), (self.reference, self._precision)

    # -- what depends on the device ----------------------------------------------------------------

    def _check_precision(self) -> None:
        if self._precision == "tf32":
            raise NotCovered("precision 'tf32' needs a GPU")
        if self._precision == "bf16" and not _ops.tiles_supported():
            raise NotCovered("precision 'bf16' needs a processor with bfloat16 matrix tiles (AMX)")

    def _make_plan(self, shapes: dict[str, tuple[int, ...]], loss: LossSpec) -> Any:
        inputs = self._inputs
        lanes = LANES[_ops.isa()]
        return make_plan(
            self.program, shapes, loss, inputs.stride(), len(inputs), lanes, self._precision
        )

    def _add_sums(
        self,
        sums: Tensor,
        packed: Any,
        coordinates: Tensor,
        constants: Tensor,
        first: int,
        last: int,
    ) -> None:
        """Adds to `sums` [K, 7], on the CPU, those of samples [first, last)."""
        _ops.evaluate_points(
            sums, packed, coordinates, self._inputs, self._targets, self.plan.numbers, constants,
            self.plan.indices, first, last,
        )  # fmt: skip

    # -- sums at points ----------------------------------------------------------------------------

    def moments(
        self, points: Points, buffers: Iterable[Buffers | None] | None = None
    ) -> Iterator[Tensor]:
        """As `EagerEngine.moments`; points with buffers of their own run through torch."""
        if buffers is not None:
            yield from self.reference.moments(points, buffers)
        elif points.directions is None:
            for row in points.center:
                yield from self._checked(Points(row[None]), self._pack(row), torch.zeros(1, 0))
        else:
            packed = self._pack_along(points.center, points.directions)
            assert points.coordinates is not None
            yield from self._checked(points, packed, points.coordinates)

    def _checked(self, points: Points, packed: Any, coordinates: Tensor) -> Iterator[Tensor]:
        """Native sums, or torch's for points that are not finite, in parameters or in sums.

        What NaN and inf become depends on the order of the operations: inf - inf is NaN, and a
        saturated activation makes a finite number of inf. Only torch gives torch's answer.
        """
        coordinates = coordinates.float().cpu().contiguous()
        finite = _finite_points(self._norms(packed), coordinates)
        native = self._native(packed, coordinates[finite])
        for k, is_finite in enumerate(finite.tolist()):
            sums = next(native) if is_finite else None
            if sums is not None and all_finite(sums):
                yield self._moments_from(sums)
            elif points.directions is None or points.coordinates is None:
                yield from self.reference.moments(points)
            else:
                at = points.coordinates[k : k + 1]
                yield from self.reference.moments(Points(points.center, points.directions, at))

    def _native(self, packed: Any, coordinates: Tensor) -> Iterator[Tensor]:
        """Float64 sums [7] per point, computed in calls of about `SECONDS_PER_CALL`.

        Each has a block for every thread, even if that takes longer.
        """
        plan, count = self.plan, len(self._inputs)
        threads = torch.get_num_threads() if self.device == "cpu" else 1
        constants = plan.constants(self._state())
        least = SHARING_POINTS if plan.linear_first else 1
        done = 0
        while done < len(coordinates):
            within = SECONDS_PER_CALL / self._seconds  # samples times points
            part = coordinates[done : done + max(least, int(within / count))]
            blocks = max(threads, int(within / (len(part) * plan.block)))
            sums = torch.zeros(len(part), 7, dtype=torch.float64)
            start = time.perf_counter()
            for first in range(0, count, blocks * plan.block):
                last = min(count, first + blocks * plan.block)
                self._add_sums(sums, packed, part, constants, first, last)
            self._seconds = (time.perf_counter() - start) / (len(part) * count)
            done += len(part)
            yield from sums

    def _pack_along(self, center: Tensor, directions: DirectionSet) -> Any:
        """What the kernels take of points on directions: `_pack` of all of them."""
        vectors = (directions.vector(j) for j in range(len(directions)))
        return self._pack(center, vectors, len(directions))

    def _norms(self, packed: Any) -> Tensor:
        """At least the sums of absolute values of centre and directions, float64 [1 + D]."""
        return torch.linalg.vector_norm(packed, 1, dim=1, dtype=torch.float64).cpu()

    def _pack(self, center: Tensor, vectors: Iterable[Tensor] = (), count: int = 0) -> Tensor:
        """The centre and the directions in the kernels' order [1 + D, packed]."""
        packed = torch.zeros(1 + count, self.plan.packed, device=self._inputs.device)
        state = self._state(center)
        self.plan.pack(state, packed[0])
        fixed = self.fixed_along_directions(state)
        for row, vector in zip(packed[1:], vectors, strict=True):
            self.plan.pack(fixed | self.space.unflatten(vector.float()), row)
        return packed

    def fixed_along_directions(self, state: State) -> dict[str, Tensor]:
        """Zeros for the tensors that directions do not have."""
        moved = {entry.name for entry in self.space.entries}
        return {name: torch.zeros(x.shape) for name, x in state.items() if name not in moved}

    def _state(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """The model's tensors by name, the parameters as they are or from `vector`."""
        model = self.reference.module.model
        named = (*model.named_parameters(), *model.named_buffers())
        state = {name: tensor.detach() for name, tensor in named}
        return state if vector is None else state | self.space.unflatten(vector)

    def _moments_from(self, sums: Tensor) -> Tensor:
        rows = torch.zeros(1 + len(self.metrics), MOMENTS, dtype=torch.float64)
        rows[0] = sums[:5]
        if self.metrics:
            rows[1, 0], rows[1, 3] = sums[5], sums[6]
        return rows

    def _data(self) -> tuple[Tensor, Tensor]:
        samples = self.reference.module.samples
        if self.reference.module.norms and self.reference.module.batchnorm != "frozen":
            policy = self.reference.module.batchnorm
            raise NotCovered(f"BatchNorm under the policy {policy!r} has no native kernel")
        if samples.device.type != self.device:
            raise NotCovered(f"the native engine does not run on {samples.device.type}")
        if samples.dtype != torch.float32:
            raise NotCovered(f"the native engine computes in float32, not {samples.dtype}")
        if not samples.in_memory:
            raise NotCovered("the native engine needs its data in memory")
        inputs, targets = next(iter(samples.batches(samples.count)))
        if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
            raise NotCovered("the native engine needs one tensor of inputs and one of targets")
        if not all_finite(inputs):
            raise NotCovered("the inputs hold NaN or inf")
        return inputs, (targets if targets.is_floating_point() else targets.long()).contiguous()

    def _verify(self) -> float:
        """Compares with the module itself: what was captured must be what the user runs.

        Returns the seconds that one sample took.
        """
        module = self.reference.module
        center = self.space.flatten(module.model)
        few = min(PROBE_SAMPLES, len(self._inputs))
        sums = torch.zeros(1, 7, dtype=torch.float64)
        plan, none = self.plan, torch.zeros(1, 0)
        packed, constants = self._pack(center), plan.constants(self._state())
        start = time.perf_counter()
        self._add_sums(sums, packed, none, constants, 0, few)
        seconds = time.perf_counter() - start
        outputs = module.outputs(self._inputs[:few])
        expected = self.reference.loss(outputs, self._targets[:few]).values.double().sum().cpu()
        if not torch.allclose(
            sums[0, 0], expected, rtol=TOLERANCE[self._precision], atol=1e-6, equal_nan=True
        ):
            raise NotCovered(
                f"the captured program gives the loss {sums[0, 0] / few:.7g} where the model gives "
                f"{expected / few:.7g}"
            )
        return seconds / few


def _finite_points(norms: Tensor, coordinates: Tensor) -> Tensor:
    """Whether the parameters of each point are finite, also in the Winograd domain: bool [K].

    By an upper bound, the sum of absolute values.
    """
    bounds = norms[0] + coordinates.abs().double() @ norms[1:]
    return bounds < LARGEST


def loss_spec(program: Program, reference: EagerEngine, targets: Tensor) -> LossSpec:
    """The loss in the kernels' terms. Raises NotCovered where it has none."""
    others = [name for name, metric in reference.metrics.items() if not is_accuracy(metric)]
    if others:
        raise NotCovered(f"the metric {others[0]!r} has no native kernel")
    count_correct = bool(reference.metrics)
    loss: Any = reference.loss.mean_module
    if loss is None:
        raise NotCovered(f"the loss {reference.loss.name} has no native kernel")
    outputs = program.values[program.output].shape
    last = program.nodes[-1].op if program.nodes else ""
    if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
        if targets.is_floating_point() or targets.ndim != 1 or len(outputs) != 1:
            raise NotCovered(f"{type(loss).__name__} of other than class indices has no kernel")
        if type(loss) is nn.NLLLoss and last != "log_softmax":
            raise NotCovered("NLLLoss has a kernel only right after log_softmax")
        known = (targets >= 0) & (targets < outputs[0]) | (targets == loss.ignore_index)
        if not bool(known.all()):
            stray = int(targets[~known][0])
            raise NotCovered(f"the target {stray} is none of the {outputs[0]} classes")
        return LossSpec(
            LossKind.CROSS_ENTROPY,
            loss.weight,
            getattr(loss, "label_smoothing", 0.0),
            loss.ignore_index,
            count_correct,
        )
    kind = _ELEMENTWISE.get(type(loss))
    if kind is None or last == "log_softmax" or getattr(loss, "weight", None) is not None:
        raise NotCovered(f"the loss {reference.loss.name} has no native kernel")
    if not targets.is_floating_point() or tuple(targets.shape[1:]) != outputs:
        raise NotCovered(f"targets of shape {list(targets.shape[1:])} for outputs {list(outputs)}")
    return LossSpec(kind, getattr(loss, "pos_weight", None), count_correct=count_correct)
