"""The native engine on a GPU: a Program planned for CUDA kernels."""

from typing import Any

import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape.engines.cuda_plan import make_cuda_plan, partial_sums
from pylandscape.engines.native import NativeEngine
from pylandscape.engines.program import NotCovered
from pylandscape.engines.simple_layers import LossSpec

MATH = {"fast": 0, "exact": 0, "tf32": 1, "bf16": 2}  # `Math` of csrc/cuda/product.cuh


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
        return make_cuda_plan(self.program, shapes, loss)

    def _add_sums(
        self,
        sums: Tensor,
        packed: Tensor,
        coordinates: Tensor,
        constants: Tensor,
        first: int,
        last: int,
    ) -> None:
        plan, directions = self.plan, len(packed) - 1
        points, samples = plan.at_once(last - first, len(coordinates), directions, self._room())
        device = packed.device
        on_device = torch.zeros(sums.shape, dtype=torch.float64, device=device)
        _ops.evaluate_points_on_device(
            on_device,
            torch.empty(plan.workspace(points, samples, directions), device=device),
            torch.empty(partial_sums(points, samples), dtype=torch.float64, device=device),
            packed,
            coordinates.to(device),
            self._inputs,
            self._targets,
            plan.numbers,
            constants.to(device),
            plan.indices.to(device),
            first,
            last,
            points,
            samples,
            MATH[self._precision],
        )
        sums += on_device.cpu()

    def _room(self) -> int:
        """Half the bytes that the device has left, those among them that torch keeps for reuse."""
        device = self._inputs.device
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) // 2
