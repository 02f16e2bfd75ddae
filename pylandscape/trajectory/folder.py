"""The folder of a run: `log.jsonl` and `snapshots/step-<number>.safetensors`, nothing else.

There is no index to keep in step with the files: a snapshot is in the run when its file is there.
"""

import tempfile
from pathlib import Path

from pylandscape._checks import require
from pylandscape.trajectory import log

PREFIX, SUFFIX = "step-", ".safetensors"


def log_file(directory: Path) -> Path:
    return directory / "log.jsonl"


def snapshot_file(directory: Path, step: int) -> Path:
    return directory / "snapshots" / f"{PREFIX}{step:09d}{SUFFIX}"


def snapshot_step(file: Path) -> int:
    return int(file.stem.removeprefix(PREFIX))


def snapshot_files(directory: Path) -> list[Path]:
    """The snapshot files in the order of their steps."""
    found = (directory / "snapshots").glob(f"{PREFIX}*{SUFFIX}")
    return sorted((f for f in found if f.stem.removeprefix(PREFIX).isdecimal()), key=snapshot_step)


def prepare(directory: Path, allow_run: bool) -> None:
    """Makes the folder.

    Raises:
        ValueError: it cannot be written to, or it holds a run and `allow_run` is False.
    """
    try:
        (directory / "snapshots").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(
            f"Recorder: directory must be a folder that can be written to, got {str(directory)!r} "
            f"({error}). Choose another one."
        ) from error
    require(
        allow_run or not (snapshot_files(directory) or log_file(directory).exists()),
        f"Recorder: directory must not hold a run already, got {str(directory)!r}. Pass "
        "resume=True to continue it, overwrite=True to delete it, or choose another one.",
    )


def clear(directory: Path) -> None:
    """Deletes a run, and only files that a Recorder wrote."""
    log_file(directory).unlink(missing_ok=True)
    for file in [*_unfinished(directory), *reversed(snapshot_files(directory))]:
        file.unlink()


def rewind(directory: Path, step: int) -> None:
    """Drops the snapshots after `step`, and the log from `step` on, which will be measured anew."""
    # Latest first and the log last: cut off at any point, this leaves a run that can be resumed.
    later = (file for file in snapshot_files(directory) if snapshot_step(file) > step)
    for file in [*_unfinished(directory), *reversed(list(later))]:
        file.unlink()
    log.truncate(log_file(directory), step)


def _unfinished(directory: Path) -> list[Path]:
    """Temporary files of a process that was killed while it wrote."""
    return [*directory.glob(".partial-*"), *(directory / "snapshots").glob(".partial-*")]
