"""The loss along a line, with its error band, and the accuracy below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from pylandscape._checks import require, show
from pylandscape.plots import _style
from pylandscape.plots._caption import axis_label, compose
from pylandscape.plots._values import (
    Curve,
    Floats,
    Scale,
    State,
    gap_note,
    is_log,
    log_floor,
    mark_gaps,
    number_texts,
    read_curve,
)

ERRORS = 2.0  # half width of the band, in standard errors


@_style.in_style
def line(
    curve: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    scale: Scale = "auto",
    caption: bool = True,
) -> Figure:
    """The loss along a line, with a band of two standard errors, and the accuracy in a panel below.

    The band shows how far the loss on these samples may be from the loss on all data, not how far
    it varies between training runs. Stretches without a finite value are hatched.

    Args:
        curve: Dataset over alpha with `loss` and, where known, `loss_stderr` and `accuracy`.
        ax: axes for the loss, or a pair for loss and accuracy; None makes a new figure.
        scale: of the loss: "log", "linear", or "auto", which is logarithmic when no value is
            negative and the largest is at least 100 times the smallest positive one.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `curve` is not a Dataset.
        ValueError: if its dimensions are not (alpha,), alpha does not increase, there is no `loss`,
            or a logarithmic scale is asked for negative values.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> alpha = np.linspace(-1, 1, 21)
        >>> parabola = xr.Dataset({"loss": ("alpha", alpha**2)}, {"alpha": alpha})
        >>> plots.line(parabola).axes[0].get_ylabel()
        'loss'
    """
    where = "plots.line"
    loss = read_curve(curve, "loss", where, "curve")
    log = is_log(loss.values, scale, where)
    upper, lower = panels(ax, "accuracy" in curve, where)
    legend = [*mark_centre(upper, loss), *mark_gaps(upper, loss.x, loss.state)]
    draw_curve(upper, curve, loss, "loss", _style.BLUE, log)
    if log:
        log_axis(upper, loss.values)
    finish_panel(upper, "loss")
    if lower is not None and "accuracy" in curve:
        accuracy = read_curve(curve, "accuracy", where, "curve")
        lower.plot(accuracy.x, accuracy.values, color=_style.GREEN, marker=dots(accuracy))
        percent(lower)
    bottom = lower or upper
    bottom.set_xlim(loss.x[0], loss.x[-1])
    bottom.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    bottom.set_xlabel(axis_label(curve.attrs, 0, "α"))
    _style.legend_above(upper, legend)
    band = "Band: 2 standard errors." if "loss_stderr" in curve else ""
    zeros = int((loss.values <= 0).sum()) if log else 0
    below = f"Not on the logarithmic scale: {zeros:,} of value 0." if zeros else ""
    return _style.finish(upper, compose(caption, curve, gap_note(loss.state), below, band))


def panels(
    ax: Axes | Sequence[Axes] | None, has_accuracy: bool, where: str
) -> tuple[Axes, Axes | None]:
    """The axes for loss and accuracy: those given, or new ones."""
    if ax is None:
        made = _style.new_panels((1.7, 0.7) if has_accuracy else (1.9,))
        return made[0], made[1] if has_accuracy else None
    if isinstance(ax, Axes):
        return ax, None
    pair: list[Any] = list(ax)
    require(
        len(pair) == 2 and all(isinstance(part, Axes) for part in pair),
        f"{where}: ax must be axes or a pair of axes, got {show(ax)}.",
        TypeError,
    )
    return pair[0], pair[1]


def draw_curve(
    ax: Axes, dataset: xr.Dataset, curve: Curve, name: str, color: str, is_log: bool, **line: Any
) -> Line2D:
    """A curve with the band of its standard errors; returns the line."""
    if f"{name}_stderr" in dataset:
        half = ERRORS * np.asarray(dataset[f"{name}_stderr"], dtype=np.float64)
        low = curve.values - half
        if is_log:
            low = np.maximum(low, log_floor(curve.values) / 100)  # the axis ends above that
        ax.fill_between(
            curve.x, low, curve.values + half, color=color, alpha=0.22, linewidth=0, gid="errors"
        )
    return ax.plot(curve.x, curve.values, color=color, marker=dots(curve), **line)[0]


def dots(curve: Curve) -> str:
    """Marks single points where there are few, or where a line would not show one alone."""
    known = np.pad(curve.state == State.FINITE, 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    return "." if len(curve.x) <= 15 or alone.any() else ""


def mark_centre(ax: Axes, curve: Curve) -> list[Artist]:
    """Marks alpha = 0, where that is a point of the curve; returns its legend entry."""
    at = np.flatnonzero(curve.x == 0)
    if len(at) == 0:
        return []
    ax.axvline(0, color=_style.GREY, linewidth=0.5, linestyle=(0, (2, 2)), zorder=0.8)
    style = _style.CENTRE | {"markersize": 5}
    mark = ax.plot([0], curve.values[at], zorder=4, label="centre", gid="centre", **style)[0]
    return [mark] if np.isfinite(curve.values[at[0]]) else []


def finish_panel(ax: Axes, label: str) -> None:
    ax.set_ylabel(label)
    if ax.get_yscale() == "linear":
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.margins(x=0)


def log_axis(ax: Axes, values: Floats) -> None:
    """A logarithmic axis down to the bottom of `values`, with plain numbers on its ticks."""
    ax.set_yscale("log")
    floor, top = log_floor(values), float(np.nanmax(values))
    ax.set_ylim(floor / (top / floor) ** 0.07, top * (top / floor) ** 0.07)
    low, high = ax.get_ylim()
    if high < 30 * low:  # too few powers of ten
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_texts([value])[0]))
    ax.yaxis.set_minor_formatter(NullFormatter())


def step_axis(ax: Axes, step: Floats) -> None:
    """The horizontal axis of a history."""
    ax.set_xlim(step[0], max(step[-1], step[0] + 1))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("step")


def percent(ax: Axes) -> None:
    """The look of an accuracy panel."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.05), min(high, 1.05))
    ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g} %"))
    ax.set_ylabel("accuracy")
