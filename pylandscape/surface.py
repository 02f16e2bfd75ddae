"""Slices of the loss: lines, planes and grids of any dimension around a point."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.directions import Directions
from pylandscape.objective import Interrupted, Objective
from pylandscape.progress import progress_bar

AXES = ("alpha", "beta", "gamma", "delta")
NUMBER = (int, float, np.integer, np.floating)
Range = float | tuple[float, float]


def line(
    objective: Objective,
    direction: Directions,
    extent: Range = 1.0,
    resolution: int = 101,
    center: Tensor | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """f(alpha) = L(w0 + alpha d) along one direction.

    Args:
        objective: L.
        direction: d, one direction.
        extent: alpha from -extent to extent, or a pair (low, high).
        resolution: number of points; odd, so that a symmetric range has alpha = 0 on it.
        center: w0 [P]; default that of the direction, else the model's own parameters.
        progress: show a bar; default on a terminal only.

    Returns:
        A dataset over `alpha` with `loss`, `loss_stderr`, `accuracy` (classifiers) and the
        objective's metrics; NaN and inf as they come. The attributes say how it was made.

    Raises:
        ValueError: not one direction, or one of another model; resolution < 2; an empty range.
        Interrupted: on Ctrl-C, with the partial dataset as `surface`.

    Example:
        >>> import torch, pylandscape as pl
        >>> data = torch.randn(30, 4), torch.randn(30, 1)
        >>> objective = pl.Objective(torch.nn.Linear(4, 1), torch.nn.MSELoss(), data)
        >>> curve = pl.line(objective, pl.random_directions(objective, 1), resolution=5)
        >>> abs(float(curve.loss.sel(alpha=0)) - objective.loss()) < 1e-6
        True
    """
    return _sample("line", 1, objective, direction, extent, resolution, center, progress)


def plane(
    objective: Objective,
    directions: Directions,
    extent: Range | tuple[Range, Range] = 1.0,
    resolution: int | tuple[int, int] = 51,
    center: Tensor | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """f(alpha, beta) = L(w0 + alpha d1 + beta d2) on a grid.

    Args:
        objective: L.
        directions: d1 and d2.
        extent: e for [-e, e] on both axes, (low, high) for both, or one such range per axis,
            ((low, high), (low, high)).
        resolution: points per axis, or a pair of counts.
        center, progress: as for `line`.

    Returns:
        A dataset over (`alpha`, `beta`), variables as for `line`: `loss[i, j]` is the value at
        `alpha[i]`, `beta[j]`.

    Raises:
        ValueError, Interrupted: as for `line`.

    Example:
        >>> import torch, pylandscape as pl
        >>> data = torch.randn(30, 4), torch.randn(30, 1)
        >>> objective = pl.Objective(torch.nn.Linear(4, 1), torch.nn.MSELoss(), data)
        >>> surface = pl.plane(objective, pl.random_directions(objective), resolution=(3, 5))
        >>> surface.loss.dims, surface.loss.shape
        (('alpha', 'beta'), (3, 5))
    """
    return _sample("plane", 2, objective, directions, extent, resolution, center, progress)


def grid(
    objective: Objective,
    directions: Directions,
    extent: Range | Sequence[Range] = 1.0,
    resolution: int | Sequence[int] = 11,
    center: Tensor | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """f(c) = L(w0 + sum_j c_j d_j) on a grid of as many dimensions as there are directions.

    Axes are `alpha`, `beta`, `gamma`, `delta`, `axis4`, ... Arguments, result and errors are as for
    `plane`.

    Example:
        >>> import torch, pylandscape as pl
        >>> data = torch.randn(30, 4), torch.randn(30, 1)
        >>> objective = pl.Objective(torch.nn.Linear(4, 1), torch.nn.MSELoss(), data)
        >>> pl.grid(objective, pl.random_directions(objective, 3), resolution=3).loss.shape
        (3, 3, 3)
    """
    return _sample("grid", None, objective, directions, extent, resolution, center, progress)


def axis_names(count: int) -> tuple[str, ...]:
    """Names of the coordinates of `count` directions."""
    return tuple(AXES[j] if j < len(AXES) else f"axis{j}" for j in range(count))


def _sample(
    kind: str,
    dimensions: int | None,
    objective: Objective,
    directions: Directions,
    extent: Any,
    resolution: Any,
    center: Tensor | None,
    progress: bool | None,
) -> xr.Dataset:
    require(
        isinstance(objective, Objective),
        f"{kind}: objective must be an Objective, got {show(objective)}. Make one of the model, "
        "the loss and the data.",
        TypeError,
    )
    objective.check_directions(directions, kind)
    dimensions = max(1, len(directions)) if dimensions is None else dimensions
    require(
        len(directions) == dimensions,
        f"{kind}: directions must be {dimensions} in number, got {len(directions)}. "
        "Take a part of them, as in directions[0:2].",
    )
    axes = _axes(kind, dimensions, extent, resolution)
    origin = "given"
    if center is None and directions.center is not None:
        center, origin = directions.center, "that of the directions"
    elif center is None:
        center, origin = objective.center, "the model's parameters"
    require(
        isinstance(center, Tensor) and center.shape == (objective.space.size,),
        f"{kind}: center must have shape [{objective.space.size}], got {show(center)}.",
    )
    shape = tuple(len(axis) for axis in axes)
    mesh = torch.cartesian_prod(*(torch.from_numpy(axis) for axis in axes)).reshape(-1, dimensions)

    name = f"{kind} {' x '.join(map(str, shape))}"
    try:
        with progress_bar(len(mesh), name, show=progress) as bar:
            values = objective.evaluate_along(center, directions, mesh, bar=bar)
    except Interrupted as stop:
        stop.surface = _dataset(kind, origin, axes, stop.values, objective, directions)
        evaluated = np.arange(len(mesh)) < stop.done
        stop.surface["evaluated"] = (stop.surface.loss.dims, evaluated.reshape(shape))
        raise
    return _dataset(kind, origin, axes, values, objective, directions)


def _axes(kind: str, dimensions: int, extent: Any, resolution: Any) -> list[np.ndarray]:
    """The coordinates of each axis, float64; zero exactly in the middle of an odd symmetric one."""
    counts = list(resolution) if _is_sequence(resolution) else [resolution] * dimensions
    require(
        len(counts) == dimensions
        and all(isinstance(n, (int, np.integer)) and n >= 2 for n in counts),
        f"{kind}: resolution must be an integer >= 2 or {dimensions} of them, got "
        f"{show(resolution)}.",
    )
    ranges = _ranges(extent, dimensions)
    require(
        ranges is not None and all(np.isfinite(r).all() and r[0] < r[1] for r in ranges),
        f"{kind}: extent must be a positive number, a range (low, high) with low < high, or "
        f"{dimensions} ranges, got {show(extent)}.",
    )
    assert ranges is not None
    axes = [np.linspace(low, high, n) for (low, high), n in zip(ranges, counts, strict=True)]
    return [
        (axis - axis[::-1]) / 2 if low == -high else axis
        for axis, (low, high) in zip(axes, ranges, strict=True)
    ]


def _ranges(extent: Any, dimensions: int) -> list[tuple[float, float]] | None:
    """One (low, high) per axis; None for what cannot be read so."""

    def one(value: Any) -> tuple[float, float] | None:
        if isinstance(value, NUMBER):
            return -float(value), float(value)
        pair = _is_sequence(value) and len(value) == 2 and all(isinstance(v, NUMBER) for v in value)
        return (float(value[0]), float(value[1])) if pair else None

    same = one(extent)
    if same is not None:
        return [same] * dimensions
    ranges = [one(value) for value in extent] if _is_sequence(extent) else []
    found = [r for r in ranges if r is not None]
    return found if len(found) == len(ranges) == dimensions else None


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list, np.ndarray))


def _dataset(
    kind: str,
    origin: str,
    axes: list[np.ndarray],
    values: dict[str, Tensor],
    objective: Objective,
    directions: Directions,
) -> xr.Dataset:
    dims = axis_names(len(axes))
    shape = tuple(len(axis) for axis in axes)
    attrs = {
        "kind": kind,
        "center": origin,
        **objective.describe(),
        **directions.attrs,
        "axis_labels": directions.labels,
    }
    return xr.Dataset(
        {name: (dims, value.numpy().reshape(shape)) for name, value in values.items()},
        coords={dim: (dim, axis) for dim, axis in zip(dims, axes, strict=True)},
        attrs=attrs,
    )
