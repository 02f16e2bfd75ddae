"""A plan for GPUs: its records and tensors, and how much of it a launch does at once.

`cuda_lowering.py` makes it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pylandscape.engines.cuda_records import Step
from pylandscape.engines.lowering import State

# Random directions that would take more than this share of the room that the engine allows itself,
# which is half of what is free, are generated in the kernels: slower, but their memory is none.
STORED_SHARE = 0.5
LOSS_SUMS = 7
LOSS_SAMPLES = 64  # of a block of the loss's kernel: kLossSamples in loss.cuh
SAMPLES_AT_ONCE = 1024
MAX_POINTS = 65535  # of a launch: the third dimension of a CUDA grid
# Bytes of activations of a launch: enough work to be worth its few microseconds, and elements that
# can be counted in 32 bits.
LARGEST_WORKSPACE = 1 << 30


@dataclass
class CudaPlan:
    """What `evaluate_points_on_device` runs; `pack` makes its parameters.

    Attributes:
        row: floats of activations per sample and point.
        packed: floats of a parameter vector.
        linear_first: the products of the first layer are formed per direction, not per point.
        sizes: floats per sample of each activation, the input first.
        origins: int64 [T, 5], where each tensor lies among the parameters and in random directions:
            rows (offset, flat, rows, inner, filter) as `Origin` in program.h has them.
        records, steps: the kernels in order, and for people.
        block: samples by which the range of a call goes up.
    """

    numbers: Tensor
    indices: Tensor
    row: int
    packed: int
    linear_first: bool
    first_outputs: int
    sizes: list[int]
    origins: Tensor
    records: list[Step] = field(repr=False)
    steps: list[str]
    _tensors: dict[str, int] = field(repr=False)
    _constants: list[Callable[[State], Tensor]] = field(repr=False)
    block: int = SAMPLES_AT_ONCE

    def pack(self, state: State, out: Tensor) -> None:
        """Writes the tensors of `state` into `out` [packed], one behind the other."""
        for name, offset in self._tensors.items():
            out[offset : offset + state[name].numel()] = state[name].reshape(-1)

    def constants(self, state: State) -> Tensor:
        """What does not depend on the point, on the CPU: among it the statistics of batch_norm."""
        return torch.cat([make(state).reshape(-1).float().cpu() for make in self._constants])

    def at_once(self, samples: int, points: int, directions: int, room: int) -> tuple[int, int]:
        """(points, samples) of a launch so that the workspace takes at most `room` bytes
        and at most LARGEST_WORKSPACE.

        Samples come first: what is read of the parameters serves all samples of a point.

        Raises:
            MemoryError: not even one sample at one point fits.
        """
        room = min(room, LARGEST_WORKSPACE)
        per_sample = 4 * (1 + directions) * self.first_outputs * self.linear_first
        per_row = 4 * self.row + 8 * LOSS_SUMS  # a chunk of the loss has at least one sample
        together = min(max(1, samples), SAMPLES_AT_ONCE, room // (per_row + per_sample))
        if together < 1:
            raise MemoryError(
                f"evaluate_points: one sample at one point needs {per_row + per_sample} bytes, of "
                f"which the device has {room} left. Free memory on the device."
            )
        rows = (room // together - per_sample) // per_row
        return max(1, min(points, MAX_POINTS, rows)), together

    def stores(self, directions: int, room: int) -> bool:
        """Whether random directions are stored for `room` bytes."""
        return 4 * directions * self.packed <= STORED_SHARE * room

    def workspace(self, points: int, samples: int, directions: int) -> int:
        """Floats for so many points and samples of a launch."""
        products = (1 + directions) * self.first_outputs * samples * self.linear_first
        return self.row * points * samples + products


def partial_sums(points: int, samples: int) -> tuple[int, int, int]:
    """The shape of the float64 sums that the loss's blocks leave."""
    return points, -(-samples // LOSS_SAMPLES), LOSS_SUMS
