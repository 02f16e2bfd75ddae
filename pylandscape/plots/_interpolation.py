"""The loss on the straight line between two models, with the barrier over its chord."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._line import dots, draw_curve, finish_panel, panels, percent
from pylandscape.plots._values import Curve, Floats, State, gap_note, mark_gaps, read_curve

CHORD = (0, (4, 2))  # dashes
SETS = {"": ("train", _style.BLUE), "test_": ("test", _style.ORANGE)}


@_style.in_style
def interpolation(
    result: xr.Dataset, ax: Axes | Sequence[Axes] | None = None, *, caption: bool = True
) -> Figure:
    """Loss and accuracy between two models, for training and, where present, test data.

    The dashed chord joins the losses at the ends. The barrier, the largest height of the training
    loss above its chord, is drawn as an arrow with its value; it is not drawn where no loss lies
    above the chord. The scale is linear, on which the chord is straight. Bands are two standard
    errors; stretches without a finite training loss are hatched.

    Args:
        result: Dataset over alpha with `loss` and, where known, `loss_stderr`, `accuracy`,
            `test_loss`, `test_loss_stderr`, `test_accuracy`.
        ax: axes for the loss, or a pair for loss and accuracy; None makes a new figure.
        caption: whether a new figure carries its caption, with the barriers.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `result` is not a Dataset.
        ValueError: if its dimensions are not (alpha,), alpha does not increase, or there is no
            `loss`.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> alpha = np.linspace(0, 1, 11)
        >>> hill = xr.Dataset({"loss": ("alpha", alpha * (1 - alpha))}, {"alpha": alpha})
        >>> figure = plots.interpolation(hill)
        >>> figure.axes[0].texts[-1].get_text()
        'barrier 0.25'
    """
    where = "plots.interpolation"
    curves = {
        name: read_curve(result, f"{name}loss", where, "result")
        for name in SETS
        if not name or f"{name}loss" in result
    }
    upper, lower = panels(ax, "accuracy" in result, where)
    legend: list[Artist] = []
    notes = []
    for name, curve in curves.items():
        label, color = SETS[name]
        drawn = draw_curve(upper, result, curve, f"{name}loss", color, False, label=label)
        legend.append(drawn)
        chord = np.interp(curve.x, curve.x[[0, -1]], curve.values[[0, -1]])
        upper.plot(curve.x, chord, color=color, linewidth=0.8, linestyle=CHORD, gid="chord")
        notes.append(f"Barrier ({label}): {_barrier_text(barrier_height(curve))}.")
    legend.append(_chord_entry())
    legend.extend(mark_gaps(upper, curves[""].x, curves[""].state))
    finish_panel(upper, "loss")
    arrow = _draw_barrier(upper, curves[""])
    if lower is not None:
        for name, (_, color) in SETS.items():
            if f"{name}accuracy" in result:
                accuracy = read_curve(result, f"{name}accuracy", where, "result")
                lower.plot(accuracy.x, accuracy.values, color=color, marker=dots(accuracy))
        percent(lower)
    bottom = lower or upper
    bottom.set_xlim(curves[""].x[0], curves[""].x[-1])
    bottom.set_xlabel("α, from model A (0) to model B (1)")
    _style.legend_above(upper, legend)
    notes.append("Bands: 2 standard errors." if "loss_stderr" in result else "")
    about = compose(caption, result, gap_note(curves[""].state), *notes)
    figure = _style.finish(upper, about)
    if arrow is not None:
        _write_barrier(upper, *arrow)
    return figure


def barrier_height(curve: Curve) -> float:
    """The largest height of a loss above its chord: 0 where it is nowhere above, inf where it is
    infinite between the ends, NaN where a NaN, an infinite end or a missing point leaves it open.

    Example:
        >>> import numpy as np
        >>> losses = np.array([0.0, 1.0, 0.5])
        >>> barrier_height(Curve(np.array([0.0, 0.5, 1.0]), losses, np.zeros(3, dtype=np.int8)))
        0.75
    """
    open_ended = (curve.state[[0, -1]] != State.FINITE).any()
    if open_ended or np.isin(curve.state, (State.NAN, State.MISSING)).any():
        return float("nan")
    if (curve.state == State.INFINITE).any():
        return float("inf")
    height = float(_excess(curve).max())
    return height if height > 1e-9 * np.abs(curve.values).max() else 0.0


def _barrier_text(height: float) -> str:
    if np.isnan(height):
        return "not known"
    return "infinite" if np.isinf(height) else f"{height:.3g}" if height > 0 else "none"


def _excess(curve: Curve) -> Floats:
    """The height of the loss above the chord."""
    return curve.values - np.interp(curve.x, curve.x[[0, -1]], curve.values[[0, -1]])


def _chord_entry() -> Line2D:
    return Line2D([0], [0], color=_style.GREY, linewidth=0.8, linestyle=CHORD, label="chord")


def _draw_barrier(ax: Axes, curve: Curve) -> tuple[float, float, float] | None:
    """An arrow from the chord to the loss where that is highest above it: (alpha, foot, head)."""
    height = barrier_height(curve)
    if not 0 < height < float("inf"):
        return None
    peak = int(np.argmax(_excess(curve)))
    x, head = float(curve.x[peak]), float(curve.values[peak])
    foot = head - height
    low, high = ax.get_ylim()
    style = "<->" if height > 0.08 * (high - low) else "-"  # heads need room
    ax.annotate(
        "",
        (x, head),
        (x, foot),
        arrowprops={"arrowstyle": style, "shrinkA": 0, "shrinkB": 0, "linewidth": 0.7},
        gid="barrier",
    )
    ax.set_ylim(low, max(high, head + 0.15 * (high - low)))  # room for the number
    return x, foot, head


def _write_barrier(ax: Axes, x: float, foot: float, head: float) -> None:
    """Writes the height of the barrier beside its arrow, where no curve runs through the text."""
    text = ax.annotate(
        f"barrier {head - foot:.3g}",
        (x, head),
        (0, 0),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )
    lines = [line.get_transform().transform_path(line.get_path()) for line in ax.get_lines()]
    frame = ax.get_window_extent()
    for share, shift in product((0.5, 0.3, 0.7, 1.0), (5, -5, 20, -20, 40, -40, 60, -60)):
        text.xy = (x, foot + share * (head - foot))
        text.set_horizontalalignment("left" if shift > 0 else "right")
        text.set_position((shift, 8 if share == 1.0 else 0))
        box = text.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
        if inside and not any(line.intersects_bbox(box, filled=False) for line in lines):
            return
