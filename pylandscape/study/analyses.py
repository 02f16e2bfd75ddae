"""The analyses of runs a and b: functions of the trained networks, with xarray results."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.curvature import CurvatureOperator
from pylandscape.study.claims import BALL_RADIUS, SMALL_RISE
from pylandscape.study.config import StudyConfig
from pylandscape.study.data import Digits
from pylandscape.study.model import SmallCNN
from pylandscape.study.training import train

PAIR_TOLERANCE = 1e-2
TRACE_TOLERANCE = 0.1
LAYER_PROBES = 2


@dataclass
class Study:
    """What the stages work on: settings, digits, and the folder with the recorded runs."""

    config: StudyConfig
    digits: Digits
    folder: Path
    progress: bool | None = None

    def run_folder(self, run: str) -> Path:
        if run in self.config.seeds:
            return self.folder / f"run-{run}"
        return self.folder / "solutions" / run.replace(",", "").replace(" ", "-")

    def trajectory(self, run: str) -> pl.Trajectory:
        return pl.Trajectory(self.run_folder(run))

    def trained(self, run: str) -> nn.Module:
        """The network as the recorded run left it."""
        model = SmallCNN()
        self.trajectory(run).load_into(model, -1)
        return model

    def objective(self, run: str, split: str = "train", samples: int | None = None) -> pl.Objective:
        """The loss over a split, or over `samples` random digits of it, centred on a solution."""
        return self.objective_of(self.trained(run), split, samples)

    def objective_of(
        self, network: nn.Module, split: str = "train", samples: int | None = None
    ) -> pl.Objective:
        """The same for a network that is not a recorded one."""
        data = getattr(self.digits, split)
        if samples is not None and samples >= len(data[1]):
            samples = None
        return pl.Objective(
            network, nn.CrossEntropyLoss(), data, samples=samples, seed=self.config.seed
        )

    def directions(self, count: int) -> pl.Directions:
        """Random filter-normalised directions at solution a; the same first ones for any count."""
        return pl.random_directions(self.objective("a"), count=count, seed=self.config.seed)

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Numbers of training and test digits."""
        return len(self.digits.train[1]), len(self.digits.test[1])

    @property
    def plane_samples(self) -> int:
        """Samples behind each point of a plane."""
        return min(self.config.plane_samples or self.sizes[0], self.sizes[0])


def training(study: Study, run: str) -> xr.Dataset:
    """One run of SGD from its own initialisation; leaves the recorded run in its folder."""
    recipe = study.config.recipe(run)
    return train(SmallCNN(recipe.seed), study.digits, recipe, study.run_folder(run), study.progress)


def curvature(study: Study) -> xr.Dataset:
    """Both ends of the Hessian spectrum at each solution, over all training digits."""
    objectives = [study.objective(run) for run in "ab"]
    found = [find_eigenpairs(study, objective, "both") for objective in objectives]
    columns = {
        "lambda_max": [pairs.values[0].item() for pairs in found],
        "lambda_max_residual": [pairs.residuals[0].item() for pairs in found],
        "lambda_min": [pairs.values[-1].item() for pairs in found],
        "lambda_min_residual": [pairs.residuals[-1].item() for pairs in found],
        "gradient_norm": [objective.gradient().double().norm().item() for objective in objectives],
        "products": [pairs.products for pairs in found],
        "converged": [pairs.converged for pairs in found],
    }
    return xr.Dataset(
        {name: ("run", values) for name, values in columns.items()},
        attrs={"kind": "spectrum", "runs": ["a", "b"]}
        | {"tolerance": study.config.eigenvalue_tolerance}
        | objectives[0].describe(derivatives=True),
    )


def curvature_path(study: Study) -> xr.Dataset:
    """lambda_max and SAM's sharpness at both ends of run a and at snapshots spread between."""
    objective = study.objective("a", samples=study.plane_samples)
    path = study.trajectory("a")
    count = min(study.config.curvature_points, len(path))
    # Curvature changes most in the first epoch, so the snapshots get denser towards the start.
    share = np.linspace(0, 1, count) ** 2
    chosen = sorted(set(np.round(share * (len(path) - 1)).astype(int).tolist()))
    values, residuals, rises = [], [], []
    for index in chosen:
        point = path.vector(index, objective.space)
        rises.append(pl.sharpness.sam(objective, at=point).value)
        pairs = find_eigenpairs(study, objective, "largest", point)
        values.append(pairs.values[0].item())
        residuals.append(pairs.residuals[0].item())
    steps_per_epoch = path.steps[-1] / study.config.epochs
    steps = np.array([path.steps[index] for index in chosen])
    return xr.Dataset(
        {
            "lambda_max": ("step", values),
            "lambda_max_residual": ("step", residuals),
            "sam": ("step", rises),
        },
        coords={"step": steps, "epoch": ("step", steps / steps_per_epoch)},
        attrs={"kind": "spectrum along a path"} | objective.describe(derivatives=True),
    )


def spectrum(study: Study) -> xr.Dataset:
    """The spectral density of the Hessian at solution a, its trace, and what random axes show."""
    config = study.config
    H = _spectrum_hessian(study)
    options: dict[str, Any] = {"seed": config.seed, "progress": study.progress}
    density = pl.spectral_density(H, config.spectrum_probes, config.spectrum_steps, **options)
    trace = pl.trace(H, tol=TRACE_TOLERANCE, **options)
    axes = pl.axis_curvature(H, study.directions(2), trace=trace)
    return density.assign(axes.data_vars).assign(trace=trace.value, trace_stderr=trace.stderr)


