"""The stages of the study: what is computed, in which order, and how much work each is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import xarray as xr

from pylandscape.study.analyses import (
    LAYER_PROBES,
    Study,
    curvature,
    curvature_path,
    eigen_plane,
    interpolation,
    layers,
    path,
    path_plane,
    plane,
    sharpness,
    slices,
    spectrum,
    training,
)
from pylandscape.study.comparisons import RESCALED, connections, flatness, rescaling, solutions
from pylandscape.study.config import SOLUTIONS

# For the time estimate, as seen: how many products and gradients it takes.
PRODUCTS = {"largest": 13, "both": 48}  # Lanczos steps for one eigenpair, or one at each end
PAIR_PRODUCTS = 40  # for some pairs at each end, to PAIR_TOLERANCE
TRACE_PRODUCTS = 20  # to TRACE_TOLERANCE
BALL_GRADIENTS = 40
GRADIENTS = {"ball": BALL_GRADIENTS, "keskar": 23, "adaptive_l2": 43, "adaptive_linf": 43}
SOLUTION_EPOCHS = 15  # that a solution takes to the loss at which it stops, on average


@dataclass(frozen=True)
class Work:
    """The expected work of a stage: losses, gradients and products with the Hessian, each times
    samples, and steps of training by the size of their batches."""

    losses: float = 0.0
    gradients: float = 0.0
    products: float = 0.0
    steps: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A unit of work that is done once and kept; `work` is for the time estimate."""

    name: str
    title: str
    run: Callable[[Study], xr.Dataset]
    work: Callable[[Study], Work]


def _training_work(study: Study, runs: Iterable[str], most_epochs: int | None = None) -> Work:
    train_count, test_count = study.sizes
    losses, steps = 0.0, dict[int, float]()
    for run in runs:
        recipe = study.config.recipe(run)
        epochs = min(recipe.epochs, most_epochs or recipe.epochs)
        losses += (epochs + 1) * (train_count + test_count)
        size = recipe.batch_size
        steps[size] = steps.get(size, 0.0) + epochs * -(-train_count // size)
    return Work(losses=losses, steps=steps)


def _measures_work(study: Study, networks: int, names: Iterable[str]) -> Work:
    """lambda_max, and measures of sharpness by name."""
    config = study.config
    samples = networks * min(config.flatness_samples, study.sizes[0])
    gradients = sum(GRADIENTS.get(name, 1) for name in names if name in config.sharpness)
    return Work(gradients=gradients * samples, products=PRODUCTS["largest"] * samples)


def _flatness_work(study: Study) -> Work:
    work = _measures_work(study, len(SOLUTIONS), study.config.sharpness)
    samples = min(study.config.flatness_samples, study.sizes[0])
    traces = len(SOLUTIONS) * min(TRACE_PRODUCTS, study.config.trace_products) * samples
    return replace(work, products=work.products + traces)


def _rescaling_work(study: Study) -> Work:
    samples = min(study.config.flatness_samples, study.sizes[0])
    return replace(
        _measures_work(study, 2, RESCALED), losses=2 * study.config.slice_resolution * samples
    )


def _connections_work(study: Study) -> Work:
    config = study.config
    losses = 3 * config.interpolation_resolution * sum(study.sizes)
    return Work(losses=losses, steps={config.batch_size: config.curve_steps})


def _spectrum_work(points: int, which: str, samples: int) -> Work:
    return Work(products=points * PRODUCTS[which] * samples)


def _products_work(study: Study, products: int) -> Work:
    return Work(products=products * min(study.config.spectrum_samples, study.sizes[0]))


def _sharpness_work(study: Study) -> Work:
    return Work(gradients=2 * BALL_GRADIENTS * study.sizes[0])


def _slices_work(study: Study) -> Work:
    config, samples = study.config, study.sizes[0]
    return Work(
        losses=config.slice_directions * config.slice_resolution * samples,
        products=config.slice_directions * samples,
    )


def _plane_work(study: Study) -> Work:
    return Work(losses=study.config.plane_resolution**2 * study.plane_samples)


def _eigen_plane_work(study: Study) -> Work:
    products = _products_work(study, PAIR_PRODUCTS)
    return Work(_plane_work(study).losses, products=products.products)


def _path_work(study: Study) -> Work:
    snapshots = study.config.epochs * study.config.snapshots_per_epoch
    return Work(losses=2 * snapshots * study.plane_samples)


STAGES: tuple[Stage, ...] = (
    Stage(
        "training-a",
        "training, run a",
        lambda s: training(s, "a"),
        lambda s: _training_work(s, ("a",)),
    ),
    Stage(
        "training-b",
        "training, run b",
        lambda s: training(s, "b"),
        lambda s: _training_work(s, ("b",)),
    ),
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
    Stage(
        "solutions",
        "six solutions by other recipes",
        solutions,
        lambda s: _training_work(s, SOLUTIONS, SOLUTION_EPOCHS),
    ),
    Stage(
        "flatness",
        "curvature and sharpness of the six solutions",
        flatness,
        _flatness_work,
    ),
    Stage(
        "connections",
        "paths from a to b: straight, aligned, curved",
        connections,
        _connections_work,
    ),
    Stage("rescaling", "solution a with rescaled layers", rescaling, _rescaling_work),
)
