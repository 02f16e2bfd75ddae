"""The loss on the straight line between two models."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.directions import Directions
from pylandscape.objective import BATCHNORM_POLICIES, Interrupted, Objective
from pylandscape.progress import progress_bar
from pylandscape.trajectory.snapshots import buffers_for, canonical_name, named_tensors

Model = nn.Module | Mapping[str, Tensor] | Tensor
BuffersAt = Callable[[Tensor], dict[str, Tensor]]


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
            `frozen` keeps the buffers of `objective.model`. Default: `interpolate` where the
            objective's own policy is `frozen`, else that policy (`recompute`, `batch`). Between
            independent solutions `recompute` is the fair one: the variance of averaged features
            collapses (Jordan et al. 2023). Its statistics are those of `objective` for `test` too.
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
    require(
        test is None or (isinstance(test, Objective) and test.space == objective.space),
        "interpolate: test must be an objective of the same architecture, got "
        f"{test.space if isinstance(test, Objective) else show(test)} for {objective.space}.",
    )
    policy = _policy(objective, batchnorm)
    states = [_state(objective, m, n) for m, n in ((model_a, "model_a"), (model_b, "model_b"))]
    dtype, device = objective.dtype, objective.device
    vectors = torch.stack([objective.space.flatten(state, dtype, device) for state in states])
    ends = Directions.from_vectors(objective.space, vectors)
    alpha = np.linspace(0.0, 1.0, resolution)
    # Shares of both ends, added from the origin: so the points are exact at both ends.
    shares = torch.from_numpy(np.stack([1 - alpha, alpha], 1))
    origin = torch.zeros_like(vectors[0])

    values: dict[str, Tensor] = {}
    objectives = {"": objective} | ({} if test is None else {"test_": test})
    with progress_bar(resolution * len(objectives), "interpolation", show=progress) as bar:
        for prefix, where in objectives.items():
            buffers: BuffersAt | None = None
            if policy == "interpolate":
                buffers = _interpolated(where.model, states)
            elif policy == "recompute" and where is not objective:
                buffers = _recomputed(objective, origin, ends)
            try:
                found = where.evaluate_along(origin, ends, shares, buffers=buffers, bar=bar)
            except Interrupted as stop:
                values |= {prefix + name: value for name, value in stop.values.items()}
                attrs = _attributes(objective, policy, vectors)
                stop.surface = _dataset(alpha, values, attrs)
                stop.surface["evaluated"] = ("alpha", np.arange(resolution) < stop.done)
                raise
            values |= {prefix + name: value for name, value in found.items()}
    # only now does the objective know which engine it used
    return _dataset(alpha, values, _attributes(objective, policy, vectors))


def _policy(objective: Objective, batchnorm: str | None) -> str:
    own = objective.batchnorm
    if batchnorm is None:
        return "interpolate" if own == "frozen" else own
    possible = ("interpolate", "frozen") if own == "frozen" else (own,)
    require(
        batchnorm in possible,
        f"interpolate: batchnorm must be one of {possible} with an objective whose policy is "
        f"{own!r}, got {show(batchnorm)}. Make the objective with the wanted policy, one of "
        f"{BATCHNORM_POLICIES}.",
    )
    return batchnorm


def _state(objective: Objective, model: Model, argument: str) -> dict[str, Tensor]:
    """The tensors of a model by the names of the objective's own."""
    space, own = objective.space, objective.model
    if isinstance(model, Tensor):
        require(
            model.shape == (space.size,),
            f"interpolate: {argument} must have shape [{space.size}] as a flat vector, got "
            f"{show(model)}.",
        )
        return space.unflatten(model.detach()) | dict(own.named_buffers())
    require(
        isinstance(model, (nn.Module, Mapping)),
        f"interpolate: {argument} must be a module, a state dict or a flat vector, got "
        f"{show(model)}.",
        TypeError,
    )
    given = named_tensors(model) if isinstance(model, nn.Module) else _canonical(model)
    names = {entry.name: canonical_name(entry.name) for entry in space.entries}
    for entry in space.entries:
        tensor = given.get(names[entry.name])
        got = "no such name" if tensor is None else f"shape {list(tensor.shape)}"
        require(
            tensor is not None and tuple(tensor.shape) == entry.shape,
            f"interpolate: {argument} must have the architecture of the objective's model, got "
            f"{got} where that has {entry.name!r} of shape {list(entry.shape)}.",
        )
    for name, frozen in own.named_parameters():
        tensor = given.get(canonical_name(name), frozen) if name not in names else frozen
        require(
            torch.equal(tensor.detach().to(frozen), frozen),
            f"interpolate: {argument} must agree with the objective's model in the frozen "
            f"parameters, got other values of {name!r}. Unfreeze it in the objective's model.",
        )
    buffers = dict(own.named_buffers()) | buffers_for(own, given, objective.device)
    return {name: given[key].detach() for name, key in names.items()} | buffers


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict, saved from a wrapped model or not, by canonical names."""
    wrapped = all(name.startswith("module.") for name in state)
    strip = (lambda name: name.removeprefix("module.")) if wrapped else str
    return {canonical_name(strip(name)): tensor for name, tensor in state.items()}


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


def _recomputed(objective: Objective, origin: Tensor, ends: Directions) -> BuffersAt:
    """The statistics of another objective's data: a test set must not set its own."""
    return lambda shares: objective.buffers(ends.points(origin, shares[None])[0])


def _attributes(objective: Objective, policy: str, vectors: Tensor) -> dict[str, Any]:
    described = objective.describe()
    if objective.has_batchnorm:
        described["batchnorm"] = policy
    return {
        "kind": "interpolation",
        **described,
        "directions": "straight line between two models",
        "axis_labels": ["t: model A at 0, model B at 1"],
        "distance": float((vectors[1].double() - vectors[0].double()).norm()),
    }


def _dataset(alpha: np.ndarray, values: dict[str, Tensor], attrs: dict[str, Any]) -> xr.Dataset:
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


def _chord(alpha: np.ndarray, values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # an infinite loss is kept as such
        chord = (1 - alpha) * values[0] + alpha * values[-1]
    chord[[0, -1]] = values[[0, -1]]
    return chord
