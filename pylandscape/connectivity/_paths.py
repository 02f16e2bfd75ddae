"""Loss and accuracy along a path between two models, and the barrier on it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pylandscape.directions import Directions
from pylandscape.objective import Interrupted, Objective
from pylandscape.progress import progress_bar

BuffersAt = Callable[[Tensor], dict[str, Tensor]]
Floats = NDArray[np.float64]


def evaluate_path(
    objective: Objective,
    test: Objective | None,
    nodes: Directions,
    alpha: Floats,
    shares: Tensor,
    attrs: Mapping[str, Any],
    buffers_of: Callable[[Objective], BuffersAt | None],
    progress: bool | None,
) -> xr.Dataset:
    """Loss and metrics at the points sum_j shares[k, j] nodes[j], see `path_dataset`.

    Args:
        nodes: vectors that the points are made of, added from the origin, so that a share of 1
            gives a node exactly.
        alpha: the coordinate of each point [K].
        shares: [K, D].
        attrs: what is known of the path; how the objective evaluates is added.
        buffers_of: for an objective, the buffers at a row of shares; None for its own.

    Raises:
        Interrupted: on Ctrl-C, with the partial dataset as `surface`.
    """
    values: dict[str, Tensor] = {}
    objectives = {"": objective} | ({} if test is None else {"test_": test})
    origin = torch.zeros(objective.space.size, dtype=objective.dtype, device=objective.device)
    title = str(attrs["kind"])
    with progress_bar(len(alpha) * len(objectives), title, show=progress) as bar:
        for prefix, where in objectives.items():
            buffers = buffers_of(where)
            if buffers is None and where is not objective and objective.batchnorm == "recompute":
                buffers = _recomputed(objective, nodes)
            try:
                found = where.evaluate_along(origin, nodes, shares, buffers=buffers, bar=bar)
            except Interrupted as stop:
                values |= {prefix + name: value for name, value in stop.values.items()}
                stop.surface = path_dataset(alpha, values, objective.describe() | dict(attrs))
                stop.surface["evaluated"] = ("alpha", np.arange(len(alpha)) < stop.done)
                raise
            values |= {prefix + name: value for name, value in found.items()}
    # only now does the objective know which engine it used
    return path_dataset(alpha, values, objective.describe() | dict(attrs))


def _recomputed(objective: Objective, nodes: Directions) -> BuffersAt | None:
    """The statistics of another objective's data: a test set must not set its own."""
    if not objective.has_batchnorm:
        return None
    origin = torch.zeros(objective.space.size, dtype=objective.dtype, device=objective.device)
    return lambda shares: objective.buffers(nodes.points(origin, shares[None])[0])


def path_dataset(alpha: Floats, values: dict[str, Tensor], attrs: Mapping[str, Any]) -> xr.Dataset:
    """The dataset, with chord and barrier of every loss and accuracy in `values`."""
    columns = {name: value.numpy() for name, value in values.items()}
    attrs = dict(attrs)
    for prefix in ("", "test_"):
        if f"{prefix}loss" in columns:
            loss = columns[f"{prefix}loss"]
            columns[f"{prefix}chord"] = chord = _chord(alpha, loss)
            with np.errstate(invalid="ignore"):
                height = loss - chord
            attrs[f"{prefix}barrier"] = float(np.max(height))
            attrs[f"{prefix}barrier_at"] = float(alpha[np.argmax(height)])
        if f"{prefix}accuracy" in columns:
            accuracy = columns[f"{prefix}accuracy"]
            attrs[f"{prefix}accuracy_drop"] = float(np.max(_chord(alpha, accuracy) - accuracy))
    return xr.Dataset(
        {name: ("alpha", column) for name, column in columns.items()},
        coords={"alpha": alpha},
        attrs=attrs,
    )


def _chord(alpha: Floats, values: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # an infinite loss is kept as such
        chord = (1 - alpha) * values[0] + alpha * values[-1]
    chord[[0, -1]] = values[[0, -1]]
    return chord
