"""The loss along several paths between the same models: straight, aligned, curved."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pylandscape._checks import require
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._line import finish_panel, log_axis, panels, percent
from pylandscape.plots._values import (
    Floats,
    Scale,
    is_log,
    read_curve,
    require_dataset,
    require_variable,
)

# Colours and dashes, so that the paths can be told apart in grey too.
STYLES: dict[str, dict[str, Any]] = {
    "straight": {"color": _style.RED, "linestyle": "-"},
    "aligned": {"color": _style.BLUE, "linestyle": (0, (5, 1.5))},
    "curve": {"color": _style.GREEN, "linestyle": (0, (5, 1.5, 1, 1.5))},
}


@_style.in_style
def barriers(
    table: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    test: bool = False,
    scale: Scale = "linear",
    caption: bool = True,
) -> Figure:
    """The loss along the paths of a table of barriers, and the accuracy in a panel below.

    Where the table has several pairs of models, each is a thin line and their mean a bold one. The
    legend has the barrier of each path, the mean over the pairs. Points without a finite value
    leave a gap.

    Args:
        table: what `pl.barriers` gives, or one pair of it.
        ax: axes for the loss, or a pair for loss and accuracy; None makes a new figure.
        test: draws the values on the test data.
        scale: of the loss, "linear", "log" or "auto". A barrier is a height on the linear one; the
            logarithmic one tells paths of low loss apart.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `table` is not a Dataset.
        ValueError: if it has no loss over (path, alpha).

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> alpha = np.linspace(0, 1, 11)
        >>> loss = np.stack([alpha * (1 - alpha), 0 * alpha])
        >>> table = xr.Dataset(
        ...     {"loss": (("path", "alpha"), loss), "barrier": ("path", loss.max(1))},
        ...     {"path": ["straight", "curve"], "alpha": alpha},
        ... )
        >>> [text.get_text() for text in plots.barriers(table).axes[0].get_legend().get_texts()]
        ['straight: 0.25', 'curve: 0']
    """
    where, prefix = "plots.barriers", "test_" if test else ""
    require_dataset(table, where, "table")
    for name in (f"{prefix}loss", f"{prefix}barrier"):
        require_variable(table, name, where, "table")
    require(
        "path" in table.coords and set(table[f"{prefix}loss"].dims) <= {"pair", "path", "alpha"},
        f"{where}: table must have dimensions (pair, path, alpha) or (path, alpha), got "
        f"{tuple(table[f'{prefix}loss'].dims)}. Make it with pl.barriers.",
    )
    whole = table if "pair" in table.dims else table.expand_dims("pair")
    upper, lower = panels(ax, f"{prefix}accuracy" in table, where)
    legend: list[Artist] = []
    for path in whole["path"].values.tolist():
        one = whole.sel(path=path)
        style = STYLES.get(path, {"color": _style.GREY})
        barrier = float(one[f"{prefix}barrier"].mean(skipna=False))
        legend += _draw(upper, one, f"{prefix}loss", style, f"{path}: {barrier:.3g}", where)
        if lower is not None:
            _draw(lower, one, f"{prefix}accuracy", style, path, where)
    losses = np.asarray(table[f"{prefix}loss"], dtype=np.float64)
    if is_log(losses, scale, where):
        log_axis(upper, losses[np.isfinite(losses)])
    finish_panel(upper, f"{prefix.rstrip('_')} loss".strip())
    if lower is not None:
        percent(lower)
    bottom = lower or upper
    bottom.set_xlim(float(table["alpha"][0]), float(table["alpha"][-1]))
    bottom.set_xlabel("position, from model A (0) to model B (1)")
    _style.legend_above(upper, legend)
    return _style.finish(upper, compose(caption, table, *_notes(whole, prefix)))


def _draw(
    ax: Axes, path: xr.Dataset, name: str, style: dict[str, Any], label: str, where: str
) -> list[Artist]:
    rows = [read_curve(path[[name]].isel(pair=k), name, where, "table") for k in
            range(path.sizes["pair"])]  # fmt: skip
    values: Floats = np.stack([row.values for row in rows])
    if len(rows) > 1:
        ax.plot(rows[0].x, values.T, **style | {"linewidth": 0.5, "alpha": 0.45, "linestyle": "-"})
    return list(ax.plot(rows[0].x, values.mean(axis=0), **style, label=label, gid=label))


def _notes(table: xr.Dataset, prefix: str) -> list[str]:
    data = "test" if prefix else "training"
    pairs = table.sizes["pair"]
    bold = f", mean of {pairs} pairs (bold; thin: each of them)" if pairs > 1 else ""
    return [f"Legend: barrier of the {data} loss{bold}."]
