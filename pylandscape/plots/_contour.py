"""The loss on a plane: filled contours with labelled lines."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import BoundaryNorm, Colormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from pylandscape._checks import require, show
from pylandscape.plots import _style
from pylandscape.plots._caption import axis_label, compose
from pylandscape.plots._labels import label_lines
from pylandscape.plots._values import (
    GAP_FACE,
    GAP_HATCHES,
    GAP_LABELS,
    GAP_LINE,
    Floats,
    Plane,
    Scale,
    State,
    cell_edges,
    contour_levels,
    gap_note,
    gap_patch,
    is_constant,
    number_texts,
    read_plane,
)

Aspect = Literal["auto", "equal"]
Extend = Literal["neither", "min", "max", "both"]
MAX_STRETCH = 2.5  # sides of a plane with equal units that differ by more are not drawn to scale


@_style.in_style
def contour(
    surface: xr.Dataset,
    ax: Axes | None = None,
    *,
    variable: str = "loss",
    levels: int | Sequence[float] = 10,
    scale: Scale = "auto",
    aspect: Aspect | None = None,
    caption: bool = True,
) -> Figure:
    """Filled and labelled contours of a plane, with alpha to the right and beta upwards.

    Each band between two levels has one colour, and the colour bar gives every band the same
    height. Points without a finite value are never interpolated: the cell of a grid point whose
    value is NaN, infinite or (by the variable `evaluated`) missing is hatched, with a legend entry
    for its kind and the counts in the caption; where a contour would need such a value, the cells
    around the finite neighbours show their own values instead.

    Args:
        surface: Dataset with `variable` over (alpha, beta).
        ax: where to draw; None makes a new figure of column width.
        variable: what to draw.
        levels: the levels themselves, or about how many (see `contour_levels`).
        scale: of the levels: "log", "linear", or "auto", which is logarithmic when no value is
            negative and the largest is at least 100 times the smallest positive one.
        aspect: "equal" draws both coordinates to one scale, "auto" fills the axes. None is equal
            where the coordinates have the same `units` (or none) and the sides differ by less than
            a factor of 2.5.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `surface` is not a Dataset.
        ValueError: if its dimensions are not (alpha, beta), a coordinate does not increase, the
            variable is not there, the levels do not increase, or a logarithmic scale is asked for
            negative values.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> a, b = np.linspace(-1, 1, 21), np.linspace(-1, 1, 11)
        >>> bowl = xr.Dataset(
        ...     {"loss": (("alpha", "beta"), a[:, None] ** 2 + b**2)}, {"alpha": a, "beta": b}
        ... )
        >>> plots.contour(bowl).axes[0].get_xlabel()
        'α'
    """
    where = "plots.contour"
    plane = read_plane(surface, variable, where)
    require(
        aspect in (None, "auto", "equal"),
        f"{where}: aspect must be None, 'auto' or 'equal', got {show(aspect)}.",
    )
    chosen = choose_levels(plane.values, levels, scale, where)
    if ax is None:
        (ax,) = _style.new_panels((2.2,))
    colormap = colormaps[_style.COLORMAP]
    bands = fill(ax, plane, chosen, colormap)
    lines = draw_lines(ax, plane, chosen, readable_colors(chosen, colormap))
    legend = [*mark_centre(ax, plane), *draw_gaps(ax, plane)]
    shape_axes(ax, surface, plane, aspect)
    colour_bar(ax, bands, plane, variable)
    _style.legend_above(ax, legend)
    figure = _style.finish(ax, compose(caption, surface, gap_note(plane.state)))
    label_lines(lines)
    return figure


def choose_levels(
    values: Floats, levels: int | Sequence[float], scale: Scale, where: str
) -> Floats:
    if isinstance(levels, (int, np.integer)):
        require(levels >= 1, f"{where}: levels must be at least 1, got {levels}.")
        return contour_levels(values, int(levels), scale, where)
    chosen = np.asarray(levels, dtype=np.float64)
    require(
        chosen.ndim == 1 and len(chosen) >= 2 and bool((np.diff(chosen) > 0).all()),
        f"{where}: levels must be a number or at least two increasing values, got {show(levels)}.",
    )
    return chosen


def fill(ax: Axes, plane: Plane, levels: Floats, colormap: Colormap) -> QuadContourSet:
    """Fills the bands; finite points beside a gap, where no band reaches, fill their own cell."""
    finite = plane.values[np.isfinite(plane.values)]
    below = len(finite) > 0 and bool(finite.min() < levels[0])
    above = len(finite) > 0 and bool(finite.max() > levels[-1])
    extend: Extend = "min" if below else "neither"
    if above:
        extend = "both" if below else "max"
    norm = BoundaryNorm(levels, colormap.N, extend=extend)
    values = np.ma.masked_invalid(plane.values.T)
    if (plane.state != State.FINITE).any():
        _background(ax, plane)
        _fill_cells(ax, plane, colormap, norm)
    filled = ax.contourf(
        plane.x, plane.y, values, levels=levels, cmap=colormap, norm=norm, extend=extend
    )
    filled.set_edgecolor("face")  # closes the hairlines that viewers show between PDF polygons
    filled.set_linewidth(0.2)
    return filled


def _background(ax: Axes, plane: Plane) -> None:
    corner, (width, height) = (plane.x[0], plane.y[0]), (np.ptp(plane.x), np.ptp(plane.y))
    ax.add_patch(Rectangle(corner, width, height, facecolor=GAP_FACE, linewidth=0, zorder=0.1))


def _fill_cells(ax: Axes, plane: Plane, colormap: Colormap, norm: BoundaryNorm) -> QuadMesh:
    beside_gap = _dilate(plane.state != State.FINITE)
    return ax.pcolormesh(
        cell_edges(plane.x),
        cell_edges(plane.y),
        np.ma.masked_invalid(np.where(beside_gap, plane.values, np.nan).T),
        cmap=colormap,
        norm=norm,
        edgecolor="face",
        linewidth=0.2,
        zorder=0.5,
    )


def _dilate(mask: Any) -> Any:
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.any(
        [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0
    )


def draw_lines(ax: Axes, plane: Plane, levels: Floats, colors: Sequence[Any]) -> QuadContourSet:
    """The contour lines, one colour for each level."""
    return ax.contour(
        plane.x,
        plane.y,
        np.ma.masked_invalid(plane.values.T),
        levels=levels,
        colors=list(colors),
        linewidths=0.4,
    )


def readable_colors(levels: Floats, colormap: Colormap) -> list[str]:
    """For each level black or white, whichever stands out from the bands that meet there."""
    bands = colormap(np.linspace(0, 1, max(len(levels) - 1, 1)))[:, :3]
    light = bands @ [0.299, 0.587, 0.114]
    beside = (np.append(light, light[-1]) + np.insert(light, 0, light[0])) / 2
    return ["black" if value > 0.45 else "white" for value in beside]


def draw_gaps(ax: Axes, plane: Plane) -> list[Artist]:
    """Hatches the cells without a finite value; returns a legend entry for each kind."""
    for gap in GAP_LABELS:
        cells = plane.state == gap
        if cells.any():
            ax.add_collection(_outline(plane, cells), autolim=False)
            ax.add_patch(
                PathPatch(
                    _cells_path(plane, cells),
                    facecolor="none",
                    edgecolor=GAP_LINE,
                    hatch=GAP_HATCHES[gap],
                    linewidth=0,
                    zorder=1.5,
                    gid=f"gap {gap.name}",
                )
            )
    return [gap_patch(gap) for gap in GAP_LABELS if (plane.state == gap).any()]


def _cells_path(plane: Plane, cells: Any) -> Path:
    """One path around all `cells`, a rectangle for each run of neighbours along alpha."""
    x, y = cell_edges(plane.x), cell_edges(plane.y)
    boxes = []
    for j in range(len(plane.y)):
        changes = np.flatnonzero(np.diff(np.concatenate([[0], cells[:, j].astype(int), [0]])))
        for start, stop in changes.reshape(-1, 2):
            left, right, low, high = x[start], x[stop], y[j], y[j + 1]
            boxes.append(
                Path([(left, low), (right, low), (right, high), (left, high), (0, 0)], closed=True)
            )
    return Path.make_compound_path(*boxes)


def _outline(plane: Plane, cells: Any) -> LineCollection:
    """The sides that `cells` do not share with one another."""
    x, y = cell_edges(plane.x), cell_edges(plane.y)
    padded = np.pad(cells, 1)
    upright = [
        [(x[i], y[j]), (x[i], y[j + 1])]
        for i, j in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    ]
    level = [
        [(x[i], y[j]), (x[i + 1], y[j])]
        for i, j in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    ]
    return LineCollection(
        upright + level, colors=GAP_LINE, linewidths=0.5, capstyle="projecting", zorder=1.6
    )


def mark_centre(ax: Axes, plane: Plane) -> list[Artist]:
    """Marks the point (0, 0) where it lies in the plane's range; returns its legend entry."""
    if not (plane.x[0] <= 0 <= plane.x[-1] and plane.y[0] <= 0 <= plane.y[-1]):
        return []
    line = Line2D([0], [0], zorder=5, label="centre", gid="centre", **_style.CENTRE)
    ax.add_line(line)
    return [line]


