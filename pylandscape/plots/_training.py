"""What was measured during training: loss and gradient norm over the steps."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pylandscape._checks import require
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._line import finish_panel, log_axis, step_axis
from pylandscape.plots._values import Curve, Floats, Scale, State, is_log, mark_gaps, read_curve

SHARE = 30  # the window of the running mean is this fraction of the values
FEW = 50  # so many values are marked one by one


@_style.in_style
def training(
    log: xr.Dataset, ax: Axes | None = None, *, scale: Scale = "log", caption: bool = True
) -> Figure:
    """The training loss over the steps: every step faint, their running mean bold.

    The mean is taken over a window of a thirtieth of the recorded values around each, less at the
    ends, so that the bold line is not late. Rows without a value (NaN) between others are left out
    and counted in the caption; infinite values, and NaN that lasts to the end, are hatched. In a
    new figure a learning rate that changes has a panel of its own.

    Args:
        log: Dataset over step with `loss` and, where known, `learning_rate`, as `Trajectory.log`.
        ax: where to draw the loss; None makes a new figure.
        scale: of the loss, "log", "linear" or "auto".
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `log` is not a Dataset.
        ValueError: if its dimensions are not (step,), there is no `loss`, no loss is a number, or a
            logarithmic scale is asked for negative values.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> step = np.arange(200)
        >>> log = xr.Dataset({"loss": ("step", 2.3 * 0.99**step)}, {"step": step})
        >>> plots.training(log).axes[0].get_yscale()
        'log'
    """
    return _history(log, "loss", "loss", ax, scale, caption, "plots.training")


@_style.in_style
def gradient_norm(
    log: xr.Dataset, ax: Axes | None = None, *, scale: Scale = "log", caption: bool = True
) -> Figure:
    """The norm of the gradient over the steps, drawn as `training` draws the loss.

    Where the log has it as `grad_norm_unclipped`, the mean of the norm before clipping is dashed.

    Args:
        log: Dataset over step with `grad_norm`, as `Trajectory.log`.
        ax: where to draw; None makes a new figure.
        scale: "log", "linear" or "auto".
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `log` is not a Dataset.
        ValueError: if its dimensions are not (step,), there is no `grad_norm`, or no norm is a
            number.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> step = np.arange(200)
        >>> log = xr.Dataset({"grad_norm": ("step", 1 / (1 + step))}, {"step": step})
        >>> plots.gradient_norm(log).axes[0].get_ylabel()
        'gradient norm'
    """
    return _history(log, "grad_norm", "gradient norm", ax, scale, caption, "plots.gradient_norm")


def _history(
    log: xr.Dataset,
    variable: str,
    label: str,
    ax: Axes | None,
    scale: Scale,
    caption: bool,
    where: str,
) -> Figure:
    curve = read_curve(log, variable, where, "log", "step")
    known = curve.state == State.FINITE
    require(
        bool(known.any()),
        f"{where}: log must have a finite {variable} at some step, got none in {len(known)} steps.",
    )
    logarithmic = is_log(curve.values, scale, where)
    rate = _changing_rate(log) if variable == "loss" and ax is None else None
    if ax is None:
        upper, *lower = _style.new_panels((1.7, 0.55) if rate is not None else (1.9,))
    else:
        upper, lower = ax, []
    gaps = _lasting_gaps(curve)
    drawn = known | (gaps != State.FINITE)  # leaves out rows without a value, breaks at gaps
    window = int(known.sum()) // SHARE
    note = _draw_history(upper, curve.x[drawn], curve.values[drawn], window)
    legend = mark_gaps(upper, curve.x, gaps)
    shown = curve.values
    if variable == "grad_norm" and "grad_norm_unclipped" in log:
        unclipped = np.asarray(log["grad_norm_unclipped"], dtype=np.float64)
        means = running_mean(unclipped, max(1, window))
        style: dict[str, Any] = {"color": _style.GREY, "linewidth": 0.8, "linestyle": (0, (4, 2))}
        legend += upper.plot(curve.x, means, label="before clipping", gid="unclipped", **style)
        shown = np.concatenate([shown, means])
    if logarithmic:
        log_axis(upper, shown)
    finish_panel(upper, label)
    if rate is not None:
        lower[0].plot(rate.x, rate.values, color=_style.GREY, drawstyle="steps-post")
        lower[0].set_ylim(bottom=0)
        finish_panel(lower[0], "learning\nrate")
        lower[0].yaxis.set_major_locator(MaxNLocator(3))
    step_axis(lower[0] if lower else upper, curve.x)
    _style.legend_above(upper, legend)
    return _style.finish(upper, compose(caption, log, _missing_note(curve), note))


def _draw_history(ax: Axes, step: Floats, values: Floats, window: int) -> str:
    """Draws the values and their mean where the window holds several; returns what to say of it."""
    if window < 2:
        ax.plot(step, values, color=_style.BLUE, marker="." if len(step) <= FEW else "")
        return ""
    ax.plot(step, values, color=_style.BLUE, alpha=0.3, linewidth=0.5, gid="values")
    ax.plot(step, running_mean(values, window), color=_style.BLUE, gid="mean")
    return f"Faint: recorded values; bold: running mean over {window} of them."


def running_mean(values: Floats, window: int) -> Floats:
    """The mean of the finite values among `window` around each; NaN where the value itself is.

    Example:
        >>> import numpy as np
        >>> running_mean(np.array([1.0, 2.0, np.nan, 6.0]), 3)
        array([1.5, 1.5, nan, 6. ])
    """
    known = np.isfinite(values)
    ones = np.ones(window)
    size = len(values)
    start = (window - 1) // 2
    total = np.convolve(np.where(known, values, 0.0), ones)[start : start + size]
    count = np.convolve(known.astype(np.float64), ones)[start : start + size]
    return np.where(known, total / np.maximum(count, 1), np.nan)


def _changing_rate(log: xr.Dataset) -> Curve | None:
    if "learning_rate" not in log:
        return None
    rate = read_curve(log, "learning_rate", "plots.training", "log", "step")
    finite = rate.values[np.isfinite(rate.values)]
    return rate if len(finite) and np.ptp(finite) > 1e-9 * np.abs(finite).max() else None


def _lasting_gaps(curve: Curve) -> NDArray[np.int8]:
    """The gaps to be hatched: infinite values, and NaN from some step to the end.

    Rows of a log may lack a value, between two that have one and in the last row, which follows the
    last step. A run that has diverged lacks it for longer than any such pause.
    """
    known = np.flatnonzero(curve.state == State.FINITE)
    pause = int(np.diff(known).max(initial=1))
    state = curve.state.copy()
    end = known[-1] + 1 if len(state) - 1 - known[-1] > pause else len(state)
    state[:end][state[:end] == State.NAN] = State.FINITE
    return state


def _missing_note(curve: Curve) -> str:
    missing = int((curve.state != State.FINITE)[:-1].sum())
    return f"No finite value at {missing:,} of {len(curve.x):,} steps." if missing else ""
