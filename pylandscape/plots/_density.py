"""The spectral density of a curvature matrix, and the spectra of its layers side by side."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from pylandscape._checks import require
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._line import ERRORS, finish_panel
from pylandscape.plots._values import (
    MINUS,
    Floats,
    Scale,
    is_log,
    number_texts,
    require_dataset,
    require_variable,
)

DECADES = 6.0  # a logarithmic density shows at most so many below its maximum
SIGNS = {1: ("positive", _style.BLUE), -1: ("negative", _style.RED)}
LAYER_HEIGHT = 0.19  # inches
TICK_SPACING = 0.11  # of the axis


@_style.in_style
def density(
    spectrum: xr.Dataset,
    ax: Axes | None = None,
    *,
    magnitude: bool = False,
    scale: Scale = "log",
    caption: bool = True,
) -> Figure:
    """A spectral density with a band of two standard errors, and its outermost eigenvalues.

    The band is the spread over the random vectors. A logarithmic scale ends a decade below the
    height of a single eigenvalue, at most six decades below the maximum: what lies between
    eigenvalues that stand alone is no density.

    Args:
        spectrum: what `spectral_density` gives, or a layer of what `layer_spectra` gives.
        ax: where to draw; None makes a new figure.
        magnitude: draws the density of log10 |eigenvalue|, of the positive and of the negative
            ones, for spectra of many decades. Close to zero, signs are below the resolution.
        scale: of the density, "log", "linear" or "auto".
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `spectrum` is not a Dataset.
        ValueError: if it has no density, or no finite one.

    Example:
        >>> import torch, pylandscape as pl
        >>> found = pl.spectral_density(torch.diag(torch.linspace(-1, 3, 50)), probes=3, steps=10)
        >>> pl.plots.density(found).axes[0].get_xlabel()
        'eigenvalue'
    """
    where = "plots.density"
    require_dataset(spectrum, where, "spectrum")
    name = "log_density" if magnitude else "density"
    require_variable(spectrum, name, where, "spectrum")
    axis = "magnitude" if magnitude else "eigenvalue"
    x = np.asarray(spectrum[axis], dtype=np.float64)
    require(
        x.ndim == 1,
        f"{where}: spectrum must be of one matrix, got {x.ndim} dimensions of {axis}. Select a "
        "layer with sel.",
    )
    values = np.asarray(spectrum[name], dtype=np.float64)
    errors = np.nan_to_num(np.asarray(spectrum[f"{name}_stderr"], dtype=np.float64))
    require(
        bool(np.isfinite(values).all()),
        f"{where}: the density of spectrum must be finite, got NaN or inf.",
    )
    if ax is None:
        (ax,) = _style.new_panels((1.9,))
    logarithmic = is_log(values, scale, where)
    bottom = _bottom(spectrum, values, magnitude) if logarithmic else 0.0
    legend: list[Artist] = []
    if magnitude:
        for sign, row, error in zip(spectrum["sign"].values, values, errors, strict=True):
            label, color = SIGNS[int(sign)]
            if row.max() > bottom:
                legend += _draw(ax, x, row, error, bottom, color, label=label)
        ax.set_xscale("log")
        ax.set_xlabel("|eigenvalue|")
        finish_panel(ax, "density per decade")
    else:
        _draw(ax, x, values, errors, bottom, _style.BLUE)
        ax.set_xlabel("eigenvalue")
        finish_panel(ax, "density")
    if logarithmic:
        ax.set_yscale("log")
    ax.set_ylim(bottom, (3 if logarithmic else 1.05) * (values + ERRORS * errors).max())
    ax.set_xlim(x[0], x[-1])
    if not magnitude:
        _mark_ends(ax, spectrum)
    _style.legend_above(ax, legend)
    known = "probes" in spectrum.attrs and spectrum.attrs["probes"] > 1
    band = (
        f"Band: 2 standard errors over {spectrum.attrs['probes']} random vectors" if known else ""
    )
    sd = spectrum.attrs.get("broadening")
    width = f"bumps of {sd:.2g} of the range" if sd and not magnitude else ""
    note = "; ".join(filter(None, [band, width]))
    return _style.finish(ax, compose(caption, spectrum, f"{note}." if note else ""))


def _draw(
    ax: Axes, x: Floats, values: Floats, errors: Floats, bottom: float, color: str, **line: Any
) -> list[Artist]:
    low = np.maximum(values - ERRORS * errors, bottom / 100)
    high = values + ERRORS * errors
    ax.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0, gid="errors")
    return list(ax.plot(x, np.maximum(values, bottom / 100), color=color, linewidth=0.9, **line))


def _bottom(spectrum: xr.Dataset, values: Floats, magnitude: bool) -> float:
    """A decade below the height of a single eigenvalue where the number of them is known."""
    top = float(values.max())
    lowest = top * 10.0**-DECADES
    if magnitude or "size" not in spectrum.attrs or "sd" not in spectrum.attrs:
        return lowest
    one = 1 / (spectrum.attrs["size"] * spectrum.attrs["sd"] * (2 * np.pi) ** 0.5)
    return max(lowest, 0.1 * one)


def _mark_ends(ax: Axes, spectrum: xr.Dataset) -> None:
    """Triangles below the axis at the outermost eigenvalues, with their numbers."""
    for name, side, shift in (("lambda_min", "left", 4), ("lambda_max", "right", -4)):
        if name not in spectrum:
            continue
        value = float(spectrum[name])
        transform = ax.get_xaxis_transform()
        ax.plot(
            [value], [0.02], transform=transform, marker="v", markersize=3.5, color="black",
            linestyle="none", clip_on=False, gid=name,
        )  # fmt: skip
        ax.annotate(
            number_texts([float(f"{value:.3g}")])[0],
            (value, 0.02), (shift, 4), xycoords=transform, textcoords="offset points",
            ha=side, va="bottom", fontsize=6,
        )  # fmt: skip


@_style.in_style
def layers(spectra: xr.Dataset, ax: Axes | None = None, *, caption: bool = True) -> Figure:
    """The curvature of each layer: largest, most negative and mean eigenvalue of its block.

    The bars are residuals, within which an eigenvalue lies, and one standard error of the mean. The
    scale is logarithmic in the magnitude; a mean that is negative is hollow.

    Args:
        spectra: what `layer_spectra` gives.
        ax: where to draw; None makes a new figure.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `spectra` is not a Dataset.
        ValueError: if it has no layers, or lacks their eigenvalues.

    Example:
        >>> import torch, pylandscape as pl
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> data = torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> H = pl.Hessian(pl.Objective(model, nn.CrossEntropyLoss(), data))
        >>> figure = pl.plots.layers(pl.layer_spectra(H, probes=2, steps=10))
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['0 (40)', '2 (27)']
    """
    where = "plots.layers"
    require_dataset(spectra, where, "spectra")
    require(
        "layer" in spectra.dims,
        f"{where}: spectra must have a dimension layer, got {', '.join(map(str, spectra.dims))}. "
        "Make it with layer_spectra.",
    )
    for name in ("lambda_max", "lambda_min", "trace", "trace_stderr", "parameters"):
        require_variable(spectra, name, where, "spectra")
    count = spectra.sizes["layer"]
    if ax is None:
        (ax,) = _style.new_panels((0.25 + LAYER_HEIGHT * count,))
    size = spectra["parameters"]
    rows = np.arange(count, dtype=np.float64)
    legend: list[Artist] = []
    for label, value, error, marker, color in (
        ("largest", spectra["lambda_max"], spectra["lambda_max_residual"], "o", _style.BLUE),
        (
            f"{MINUS}smallest",
            -spectra["lambda_min"],
            spectra["lambda_min_residual"],
            "s",
            _style.RED,
        ),
        ("mean", spectra["trace"] / size, spectra["trace_stderr"] / size, "D", _style.GREY),
    ):
        x, half = np.asarray(value, dtype=np.float64), np.asarray(error, dtype=np.float64)
        drawn = (x > 0) | ((x < 0) & (label == "mean"))
        if not drawn.any():
            continue
        bars = np.nan_to_num(np.stack([np.minimum(half, 0.9 * np.abs(x)), half]))
        style: dict[str, Any] = {"marker": marker, "markersize": 3.5, "linestyle": "none"}
        ax.errorbar(
            np.abs(x)[drawn], rows[drawn], xerr=bars[:, drawn], color=color, capsize=2,
            elinewidth=0.8, label=label, **style,
        )  # fmt: skip
        below = x < 0
        if label == "mean" and below.any():
            ax.plot(np.abs(x)[below], rows[below], color=color, markerfacecolor="white", **style)
        legend.append(Line2D([0], [0], color=color, label=label, **style))
    ax.set_xscale("log")
    ax.set_xlabel("|eigenvalue|")
    names = zip(spectra["layer"].values, size.values, strict=True)
    ax.set_yticks(rows, [f"{layer} ({parameters:,})" for layer, parameters in names])
    ax.set_ylim(count - 0.5, -0.5)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    _style.legend_above(ax, legend)
    note = "Beside each layer its number of parameters; bars: residuals, and one standard error."
    return _style.finish(ax, compose(caption, spectra, note))


@_style.in_style
def axis_curvature(found: xr.Dataset, ax: Axes | None = None, *, caption: bool = True) -> Figure:
    """The curvature that the axes of a slice show, against the eigenvalues that there are.

    Dots are the curvatures along the axes, the bar below them the range of curvatures in their
    span. Vertical lines mark lambda_max, lambda_min and the mean eigenvalue, with a band of two
    standard errors. The scale is logarithmic on both sides of a stretch around zero.

    Args:
        found: what `pylandscape.axis_curvature` gives.
        ax: where to draw; None makes a new figure.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `found` is not a Dataset.
        ValueError: if it has no curvature over `axis`.

    Example:
        >>> import torch, pylandscape as pl
        >>> data = torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> objective = pl.Objective(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), data)
        >>> H = pl.Hessian(objective)
        >>> found = pl.axis_curvature(H, pl.random_directions(objective), trace=pl.trace(H))
        >>> pl.plots.axis_curvature(found).axes[0].get_xlabel()
        'curvature'
    """
    where = "plots.axis_curvature"
    require_dataset(found, where, "found")
    require_variable(found, "curvature", where, "found")
    require_variable(found, "principal", where, "found")
    require(
        found["curvature"].dims == ("axis",),
        f"{where}: found must have curvature over (axis), got {found['curvature'].dims}.",
    )
    curvatures = np.asarray(found["curvature"], dtype=np.float64)
    principal = np.asarray(found["principal"], dtype=np.float64)
    count = len(curvatures)
    if ax is None:
        (ax,) = _style.new_panels((0.45 + LAYER_HEIGHT * (count + 1),))
    legend: list[Artist] = []
    marks = (
        ("lambda_max", r"$\lambda_\mathrm{max}$", _style.BLUE, "-"),
        ("lambda_min", r"$\lambda_\mathrm{min}$", _style.RED, "-"),
        ("mean", "mean eigenvalue, tr H / P", _style.GREY, "--"),
    )
    shown = [*curvatures, *principal]
    for name, label, color, line in marks:
        if name in found:
            value = float(found[name])
            shown.append(value)
            legend.append(
                ax.axvline(value, label=label, gid=name, color=color, linestyle=line, linewidth=1.0)
            )
    if "mean_stderr" in found:
        half = ERRORS * float(found["mean_stderr"])
        middle = float(found["mean"])
        ax.axvspan(middle - half, middle + half, color=_style.GREY, alpha=0.25, linewidth=0)
    rows = np.arange(count, dtype=np.float64)
    ax.plot(curvatures, rows, "o", color="black", markersize=3.5, gid="curvature", zorder=3)
    names = [str(label) for label in found["axis"].values]
    if count > 1:
        ends = principal[[-1, 0]]
        ax.plot(ends, [count, count], color="black", linewidth=3, solid_capstyle="butt", gid="span")
        names.append("all in their span")
    ax.set_yticks(np.arange(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    _two_sided_scale(ax, np.array(shown))
    ax.set_xlabel("curvature")
    _style.legend_above(ax, legend)
    band = "Grey band: two standard errors of the mean." if "mean_stderr" in found else ""
    return _style.finish(ax, compose(caption, found, band))


def _two_sided_scale(ax: Axes, values: Floats) -> None:
    """A horizontal scale that is logarithmic on both sides of a stretch around zero.

    matplotlib's own ticks run into one another there: here each has room, the outer ones first.
    """
    sizes = np.abs(values[values != 0])
    if len(sizes) == 0:
        return
    threshold = 0.5 * max(sizes.min(), 1e-6 * sizes.max())
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    ax.set_xscale("symlog", linthresh=threshold, linscale=0.6)
    ax.set_xlim(2 * low - threshold, 2 * high + threshold)
    first, last = np.log10(threshold), np.log10(sizes.max())
    decades = 10.0 ** np.arange(np.ceil(first), np.floor(last) + 1)[::-1]
    candidates = [0.0, *(sign * decade for decade in decades for sign in (1, -1))]
    ticks: list[float] = []
    place = ax.transScale.transform
    ends = place([(2 * low - threshold, 0), (2 * high + threshold, 0)])[:, 0]
    for tick in candidates:
        if not 2 * low <= tick <= 2 * high:
            continue
        at = place([(x, 0) for x in [tick, *ticks]])[:, 0] / np.ptp(ends)
        if len(at) == 1 or np.abs(at[1:] - at[0]).min() > TICK_SPACING:
            ticks.append(tick)
    texts = dict(zip(ticks, number_texts(np.abs(ticks)), strict=True))
    ax.set_xticks(ticks, [(MINUS if tick < 0 else "") + text for tick, text in texts.items()])
    ax.xaxis.set_minor_locator(NullLocator())
