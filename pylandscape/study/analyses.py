"""The stages of the study: each a function of the trained networks, with an xarray result."""

from collections.abc import Callable
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

# For the time estimate, as seen: a product in units of a gradient, and how many of each it takes.
HESSIAN_PRODUCT = 3.4
PRODUCTS = {"largest": 13, "both": 48}  # Lanczos steps for one eigenpair, or one at each end
PAIR_PRODUCTS = 40  # for some pairs at each end, to PAIR_TOLERANCE
TRACE_PRODUCTS = 20  # to TRACE_TOLERANCE
PAIR_TOLERANCE = 1e-2
TRACE_TOLERANCE = 0.1
LAYER_PROBES = 2
BALL_GRADIENTS = 40


@dataclass
class Study:
    """What the stages work on: settings, digits, and the folder with the recorded runs."""

    config: StudyConfig
    digits: Digits
    folder: Path
    progress: bool | None = None

    def run_folder(self, run: str) -> Path:
        return self.folder / f"run-{run}"

    def trajectory(self, run: str) -> pl.Trajectory:
        return pl.Trajectory(self.run_folder(run))

    def trained(self, run: str) -> nn.Module:
        """The network as the recorded run left it."""
        model = SmallCNN()
        self.trajectory(run).load_into(model, -1)
        return model

    def objective(self, run: str, split: str = "train", samples: int | None = None) -> pl.Objective:
        """The loss over a split, or over `samples` random digits of it, centred on a solution."""
        data = getattr(self.digits, split)
        if samples is not None and samples >= len(data[1]):
            samples = None
        return pl.Objective(
            self.trained(run), nn.CrossEntropyLoss(), data, samples=samples, seed=self.config.seed
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


@dataclass(frozen=True)
class Work:
    """The expected work of a stage: losses and gradients, each times samples."""

    losses: float = 0.0
    gradients: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A unit of work that is done once and kept; `work` is for the time estimate."""

    name: str
    title: str
    run: Callable[[Study], xr.Dataset]
    work: Callable[[Study], Work]


def training(study: Study, run: str) -> xr.Dataset:
    """One run of SGD from its own initialisation; leaves the recorded run in `run-<run>`."""
    seed = study.config.seeds[run]
    return train(
        SmallCNN(seed), study.digits, study.config, seed, study.run_folder(run), study.progress
    )


def curvature(study: Study) -> xr.Dataset:
    """Both ends of the Hessian spectrum at each solution, over all training digits."""
    objectives = [study.objective(run) for run in "ab"]
    found = [_eigenpairs(study, objective, "both") for objective in objectives]
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
        | objectives[0].describe(),
    )


def curvature_path(study: Study) -> xr.Dataset:
    """lambda_max at the start of run a, at its end, and at snapshots spread between."""
    objective = study.objective("a", samples=study.plane_samples)
    path = study.trajectory("a")
    count = min(study.config.curvature_points, len(path))
    # Curvature changes most in the first epoch, so the snapshots get denser towards the start.
    share = np.linspace(0, 1, count) ** 2
    chosen = sorted(set(np.round(share * (len(path) - 1)).astype(int).tolist()))
    values, residuals = [], []
    for index in chosen:
        point = path.vector(index, objective.space)
        pairs = _eigenpairs(study, objective, "largest", point)
        values.append(pairs.values[0].item())
        residuals.append(pairs.residuals[0].item())
    steps_per_epoch = path.steps[-1] / study.config.epochs
    steps = np.array([path.steps[index] for index in chosen])
    return xr.Dataset(
        {"lambda_max": ("step", values), "lambda_max_residual": ("step", residuals)},
        coords={"step": steps, "epoch": ("step", steps / steps_per_epoch)},
        attrs={"kind": "spectrum along a path"} | objective.describe(),
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
    """The loss on the plane of run a's principal components, wide enough for the whole path."""
    objective = study.objective("a", samples=study.plane_samples)
    directions = _principal(study, "a", objective)
    projected = pl.project(study.trajectory("a"), directions, progress=study.progress)
    return pl.plane(
        objective,
        directions,
        extent=(
            _range_with_margin(projected["alpha"].values),
            _range_with_margin(projected["beta"].values),
        ),
        resolution=study.config.plane_resolution,
        progress=study.progress,
    )


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
        | objectives[0].describe(),
    )


