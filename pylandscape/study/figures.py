"""The figures of the study, drawn from the stored results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import xarray as xr

from pylandscape import plots
from pylandscape.study.config import SOLUTIONS

Measurements = Mapping[str, Sequence[float]]
Results = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class Figure:
    """A figure on disk, `figures/<name>.png` and `.pdf`, and what the page says about it."""

    name: str
    title: str
    text: str
    source: str


@dataclass(frozen=True)
class _Drawing:
    """How a figure is made; `needs` are the stages it is drawn from, the first one its source.

    `text` is a format string over the measurements; sentences about
    numbers that may be missing are set off by " // ".
    """

    name: str
    title: str
    needs: tuple[str, ...]
    draw: Callable[..., matplotlib.figure.Figure]
    text: str


def draw_all(folder: Path, results: Results, measurements: Measurements) -> list[Figure]:
    """Draw every figure whose results are there, as PNG and PDF."""
    drawn = []
    for drawing in _DRAWINGS:
        if all(stage in results for stage in drawing.needs):
            page = drawing.draw(*(results[stage] for stage in drawing.needs))
            plots.save(page, folder / drawing.name)
            text = _fill(drawing.text, measurements)
            drawn.append(Figure(drawing.name, drawing.title, text, drawing.needs[0]))
    return drawn


def _fill(text: str, measurements: Measurements) -> str:
    """The text with its numbers; a sentence about what is not measured yet is left out."""
    sentences = []
    for sentence in text.split(" // "):
        try:
            sentences.append(sentence.format(m=measurements))
        except KeyError:
            continue
    return " ".join(sentences)


def _steps(training: xr.Dataset) -> xr.Dataset:
    return training[["loss", "grad_norm", "learning_rate"]]


def _pairs(plane: xr.Dataset) -> SimpleNamespace:
    made = {**plane.attrs, "samples": plane.attrs["eigenvalue_samples"], "matrix": "Hessian"}
    del made["directions"]
    return SimpleNamespace(
        values=plane["eigenvalue"].values, residuals=plane["residual"].values, attrs=made
    )


def _first_slice(slices: xr.Dataset) -> xr.Dataset:
    return slices.isel(direction=0)[["loss", "loss_stderr", "accuracy"]]


def _flatness_plot(flatness: xr.Dataset, solutions: xr.Dataset) -> matplotlib.figure.Figure:
    error = 1 - solutions["test_accuracy"]
    stderr = (error * (1 - error) / solutions.attrs["test_samples"]) ** 0.5
    return plots.correlation(
        flatness.assign(test_error=error, test_error_stderr=stderr),
        "lambda_max",
        "test_error",
        names=SOLUTIONS,
        labels=("largest eigenvalue", "test error"),
    )


def _rescaling_plot(lines: xr.Dataset) -> matplotlib.figure.Figure:
    figure = plots.line(lines.isel(network=0)[["loss", "loss_stderr", "accuracy"]])
    other = lines.isel(network=1)
    for ax, name in zip(figure.axes, ("loss", "accuracy"), strict=False):
        ax.plot(other["alpha"], other[name], "o", color="black", markerfacecolor="none",
                markersize=4, markeredgewidth=0.7)  # fmt: skip
    return figure


_DRAWINGS: tuple[_Drawing, ...] = (
    _Drawing(
        "loss-curve-a",
        "Loss during training, run a",
        ("training-a",),
        lambda run: plots.training(_steps(run)),
        "Mini-batch loss at every step. // Its mean over the last tenth of the steps is "
        "{m[loss_fall][0]:.2%} of that over the first tenth.",
    ),
    _Drawing(
        "gradient-norm-a",
        "Gradient norm during training, run a",
        ("training-a",),
        lambda run: plots.gradient_norm(_steps(run)),
        "Norm of the mini-batch gradient at every step. // Its mean over the last tenth of the "
        "steps is {m[gradient_fall][0]:.2%} of that over the first tenth.",
    ),
    _Drawing(
        "loss-curve-b",
        "Loss during training, run b",
        ("training-b",),
        lambda run: plots.training(_steps(run)),
        "The same for the second initialisation. // Here the share is {m[loss_fall][1]:.2%}.",
    ),
    _Drawing(
        "gradient-norm-b",
        "Gradient norm during training, run b",
        ("training-b",),
        lambda run: plots.gradient_norm(_steps(run)),
        "The same for the second initialisation. // Here the share is {m[gradient_fall][1]:.2%}.",
    ),
    _Drawing(
        "eigenvalues",
        "The first and last eigenvalues at solution a",
        ("eigen-plane",),
        lambda plane: plots.eigenvalues(_pairs(plane)),
        "Of the Hessian, with residuals as error bars; its caption says over how many digits.",
    ),
    _Drawing(
        "density",
        "The spectral density at solution a",
        ("spectrum",),
        plots.density,
        "Nearly all eigenvalues are close to zero. // The trace is {m[trace][0]:.3g} +- "
        "{m[trace][1]:.1g}, so that the mean eigenvalue is {m[mean_eigenvalue][0]:.2g}.",
    ),
    _Drawing(
        "log-density",
        "The same on a logarithmic scale",
        ("spectrum",),
        lambda spectrum: plots.density(spectrum, magnitude=True),
        "Positive and negative eigenvalues by their magnitude.",
    ),
    _Drawing(
        "layers",
        "The curvature of the layers at solution a",
        ("layers",),
        plots.layers,
        "Of the Hessian's diagonal block of each layer. Within a single layer the outputs of this "
        "net are piecewise linear in the parameters, so that no block has negative eigenvalues.",
    ),
    _Drawing(
        "lambda-max",
        "The largest eigenvalue along run a",
        ("curvature-path",),
        plots.eigenvalue_path,
        "At snapshots that lie closer together at the start.",
    ),
    _Drawing(
        "axis-curvature",
        "What random axes show of the curvature",
        ("spectrum",),
        plots.axis_curvature,
        "The curvature along the two axes of the next planes is an average of all eigenvalues, far "
        "below the largest. // It is {m[axis_curvature][0]:.2g} and {m[axis_curvature][1]:.2g}.",
    ),
    _Drawing(
        "eigen-plane",
        "The plane of the first and the last eigenvector",
        ("eigen-plane",),
        plots.contour,
        "The directions of the largest and of the most negative eigenvalue, of unit length.",
    ),
    _Drawing(
        "slice",
        "A filter-normalised line through solution a",
        ("slices",),
        lambda slices: plots.line(_first_slice(slices)),
        "At alpha = 1 every filter has been moved by its own norm. // The curvature along this "
        "line is {m[random_curvature][0]:.3g}, the largest Hessian eigenvalue "
        "{m[lambda_max][0]:.3g}.",
    ),
    _Drawing(
        "contour",
        "A filter-normalised plane through solution a",
        ("plane",),
        plots.contour,
        "Two random directions. // The loss has risen by 0.1 nat at a median distance of "
        "{m[valley_radius][0]:.3g} from the centre.",
    ),
    _Drawing(
        "surface",
        "The same plane as a surface",
        ("plane",),
        plots.surface,
        "The height is the loss. // It rises all the way along {m[monotone_share][0]:.0%} of the "
        "rays from the centre.",
    ),
    _Drawing(
        "trajectory",
        "Run a in the plane of its principal components",
        ("path-plane", "path-a"),
        plots.trajectory,
        "The path from the initialisation to solution a on the loss in the plane. // The two "
        "components explain {m[plane_variance][0]:.1%} of the variance of the snapshots.",
    ),
    _Drawing(
        "connections",
        "Three paths from solution a to solution b",
        ("connections",),
        lambda table: plots.barriers(table.assign_coords(path=table.attrs["paths"])),
        "The straight line, the line to solution b with its hidden units in the order of those of "
        "a, and a Bezier curve with one trained bend. // Barriers on the training data: "
        "{m[straight_path][0]:.3g}, {m[aligned_path][0]:.3g} and {m[curve_path][0]:.3g} nat.",
    ),
    _Drawing(
        "flatness",
        "The largest eigenvalue and the test error of six solutions",
        ("flatness", "solutions"),
        _flatness_plot,
        "All were trained to about the same training loss; bars are one standard error. // Rank "
        "correlation {m[rank_lambda_max][0]:.2f}.",
    ),
    _Drawing(
        "rescaling",
        "The same function, rescaled",
        ("rescaling",),
        _rescaling_plot,
        "Line: solution a. Circles: the same function, its first layer scaled up and its second "
        "down, along the same random direction normalised by its own filters. // The largest "
        "eigenvalue is {m[rescaled_lambda_max][0]:.4g} for one and {m[rescaled_lambda_max][1]:.4g} "
        "for the other.",
    ),
    _Drawing(
        "interpolation",
        "The straight line from solution a to solution b",
        ("interpolation",),
        plots.interpolation,
        "Loss and accuracy of networks between the two solutions. // The barrier is "
        "{m[loss_barrier][0]:.3g} nat on the training data and {m[loss_barrier][1]:.3g} on the "
        "test data; the accuracy drops by up to {m[error_barrier][0]:.1%} and "
        "{m[error_barrier][1]:.1%}.",
    ),
)
