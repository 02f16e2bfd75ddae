"""Solutions beside each other: how flat they are, how they are joined, and what scaling changes."""

import torch
import xarray as xr
from torch import nn

import pylandscape as pl
from pylandscape.study.analyses import Study, find_eigenpairs, training
from pylandscape.study.config import SOLUTIONS

LAST = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
RESCALED = ("ball", "adaptive_l2", "adaptive_linf")


def solutions(study: Study) -> xr.Dataset:
    """Six networks from the initialisation of run a, by other batch sizes and weight decays."""
    runs = [training(study, name) for name in SOLUTIONS]
    recipes = [study.config.recipe(name) for name in SOLUTIONS]
    columns: dict[str, list[float]] = {
        name: [float(run[name][-1]) for run in runs] for name in LAST
    }
    columns |= {
        "epochs": [run.sizes["epoch"] - 1 for run in runs],
        "batch_size": [recipe.batch_size for recipe in recipes],
        "weight_decay": [recipe.weight_decay for recipe in recipes],
    }
    return xr.Dataset(
        {name: ("solution", values) for name, values in columns.items()},
        attrs=runs[0].attrs
        | {"kind": "solutions", "solutions": list(SOLUTIONS)}
        | {"until_loss": study.config.solution_loss, "test_samples": study.sizes[1]},
    )


def flatness(study: Study) -> xr.Dataset:
    """Curvature and sharpness at each of the six solutions, over the same random digits."""
    objectives = [
        study.objective(name, samples=study.config.flatness_samples) for name in SOLUTIONS
    ]
    rows = [
        _trace(study, objective) | _measures(study, objective, study.config.sharpness)
        for objective in objectives
    ]
    return xr.Dataset(
        {name: ("solution", [row[name] for row in rows]) for name in rows[0]},
        attrs={"kind": "flatness", "solutions": list(SOLUTIONS)}
        | objectives[0].describe(derivatives=True),
    )


def connections(study: Study) -> xr.Dataset:
    """The loss from solution a to b: straight, with aligned units, and along a trained curve."""
    config = study.config
    table = pl.barriers(
        study.objective("a"),
        [study.trained("a"), study.trained("b")],
        resolution=config.interpolation_resolution,
        test=study.objective("a", "test"),
        seed=config.seed,
        progress=study.progress,
        steps=config.curve_steps,
        batch_size=config.batch_size,
        learning_rate=config.curve_learning_rate,
    ).isel(pair=0, drop=True)
    paths = table["path"].values.tolist()
    return table.drop_vars("path").assign_attrs(paths=paths)


def rescaling(study: Study) -> xr.Dataset:
    """Solution a, and the same function with its first layer scaled up and the second down.

    ReLU and pooling are homogeneous, so what the first layer gains in scale the second can undo:
    relu(c W1 x + c b1) W2 / c. Lines go along one direction, normalised by the filters of each.
    """
    config = study.config
    networks = [study.trained("a"), rescaled(study.trained("a"), config.rescaling)]
    objectives = [
        study.objective_of(network, samples=config.flatness_samples) for network in networks
    ]
    measures = tuple(name for name in RESCALED if name in config.sharpness)
    rows = [_measures(study, objective, measures) for objective in objectives]
    lines = [
        pl.line(
            objective,
            pl.random_directions(objective, 1, seed=config.seed),
            extent=config.plane_extent,
            resolution=config.slice_resolution,
            progress=study.progress,
        )
        for objective in objectives
    ]
    values = {name: ("network", [row[name] for row in rows]) for name in rows[0]}
    both = xr.concat(lines, "network", combine_attrs="override")
    return both.assign(values).assign_attrs(kind="rescaling", factor=config.rescaling)


@torch.no_grad()
def rescaled(network: nn.Module, factor: float) -> nn.Module:
    """`network`, changed in place: conv1 times `factor`, the weights of conv2 over it."""
    for parameter in network.get_submodule("conv1").parameters():
        parameter.mul_(factor)
    network.get_parameter("conv2.weight").div_(factor)
    return network


def _trace(study: Study, objective: pl.Objective) -> dict[str, float]:
    found = pl.trace(
        pl.Hessian(objective),
        tol=study.config.trace_error,
        max_products=study.config.trace_products,
        seed=study.config.seed,
        progress=study.progress,
    )
    return {"trace": found.value, "trace_stderr": found.stderr}


def _measures(study: Study, objective: pl.Objective, names: tuple[str, ...]) -> dict[str, float]:
    """The largest eigenvalue with its residual, and measures of sharpness by name."""
    pairs = find_eigenpairs(study, objective, "largest")
    found = {
        "lambda_max": float(pairs.values[0]),
        "lambda_max_residual": float(pairs.residuals[0]),
    }
    if names:
        table = pl.sharpness.table(objective, names, progress=study.progress)
        found |= dict(zip(names, table["value"].values.tolist(), strict=True))
    return found
