"""The native engine on a GPU: a Program planned for CUDA kernels."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape.engines.cuda_lowering import make_cuda_plan
from pylandscape.engines.cuda_plan import LOSS_SUMS, partial_sums
from pylandscape.engines.native import NativeEngine
from pylandscape.engines.points import DirectionSet
from pylandscape.engines.program import NotCovered
from pylandscape.engines.simple_layers import LossSpec

LARGEST_NORMAL = 6.764  # of `_ops.random_normal`
MATH = {"fast": 0, "exact": 0, "tf32": 1, "bf16": 2}  # `Math` of csrc/cuda/product.cuh


class Generated(NamedTuple):
    """Points on directions that the kernels compute where they use them; memory is that of P alone.

    Attributes:
        packed: the centre, float32 [1, packed].
        seeds: int64 [D].
        scales: float32 [D, F + 1]; the last filter is that of what no direction moves.
        norms: float64 [1 + D], at least the sums of absolute values.
    """

    packed: Tensor
    seeds: Tensor
    scales: Tensor
    norms: Tensor


class CudaEngine(NativeEngine):
    """As NativeEngine, for data and a model on a CUDA device.

    Args:
        reference: the torch engine of the same objective.
        precision: `fast` and `exact` - float32 on CUDA cores; `tf32`, `bf16` - the factors of
            products rounded to that for tensor cores, sums in float32.

    Raises:
        NotCovered: something in the model, the loss or the data has no kernel, or the operators for
            CUDA were not built.
    """

    device = "cuda"

    def _check_precision(self) -> None:
        obstacle = _ops.cuda_build().get("obstacle")
        if obstacle is not None:
            raise NotCovered(f"the operators for CUDA are missing: {obstacle}")

    def _data(self) -> tuple[Tensor, Tensor]:
        inputs, targets = super()._data()
        return inputs.contiguous(), targets

    def _make_plan(self, shapes: dict[str, tuple[int, ...]], loss: LossSpec) -> Any:
        return make_cuda_plan(self.program, shapes, loss, self.space)

    def _pack_along(self, center: Tensor, directions: DirectionSet) -> Any:
        streams = directions.streams
        if streams is None or self.plan.stores(len(directions), self._room()):
            return super()._pack_along(center, directions)
        packed, (seeds, scales) = self._pack(center), streams
        largest = scales.abs() @ self.space.filter_sizes.double() * LARGEST_NORMAL
        norms = torch.cat((super()._norms(packed), largest))
        device, scales = packed.device, torch.nn.functional.pad(scales.float(), (0, 1))
        return Generated(packed, seeds.to(device), scales.to(device), norms)

    def _norms(self, packed: Any) -> Tensor:
        return packed.norms if isinstance(packed, Generated) else super()._norms(packed)

    def _add_sums(
        self,
        sums: Tensor,
        packed: Any,
        coordinates: Tensor,
        constants: Tensor,
        first: int,
        last: int,
    ) -> None:
        on_device, launch = self.prepare(packed, coordinates, constants, first, last)
        launch()
        sums += on_device.cpu()

    def prepare(
        self, packed: Any, coordinates: Tensor, constants: Tensor, first: int, last: int
    ) -> tuple[Tensor, Callable[[], None]]:
        """Zeros [K, 7] on the device, and what adds the sums of samples [first, last) to them.

        That neither allocates nor waits: a CUDA graph can capture it.
        """
        plan, directions = self.plan, coordinates.shape[1]
        points, samples = plan.at_once(last - first, len(coordinates), directions, self._room())
        seeds, scales = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        if isinstance(packed, Generated):
            packed, seeds, scales, _ = packed
        device = packed.device
        sums = torch.zeros(len(coordinates), LOSS_SUMS, dtype=torch.float64, device=device)
        launch = functools.partial(
            _ops.evaluate_points_on_device,
            sums,
            torch.empty(plan.workspace(points, samples, directions), device=device),
            torch.empty(partial_sums(points, samples), dtype=torch.float64, device=device),
            packed,
            coordinates.to(device),
            self._inputs,
            self._targets,
            plan.numbers,
            constants.to(device),
            plan.indices.to(device),
            seeds.to(device),
            scales.to(device),
            plan.origins,
            first,
            last,
            points,
            samples,
            MATH[self._precision],
        )
        return sums, launch

    def _room(self) -> int:
        """Half the bytes that the device has left, those among them that torch keeps for reuse."""
        device = self._inputs.device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) // 2
