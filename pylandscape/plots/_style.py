"""The look of every figure: sizes, colours, the page with its caption, and saving."""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend

from pylandscape._checks import require, show

WIDTH = 3.35  # inches, one column of a two-column page (8.5 cm)
MAX_HEIGHT = 3.4  # inches, of axes to scale
PADDING = 0.03  # inches, around axes
CAPTION_SIZE = 6.5  # points
CAPTION_LEADING = 1.3  # line distance over font size
CAPTION_MARGIN = 0.06  # inches, around the caption

# Okabe & Ito 2008: distinguishable with every kind of colour blindness.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
SKY, PURPLE = "#56B4E9", "#CC79A7"
COLORMAP = "viridis"  # perceptually uniform, safe for colour-blind readers, monotone in grey
CENTRE: dict[str, Any] = {
    "linestyle": "none",
    "marker": "P",
    "markersize": 6,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 0.6,
}

_RC = {
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    "legend.borderpad": 0.2,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,  # text stays text: searchable, editable
}

P = ParamSpec("P")
R = TypeVar("R")


def _in_force() -> AbstractContextManager[None]:
    here = matplotlib.rcParams  # where the user's ffmpeg is has nothing to do with style
    programs: dict[str, Any] = {name: here[name] for name in here if name.startswith("animation.")}
    return matplotlib.style.context(["default", _RC, programs])


