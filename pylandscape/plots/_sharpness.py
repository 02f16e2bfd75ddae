"""Sharpness over the radius of the ball, beside the prediction of the quadratic model."""

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from pylandscape._checks import require
from pylandscape.plots import _style
from pylandscape.plots._caption import compose
from pylandscape.plots._values import read_curve, require_dataset

LIMITS = {
    "gradient_limit": ("ε ||g||", (0, (1, 1.5))),
    "curvature_limit": ("λ ε² / 2", (0, (5, 2))),
}


@_style.in_style
def sharpness(profile: xr.Dataset, ax: Axes | None = None, *, caption: bool = True) -> Figure:
    """The largest rise S_eps found in the ball over its radius, on logarithmic scales.

    Beside it the maximum of the quadratic model in the same ball and, thin, its two limits: the
    gradient's for small radii, that of the largest eigenvalue for large ones. Radii in which no
    rise was found are not on the scale and are counted in the caption.

    Args:
        profile: what `pl.sharpness.profile` gives.
        ax: where to draw; None makes a new figure.
        caption: whether a new figure carries its caption.

    Returns:
        The figure that holds the drawing.

    Raises:
        TypeError: if `profile` is not a Dataset.
        ValueError: if it has no rise over epsilon, or none is positive and finite.

    Example:
        >>> import numpy as np, xarray as xr, pylandscape.plots as plots
        >>> epsilon = np.geomspace(0.01, 1, 5)
        >>> names = {"rise": epsilon**2, "quadratic": epsilon**2}
        >>> columns = {name: ("epsilon", values) for name, values in names.items()}
        >>> plots.sharpness(xr.Dataset(columns, {"epsilon": epsilon})).axes[0].get_xscale()
        'log'
    """
    where = "plots.sharpness"
    require_dataset(profile, where, "profile")
    rise = read_curve(profile, "rise", where, "profile", "epsilon")
    shown = np.where(rise.values > 0, rise.values, np.nan)
    require(
        bool(np.isfinite(shown).any()),
        f"{where}: profile must have a positive and finite rise, got none in {len(shown)}.",
    )
    if ax is None:
        (ax,) = _style.new_panels((2.1,))
    legend: list[Artist] = []
    values = [shown]
    for name, (label, dashes) in LIMITS.items():
        if name in profile:
            limit = read_curve(profile, name, where, "profile", "epsilon").values
            if np.nanmax(limit) > 0:
                legend += ax.plot(
                    rise.x, limit, color=_style.GREY, linewidth=0.8, linestyle=dashes, label=label
                )
    if "quadratic" in profile:
        model = read_curve(profile, "quadratic", where, "profile", "epsilon").values
        values.append(np.where(model > 0, model, np.nan))
        legend += ax.plot(rise.x, values[-1], color=_style.ORANGE, label="quadratic model")
    legend += ax.plot(
        rise.x, shown, "o-", color=_style.BLUE, markersize=3, label="found", clip_on=False
    )  # whole marks at both ends
    ax.set_xscale("log")
    ax.set_yscale("log")
    everything = np.concatenate(values)
    low, high = np.nanmin(everything), np.nanmax(everything)
    room = (high / low) ** 0.06
    ax.set_ylim(low / room, high * room)
    ax.set_xlim(rise.x[0], max(rise.x[-1], rise.x[0] * 1.01))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(numticks=8))
    ax.set_xlabel("radius ε of the ball")
    ax.set_ylabel("largest rise of the loss")
    _style.legend_above(ax, legend[::-1])
    lost = int((~np.isfinite(shown)).sum())
    return _style.finish(ax, compose(caption, profile, _note(profile, lost)))


def _note(profile: xr.Dataset, lost: int) -> str:
    notes = []
    if "lambda_max" in profile.attrs:
        notes.append(
            f"Largest eigenvalue λ = {profile.attrs['lambda_max']:.4g}, gradient norm "
            f"||g|| = {profile.attrs['gradient_norm']:.3g}."
        )
    if lost:
        notes.append(f"No finite rise above 0 at {lost} of {profile.sizes['epsilon']} radii.")
    return " ".join(notes)
