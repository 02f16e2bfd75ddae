"""Makes `mnist/subset.npz` from MNIST: `python -m pylandscape.study.make_subset ROOT`."""

import sys
from pathlib import Path

import numpy as np

from pylandscape.study.data import TEST_COUNT, TRAIN_COUNT, balanced_rows, read_folder


def make_subset(root: str | Path, target: str | Path) -> None:
    """Write the class-balanced subset of the MNIST below `root` to the file `target`.

    Stored per split: `images` uint8 [N, 28, 28], `labels` uint8 [N], and `rows` uint16 [N],
    the row of each digit in the original split.
    """
    arrays = read_folder(root)
    subset: dict[str, np.ndarray] = {}
    for split, count in (("train", TRAIN_COUNT), ("test", TEST_COUNT)):
        rows = balanced_rows(arrays[f"{split}_labels"], count)
        subset[f"{split}_images"] = arrays[f"{split}_images"][rows]
        subset[f"{split}_labels"] = arrays[f"{split}_labels"][rows]
        subset[f"{split}_rows"] = rows.astype(np.uint16)
    np.savez_compressed(target, **subset)  # type: ignore[arg-type]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pylandscape.study.make_subset ROOT")
    make_subset(sys.argv[1], Path(__file__).parent / "mnist" / "subset.npz")
