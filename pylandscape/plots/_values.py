"""Reading results for drawing: which values are there, which are not, and how they are scaled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pylandscape._checks import require, show

Floats = NDArray[np.float64]
Scale = Literal["auto", "linear", "log"]

MINUS = "\u2212"
WIDE = 100.0  # a range max/min from which on the scale is logarithmic
DECADES = 8  # a logarithmic scale shows at most this many decades below the median


class State(IntEnum):
    """What is known at a grid point."""

    FINITE = 0
    NAN = 1
    INFINITE = 2
    MISSING = 3  # not evaluated, e.g. after an interruption


GAP_LABELS = {State.NAN: "NaN", State.INFINITE: "infinite", State.MISSING: "not evaluated"}
GAP_HATCHES = {State.NAN: "xxxxxx", State.INFINITE: "//////", State.MISSING: "...."}
GAP_FACE, GAP_LINE = "#EDEDED", "#6E6E6E"


@dataclass(frozen=True)
class Curve:
    """Values over one coordinate; `values` is finite exactly where `state` is FINITE, else NaN."""

    x: Floats
    values: Floats
    state: NDArray[np.int8]


@dataclass(frozen=True)
class Plane:
    """Values over two coordinates, `values[i, j]` at (x[i], y[j]); NaN where not FINITE."""

    x: Floats
    y: Floats
    values: Floats
    state: NDArray[np.int8]


def require_dataset(dataset: Any, where: str, argument: str) -> None:
    require(
        isinstance(dataset, xr.Dataset),
        f"{where}: {argument} must be an xarray.Dataset, got {show(dataset)}.",
        TypeError,
    )


def require_variable(dataset: xr.Dataset, name: str, where: str, argument: str) -> None:
    names = ", ".join(map(str, dataset.data_vars)) or "none"
    require(
        name in dataset.data_vars,
        f"{where}: {argument} must have a variable {name!r}, got {names}.",
    )


def read_curve(
    dataset: Any, variable: str, where: str, argument: str, dimension: str = "alpha"
) -> Curve:
    """The `variable` of a Dataset over `dimension`, checked."""
    require_dataset(dataset, where, argument)
    require_variable(dataset, variable, where, argument)
    _require_dimensions(dataset[variable], (dimension,), where, argument)
    values, state = _split(dataset, variable, (dimension,))
    return Curve(_coordinate(dataset, dimension, where, argument), values, state)


def read_plane(dataset: Any, variable: str, where: str, argument: str = "surface") -> Plane:
    """The `variable` of a Dataset over (alpha, beta), in that order however it is stored."""
    require_dataset(dataset, where, argument)
    require_variable(dataset, variable, where, argument)
    _require_dimensions(dataset[variable], ("alpha", "beta"), where, argument)
    values, state = _split(dataset, variable, ("alpha", "beta"))
    x, y = (_coordinate(dataset, axis, where, argument, 2) for axis in ("alpha", "beta"))
    return Plane(x, y, values, state)


def _require_dimensions(
    array: xr.DataArray, dimensions: tuple[str, ...], where: str, argument: str
) -> None:
    extra = [str(d) for d in array.dims if d not in dimensions]
    advice = f" Select one point along {', '.join(extra)} with isel or sel." if extra else ""
    require(
        sorted(map(str, array.dims)) == sorted(dimensions),
        f"{where}: {argument} must have dimensions ({', '.join(dimensions)}), "
        f"got ({', '.join(map(str, array.dims))}).{advice}",
    )


def _coordinate(
    dataset: xr.Dataset, dimension: str, where: str, argument: str, least: int = 1
) -> Floats:
    require(
        dimension in dataset.coords,
        f"{where}: {argument} must have coordinates along {dimension}, got none.",
    )
    values = np.asarray(dataset[dimension], dtype=np.float64)
    shown = np.array2string(values, threshold=6, precision=3, separator=", ")
    require(
        len(values) >= least and bool(np.isfinite(values).all() and (np.diff(values) > 0).all()),
        f"{where}: the coordinate {dimension} of {argument} must hold at least {least} finite, "
        f"increasing value{'s' if least > 1 else ''}, got {shown}.",
    )
    return values


def _split(
    dataset: xr.Dataset, variable: str, dimensions: tuple[str, ...]
) -> tuple[Floats, NDArray[np.int8]]:
    values = np.array(dataset[variable].transpose(*dimensions), dtype=np.float64)
    state = np.zeros(values.shape, dtype=np.int8)
    state[np.isnan(values)] = State.NAN
    state[np.isinf(values)] = State.INFINITE
    if "evaluated" in dataset:
        evaluated = np.asarray(dataset["evaluated"].transpose(*dimensions), dtype=bool)
        state[~evaluated] = State.MISSING
    values[state != State.FINITE] = np.nan
    return values, state


def cell_edges(coordinates: Floats) -> Floats:
    """The borders of the cells around grid points: midpoints, and the end points themselves."""
    middle = (coordinates[1:] + coordinates[:-1]) / 2
    return np.concatenate([coordinates[:1], middle, coordinates[-1:]])


def gap_patch(state: State) -> Patch:
    """The legend entry of a kind of gap."""
    return Patch(
        facecolor=GAP_FACE,
        edgecolor=GAP_LINE,
        hatch=GAP_HATCHES[state],
        linewidth=0.4,
        label=GAP_LABELS[state],
    )


def mark_gaps(ax: Axes, x: Floats, state: NDArray[np.int8]) -> list[Artist]:
    """Hatches the stretches of a curve that have no finite value; returns their legend entries."""
    if len(x) < 2:
        return []
    edges = cell_edges(x)
    for gap in GAP_LABELS:
        inside = np.concatenate([[False], state == gap, [False]])
        starts, stops = np.flatnonzero(np.diff(inside.astype(np.int8))).reshape(-1, 2).T
        for start, stop in zip(starts, stops, strict=True):
            ax.axvspan(
                edges[start],
                edges[stop],
                facecolor=GAP_FACE,
                edgecolor=GAP_LINE,
                hatch=GAP_HATCHES[gap],
                linewidth=0,
                zorder=0.5,
                gid=f"gap {gap.name}",
            )
    return [gap_patch(gap) for gap in GAP_LABELS if (state == gap).any()]


def gap_note(state: NDArray[np.int8]) -> str:
    """The caption's sentence about points without a finite value; empty when there are none."""
    counts = [
        f"{int((state == gap).sum()):,} {label}"
        for gap, label in GAP_LABELS.items()
        if (state == gap).any()
    ]
    return f"Of {state.size:,} points: {', '.join(counts)}." if counts else ""