def layers(study: Study) -> xr.Dataset:
    """The spectra of the layers' diagonal blocks of the Hessian at solution a."""
    return pl.layer_spectra(
        _spectrum_hessian(study), LAYER_PROBES, study.config.layer_steps, seed=study.config.seed,
        progress=study.progress,
    )  # fmt: skip


def eigen_plane(study: Study) -> xr.Dataset:
    """The plane of the first and the last eigenvector at solution a, and the eigenvalues.

    Its extent is where a parabola of the largest eigenvalue has risen by 0.1 nat.
    """
    H = _spectrum_hessian(study)
    pairs = pl.eigenpairs(
        H, study.config.spectrum_pairs, "both", PAIR_TOLERANCE, seed=study.config.seed,
        progress=study.progress,
    )  # fmt: skip
    ends = replace(
        pairs, values=pairs.values[[0, -1]], residuals=pairs.residuals[[0, -1]],
        vectors=pairs.vectors[:, [0, -1]],
    )  # fmt: skip
    surface = pl.plane(
        study.objective("a", samples=study.plane_samples),
        pl.eigen_directions(H, ends),
        extent=(2 * SMALL_RISE / max(float(pairs.values[0]), 1e-6)) ** 0.5,
        resolution=study.config.plane_resolution,
        progress=study.progress,
    )
    return surface.assign(
        eigenvalue=("pair", pairs.values.numpy()), residual=("pair", pairs.residuals.numpy())
    ).assign_attrs(eigenvalue_samples=H.objective.samples)


def slices(study: Study) -> xr.Dataset:
    """Lines through solution a along random directions, and the exact curvature along each."""
    config, objective = study.config, study.objective("a")
    directions = study.directions(config.slice_directions)
    lines = [
        pl.line(
            objective,
            direction,
            extent=config.plane_extent,
            resolution=config.slice_resolution,
            progress=study.progress,
        )
        for direction in (directions[j] for j in range(len(directions)))
    ]
    bends = [_curvature_along(objective, vector) for vector in directions.vectors]
    return xr.concat(lines, "direction", combine_attrs="override").assign(
        curvature=("direction", np.array(bends))
    )


def plane(study: Study) -> xr.Dataset:
    """The plane of the first two random directions through solution a."""
    config = study.config
    return pl.plane(
        study.objective("a", samples=study.plane_samples),
        study.directions(2),
        extent=config.plane_extent,
        resolution=config.plane_resolution,
        progress=study.progress,
    )


def path(study: Study, run: str) -> xr.Dataset:
    """A run projected onto its two principal components: true loss and in-plane loss."""
    objective = study.objective(run, samples=study.plane_samples)
    directions = _principal(study, run, objective)
    return pl.project(study.trajectory(run), directions, objective, progress=study.progress)


def path_plane(study: Study) -> xr.Dataset:
    """The loss on the plane of run a's principal components, around the whole path."""
    found = pl.trajectory_plane(
        study.objective("a", samples=study.plane_samples),
        study.trajectory("a"),
        study.config.plane_resolution,
        progress=study.progress,
    )
    return found.surface


def interpolation(study: Study) -> xr.Dataset:
    """The straight line from solution a to solution b, training and test data."""
    return pl.interpolate(
        study.objective("a"),
        study.trained("a"),
        study.trained("b"),
        resolution=study.config.interpolation_resolution,
        test=study.objective("a", "test"),
        progress=study.progress,
    )


def sharpness(study: Study) -> xr.Dataset:
    """S_eps, the largest rise of the loss within the ball of radius eps around each solution."""
    objectives = [study.objective(run) for run in "ab"]
    found = [
        pl.sharpness.ball(
            objective, epsilon=BALL_RADIUS, seed=study.config.seed, progress=study.progress
        )
        for objective in objectives
    ]
    return xr.Dataset(
        {
            "rise": ("run", [each.value for each in found]),
            "rise_of_ascent": (("run", "ascent"), np.stack([each.values for each in found])),
            "converged": (("run", "ascent"), np.array([each.converged for each in found])),
        },
        attrs={"kind": "sharpness", "runs": ["a", "b"], "epsilon": BALL_RADIUS}
        | {"starts": list(found[0].starts)}
        | objectives[0].describe(derivatives=True),
    )


def _spectrum_hessian(study: Study) -> CurvatureOperator:
    samples = min(study.config.spectrum_samples, study.sizes[0])
    return pl.Hessian(study.objective("a", samples=samples))


def _principal(study: Study, run: str, objective: pl.Objective) -> pl.Directions:
    return pl.principal_directions(objective, study.trajectory(run), progress=study.progress)


def find_eigenpairs(
    study: Study,
    objective: pl.Objective,
    which: Literal["largest", "both"],
    at: Tensor | None = None,
) -> pl.Eigenpairs:
    return pl.eigenpairs(
        pl.Hessian(objective, at=at),
        k=1,
        which=which,
        tol=study.config.eigenvalue_tolerance,
        seed=study.config.seed,
        # `spectrum` and `eigen_plane` look from other start vectors, for less
        copies=False,
        progress=study.progress,
    )


def _curvature_along(objective: pl.Objective, vector: Tensor) -> float:
    """The Rayleigh quotient v.Hv / v.v."""
    product = objective.hessian_vector_product(vector)
    return (vector.double() @ product.double() / (vector.double() @ vector.double())).item()
