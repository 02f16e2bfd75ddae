"""The loss on a plane as a lit surface in three dimensions."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from mpl_toolkits.mplot3d import Axes3D, proj3d
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from pylandscape._checks import require, show
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._values import (
    GAP_LABELS,
    Floats,
    Plane,
    Scale,
    State,
    cell_edges,
    contour_levels,
    gap_note,
    is_log,
    log_floor,
    number_texts,
    read_plane,
)

QUANTILE = 0.95  # heights are cut there ...
OUTLYING = 2.0  # ... when the range above the minimum is more than this times the range below it
FLOOR = 0.35  # distance of the floor below the surface, as a share of the surface's height
LIGHT = np.array([-0.45, -0.35, 0.82])  # from the upper left, behind the viewer
AMBIENT = 0.55
CUT_COLOR = "#B5B5B5"
GAP_COLORS = {State.NAN: "#3B3B3B", State.INFINITE: _style.RED, State.MISSING: "#CFCFCF"}


@dataclass(frozen=True)
class Heights:
    """What is drawn upwards: `values` in axis units, log10 of the loss where `is_log`."""

    values: Floats  # [nx, ny], NaN in gaps
    is_log: bool
    cut: float | None  # larger losses are drawn at this one; None when there are none
    floor: float | None  # smaller losses are drawn at this one


def heights(plane: Plane, scale: Scale, clip: float | None, where: str) -> Heights:
    """Heights of a plane by the rules that `surface` documents."""
    known = np.isfinite(plane.values)
    if not known.any():
        return Heights(plane.values, False, None, None)
    log = is_log(plane.values, scale, where)
    bottom = log_floor(plane.values) if log else -np.inf
    values = np.maximum(plane.values, bottom)  # keeps NaN
    if log:
        values = np.log10(values)
    lowest = float(plane.values[known].min())
    require(
        clip is None or clip > lowest,
        f"{where}: clip must be above the lowest value {lowest:.3g}, got {show(clip)}.",
    )
    top = _cut(values[known]) if clip is None else float(np.log10(clip) if log else clip)
    return Heights(
        np.minimum(values, top),
        log,
        cut=(10.0**top if log else top) if values[known].max() > top else None,
        floor=bottom if lowest < bottom else None,
    )


def _cut(finite: Floats) -> float:
    low, high, quantile = finite.min(), finite.max(), np.quantile(finite, QUANTILE)
    return float(quantile if high - low > OUTLYING * (quantile - low) > 0 else high)


@_style.in_style
def surface(
    surface: xr.Dataset,
    ax: Axes3D | None = None,
    *,
    variable: str = "loss",
    scale: Scale = "auto",
    clip: float | None = None,
    elevation: float = 32.0,
    azimuth: float = -60.0,
    caption: bool = True,
) -> Figure:
    """The plane as a lit surface, with its contours on the floor below.

    The height is the value, or its decimal logarithm under the rule of `contour`. A few large
    values would flatten everything else: where the range of heights above the minimum is more than
    twice the range up to the 0.95 quantile, heights are cut at that quantile, and the caption says
    so. Faces with a corner that is NaN, infinite or not evaluated are left out, and the cells of
    these points are coloured on the floor, one colour for each kind.

    Args:
        surface: Dataset with `variable` over (alpha, beta).
        ax: three-dimensional axes to draw in; None makes a new figure of column width.
        variable: what to draw.
        scale: "log", "linear" or "auto", as in `contour`.
        clip: cut heights at this value instead of by the rule; `float("inf")` cuts nothing.
        elevation: of the viewer above the floor, in degrees.
        azimuth: of the viewer around the vertical, in degrees.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `surface` is not a Dataset or `ax` is not three-dimensional.
        ValueError: if its dimensions are not (alpha, beta), the variable is not there, a
            logarithmic scale is asked for negative values, or `clip` is not above the lowest value.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> a = np.linspace(-1, 1, 11)
        >>> bowl = xr.Dataset(
        ...     {"loss": (("alpha", "beta"), a[:, None] ** 2 + a**2)}, {"alpha": a, "beta": a}
        ... )
        >>> plots.surface(bowl).axes[0].get_zlabel()
        'loss'
    """
    where = "plots.surface"
    plane = read_plane(surface, variable, where)
    require(
        ax is None or isinstance(ax, Axes3D),
        f"{where}: ax must be three-dimensional, got {show(ax)}. Make it with projection='3d'.",
        TypeError,
    )
    drawn = heights(plane, scale, clip, where)
    if ax is None:
        ax = _new_axes()
    low, high = _range(drawn.values)
    floor = low - FLOOR * (high - low)
    ax.computed_zorder = False  # the surface is always over the floor
    _draw_faces(ax, plane, drawn, low, high)
    _draw_floor(ax, plane, drawn, floor, scale)
    legend = [*_mark_centre(ax, plane, drawn.values), *_draw_gaps(ax, plane, floor)]
    if drawn.cut is not None:
        legend.append(Patch(facecolor=CUT_COLOR, label=f"above {drawn.cut:.3g}, cut"))
    _shape_axes(ax, plane, drawn, low, high, variable)
    _set_view(ax, elevation, azimuth)
    _fit(ax)
    _add_legend(ax, legend)
    return _style.finish(ax, compose(caption, surface, gap_note(plane.state), _note(drawn)))


def _note(drawn: Heights) -> str:
    notes = ["Logarithmic height."] if drawn.is_log else []
    if drawn.floor is not None:
        notes.append(f"Values below {drawn.floor:.2g} are drawn at it.")
    if drawn.cut is not None:
        notes.append(f"Heights above {drawn.cut:.3g} are cut.")
    return " ".join(notes)


def _new_axes() -> Axes3D:
    page = _style.new_page()
    page.set_layout_engine("none")  # it would leave the wide margins of a cube seen from any side
    ax = page.add_axes((0.0, 0.0, 1.0, 1.0), projection="3d")
    assert isinstance(ax, Axes3D)
    return ax


def _fit(ax: Axes3D) -> None:
    """Scales and shifts the axes so that their drawing fills the width of the page from its top."""
    page = ax.get_figure(root=True)
    if not isinstance(page, _style.Page):
        return
    for _ in range(3):  # texts keep their size, so that one step does not arrive
        page.draw_without_rendering()
        size = page.get_size_inches()
        box, drawn = ax.get_position(), _drawn_box(ax)
        ratio = (size[0] - 4 * _style.PADDING) / (drawn.width * size[0])
        height = drawn.height * size[1] * ratio + _style.PADDING
        left = 2 * _style.PADDING - (drawn.x0 - box.x0) * size[0] * ratio
        below = _style.PADDING - (drawn.y0 - box.y0) * size[1] * ratio
        page.set_figheight(height)
        ax.set_position(
            (
                left / size[0],
                below / height,
                box.width * ratio,
                box.height * size[1] * ratio / height,
            )
        )


def _drawn_box(ax: Axes3D) -> Bbox:
    """The box of the cube and its labels in figure coordinates; the axes' own box is far larger."""
    limits = (ax.get_xlim(), ax.get_ylim(), ax.get_zlim())
    corners = np.array(list(product(*limits))).T
    x, y, _ = proj3d.proj_transform(*corners, ax.get_proj())
    cube = ax.transData.transform(np.stack([x, y], axis=1))
    labels = [axis.get_tightbbox() for axis in (ax.xaxis, ax.yaxis, ax.zaxis)]
    drawn = Bbox.union([Bbox([cube.min(axis=0), cube.max(axis=0)]), *filter(None, labels)])
    return drawn.transformed(_style.root_figure(ax).transFigure.inverted())


