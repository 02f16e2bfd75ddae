"""One measure of several solutions against another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from pylandscape._checks import require, show
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._line import finish_panel
from pylandscape.plots._values import Scale, is_log, require_dataset, require_variable

MARKERS = "osD^vPX*<>"
COLOURS = (
    _style.BLUE, _style.ORANGE, _style.GREEN, _style.RED, _style.GREY, _style.PURPLE, _style.SKY
)  # fmt: skip


@_style.in_style
def correlation(
    table: xr.Dataset,
    x: str,
    y: str,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    labels: tuple[str, str] | None = None,
    scale: Scale = "auto",
    caption: bool = True,
) -> Figure:
    """Two measures of several solutions against each other, with their rank correlation.

    Each solution has its own marker. Where `<x>_stderr` or `<x>_residual` is known, bars show it,
    for `y` as well. The caption has Spearman's rank correlation; from a handful of solutions it
    says little, and nothing about causes.

    Args:
        table: Dataset with the variables `x` and `y` over one dimension, the solutions.
        x, y: names of variables.
        ax: where to draw; None makes a new figure.
        names: of the solutions, for the legend; by default the coordinate of their dimension.
        labels: of the axes; by default `x` and `y`.
        scale: of `x`, "log", "linear" or "auto".
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `table` is not a Dataset.
        ValueError: if the variables are not there or not over one same dimension, or there are not
            as many names as solutions.

    Example:
        >>> import xarray as xr, pylandscape.plots as plots
        >>> table = xr.Dataset({"sharpness": ("run", [1.0, 2.0]), "error": ("run", [0.1, 0.3])})
        >>> figure = plots.correlation(table, "sharpness", "error", names=["small", "large"])
        >>> figure.axes[0].get_xlabel()
        'sharpness'
    """
    where = "plots.correlation"
    require_dataset(table, where, "table")
    for name in (x, y):
        require_variable(table, name, where, "table")
    dims = {table[name].dims for name in (x, y)}
    require(
        len(dims) == 1 and table[x].ndim == 1,
        f"{where}: {x!r} and {y!r} must be over one same dimension, got {show(sorted(dims))}.",
    )
    (dimension,) = table[x].dims
    known = table[dimension].values if dimension in table.coords else range(len(table[x]))
    names = [str(name) for name in (known if names is None else names)]
    require(
        len(names) == len(table[x]),
        f"{where}: names must be {len(table[x])} in number, got {len(names)}.",
    )
    if ax is None:
        (ax,) = _style.new_panels((2.2,))
    xs, ys = (np.asarray(table[name], dtype=np.float64) for name in (x, y))
    errors = [_errors(table, name) for name in (x, y)]
    legend: list[Artist] = []
    for number, name in enumerate(names):
        one = slice(number, number + 1)
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
        known_errors = zip(("xerr", "yerr"), errors, strict=True)
        style |= {axis: each[one] for axis, each in known_errors if each is not None}
        style |= {"fmt": MARKERS[number % len(MARKERS)], "markersize": 5, "elinewidth": 0.8}
        marker = ax.errorbar(xs[one], ys[one], **style).lines[0]
        marker.set_label(name)
        legend.append(marker)
    if is_log(xs, scale, where):
        ax.set_xscale("log")
    finish_panel(ax, (labels or (x, y))[1])
    ax.margins(0.08)
    ax.set_xlabel((labels or (x, y))[0])
    _style.legend_above(ax, legend)
    finite = np.isfinite(xs) & np.isfinite(ys)
    varies = finite.sum() > 1 and np.ptp(xs[finite]) > 0 and np.ptp(ys[finite]) > 0
    rank = f"{spearmanr(xs[finite], ys[finite]).statistic:.2f}" if varies else "not defined"
    note = f"Rank correlation of {int(finite.sum())} solutions: {rank}."
    bars = "Bars: standard errors or residuals." if any(e is not None for e in errors) else ""
    return _style.finish(ax, compose(caption, table, note, bars))


def _errors(table: xr.Dataset, name: str) -> np.ndarray | None:
    for suffix in ("_stderr", "_residual"):
        if name + suffix in table:
            return np.asarray(table[name + suffix], dtype=np.float64)
    return None
