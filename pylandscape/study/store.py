"""The folder of a study: one xarray result per finished stage, written whole or not at all."""

import os
from pathlib import Path

import xarray as xr

from pylandscape._files import remove, replacing


class StudyError(Exception):
    """Something the user can put right, said in one line."""


class Store:
    """The results in `folder`, of which those with another `key` count as not there.

    A stage's result is `results/<stage>.zarr`. Its attributes hold the key (what it was computed
    from) and the seconds that it took. What else lies in the folder is left alone.
    """

    OWN = ("results", "figures", "run-a", "run-b", "solutions", "STUDY.md", "summary.json")

    def __init__(self, folder: str | Path, key: str) -> None:
        self.folder = Path(folder)
        self.key = key

    @classmethod
    def holds_study(cls, folder: str | Path) -> bool:
        """Whether a study has been started in `folder`."""
        return any((Path(folder) / name).exists() for name in cls.OWN)

    def open(self) -> None:
        """Make the folder and see that it can be written to.

        Raises:
            StudyError: it cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".write-probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StudyError(
                f"the output folder '{self.folder}' must be writable, got: {error.strerror}. "
                "Choose another --out."
            ) from error

    def clear(self) -> None:
        """Remove what a study writes, and nothing else."""
        for name in self.OWN:
            remove(self.folder / name)

    def load(self, stage: str) -> xr.Dataset | None:
        """The result of a stage, or None where it is not there or belongs to other settings."""
        path = self._path(stage)
        if not path.is_dir():
            return None
        with xr.open_zarr(path, consolidated=False) as stored:
            return stored.load() if stored.attrs.get("study_key") == self.key else None

    def save(self, stage: str, result: xr.Dataset, seconds: float) -> xr.Dataset:
        """Write the result of a stage; it appears under its name once it is complete."""
        marked = result.assign_attrs(study_key=self.key, seconds=round(seconds, 2))
        path = self._path(stage)
        with replacing(path) as partial:
            marked.to_zarr(partial, mode="w", zarr_format=3, consolidated=False)
        return marked

    def discard(self, stage: str) -> None:
        """Remove the result of a stage, of whatever settings."""
        remove(self._path(stage))

    def _path(self, stage: str) -> Path:
        return self.folder / "results" / f"{stage}.zarr"
