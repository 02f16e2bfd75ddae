"""Writing files and folders so that they are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to, which takes the place of `path` on success.

    Left by an exception it is removed, and `path` is as it was. Missing parents are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last: writers choose the format by it
    partial = path.with_name(f".partial-{path.name}")
    remove(partial)
    try:
        yield partial
    except BaseException:
        remove(partial)
        raise
    if path.is_dir():  # a folder that is not empty cannot be replaced in one step
        remove(path)
    os.replace(partial, path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it; nothing happens where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
