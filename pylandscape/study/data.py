"""MNIST for the study: a folder in torchvision's layout, or the subset inside the package."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

TRAIN_COUNT = 6_000
TEST_COUNT = 2_000
SUBSET_SEED = 0

# Mean and standard deviation of the pixels of MNIST's 60,000 training images, scaled to [0, 1].
PIXEL_MEAN = 0.1307
PIXEL_STD = 0.3081

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Digits:
    """Training and test digits, ready for a network, and where they came from.

    A split is `(images, labels)`: float32 [N, 1, 28, 28], standardised, and int64 [N].
    """

    train: Split
    test: Split
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the digits and labels of both splits."""
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.test):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """One line for captions and the report."""
        train, test = len(self.train[1]), len(self.test[1])
        return f"{self.source}, {train:,} training and {test:,} test digits"

    def first(self, train_count: int | None, test_count: int | None) -> "Digits":
        """The first so many digits of each split; None keeps all."""
        train = (self.train[0][:train_count], self.train[1][:train_count])
        test = (self.test[0][:test_count], self.test[1][:test_count])
        return replace(self, train=train, test=test)


def load_mnist(root: str | Path | None = None, *, full: bool = False) -> Digits:
    """MNIST from where it is first found: `root`, `$PYLANDSCAPE_DATA`, the cache, the package.

    A place is a folder that `torchvision.datasets.MNIST` can read (it holds `MNIST/raw`). The
    cache is `pylandscape` in `$XDG_CACHE_HOME`, or in `~/.cache`. The package holds a
    class-balanced subset of MNIST, drawn with a fixed seed.

    Args:
        root: the folder to read. Asked for explicitly, it must hold MNIST; so must
            `$PYLANDSCAPE_DATA` where it is set.
        full: all digits of the folder. Otherwise the rows that the embedded subset consists of, so
            that a study without `full` sees the same digits wherever they are read from.

    Raises:
        FileNotFoundError: a folder that was asked for does not hold MNIST, or `full` is set and
            only the embedded subset is there.

    Example:
        >>> digits = load_mnist()
        >>> digits.train[0].shape[1:], digits.test[1].bincount().unique().numel()
        (torch.Size([1, 28, 28]), 1)
    """
    folder = _find_root(root)
    if folder is None:
        if full:
            raise FileNotFoundError(
                "load_mnist: full=True must be given a data folder, got only the embedded subset. "
                "Name one with --data or $PYLANDSCAPE_DATA; torchvision.datasets.MNIST(folder, "
                "download=True) fills it."
            )
        arrays = _embedded_arrays()
        source = "the subset of MNIST embedded in pylandscape"
    else:
        arrays = _folder_arrays(folder, full)
        source = "MNIST (all digits)" if full else "a subset of MNIST (the embedded rows)"
    return Digits(
        train=_as_tensors(arrays["train_images"], arrays["train_labels"]),
        test=_as_tensors(arrays["test_images"], arrays["test_labels"]),
        source=source,
    )


def embedded_rows() -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the embedded digits in MNIST's own training and test sets."""
    arrays = _embedded_arrays()
    return arrays["train_rows"], arrays["test_rows"]


def balanced_rows(labels: np.ndarray, count: int, seed: int = SUBSET_SEED) -> np.ndarray:
    """`count` row numbers, ascending, with as many of each class as of any other.

    Raises:
        ValueError: `count` is no multiple of the number of classes, or a class is too small.

    Example:
        >>> rows = balanced_rows(np.array([0, 0, 0, 1, 1, 1]), 4)
        >>> np.bincount(np.array([0, 0, 0, 1, 1, 1])[rows]).tolist()
        [2, 2]
    """
    classes, sizes = np.unique(labels, return_counts=True)
    per_class, rest = divmod(count, len(classes))
    if rest or per_class > sizes.min():
        raise ValueError(
            f"balanced_rows: count must be a multiple of {len(classes)} of at most "
            f"{sizes.min() * len(classes)}, got {count}. Choose another count."
        )
    # RandomState and not default_rng: numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    chosen = [random.permutation(np.flatnonzero(labels == c))[:per_class] for c in classes]
    return np.sort(np.concatenate(chosen))


def read_folder(root: str | Path) -> dict[str, np.ndarray]:
    """All images (uint8 [N, 28, 28]) and labels (uint8 [N]) below a torchvision root."""
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        dataset = MNIST(str(root), train=split == "train")
        arrays[f"{split}_images"] = dataset.data.numpy()
        arrays[f"{split}_labels"] = dataset.targets.numpy().astype(np.uint8)
    return arrays


def _find_root(root: str | Path | None) -> Path | None:
    named = [(root, "root"), (os.environ.get("PYLANDSCAPE_DATA"), "$PYLANDSCAPE_DATA")]
    for folder, name in named:
        if not folder:
            continue
        if not _holds_mnist(Path(folder)):
            raise FileNotFoundError(
                f"load_mnist: {name} must be a folder with MNIST/raw in it, got '{folder}'. "
                "Name the folder that was given to torchvision.datasets.MNIST as root."
            )
        return Path(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylandscape"
    return cache if _holds_mnist(cache) else None


def _holds_mnist(root: Path) -> bool:
    raw = root / "MNIST" / "raw"
    files = ("train-images", "train-labels", "t10k-images", "t10k-labels")
    # torchvision reads the unpacked files and ignores the .gz beside them
    return all(any(p.suffix != ".gz" for p in raw.glob(f"{name}-idx?-ubyte")) for name in files)


def _embedded_arrays() -> dict[str, np.ndarray]:
    file = resources.files(__package__) / "mnist" / "subset.npz"
    with resources.as_file(file) as path, np.load(path) as stored:
        return dict(stored)


def _folder_arrays(root: Path, full: bool) -> dict[str, np.ndarray]:
    arrays = read_folder(root)
    if full:
        return arrays
    for split, count in (("train", TRAIN_COUNT), ("test", TEST_COUNT)):
        rows = balanced_rows(arrays[f"{split}_labels"], count)
        arrays[f"{split}_images"] = arrays[f"{split}_images"][rows]
        arrays[f"{split}_labels"] = arrays[f"{split}_labels"][rows]
    return arrays


def _as_tensors(images: np.ndarray, labels: np.ndarray) -> Split:
    pixels: Any = torch.from_numpy(images.astype(np.float32) / 255.0)
    return (pixels.unsqueeze(1) - PIXEL_MEAN) / PIXEL_STD, torch.from_numpy(labels.astype(np.int64))