def _range(values: Floats) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = 0.1 * abs(high) or 0.1
        return low - margin, high + margin
    return low, high


def _add_legend(ax: Axes3D, handles: list[Artist]) -> None:
    legend = _style.legend_above(ax, handles)
    page = ax.get_figure(root=True)
    if legend is None or not isinstance(page, _style.Page):
        return
    height, room = page.get_figheight(), legend.get_window_extent().height / page.dpi
    box = ax.get_position()
    shrunk = height / (height + room)
    page.set_figheight(height + room)
    ax.set_position((box.x0, box.y0 * shrunk, box.width, box.height * shrunk))
    legend.set_loc("upper left")
    legend.set_bbox_to_anchor((0.0, 1.0), transform=page.transFigure)


def faces_of(x: Floats, y: Floats, values: Floats) -> Floats:
    """The corners [M, 4, 3] of the grid's faces of which all four heights `values[i, j]` are known.

    Example:
        >>> import numpy as np
        >>> axis = np.arange(3.0)
        >>> faces_of(axis, axis, np.diag([0.0, 0.0, np.nan])).shape  # one of four is open
        (3, 4, 3)
    """
    grid = np.meshgrid(x, y, indexing="ij")
    points = np.stack([*grid, values], axis=-1)  # [nx, ny, 3]
    corners = [points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]]
    faces = np.stack(corners, axis=2).reshape(-1, 4, 3)
    return faces[np.isfinite(faces).all(axis=(1, 2))]


def _draw_faces(ax: Axes3D, plane: Plane, drawn: Heights, low: float, high: float) -> None:
    """The faces, coloured by height and shaded by slope."""
    faces = faces_of(plane.x, plane.y, drawn.values)
    if len(faces) == 0:
        return
    colours = colormaps[_style.COLORMAP]((faces[:, :, 2].mean(axis=1) - low) / (high - low))[:, :3]
    if drawn.cut is not None:
        colours[(faces[:, :, 2] >= high).all(axis=1)] = to_rgb(CUT_COLOR)
    box = np.array([np.ptp(plane.x), np.ptp(plane.y), high - low])
    lit = colours * _brightness(faces / box)[:, None]
    ax.add_collection3d(
        Poly3DCollection(faces, facecolors=lit, edgecolors=lit, linewidths=0.2, zorder=3)
    )