def is_log(values: Floats, scale: Scale, where: str) -> bool:
    """Whether finite `values` are drawn on a logarithmic scale.

    `auto`: none is negative and the largest is at least 100 times the smallest positive one.
    """
    require(
        scale in ("auto", "linear", "log"),
        f"{where}: scale must be 'auto', 'linear' or 'log', got {show(scale)}.",
    )
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if scale == "log":
        require(
            len(finite) == 0 or bool(finite.min() >= 0),
            f"{where}: scale must be 'linear' or 'auto' where values are negative, got 'log'.",
        )
        return len(positive) > 0
    if scale == "linear" or len(positive) == 0 or finite.min() < 0:
        return False
    return bool(finite.max() >= WIDE * positive.min())


def log_floor(values: Floats) -> float:
    """The bottom of a logarithmic scale: the smallest positive value, but at most 8 decades below
    the median, so that a loss of 1e-17 at the centre does not use up the scale."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(max(positive.min(), np.median(positive) * 10.0**-DECADES))


def is_constant(finite: Floats) -> bool:
    """Whether finite values are equal up to rounding."""
    return bool(np.ptp(finite) <= 1e-12 * np.abs(finite).max())


def contour_levels(
    values: Floats, count: int = 10, scale: Scale = "auto", where: str = "plots.contour"
) -> Floats:
    """About `count` increasing levels at round numbers that cover the finite `values`.

    Linear levels are evenly spaced. Logarithmic ones (see `is_log`) are 1, 2, 5, 10 or 1, 3, 10 or
    whole decades, the densest of these that keeps to `count`; they start at most 8 decades below
    the median, and smaller values share the band above one level at 0. Constant values get one
    level on either side.

    Example:
        >>> import numpy as np
        >>> contour_levels(np.array([0.2, 1.9]), count=5)
        array([0. , 0.5, 1. , 1.5, 2. ])
        >>> contour_levels(np.array([0.02, 300.0]), count=6)
        array([1.e-02, 1.e-01, 1.e+00, 1.e+01, 1.e+02, 1.e+03])
    """
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return np.array([0.0, 1.0])
    low, high = float(finite.min()), float(finite.max())
    if is_constant(finite):
        margin = 0.1 * abs(high) or 0.1
        return np.array([low - margin, high + margin])
    if not is_log(values, scale, where):
        locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10])
        levels = np.asarray(locator.tick_values(low, high), dtype=np.float64)
        # A round number that equals an extreme up to rounding may still lie inside of it.
        levels[[0, -1]] = min(levels[0], low), max(levels[-1], high)
        return levels
    floor = log_floor(values)
    levels = _log_levels(floor, high, count)
    return np.concatenate([[0.0], levels]) if low < levels[0] else levels


def _log_levels(low: float, high: float, count: int) -> Floats:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        grid = np.array([m * 10.0**e for e in range(first - 1, last + 1) for m in mantissas])
        start = np.searchsorted(grid, low, side="right") - 1
        stop = np.searchsorted(grid, high, side="left")
        if stop - start <= count:
            return grid[start : stop + 1]
    step = math.ceil((last - first) / count)
    return np.array([10.0**e for e in range(first, last + step, step)])


def number_texts(values: Sequence[float] | Floats) -> list[str]:
    """Numbers as short texts, with the digits that tell each from its neighbours.

    Example:
        >>> number_texts([0.0, 0.125, 0.25]), number_texts([0.001, 1.0, 1e5])
        (['0', '0.125', '0.25'], ['0.001', '1', '$10^{5}$'])
    """
    numbers = np.asarray(values, dtype=np.float64)
    distances = np.abs(numbers[:, None] - numbers)
    distances[distances == 0] = np.inf
    # The error of a text is at most a thousandth of the way to the next number.
    allowed = np.minimum(1e-3 * distances.min(axis=1, initial=np.inf), 1e-3 * np.abs(numbers))
    return [_number_text(float(v), float(e)) for v, e in zip(numbers, allowed, strict=True)]


def _number_text(value: float, allowed: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = next(
        (n for n in range(1, 15) if abs(float(f"{value:.{n - 1}e}") - value) <= allowed), 15
    )
    if 1e-3 <= abs(value) < 1e4 * (1 - 1e-9):
        text = np.format_float_positional(
            value, precision=digits, unique=False, fractional=False, trim="-"
        )
        return text.replace("-", MINUS)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else rf"${mantissa}{{\cdot}}{power}$"
