"""The path of training on the loss of its principal plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pylandscape._checks import require, show
from pylandscape.plots import _style
from pylandscape.plots._caption import axis_label, compose
from pylandscape.plots._contour import (
    MAX_STRETCH,
    choose_levels,
    colour_bar,
    draw_gaps,
    draw_lines,
    fill,
    shape_axes,
)
from pylandscape.plots._labels import label_lines
from pylandscape.plots._line import finish_panel, log_axis, step_axis
from pylandscape.plots._values import (
    Floats,
    Plane,
    Scale,
    gap_note,
    is_log,
    read_plane,
    require_dataset,
)

# The plane stays pale, so that the path, in a map of full range, stands out from all of it.
PALE = LinearSegmentedColormap.from_list("pale", ["#FFFFFF", "#9A9A9A"])
STEPS = "plasma"
FEW = 60  # so many snapshots are marked one by one


@_style.in_style
def trajectory(
    surface: xr.Dataset,
    projected: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    levels: int | Sequence[float] = 10,
    scale: Scale = "auto",
    caption: bool = True,
) -> Figure:
    """The path of training on a plane, and below it how far the path runs from that plane.

    The plane is drawn as by `contour`, in grey. The path is coloured by step; the panel below has
    the same colours over the steps and is the key to them. It shows the distance of each snapshot
    from the plane and, dashed, from the origin: where the two are close, the plane shows little of
    the path. With `loss` and `plane_loss` in `projected`, a third panel compares the loss of each
    snapshot with the loss of its image in the plane.

    Args:
        surface: Dataset over (alpha, beta) with `loss`, on the plane of the path.
        projected: Dataset over snapshot with `alpha`, `beta`, `distance`, as `project` gives; a
            coordinate `step`, and `displacement`, `loss`, `plane_loss` where known.
        ax: axes for the plane, or several for plane, distances and losses; None makes a new figure.
        levels: as in `contour`.
        scale: of the loss, as in `contour`.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if an argument is not a Dataset.
        ValueError: if the dimensions are not (alpha, beta) and (snapshot,), or a variable is
            missing.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> a = np.linspace(-1, 1, 11)
        >>> bowl = xr.Dataset(
        ...     {"loss": (("alpha", "beta"), a[:, None] ** 2 + a**2)}, {"alpha": a, "beta": a}
        ... )
        >>> names = ("alpha", "beta", "distance")
        >>> path = xr.Dataset({name: ("snapshot", np.linspace(0.8, 0, 5)) for name in names})
        >>> len(plots.trajectory(bowl, path).axes)
        2
    """
    scene = draw_scene(surface, projected, ax, levels, scale, "plots.trajectory")
    ends = _draw_path(scene.axes[0], scene.path)
    return finish_scene(scene, surface, projected, ends, caption)


@dataclass(frozen=True)
class Scene:
    """The panels of a trajectory, all but the path itself drawn."""

    axes: list[Axes]
    plane: Plane
    path: "Track"
    lines: QuadContourSet


def draw_scene(
    surface: xr.Dataset,
    projected: xr.Dataset,
    ax: Axes | Sequence[Axes] | None,
    levels: int | Sequence[float],
    scale: Scale,
    where: str,
) -> Scene:
    """The plane, and the panels below it."""
    plane = read_plane(surface, "loss", where)
    path = _read_path(projected, where)
    chosen = choose_levels(plane.values, levels, scale, where)
    fidelity = {"loss", "plane_loss"} <= set(projected.data_vars)
    axes = _axes(ax, plane, fidelity, where)
    bands = fill(axes[0], plane, chosen, PALE)
    lines = draw_lines(axes[0], plane, chosen, ["#6E6E6E"] * len(chosen))
    shape_axes(axes[0], surface, plane, None)
    _name_axes(axes[0], projected)
    _include(axes[0], path)
    colour_bar(axes[0], bands, plane, "loss")
    if len(axes) > 1:
        _draw_distance(axes[1], path, projected)
    if len(axes) > 2 and fidelity:
        _draw_losses(axes[2], path, projected)
    if len(axes) > 1:
        step_axis(axes[-1], path.step)
    return Scene(axes, plane, path, lines)


def finish_scene(
    scene: Scene,
    surface: xr.Dataset,
    projected: xr.Dataset,
    ends: Sequence[Artist],
    caption: bool,
) -> Figure:
    """Legend, caption and page."""
    _style.legend_above(scene.axes[0], [*ends, *draw_gaps(scene.axes[0], scene.plane)])
    gaps, note = gap_note(scene.plane.state), _note(projected, scene.path)
    figure = _style.finish(scene.axes[0], compose(caption, surface, gaps, note))
    label_lines(scene.lines, _drawn_points(scene.path))
    return figure


@dataclass(frozen=True)
class Track:
    """Snapshots in the order of their steps, those with NaN or infinite coordinates left out."""

    step: Floats
    x: Floats
    y: Floats
    distance: Floats
    kept: NDArray[np.intp]  # their places in the Dataset
    lost: int  # how many were left out

    @property
    def colours(self) -> Normalize:
        return Normalize(self.step[0], max(self.step[-1], self.step[0] + 1))


def _read_path(projected: xr.Dataset, where: str) -> Track:
    require_dataset(projected, where, "projected")
    columns = []
    for name in ("alpha", "beta", "distance"):
        require(
            name in projected.variables,
            f"{where}: projected must have a variable {name!r}, got "
            f"{', '.join(map(str, projected.data_vars)) or 'none'}. Make it with project.",
        )
        require(
            projected[name].dims == ("snapshot",),
            f"{where}: projected must have dimensions (snapshot), got "
            f"({', '.join(map(str, projected[name].dims))}) of {name!r}.",
        )
        columns.append(np.asarray(projected[name], dtype=np.float64))
    step = np.asarray(projected["step"] if "step" in projected else np.arange(len(columns[0])))
    order = np.argsort(step, kind="stable")
    finite = np.logical_and.reduce([np.isfinite(column) for column in columns])
    kept = order[finite[order]]
    require(len(kept) > 0, f"{where}: projected must have a finite snapshot, got none.")
    x, y, distance = (column[kept] for column in columns)
    return Track(step[kept].astype(np.float64), x, y, distance, kept, len(order) - len(kept))


def _axes(ax: Axes | Sequence[Axes] | None, plane: Plane, fidelity: bool, where: str) -> list[Axes]:
    if ax is None:
        width, height = float(np.ptp(plane.x)), float(np.ptp(plane.y))
        to_scale = 1 / MAX_STRETCH < width / height < MAX_STRETCH
        plane_height = _style.WIDTH * height / width if to_scale else 2.0
        first, *panels = _style.new_panels(
            (plane_height, 0.6, 0.6) if fidelity else (plane_height, 0.6), share=False
        )
        for panel in panels[1:]:
            panel.sharex(panels[0])
            panels[0].tick_params(labelbottom=False)
        return [first, *panels]
    given = [ax] if isinstance(ax, Axes) else list(ax)
    require(
        len(given) in (1, 2, 3) and all(isinstance(part, Axes) for part in given),
        f"{where}: ax must be axes or at most three of them, got {show(ax)}.",
        TypeError,
    )
    return given


def _draw_path(ax: Axes, path: Track) -> list[Artist]:
    ax.plot(path.x, path.y, color="white", linewidth=2.8, solid_capstyle="round", zorder=2.9)
    _draw_coloured(ax, path, path.x, path.y, "path")
    ends: list[Artist] = []
    for index, marker, label in ((0, "o", "start"), (-1, "*", "end")):
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": marker,
            "markersize": 5 if marker == "o" else 9,
            "markerfacecolor": colormaps[STEPS](path.colours(path.step[index])),
            "markeredgecolor": "black",
            "markeredgewidth": 0.6,
            "label": label,
        }
        ends.extend(ax.plot(path.x[index], path.y[index], zorder=4, gid=label, **style))
    return ends


def _draw_coloured(ax: Axes, path: Track, x: Floats, y: Floats, gid: str) -> None:
    """A line through the snapshots, coloured by step; few snapshots are marked on it."""
    points = np.stack([x, y], axis=1)
    line = LineCollection(
        list(np.stack([points[:-1], points[1:]], axis=1)),
        array=path.step[1:],
        cmap=STEPS,
        norm=path.colours,
        linewidths=1.5,
        capstyle="round",
        zorder=3,
        gid=gid,
    )
    ax.add_collection(line)
    if len(x) <= FEW:
        ax.scatter(x, y, s=6, c=path.step, cmap=STEPS, norm=path.colours, zorder=3.5)


def _drawn_points(path: Track) -> Floats:
    """Points [K, 2] along the path, which no number may cover."""
    between = np.linspace(0, len(path.x) - 1, max(len(path.x), 400))
    return np.stack([np.interp(between, np.arange(len(v)), v) for v in (path.x, path.y)], 1)


def _name_axes(ax: Axes, projected: xr.Dataset) -> None:
    """The axes' labels, with the share of the variance where it is known."""
    shares = projected.attrs.get("explained_variance")
    for index, (axis, symbol) in enumerate(((ax.xaxis, "α"), (ax.yaxis, "β"))):
        name = axis_label(projected.attrs, index, symbol)
        if shares is not None and index < len(shares):
            name = f"{symbol}: principal component {index + 1} ({shares[index]:.1%})"
        axis.set_label_text(name)


