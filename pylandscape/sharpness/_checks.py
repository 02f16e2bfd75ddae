"""What the measures of sharpness ask of their arguments, and the norms that they use."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.objective import Objective


def checked_center(
    where: str,
    objective: Objective,
    at: Tensor | None,
    *,
    positive: Mapping[str, Any] | None = None,
    counts: Mapping[str, tuple[Any, int]] | None = None,
) -> Tensor:
    """The point w [P], after the arguments are found to be in order.

    Args:
        where: the name of the measure, for messages.
        positive: arguments that must be positive numbers, by name.
        counts: arguments that must be integers, by name, with the least of each.
    """
    require(
        isinstance(objective, Objective),
        f"{where}: objective must be a pl.Objective, got {show(objective)}.",
        TypeError,
    )
    for name, value in (positive or {}).items():
        require(
            isinstance(value, (int, float)) and 0 < value < np.inf,
            f"{where}: {name} must be a positive number, got {show(value)}.",
        )
    for name, (value, least) in (counts or {}).items():
        require(
            isinstance(value, int) and value >= least,
            f"{where}: {name} must be an int >= {least}, got {show(value)}.",
        )
    size = objective.space.size
    require(
        at is None or (isinstance(at, Tensor) and at.shape == (size,)),
        f"{where}: at must be a point of shape [{size}], got {show(at)}. "
        "It must come from a model of the same architecture.",
    )
    return objective.center if at is None else at.detach().to(objective.device, objective.dtype)


def loss_and_gradient(where: str, objective: Objective, center: Tensor) -> tuple[float, Tensor]:
    """L(w) and its gradient, both finite."""
    loss, gradient = objective.loss_and_gradient(at=center)
    require(
        bool(np.isfinite(loss)) and bool(torch.isfinite(gradient).all()),
        f"{where}: the loss and its gradient must be finite at the centre, got loss {loss}. "
        "The model has diverged or the data hold NaN.",
    )
    return loss, gradient


def starts_of(where: str, gradient: Tensor, restarts: int, first: str) -> list[str]:
    """The names of the starts of an ascent: `first` where there is a gradient, then random ones."""
    starts = [first] * bool(gradient.any()) + ["random"] * restarts
    require(
        bool(starts),
        f"{where}: restarts must be >= 1 where the gradient is zero, got {restarts}.",
    )
    return starts


def norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))
