"""The extreme eigenvalues of the Hessian, with their errors."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from pylandscape._checks import require, show
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._line import finish_panel, step_axis
from pylandscape.plots._values import Floats, gap_note, number_texts, read_curve

MOST_TEXTS = 6  # so many eigenvalues have room for their numbers
MOST_TICKS = 12  # so many have room for their ranks


@_style.in_style
def eigenvalues(pairs: Any, ax: Axes | None = None, *, caption: bool = True) -> Figure:
    """The eigenvalues of `eigenpairs` as stems, largest first, with their residuals as error bars.

    The residual ||H v - value v|| bounds the distance to the nearest eigenvalue. Positive values
    are blue, negative ones orange. Up to six carry their numbers, of more the first and the last.
    Hollow heads mean that the iteration had not converged.

    Args:
        pairs: `Eigenpairs`, or anything with vectors `values` and `residuals` [k] and, if it has
            them, `converged` and a mapping `attrs` for the caption.
        ax: where to draw; None makes a new figure.
        caption: whether a new figure carries its caption, with the largest residual.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `pairs` has no `values` or `residuals`.
        ValueError: if these are not two finite vectors of one length.

    Example:
        >>> from types import SimpleNamespace
        >>> import pylandscape.plots as plots
        >>> pairs = SimpleNamespace(values=[30.0, 4.0, -0.5], residuals=[0.01, 0.01, 0.01])
        >>> plots.eigenvalues(pairs).axes[0].get_ylabel()
        'eigenvalue'
    """
    values, residuals = _read(pairs)
    if ax is None:
        (ax,) = _style.new_panels((1.9,))
    order = np.argsort(-values)
    values, residuals = values[order], residuals[order]
    rank = np.arange(1.0, len(values) + 1)
    converged = bool(getattr(pairs, "converged", True))
    ax.axhline(0, color="black", linewidth=0.6)
    for chosen, color in ((values >= 0, _style.BLUE), (values < 0, _style.RED)):
        ax.vlines(rank[chosen], 0, values[chosen], color=color, linewidth=1.2)
        ax.errorbar(
            rank[chosen],
            values[chosen],
            residuals[chosen],
            color=color,
            linestyle="none",
            marker="o",
            markersize=3.5,
            markerfacecolor=color if converged else "white",
            capsize=2.5,
            elinewidth=0.8,
        )
    numbered = slice(None) if len(values) <= MOST_TEXTS else [0, -1]
    _write_values(ax, rank[numbered], values[numbered], residuals[numbered])
    ax.set_xlim(0.4, len(values) + 0.6)
    few = FixedLocator(rank.tolist()) if len(values) <= MOST_TICKS else None
    ax.xaxis.set_major_locator(few or MaxNLocator(8, integer=True))
    ax.set_xlabel("rank among those computed")
    ax.set_ylabel("eigenvalue")
    if not converged:
        hollow = Line2D(
            [0], [0], linestyle="none", marker="o", markersize=3.5, color=_style.GREY,
            markerfacecolor="white", label="not converged",
        )  # fmt: skip
        _style.legend_above(ax, [hollow])
    note = f"Bars: residuals, at most {residuals.max():.1g}."
    return _style.finish(ax, compose(caption, pairs, note))


@_style.in_style
def eigenvalue_path(path: xr.Dataset, ax: Axes | None = None, *, caption: bool = True) -> Figure:
    """The largest eigenvalue at snapshots of a training run, with residuals as error bars.

    Args:
        path: Dataset over `step` with `lambda_max` and, where known, `lambda_max_residual`.
        ax: where to draw; None makes a new figure.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `path` is not a Dataset.
        ValueError: if its dimensions are not (step,) or there is no `lambda_max`.

    Example:
        >>> import xarray as xr, pylandscape.plots as plots
        >>> path = xr.Dataset({"lambda_max": ("step", [1.0, 9.0, 4.0])}, {"step": [0, 100, 200]})
        >>> plots.eigenvalue_path(path).axes[0].get_xlabel()
        'step'
    """
    where = "plots.eigenvalue_path"
    curve = read_curve(path, "lambda_max", where, "path", "step")
    if ax is None:
        (ax,) = _style.new_panels((1.9,))
    residuals = None
    if "lambda_max_residual" in path:
        residuals = np.asarray(path["lambda_max_residual"], dtype=np.float64)
    ax.errorbar(
        curve.x, curve.values, residuals, color=_style.BLUE, marker="o", markersize=3.5,
        capsize=2.5, elinewidth=0.8, gid="lambda_max", clip_on=False,
    )  # fmt: skip
    finish_panel(ax, r"$\lambda_\mathrm{max}$")
    ax.set_ylim(min(0.0, float(np.nanmin(curve.values, initial=0.0))))
    step_axis(ax, curve.x)
    note = "Bars: residuals." if residuals is not None else ""
    return _style.finish(ax, compose(caption, path, gap_note(curve.state), note))


def _read(pairs: Any) -> tuple[Floats, Floats]:
    where = "plots.eigenvalues"
    require(
        hasattr(pairs, "values") and hasattr(pairs, "residuals"),
        f"{where}: pairs must have values and residuals, got {show(pairs)}. "
        "Make it with eigenpairs.",
        TypeError,
    )
    values, residuals = _array(pairs.values), _array(pairs.residuals)
    require(
        values.ndim == 1 and len(values) > 0 and values.shape == residuals.shape,
        f"{where}: values and residuals of pairs must be vectors of one length, got shapes "
        f"{list(values.shape)} and {list(residuals.shape)}.",
    )
    require(
        bool(np.isfinite(values).all() and np.isfinite(residuals).all()),
        f"{where}: values and residuals of pairs must be finite, got NaN or inf.",
    )
    return values, residuals


def _array(numbers: Any) -> Floats:
    """A float64 array from a list, an array, or a tensor on any device."""
    if hasattr(numbers, "detach"):
        numbers = numbers.detach().cpu()
    return np.asarray(numbers, dtype=np.float64)


def _digits_that_count(value: float, residual: float) -> str:
    """At most three digits, none beyond the residual; a value within it is not told from zero.

    Example:
        >>> _digits_that_count(0.3066, 1e-6), _digits_that_count(0.0226, 0.004)
        ('0.307', '0.02')
        >>> _digits_that_count(-3.5e-5, 0.002)
        '≈0'
    """
    if abs(value) <= residual:
        return "≈0"
    known = 3 if residual == 0 else int(np.clip(np.log10(abs(value) / residual) + 1, 1, 3))
    return number_texts([float(f"{value:.{known}g}")])[0]


def _write_values(ax: Axes, rank: Floats, values: Floats, residuals: Floats) -> None:
    """The numbers beyond the heads and bars, and room for them."""
    for x, value, residual in zip(rank, values, residuals, strict=True):
        sign = 1 if value >= 0 else -1
        ax.annotate(
            _digits_that_count(value, residual),
            (x, value + sign * residual),
            (0, 4 * sign),
            textcoords="offset points",
            ha="center",
            va="bottom" if sign > 0 else "top",
            fontsize=6,
        )
    ax.margins(y=0.15)
