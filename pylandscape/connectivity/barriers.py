"""Tables of barriers: pairs of models along straight lines, after alignment, along curves."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from pylandscape._checks import require, show
from pylandscape.connectivity._models import Model, require_test, vector_of
from pylandscape.connectivity.alignment import Method, align
from pylandscape.connectivity.curve_training import connect
from pylandscape.connectivity.interpolation import interpolate
from pylandscape.objective import Interrupted, Objective

Path = Literal["straight", "aligned", "curve"]


def barriers(
    objective: Objective,
    models: Sequence[Model],
    paths: Sequence[Path] = ("straight", "aligned", "curve"),
    *,
    resolution: int = 25,
    test: Objective | None = None,
    method: Method = "weights",
    seed: int = 0,
    progress: bool | None = None,
    **training: Any,
) -> xr.Dataset:
    """The barriers between all pairs of some models, along the paths that people look at.

    For each pair (A, B) of `models`, the loss along

    - `straight`: the line from A to B, see `interpolate`;
    - `aligned`: the line from A to B with the hidden units of B in the order of A's, see `align`;
    - `curve`: a curve from A to B trained for low loss, see `connect`.

    In a model with BatchNorm the statistics are estimated anew at every point of every path (where
    the objective's policy is `batch`, they are those of each batch), at both ends too.

    Args:
        objective: L, on the training data, of the architecture of the models.
        models: two or more: modules, state dicts or flat vectors.
        paths: which of the three.
        resolution: points per path.
        test: an objective of the same architecture on other data: adds `test_loss`, ....
        method: of `align`.
        seed: of `align` and `connect`.
        progress: show bars; default on a terminal only.
        training: further arguments of `connect`: `curve`, `bends`, `steps`, `learning_rate`, ....

    Returns:
        A dataset. Over (`pair`, `path`): `barrier`, `accuracy_drop` (classifiers), both again with
        `test_` in front, and the `length` of the path. Over (`pair`, `path`, `alpha`): `loss` and
        what else `interpolate` gives. The coordinates `model_a` and `model_b` of a pair count the
        models from 0. `table[["barrier", "length"]].to_dataframe()` is the table to print.

    Raises:
        ValueError: fewer than two models, an unknown path, or as the three functions.
        Interrupted: on Ctrl-C, with the table of the pairs that are done as `result`, if any.

    Example:
        >>> import torch, pylandscape as pl
        >>> layers = lambda: (torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> models = [torch.nn.Sequential(*layers()) for _ in range(3)]
        >>> data = torch.randn(30, 4), torch.randint(0, 3, (30,))
        >>> objective = pl.Objective(models[0], torch.nn.CrossEntropyLoss(), data)
        >>> table = pl.barriers(objective, models, resolution=5, steps=20)
        >>> table.barrier.dims, table.barrier.shape
        (('pair', 'path'), (3, 3))
    """
    require(
        isinstance(models, (list, tuple)) and len(models) >= 2,
        f"barriers: models must be a list of two or more, got {show(models)}.",
    )
    require(
        bool(paths) and not isinstance(paths, str) and set(paths) <= set(get_args(Path)),
        f"barriers: paths must be some of {get_args(Path)}, got {show(paths)}.",
    )
    require_test(objective, test, "barriers")
    for number, model in enumerate(models):
        vector_of(objective, model, "barriers", f"models[{number}]")
    fresh = objective.has_batchnorm and objective.batchnorm == "frozen"
    policy = "recompute" if fresh else None

    def along(path: Path, a: Model, b: Model) -> xr.Dataset:
        if path == "curve":
            curve = connect(objective, a, b, seed=seed, progress=progress, **training)
            return curve.evaluate(objective, resolution, test, progress)
        if path == "aligned":
            b = align(objective, a, b, method, seed=seed, progress=progress)
        line = interpolate(objective, a, b, resolution, test, policy, progress)
        return line.assign_attrs(length=line.attrs["distance"])

    pairs = list(combinations(range(len(models)), 2))
    rows: list[xr.Dataset] = []
    about: dict[str, Any] = {"kind": "barriers", "directions": "paths between models"}
    about |= {"seed": seed, "method": method}
    try:
        for a, b in pairs:
            found = [_row(along(path, models[a], models[b])) for path in paths]
            rows.append(xr.concat(found, "path", combine_attrs="drop_conflicts"))
    except Interrupted as stop:
        stop.result = _table(rows, pairs, paths, about) if rows else None
        raise
    return _table(rows, pairs, paths, about)


def _table(
    rows: list[xr.Dataset],
    pairs: list[tuple[int, int]],
    paths: Sequence[Path],
    attrs: dict[str, Any],
) -> xr.Dataset:
    table = xr.concat(rows, "pair", combine_attrs="drop_conflicts")
    first, second = np.array(pairs[: len(rows)]).T
    return table.assign_coords(
        path=list(paths), model_a=("pair", first), model_b=("pair", second)
    ).assign_attrs(attrs)


def _row(line: xr.Dataset) -> xr.Dataset:
    """One path, with what its attributes say of it as variables."""
    names = ("barrier", "accuracy_drop", "test_barrier", "test_accuracy_drop")
    numbers = {n: line.attrs[n] for n in (*names, "length") if n in line.attrs}
    return line.drop_vars("length", errors="ignore").assign(numbers)