def _spectrum_hessian(study: Study) -> CurvatureOperator:
    samples = min(study.config.spectrum_samples, study.sizes[0])
    return pl.Hessian(study.objective("a", samples=samples))


def _principal(study: Study, run: str, objective: pl.Objective) -> pl.Directions:
    return pl.principal_directions(objective, study.trajectory(run), progress=study.progress)


def _eigenpairs(
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


def _range_with_margin(values: np.ndarray, margin: float = 0.15) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low)
    return low - room, high + room


def _training_work(study: Study) -> Work:
    epochs, (train_count, test_count) = study.config.epochs, study.sizes
    return Work(losses=(epochs + 1) * (train_count + test_count), gradients=epochs * train_count)


def _spectrum_work(points: int, which: str, samples: int) -> Work:
    return Work(gradients=points * PRODUCTS[which] * HESSIAN_PRODUCT * samples)


def _products_work(study: Study, products: int) -> Work:
    samples = min(study.config.spectrum_samples, study.sizes[0])
    return Work(gradients=products * HESSIAN_PRODUCT * samples)


def _sharpness_work(study: Study) -> Work:
    return Work(gradients=2 * BALL_GRADIENTS * study.sizes[0])


def _slices_work(study: Study) -> Work:
    config, samples = study.config, study.sizes[0]
    return Work(
        losses=config.slice_directions * config.slice_resolution * samples,
        gradients=config.slice_directions * HESSIAN_PRODUCT * samples,
    )


def _plane_work(study: Study) -> Work:
    return Work(losses=study.config.plane_resolution**2 * study.plane_samples)


def _eigen_plane_work(study: Study) -> Work:
    products = _products_work(study, PAIR_PRODUCTS)
    return Work(_plane_work(study).losses, products.gradients)


def _path_work(study: Study) -> Work:
    snapshots = study.config.epochs * study.config.snapshots_per_epoch
    return Work(losses=2 * snapshots * study.plane_samples)


STAGES: tuple[Stage, ...] = (
    Stage("training-a", "training, run a", lambda s: training(s, "a"), _training_work),
    Stage("training-b", "training, run b", lambda s: training(s, "b"), _training_work),
    Stage(
        "curvature",
        "Hessian eigenvalues at both solutions",
        curvature,
        lambda s: _spectrum_work(2, "both", s.sizes[0]),
    ),
    Stage(
        "curvature-path",
        "largest Hessian eigenvalue along run a",
        curvature_path,
        lambda s: _spectrum_work(s.config.curvature_points, "largest", s.plane_samples),
    ),
    Stage(
        "spectrum",
        "spectral density and trace of the Hessian at solution a",
        spectrum,
        lambda s: _products_work(
            s, s.config.spectrum_probes * s.config.spectrum_steps + TRACE_PRODUCTS
        ),
    ),
    Stage(
        "layers",
        "spectra of the layers at solution a",
        layers,
        lambda s: _products_work(s, 4 * LAYER_PROBES * s.config.layer_steps),
    ),
    Stage(
        "eigen-plane",
        "plane of the first and last eigenvector at solution a",
        eigen_plane,
        _eigen_plane_work,
    ),
    Stage("sharpness", "sharpness S_eps at both solutions", sharpness, _sharpness_work),
    Stage("slices", "filter-normalised lines through solution a", slices, _slices_work),
    Stage("plane", "filter-normalised plane through solution a", plane, _plane_work),
    Stage("path-a", "run a in its principal plane", lambda s: path(s, "a"), _path_work),
    Stage("path-b", "run b in its principal plane", lambda s: path(s, "b"), _path_work),
    Stage("path-plane", "loss on the principal plane of run a", path_plane, _plane_work),
    Stage(
        "interpolation",
        "straight line from solution a to solution b",
        interpolation,
        lambda s: Work(losses=s.config.interpolation_resolution * sum(s.sizes)),
    ),
)