def shape_axes(ax: Axes, surface: xr.Dataset, plane: Plane, aspect: Aspect | None) -> None:
    """Limits, labels and aspect of a plane's axes."""
    width, height = np.ptp(plane.x), np.ptp(plane.y)
    same_units = surface["alpha"].attrs.get("units") == surface["beta"].attrs.get("units")
    to_scale = same_units and 1 / MAX_STRETCH < width / height < MAX_STRETCH
    ax.set_aspect(aspect or ("equal" if to_scale else "auto"))
    ax.set_xlim(plane.x[0], plane.x[-1])
    ax.set_ylim(plane.y[0], plane.y[-1])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.set_xlabel(axis_label(surface.attrs, 0, "α"))
    ax.set_ylabel(axis_label(surface.attrs, 1, "β"))
    for spine in ax.spines.values():
        spine.set_visible(True)


def colour_bar(ax: Axes, bands: QuadContourSet, plane: Plane, variable: str) -> None:
    """A bar beside the axes, as high as they are whatever their aspect; none without values."""
    finite = plane.values[np.isfinite(plane.values)]
    if len(finite) == 0:
        return
    levels = np.asarray(bands.levels, dtype=np.float64)
    flatness = np.ptp(plane.y) / np.ptp(plane.x) if ax.get_aspect() != "auto" else 1.0
    every = math.ceil(len(levels) / (12 * min(1.0, flatness)))  # a low bar has room for few
    shown = finite[:1] if is_constant(finite) else levels[::every]
    inset = ax.inset_axes((1.03, 0.0, 0.045, 1.0))
    bar = _style.root_figure(ax).colorbar(bands, cax=inset, spacing="uniform", ticks=shown)
    bar.set_ticklabels(number_texts(shown))
    bar.minorticks_off()
    bar.set_label(variable)
    bar.outline.set_linewidth(0.6)
