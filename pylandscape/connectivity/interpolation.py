"""The loss on the straight line between two models."""

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.connectivity._models import Model, require_test, state_of
from pylandscape.connectivity._paths import BuffersAt, evaluate_path
from pylandscape.directions import Directions
from pylandscape.objective import Objective


def interpolate(
    objective: Objective,
    model_a: Model,
    model_b: Model,
    resolution: int = 51,
    test: Objective | None = None,
    batchnorm: str | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Linear mode connectivity: L(w(t)) with w(t) = (1 - t) w_A + t w_B for t in [0, 1].

    The barrier is the largest height of the loss above the chord of its end points,
    max over t of L(w(t)) - ((1 - t) L(w_A) + t L(w_B)): zero where the line is connected.

    Args:
        objective: L, on a model of the same architecture; its own parameters do not matter.
        model_a, model_b: modules, state dicts, or flat vectors [P]. What they do not have, such as
            the buffers of a flat vector, is that of `objective.model`.
        resolution: number of points, the end points among them.
        test: an objective of the same architecture on other data: adds `test_loss`, ....
        batchnorm: `interpolate` moves the running statistics, with all other floating-point
            buffers, along the line as the weights move, so that both ends are the given models.
            `frozen` keeps the buffers of `objective.model`. `recompute` estimates the statistics
            anew at every point, over the samples of `objective` for `test` too: between independent
            solutions the fair choice, for the variance of averaged features collapses (Jordan et
            al. 2023). Default: `interpolate` where the objective's own policy is `frozen`, else
            that policy (`recompute`, `batch`).
        progress: show a bar; default on a terminal only.

    Returns:
        A dataset over `alpha` = t with `loss`, `loss_stderr`, `accuracy` (classifiers), the metrics
        of the objective, and `chord`. Attributes: `barrier`, `barrier_at` (its t), `accuracy_drop`
        (the largest fall of the accuracy below its chord), all of them again with `test_` in front,
        `distance` || w_B - w_A ||, and how it was made. A NaN loss makes the barrier NaN.

    Raises:
        ValueError: a model of another architecture, resolution < 2, or a policy that the objective
            does not have.
        Interrupted: on Ctrl-C, with the partial dataset as `surface`.

    Example:
        >>> import torch, pylandscape as pl
        >>> a, b = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
        >>> objective = pl.Objective(a, torch.nn.MSELoss(), (torch.randn(9, 4), torch.randn(9, 1)))
        >>> curve = pl.interpolate(objective, a, b, resolution=11)
        >>> abs(float(curve.loss[0]) - objective.loss()) < 1e-6
        True
        >>> curve.attrs["barrier"] < 1e-6  # a convex loss is nowhere above its chord
        True
    """
    require(
        isinstance(resolution, int) and resolution >= 2,
        f"interpolate: resolution must be an integer >= 2, got {show(resolution)}.",
    )
    require_test(objective, test, "interpolate")
    policy = _policy(objective, batchnorm)
    states = [
        state_of(objective, model, "interpolate", name)
        for model, name in ((model_a, "model_a"), (model_b, "model_b"))
    ]
    dtype, device = objective.dtype, objective.device
    vectors = torch.stack([objective.space.flatten(state, dtype, device) for state in states])
    attrs = {
        "kind": "interpolation",
        "directions": "straight line between two models",
        "axis_labels": ["t: model A at 0, model B at 1"],
        "distance": float((vectors[1].double() - vectors[0].double()).norm()),
    }
    if objective.has_batchnorm:
        attrs["batchnorm"] = policy
    if policy == "recompute" != objective.batchnorm:
        objective = objective.replace(batchnorm="recompute")
    alpha = np.linspace(0.0, 1.0, resolution)

    def buffers_of(where: Objective) -> BuffersAt | None:
        return _interpolated(where.model, states) if policy == "interpolate" else None

    return evaluate_path(
        objective,
        test,
        Directions.from_vectors(objective.space, vectors),
        alpha,
        torch.from_numpy(np.stack([1 - alpha, alpha], 1)),
        attrs,
        buffers_of,
        progress,
    )


def _policy(objective: Objective, batchnorm: str | None) -> str:
    own = objective.batchnorm
    if batchnorm is None:
        return "interpolate" if own == "frozen" else own
    possible = ("interpolate", "frozen", "recompute") if own == "frozen" else (own,)
    require(
        batchnorm in possible,
        f"interpolate: batchnorm must be one of {possible} with an objective whose policy is "
        f"{own!r}, got {show(batchnorm)}. Make the objective with the wanted policy.",
    )
    return batchnorm


def _interpolated(model: nn.Module, states: list[dict[str, Tensor]]) -> BuffersAt | None:
    """The buffers of both ends in the shares (1 - t, t) of a point."""
    names = [name for name, _ in model.named_buffers()]

    def mix(a: Tensor, b: Tensor, share_a: float, share_b: float) -> Tensor:
        if not a.is_floating_point():  # counters and indices: those of the nearer model
            return a if share_a >= share_b else b
        mixed = (share_a * a.double() + share_b * b.double()).to(a.dtype)
        return torch.where(a == b, a, mixed)  # also where both are infinite, as in a mask

    def at(shares: Tensor) -> dict[str, Tensor]:
        a, b = states
        return {name: mix(a[name], b[name], *shares.tolist()) for name in names}

    return at if names else None