def _include(ax: Axes, path: Track) -> None:
    """Widens the limits to the whole path, where that leaves the plane that was evaluated."""
    for limits, set_limits, values in (
        (ax.get_xlim(), ax.set_xlim, path.x),
        (ax.get_ylim(), ax.set_ylim, path.y),
    ):
        margin = 0.04 * (max(limits[1], values.max()) - min(limits[0], values.min()))
        low = limits[0] if values.min() >= limits[0] else values.min() - margin
        high = limits[1] if values.max() <= limits[1] else values.max() + margin
        set_limits(low, high)


def _draw_distance(ax: Axes, path: Track, projected: xr.Dataset) -> None:
    """The distances from the plane, coloured as the path, and from the origin, dashed."""
    if "displacement" in projected:
        whole = np.asarray(projected["displacement"], dtype=np.float64)[path.kept]
        (line,) = ax.plot(path.step, whole, color=_style.GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        line.set_label("from origin")
    _draw_coloured(ax, path, path.step, path.distance, "distance")
    ax.autoscale_view()
    ax.set_ylim(0, 1.1 * max(ax.get_ylim()[1], 1e-12))
    finish_panel(ax, "distance")
    ax.yaxis.set_major_locator(MaxNLocator(3))
    key = Line2D([0], [0], color=colormaps[STEPS](0.5), linewidth=1.6, label="from plane")
    _style.legend_above(ax, [key, *ax.get_lines()[:1]])


def _draw_losses(ax: Axes, path: Track, projected: xr.Dataset) -> None:
    """The loss of the snapshots and of their images in the plane."""
    losses = {
        name: np.asarray(projected[name], dtype=np.float64)[path.kept]
        for name in ("loss", "plane_loss")
    }
    ax.plot(path.step, losses["loss"], color="black", label="of snapshot")
    ax.plot(
        path.step, losses["plane_loss"], color=_style.BLUE, linestyle=(0, (4, 2)), label="in plane"
    )
    both = np.concatenate(list(losses.values()))
    if is_log(both, "auto", "plots.trajectory"):
        log_axis(ax, both[np.isfinite(both)])
    finish_panel(ax, "loss")
    _style.legend_above(ax, ax.get_lines())


def _note(projected: xr.Dataset, path: Track) -> str:
    """How far the picture can be trusted, in numbers."""
    notes = []
    shares = projected.attrs.get("explained_variance")
    if shares is not None:
        total = float(np.sum(shares))
        notes.append(f"The axes hold {total:.1%} of the variance of {len(path.kept)} snapshots.")
    off = f"Snapshots lie up to {path.distance.max():.3g} off the plane"
    if "displacement" in projected:
        farthest = float(np.asarray(projected["displacement"])[path.kept].max())
        off += f" and up to {farthest:.3g} from its origin"
    if "loss_gap" in projected.attrs:
        off += f"; the loss in the plane differs from theirs by up to {_gap(projected, path)}"
    notes.append(off + ".")
    if path.lost:
        notes.append(f"{path.lost} snapshots have no finite coordinates.")
    return " ".join(notes)


def _gap(projected: xr.Dataset, path: Track) -> str:
    loss, inside = (np.asarray(projected[name])[path.kept] for name in ("loss", "plane_loss"))
    at = int(np.nanargmax(np.abs(loss - inside))) if np.isfinite(loss - inside).any() else 0
    return f"{abs(loss[at] - inside[at]):.3g} (at step {path.step[at]:,.0f})"