def in_style(function: Callable[P, R]) -> Callable[P, R]:
    """Runs `function` under the package's style; the caller's rcParams are as before afterwards."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with _in_force():
            return function(*args, **kwargs)

    return wrapped


class Page(Figure):
    """A figure that pyplot does not know, so that nothing has to be closed; notebooks show it."""

    def draw(self, renderer: RendererBase) -> None:
        with _in_force():  # matplotlib makes some ticks only when it draws
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        return buffer.getvalue()


def new_page() -> Page:
    """An empty figure of column width; `finish` gives it its height."""
    page = Page(figsize=(WIDTH, WIDTH), layout="constrained")
    FigureCanvasAgg(page)
    engine = page.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=PADDING, h_pad=PADDING, hspace=0.02)
    return page


def new_panels(heights: Sequence[float], share: bool = True) -> tuple[Axes, ...]:
    """Axes of the given heights (inches) one below the other, of one horizontal axis if `share`."""
    page = new_page()
    panels = page.subplots(
        len(heights), 1, sharex=share, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    return tuple(panels[:, 0])


def root_figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def finish(ax: Axes, text: str = "") -> Figure:
    """Lays the page of `ax` out, gives it its height and writes the caption below.

    A figure that is not a `Page` belongs to the caller and is returned as it is.
    """
    figure = root_figure(ax)
    if not isinstance(figure, Page):
        return figure
    figure.draw_without_rendering()
    _fit_height(figure)
    if _fold_labels(figure):
        _fit_height(figure)
    if text:
        _write_caption(figure, text)
        figure.draw_without_rendering()
    return figure


def _fit_height(page: Page) -> None:
    """Gives every panel of a page the height that it was made for, and axes to scale all width.

    In a page that is too high, axes to scale are as wide as can be, which makes their height known.
    """
    panels, grid = page.axes, page.axes[0].get_gridspec()
    if grid is None:
        return
    heights = np.asarray(grid.get_height_ratios(), dtype=np.float64)  # inches, see new_panels
    to_scale = panels[0].get_aspect() != "auto"
    if to_scale:
        page.set_figheight(2 * MAX_HEIGHT + heights[1:].sum())
        page.draw_without_rendering()
    drawn = [panel.get_position().height * page.get_figheight() for panel in panels]
    labelled = [box.height / page.dpi for panel in panels if (box := panel.get_tightbbox())]
    if to_scale:
        heights[0] = min(drawn[0], MAX_HEIGHT)
        grid.set_height_ratios(heights)
    labels = sum(labelled) - sum(drawn)
    page.set_figheight(heights.sum() + labels + 2.5 * PADDING * len(panels))
    page.draw_without_rendering()


def _fold_labels(page: Page) -> bool:
    """Breaks axis labels that are longer than their axis into lines; returns whether there were."""
    folded = False
    for ax in page.axes:
        box = ax.get_position()
        for axis, share in ((ax.xaxis, box.width), (ax.yaxis, box.height)):
            size = page.get_figwidth() if axis is ax.xaxis else page.get_figheight()
            label = axis.get_label()
            lines = wrap(page, label.get_text(), share * size, float(label.get_fontsize()))
            if len(lines) > 1 and "\n" not in label.get_text():
                axis.set_label_text("\n".join(lines))
                folded = True
    return folded


def _write_caption(figure: Figure, text: str) -> None:
    text = text.replace(" = ", "\u00a0=\u00a0")  # an equation stays on one line
    lines = wrap(figure, text, figure.get_figwidth() - 2 * CAPTION_MARGIN, CAPTION_SIZE)
    line_height = CAPTION_SIZE * CAPTION_LEADING / 72
    room = len(lines) * line_height + 2 * CAPTION_MARGIN
    height = figure.get_figheight() + room
    figure.set_figheight(height)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, room / height, 1, 1 - room / height))
    else:
        for ax in figure.axes:
            box = ax.get_position(original=True)
            scale = (height - room) / height
            ax.set_position((box.x0, room / height + box.y0 * scale, box.width, box.height * scale))
    caption = figure.text(
        CAPTION_MARGIN / figure.get_figwidth(),
        (room - CAPTION_MARGIN) / height,
        "\n".join(lines),
        fontsize=CAPTION_SIZE,
        linespacing=CAPTION_LEADING,
        color="#333333",
        va="top",
        parse_math=False,  # a data set may be called cost_in_$
        gid="caption",
    )
    caption.set_in_layout(False)


def wrap(figure: Figure, text: str, width: float, size: float) -> list[str]:
    """Splits `text` into lines at most `width` inches wide in letters of `size` points.

    A single word that is wider than a line is broken where the line ends.
    """
    probe = figure.text(0, 0, "", fontsize=size, parse_math=False)

    def fits(line: str) -> bool:
        probe.set_text(line)
        return bool(probe.get_window_extent().width / figure.dpi <= width)

    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if fits(joined):
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while not fits(line):
            cut = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or fits(line[:n]))
            lines.append(line[:cut])
            line = line[cut:]
    probe.remove()
    return [*lines, line] if line else lines


def legend_above(ax: Axes, handles: Iterable[Artist]) -> Legend | None:
    """A legend over the axes, where it hides nothing, in as few rows as fit the axes' width."""
    handles = list(handles)
    if not handles:
        return None
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns
        )
        if legend.get_window_extent().width <= 1.05 * ax.get_window_extent().width:
            break
    return legend


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Writes `path`.png (200 dots per inch) and `path`.pdf; missing folders are made.

    The PDF carries no creation date, so that the same figure does not give another file every day.

    Args:
        figure: any matplotlib figure.
        path: the files' path without suffix.

    Returns:
        The paths of the two files.

    Raises:
        TypeError: if `figure` is not a matplotlib figure.
        ValueError: if `path` already ends in .png or .pdf.

    Example:
        >>> import tempfile, xarray as xr, pylandscape.plots as plots
        >>> curve = xr.Dataset({"loss": ("alpha", [1.0, 0.0, 1.0])}, {"alpha": [-1.0, 0.0, 1.0]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in plots.save(plots.line(curve), f"{folder}/slice")]
        ['slice.png', 'slice.pdf']
    """
    require(
        isinstance(figure, Figure),
        f"plots.save: figure must be a matplotlib figure, got {show(figure)}.",
        TypeError,
    )
    path = Path(path)
    require(
        path.suffix not in (".png", ".pdf"),
        f"plots.save: path must have no suffix, got {path}. Both .png and .pdf are written.",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = path.with_name(path.name + ".png"), path.with_name(path.name + ".pdf")
    options: dict[str, Any] = {"bbox_inches": None}
    with _in_force():
        figure.savefig(png, dpi=200, **options)
        figure.savefig(pdf, metadata={"CreationDate": None}, **options)
    return png, pdf
