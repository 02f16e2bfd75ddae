"""The plane of a curve between two models, with the curve on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pylandscape._checks import require
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._contour import (
    choose_levels,
    colour_bar,
    draw_gaps,
    draw_lines,
    fill,
    readable_colors,
    shape_axes,
)
from pylandscape.plots._labels import label_lines
from pylandscape.plots._values import Floats, Scale, gap_note, read_plane

PATH = ("path_alpha", "path_beta", "node_alpha", "node_beta")
OFF_PLANE = 1e-3  # of the distance of the models, from which on a curve has left its plane


@_style.in_style
def curve_plane(
    surface: xr.Dataset,
    ax: Axes | None = None,
    *,
    levels: int | Sequence[float] = 10,
    scale: Scale = "auto",
    caption: bool = True,
) -> Figure:
    """The loss on the plane of a curve, with the curve, the straight line and the bends.

    The plane is drawn as by `contour`. The curve is black, the straight line between its ends
    dashed; both models and the bends, which attract the curve, are marked. The caption says how far
    a curve of several bends runs from the plane.

    Args:
        surface: what `Curve.plane` gives.
        ax: where to draw; None makes a new figure.
        levels, scale: as in `contour`.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `surface` is not a Dataset.
        ValueError: if it is no plane, or has no curve.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> a, t = np.linspace(-1, 1, 11), np.linspace(0, 1, 21)
        >>> bowl = xr.Dataset(
        ...     {"loss": (("alpha", "beta"), a[:, None] ** 2 + a**2)}, {"alpha": a, "beta": a}
        ... )
        >>> path = {"path_alpha": ("t", t - 0.5), "path_beta": ("t", t * (1 - t))}
        >>> nodes = {"node_alpha": ("node", [-0.5, 0, 0.5]), "node_beta": ("node", [0, 0.5, 0])}
        >>> legend = plots.curve_plane(bowl.assign(path | nodes)).axes[0].get_legend()
        >>> [text.get_text() for text in legend.get_texts()]
        ['model A', 'model B', 'bend', 'curve', 'straight line']
    """
    where = "plots.curve_plane"
    plane = read_plane(surface, "loss", where)
    missing = [name for name in PATH if name not in surface]
    require(
        not missing,
        f"{where}: surface must hold a curve, got none of {', '.join(missing)}. Make it with "
        "Curve.plane.",
    )
    chosen = choose_levels(plane.values, levels, scale, where)
    if ax is None:
        (ax,) = _style.new_panels((2.2,))
    colormap = colormaps[_style.COLORMAP]
    bands = fill(ax, plane, chosen, colormap)
    lines = draw_lines(ax, plane, chosen, readable_colors(chosen, colormap))
    legend = [*_draw_curve(ax, surface), *draw_gaps(ax, plane)]
    shape_axes(ax, surface, plane, None)
    colour_bar(ax, bands, plane, "loss")
    _style.legend_above(ax, legend)
    text = compose(caption, surface, gap_note(plane.state), _note(surface))
    figure = _style.finish(ax, text)
    label_lines(lines, _drawn_points(surface))
    return figure


def _drawn_points(surface: xr.Dataset) -> Floats:
    """Points [K, 2] along the curve and the straight line, which no number may cover."""
    x, y, nodes_x, nodes_y = (np.asarray(surface[name], dtype=np.float64) for name in PATH)
    share = np.linspace(0, 1, len(x))
    straight = [
        start + share * (end - start) for start, end in (nodes_x[[0, -1]], nodes_y[[0, -1]])
    ]
    return np.concatenate(
        [np.stack([x, y], 1), np.stack([nodes_x, nodes_y], 1), np.stack(straight, 1)]
    )


def _draw_curve(ax: Axes, surface: xr.Dataset) -> list[Artist]:
    """Curve, straight line and nodes; returns their legend entries."""
    x, y, nodes_x, nodes_y = (np.asarray(surface[name], dtype=np.float64) for name in PATH)
    for width, color in ((3.0, "white"), (1.5, "black")):
        ax.plot(x, y, color=color, linewidth=width, solid_capstyle="round", zorder=3, gid="curve")
    ends = [0, -1]
    for width, color in ((2.0, "white"), (0.9, "black")):
        alike = (3 * 0.9 / width, 2 * 0.9 / width)  # dashes are in widths of their line
        ax.plot(
            nodes_x[ends], nodes_y[ends], color=color, linewidth=width, linestyle=(0, alike),
            zorder=2.9, gid="straight line",
        )  # fmt: skip
    common: dict[str, Any] = {
        "linestyle": "none",
        "markeredgecolor": "black",
        "markeredgewidth": 0.7,
    }
    marks = {
        "model A": (slice(0, 1), "o", "white"),
        "model B": (slice(-1, None), "s", "white"),
        "bends" if len(nodes_x) > 3 else "bend": (slice(1, -1), "D", _style.ORANGE),
    }
    legend: list[Artist] = []
    for label, (which, marker, face) in marks.items():
        legend += ax.plot(
            nodes_x[which], nodes_y[which], marker=marker, markersize=5, markerfacecolor=face,
            zorder=4, label=label, gid=label, clip_on=True, **common,
        )  # fmt: skip
    legend.append(Line2D([0], [0], color="black", linewidth=1.5, label="curve"))
    dashes = (0, (3, 2))
    legend.append(
        Line2D([0], [0], color="black", linewidth=0.9, linestyle=dashes, label="straight line")
    )
    return legend


def _note(surface: xr.Dataset) -> str:
    off = float(surface["path_distance"].max()) if "path_distance" in surface else 0.0
    apart = float(np.hypot(*(np.ptp(surface[name].values) for name in PATH[:2])))
    if off > OFF_PLANE * apart:
        return f"The curve runs up to {off:.3g} from this plane."
    return ""
