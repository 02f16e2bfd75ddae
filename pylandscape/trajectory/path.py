"""Reading a recorded run."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.parameters import ParameterSpace
from pylandscape.trajectory import folder, log
from pylandscape.trajectory.snapshots import DamagedSnapshot, Snapshot, named_tensors


class Trajectory:
    """The snapshots w_0, ..., w_T and the log of a run that a `Recorder` wrote.

    Snapshots stay on disk: every access reads the one asked for. Those that are written after
    construction are not seen.

    Args:
        directory: the folder of the run.
        skip_damaged: leave out snapshot files that cannot be read instead of raising.

    Raises:
        ValueError: no such folder, no snapshots, or a damaged one.

    Example:
        >>> import tempfile, torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.TemporaryDirectory()
        >>> with pl.Recorder(folder.name).attach(model, optimizer) as recorder:
        ...     for _ in range(3):
        ...         loss = model(torch.ones(4, 2)).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         recorder.log(loss=loss)
        ...         optimizer.step()
        >>> path = pl.Trajectory(folder.name)
        >>> path.steps
        [0, 1, 2, 3]
        >>> path.log.sizes["step"], sorted(path.state(-1))
        (3, ['bias', 'weight'])
        >>> torch.equal(path.state(-1)["weight"], model.weight)
        True
        >>> path.vector(0, pl.ParameterSpace.from_model(model)).shape
        torch.Size([3])
        >>> path.load_into(model, 0)  # the model as it was at first
        >>> folder.cleanup()
    """

    def __init__(self, directory: str | os.PathLike[str], *, skip_damaged: bool = False) -> None:
        self.directory = Path(directory)
        files = folder.snapshot_files(self.directory)
        require(
            bool(files),
            f"Trajectory: directory must hold a recorded run, got {str(self.directory)!r} without "
            "snapshots. Record one with pl.Recorder(directory).attach(model, optimizer).",
        )
        self.snapshots: list[Snapshot] = []
        opened: dict[str, Snapshot] = {}
        for file in files:
            try:
                opened[file.name] = Snapshot(file, opened)
                self.snapshots.append(opened[file.name])
            except DamagedSnapshot:
                if not skip_damaged:
                    raise
        require(
            bool(self.snapshots),
            f"Trajectory: directory must hold a readable snapshot, got {len(files)} damaged ones "
            f"in {str(self.directory)!r}.",
        )

    def __len__(self) -> int:
        """The number of snapshots."""
        return len(self.snapshots)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The states of the snapshots in order, one in memory at a time."""
        return (snapshot.state() for snapshot in self.snapshots)

    def __repr__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        return f"Trajectory({len(self)} snapshots, steps {first} to {last}, {self.directory})"

    @property
    def steps(self) -> list[int]:
        """For each snapshot, the number of optimizer steps made before it."""
        return [snapshot.step for snapshot in self.snapshots]

    @property
    def errors(self) -> list[float]:
        """For each snapshot || w_read - w_t ||, over all its tensors, as measured when written.

        0 but for the compressed snapshots of a `Recorder(..., compress=True)`.
        """
        return [snapshot.errors.get("norm", 0.0) for snapshot in self.snapshots]

    @property
    def log(self) -> xr.Dataset:
        """What was measured at every step, over `step`.

        Row t belongs to the parameters after t steps, which are those of the snapshot of step t:
        `loss` as given to `Recorder.log` (NaN where it was not), `grad_norm` the l2 norm of the
        gradient that step t + 1 used, `learning_rate` of that step, `epoch` (from 0), `time` in
        seconds since the start of the recording, and whatever else was logged, under the name
        `grad_norm_unclipped` the norm before clipping.
        """
        return log.dataset(list(log.read_rows(folder.log_file(self.directory))))

    def state(self, index: int) -> dict[str, Tensor]:
        """Parameters and buffers of snapshot `index` by name, copies on the CPU."""
        return self._snapshot(index, "state").state()

    def vector(self, index: int, space: ParameterSpace, dtype: torch.dtype | None = None) -> Tensor:
        """The flat parameters [P] of snapshot `index` on the CPU.

        Args:
            index: 0, 1, ..., or -1, -2, ... from the end.
            space: `objective.space`, the structure of the vector.
            dtype: of the result; by default the recorded one.

        Raises:
            ValueError: the recorded model is another one; the first mismatch is named.
        """
        snapshot = self._snapshot(index, "vector")
        snapshot.check(space)
        row = torch.empty(space.size, dtype=dtype or snapshot.dtype(space))
        snapshot.read(row, space)
        return row

    @torch.no_grad()
    def load_into(self, model: nn.Module, index: int) -> None:
        """Copies parameters and buffers of snapshot `index` into `model`, which this changes.

        Raises:
            ValueError: the recorded model is another one; then nothing has been changed.
        """
        snapshot = self._snapshot(index, "load_into")
        tensors = named_tensors(model)
        snapshot.check_model(tensors)
        state = snapshot.state()
        for name, tensor in tensors.items():
            tensor.copy_(state[name])

    def _snapshot(self, index: int, where: str) -> Snapshot:
        require(
            isinstance(index, int) and -len(self) <= index < len(self),
            f"Trajectory.{where}: index must be an integer from {-len(self)} to {len(self) - 1}, "
            f"got {show(index)}.",
            IndexError if isinstance(index, int) else TypeError,
        )
        return self.snapshots[index]
