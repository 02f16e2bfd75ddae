"""The path of training as a film."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pylandscape._checks import require, show
from pylandscape._files import replacing
from pylandscape.plots import _style
from pylandscape.plots._trajectory import STEPS, Track, draw_scene, finish_scene
from pylandscape.plots._values import Floats, Scale
from pylandscape.progress import progress_bar

DPI = 160
HOLD = 1.0  # seconds for which the last frame stays


@_style.in_style
def animate(
    surface: xr.Dataset,
    projected: xr.Dataset,
    file: str | Path,
    *,
    seconds: float = 8.0,
    rate: int = 15,
    levels: int | Sequence[float] = 10,
    scale: Scale = "auto",
    caption: bool = True,
    progress: bool | None = None,
) -> Path:
    """Writes a film of the path of training on its plane, GIF or MP4.

    The figure is that of `trajectory`, with distances and losses of all snapshots below the plane.
    The path grows with time and a line runs along in the lower panels. Every snapshot takes the
    same time, so that a beginning that was recorded densely is shown slowly. The last frame stays
    for a second.

    Args:
        surface, projected: as for `trajectory`; both come from `trajectory_plane`.
        file: where to; the suffix says what: `.gif`, or `.mp4`, for which ffmpeg must be there.
        seconds: for which the path grows.
        rate: frames per second.
        levels, scale, caption: as for `trajectory`.
        progress: show a bar; default on a terminal only.

    Returns:
        The file, which is there whole or not at all.

    Raises:
        TypeError, ValueError: as for `trajectory`; another suffix, no ffmpeg for `.mp4`, a length
            or rate that is not positive.

    Example:
        >>> import tempfile, numpy as np, xarray as xr, pylandscape.plots as plots
        >>> a = np.linspace(-1, 1, 11)
        >>> bowl = xr.Dataset(
        ...     {"loss": (("alpha", "beta"), a[:, None] ** 2 + a**2)}, {"alpha": a, "beta": a}
        ... )
        >>> names = ("alpha", "beta", "distance")
        >>> path = xr.Dataset({name: ("snapshot", np.linspace(0.8, 0, 5)) for name in names})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plots.animate(bowl, path, f"{folder}/run.gif", seconds=0.4, rate=5).name
        'run.gif'
    """
    where = "plots.animate"
    file = Path(file)
    require(
        isinstance(seconds, (int, float)) and 0 < seconds < np.inf,
        f"{where}: seconds must be a positive number, got {show(seconds)}.",
    )
    require(
        isinstance(rate, int) and rate > 0,
        f"{where}: rate must be a positive integer, got {show(rate)}.",
    )
    writer = _writer(file, rate, where)
    scene = draw_scene(surface, projected, None, levels, scale, where)
    runner = _Runner(scene.axes, scene.path)
    figure = finish_scene(scene, surface, projected, [runner.end], caption)
    figure.set_layout_engine("none")  # every frame has the layout of the whole figure
    frames = max(2, round(seconds * rate))
    held = round(HOLD * rate)
    figure.set_dpi(DPI)
    _make_even(figure)
    with (
        progress_bar(frames + held, "animation", "frame", progress) as bar,
        replacing(file) as partial,
        writer.saving(figure, str(partial), DPI),
    ):
        for time in [*np.linspace(0, len(scene.path.step) - 1, frames), *[np.inf] * held]:
            runner.show(float(time))
            writer.grab_frame()
            bar.update(1)
    return file


class _Runner:
    """What moves: the path so far, its end, the number of the step, lines in the lower panels."""

    def __init__(self, axes: list[Axes], path: Track) -> None:
        self.path = path
        first, *lower = axes
        (self.casing,) = first.plot([], [], color="white", linewidth=2.8, zorder=2.9)
        self.line = LineCollection(
            [], cmap=STEPS, norm=path.colours, linewidths=1.5, capstyle="round", zorder=3
        )
        first.add_collection(self.line, autolim=False)
        style: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6}
        (self.end,) = first.plot(
            path.x[:1], path.y[:1], "o", markersize=5, zorder=4, label=self._label(len(path.step)),
            **style,
        )  # fmt: skip
        grey: dict[str, Any] = {"color": _style.GREY, "linewidth": 0.8}
        self.lines = [panel.axvline(path.step[0], **grey) for panel in lower]
        self.axes = first

    def show(self, time: float) -> None:
        """The state at `time`, in snapshots from the first one."""
        time = min(time, len(self.path.step) - 1.0)
        x, y, step = (self._until(v, time) for v in (self.path.x, self.path.y, self.path.step))
        points = np.stack([x, y], axis=1)
        self.casing.set_data(x, y)
        self.line.set_segments(list(np.stack([points[:-1], points[1:]], axis=1)))
        self.line.set_array(step[1:])
        colour = colormaps[STEPS](self.path.colours(step[-1]))
        self.end.set(data=(x[-1:], y[-1:]), markerfacecolor=colour)
        legend = self.axes.get_legend()
        if legend is not None:
            legend.get_texts()[0].set_text(self._label(int(time)))
            legend.get_lines()[0].set_markerfacecolor(colour)
        for line in self.lines:
            line.set_xdata([step[-1]] * 2)

    def _until(self, values: Floats, time: float) -> Floats:
        whole = int(time)
        at = np.interp(time, np.arange(len(values)), values)
        return np.append(values[: whole + 1], at)

    def _label(self, snapshot: int) -> str:
        last = len(self.path.step) - 1
        return f"step {self.path.step[min(snapshot, last)]:,.0f} of {self.path.step[last]:,.0f}"


def _writer(file: Path, rate: int, where: str) -> AbstractMovieWriter:
    suffix = file.suffix.lower()
    require(
        suffix in (".gif", ".mp4"),
        f"{where}: file must end in .gif or .mp4, got {show(str(file))}.",
    )
    if suffix == ".gif":
        return PillowWriter(fps=rate)
    require(
        FFMpegWriter.isAvailable(),
        f"{where}: file must end in .gif where ffmpeg is not installed, got {show(str(file))}.",
    )
    # players want even sides and the pixel format of video
    return FFMpegWriter(fps=rate, codec="h264", extra_args=["-pix_fmt", "yuv420p"])


def _make_even(figure: Any) -> None:
    """Gives the figure even numbers of pixels, which video needs."""
    pixels = [2 * round(inches * DPI / 2) for inches in figure.get_size_inches()]
    figure.set_size_inches([count / DPI for count in pixels], forward=True)
