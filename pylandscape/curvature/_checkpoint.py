"""The state of a Lanczos run in a file, from which another process goes on with the same bits."""

import json
import os
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape._files import remove, replacing

FORMAT = "pylandscape lanczos 1"


class Checkpoint:
    """A safetensors file with the state of a run, replaced whole now and then.

    Args:
        path: the file, or None: then nothing is ever written or read.
        every: seconds between two writings.
        settings: what a run that goes on must have in common with the one that wrote the file.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, every: float, settings: dict[str, Any]
    ) -> None:
        require(
            path is None or isinstance(path, (str, os.PathLike)),
            f"eigenpairs: checkpoint must be the path of a file, got {show(path)}.",
            TypeError,
        )
        require(
            isinstance(every, (int, float)) and every >= 0,
            f"eigenpairs: checkpoint_every must be a number of seconds, got {show(every)}.",
        )
        self.path = None if path is None else Path(path)
        self.every, self.settings = every, settings
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self._written >= self.every

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Writes the state; it replaces the file once it is complete."""
        if self.path is None:
            return
        metadata = {"settings": self.settings, "numbers": numbers}
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(self.path) as partial:
            save_file(stored, partial, metadata={"format": FORMAT} | texts)
        self._written = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state, or None where there is none yet.

        Raises:
            ValueError: the file is none of these, damaged, or of a run with other settings.
        """
        if self.path is None or not self.path.exists():
            return None
        advice = "Delete it or give another path."
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"eigenpairs: checkpoint must be a file that eigenpairs wrote, got '{self.path}', "
                f"which cannot be read: {error}. {advice}"
            ) from error
        require(
            metadata.get("format") == FORMAT,
            f"eigenpairs: checkpoint must be a file that eigenpairs wrote, got '{self.path}'. "
            + advice,
        )
        theirs = json.loads(metadata["settings"])
        other = [
            f"{name} = {theirs.get(name)!r} there and {value!r} here"
            for name, value in self.settings.items()
            if theirs.get(name) != value
        ]
        require(
            not other,
            f"eigenpairs: checkpoint must be of the same run, got '{self.path}' with "
            f"{'; '.join(other)}. {advice}",
        )
        return tensors, json.loads(metadata["numbers"])

    def discard(self) -> None:
        """Removes the file of a run that is over."""
        if self.path is not None:
            remove(self.path)
