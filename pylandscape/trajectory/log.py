"""The log of a run: one JSON object per line and step, appended and flushed as training goes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from pylandscape._checks import require
from pylandscape.trajectory.snapshots import write_durably

HELD_ROWS = 64  # rows with values on an accelerator wait for so many, so that one wait serves all
MEASURED = ("loss", "grad_norm", "learning_rate", "time")  # in every log

Row = dict[str, Any]


class LogWriter:
    """Appends rows to a log file.

    A row of plain numbers is on its way to the disk at once. A row with tensors on an accelerator
    is held until `HELD_ROWS` have come or `flush` is called: reading one makes the host wait.
    """

    def __init__(self, file: Path) -> None:
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._held: list[Row] = []

    def append(self, row: Row) -> None:
        self._held.append(row)
        waiting = any(isinstance(value, Tensor) for value in row.values())
        if not waiting or len(self._held) >= HELD_ROWS:
            self.flush()

    def flush(self) -> None:
        for row in self._held:
            plain = {k: v.item() if isinstance(v, Tensor) else v for k, v in row.items()}
            self._file.write(json.dumps(plain) + "\n")
        self._held.clear()
        self._file.flush()

    def sync(self) -> None:
        """Has every row on the disk when it returns."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a log; a last line cut off by a crash is left out.

    Raises:
        ValueError: another line cannot be read.
    """
    if not file.exists():
        return
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # the newline is written last
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            require(
                isinstance(row, dict),
                f"Trajectory: {file} must hold one JSON object per line, got line {number}: "
                f"{line[:60]!r}. Restore the file or delete that line.",
            )
            yield row


def truncate(file: Path, step: int) -> None:
    """Drops the rows of `step` and later, and a line cut off by a crash."""
    kept = "".join(json.dumps(row) + "\n" for row in read_rows(file) if row["step"] < step)

    def write(partial: Path) -> None:
        partial.write_text(kept, encoding="utf-8")

    write_durably(file, write)


def dataset(rows: list[Row]) -> xr.Dataset:
    """The rows as variables over `step`; what a row does not have is NaN."""
    found = dict.fromkeys(MEASURED) | dict.fromkeys(name for row in rows for name in row)
    names = [name for name in found if name not in ("step", "epoch")]
    columns = {
        name: ("step", np.array([row.get(name, np.nan) for row in rows], dtype=np.float64))
        for name in names
    }
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    epochs = np.array([row["epoch"] for row in rows], dtype=np.int64)
    return xr.Dataset({"epoch": ("step", epochs), **columns}, coords={"step": steps})