def _brightness(faces: Floats) -> Floats:
    """Ambient plus diffuse light on faces given by four corners; `faces` is in units of the box,
    so that a tall box does not make every slope steep."""
    normals = np.cross(faces[:, 2] - faces[:, 0], faces[:, 3] - faces[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    diffuse = np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    return AMBIENT + (1 - AMBIENT) * diffuse


def _draw_floor(ax: Axes3D, plane: Plane, drawn: Heights, floor: float, scale: Scale) -> None:
    top = np.inf if drawn.cut is None else drawn.cut
    levels = contour_levels(np.minimum(plane.values, top), 10, scale)
    if drawn.is_log:
        levels = np.log10(levels[levels > 0])
    values = np.ma.masked_invalid(drawn.values.T)
    if values.count() == 0:
        return
    ax.contour(
        plane.x,
        plane.y,
        values,
        levels=levels,
        cmap=_style.COLORMAP,
        vmin=values.min(),
        vmax=values.max(),
        zdir="z",
        offset=floor,
        linewidths=0.7,
        zorder=2,
    )


def _draw_gaps(ax: Axes3D, plane: Plane, floor: float) -> list[Artist]:
    x, y = cell_edges(plane.x), cell_edges(plane.y)
    legend: list[Artist] = []
    for gap, label in GAP_LABELS.items():
        cells = np.argwhere(plane.state == gap)
        if len(cells) == 0:
            continue
        i, j = cells.T
        corners = [(x[i], y[j]), (x[i + 1], y[j]), (x[i + 1], y[j + 1]), (x[i], y[j + 1])]
        faces = np.stack(
            [np.stack([a, b, np.full_like(a, floor)], axis=-1) for a, b in corners], axis=1
        )
        color = to_rgb(GAP_COLORS[gap])
        ax.add_collection3d(
            Poly3DCollection(
                faces,
                facecolors=color,
                edgecolors=color,
                linewidths=0.2,
                zorder=1,
                gid=f"gap {gap.name}",
            )
        )
        legend.append(Patch(facecolor=color, label=label))
    return legend


def _mark_centre(ax: Axes3D, plane: Plane, values: Floats) -> list[Artist]:
    """A cross on the surface at (0, 0), where that is a grid point with a finite value."""
    at = np.flatnonzero(plane.x == 0), np.flatnonzero(plane.y == 0)
    if not (len(at[0]) and len(at[1]) and np.isfinite(values[at[0][0], at[1][0]])):
        return []
    ax.plot([0], [0], values[at[0][0], at[1][0]], zorder=5, **_style.CENTRE)
    return [Line2D([0], [0], label="centre", **_style.CENTRE)]


def _shape_axes(
    ax: Axes3D, plane: Plane, drawn: Heights, low: float, high: float, variable: str
) -> None:
    width, depth = np.ptp(plane.x), np.ptp(plane.y)
    sides = np.clip(np.array([width, depth]) / max(width, depth), 0.5, 1.0)
    ax.set_box_aspect((*sides, 0.72))
    ax.set_xlim(plane.x[0], plane.x[-1])
    ax.set_ylim(plane.y[0], plane.y[-1])
    ax.set_zlim(low - FLOOR * (high - low), high)
    for axis, coordinates in ((ax.xaxis, plane.x), (ax.yaxis, plane.y)):
        _set_ticks(axis, coordinates[0], coordinates[-1], 4)
    longest = _set_ticks(ax.zaxis, low, high, 5, drawn.is_log)
    ax.zaxis.set_tick_params(pad=-3 + 2 * max(0, longest - 3))
    ax.set_xlabel("α", labelpad=-9)
    ax.set_ylabel("β", labelpad=-9)
    ax.set_zlabel(variable, labelpad=-8 + 4 * max(0, longest - 3))
    ax.zaxis.set_rotate_label(True)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_facecolor("#F7F7F7")
        axis.pane.set_edgecolor("#BBBBBB")
        axis._axinfo["grid"].update(color="#E2E2E2", linewidth=0.4)


def _set_view(ax: Axes3D, elevation: float, azimuth: float) -> None:
    """Turns the cube; numbers on the two floor axes grow away from the corner where these meet."""
    ax.view_init(elev=elevation, azim=azimuth)
    x_is_left = azimuth % 180 > 90
    for axis, side in ((ax.xaxis, x_is_left), (ax.yaxis, not x_is_left)):
        for label in axis.get_ticklabels():
            label.set_horizontalalignment("right" if side else "left")


def _set_ticks(axis: Axis, low: float, high: float, count: int, is_log: bool = False) -> int:
    """A few round ticks from `low` to `high`; returns the number of characters of the longest."""
    locator = MaxNLocator(count, steps=[1, 2, 5, 10], integer=is_log)
    ticks = np.asarray(locator.tick_values(low, high), dtype=np.float64)
    slack = 1e-9 * (high - low)
    ticks = ticks[(ticks >= low - slack) & (ticks <= high + slack)]
    texts = number_texts(10.0**ticks if is_log else ticks)
    axis.set_ticks(ticks, labels=texts)
    axis.set_tick_params(pad=-4)
    return max((1 if "^" in text else len(text) for text in texts), default=0)
