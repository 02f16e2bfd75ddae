"""Numbers read off the results of a study: what the criteria in `claims` are about."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pylandscape.study.claims import SMALL_RISE

Array = NDArray[np.float64]
Results = Mapping[str, xr.Dataset]

# A step down a ray by less than this share of the ray's rise is no dip, and a second difference
# above minus this share of the range is no concavity: both would be below what a figure shows.
DIP = 1e-2
CURVATURE_NOISE = 1e-4

# Grid offsets of the 16 rays from the centre of a plane that meet grid points all the way.
RAYS = [
    (i, j) for i in range(-2, 3) for j in range(-2, 3) if (i, j) != (0, 0) and np.gcd(i, j) == 1
]


def measure(results: Results) -> dict[str, list[float]]:
    """All measurements that the finished stages allow, by the names that the claims use."""
    found: dict[str, list[float]] = {}
    for stages, function in _MEASURES.items():
        if all(stage in results for stage in stages):
            found |= function(*(results[stage] for stage in stages))
    return found


def fall(values: Array, share: float = 0.1) -> float:
    """Mean of the last `share` of the values over the mean of the first.

    Example:
        >>> fall(np.array([4.0] * 10 + [1.0] * 10))
        0.25
    """
    count = max(1, round(share * len(values)))
    return float(np.mean(values[-count:]) / np.mean(values[:count]))


def rays(surface: xr.Dataset) -> Iterator[tuple[Array, Array]]:
    """(radius, loss) along each of 16 rays from the centre of a plane to its edge.

    Example:
        >>> a = np.linspace(-1, 1, 5)
        >>> bowl = xr.Dataset(
        ...     {"loss": (("alpha", "beta"), a[:, None] ** 2 + a**2)}, {"alpha": a, "beta": a}
        ... )
        >>> all(np.allclose(radius**2, loss) for radius, loss in rays(bowl)), len(list(rays(bowl)))
        (True, 16)
    """
    loss = surface["loss"].transpose("alpha", "beta").values
    alpha, beta = surface["alpha"].values, surface["beta"].values
    center = int(np.abs(alpha).argmin()), int(np.abs(beta).argmin())
    for di, dj in RAYS:
        i, j = center
        points = []
        while 0 <= i < len(alpha) and 0 <= j < len(beta):
            points.append((np.hypot(alpha[i], beta[j]), loss[i, j]))
            i, j = i + di, j + dj
        radius, along = np.array(points).T
        yield radius, along


def monotone_share(surface: xr.Dataset) -> float:
    """Share of the rays on which the loss never falls by more than `DIP` of the ray's rise."""
    return float(np.mean([_is_monotone(along) for _, along in rays(surface)]))


def convex_share(surface: xr.Dataset) -> float:
    """Share of second differences along both axes that are not negative, in the inner half.

    The inner half is where no coordinate of the three points exceeds half the extent.
    """
    extent = min(abs(surface["alpha"]).max().item(), abs(surface["beta"]).max().item())
    inner = abs(surface["alpha"]) <= extent / 2 * (1 + 1e-9)
    inner_beta = abs(surface["beta"]) <= extent / 2 * (1 + 1e-9)
    loss = surface["loss"].transpose("alpha", "beta").values[inner.values][:, inner_beta.values]
    second = np.concatenate([np.diff(loss, 2, axis).ravel() for axis in (0, 1)])
    return float(np.mean(second >= -CURVATURE_NOISE * np.ptp(loss)))


def valley_radius(surface: xr.Dataset, rise: float = SMALL_RISE) -> float:
    """Median over the rays of the radius at which the loss has risen by `rise`.

    Linear between grid points. A ray that never rises so far counts with its length, so the
    median is a lower bound then.
    """
    return float(np.median([_crossing(*ray, rise) for ray in rays(surface)]))


def _is_monotone(along: Array) -> bool:
    return bool(np.all(np.diff(along) >= -DIP * (np.max(along) - along[0])))


def _crossing(radius: Array, along: Array, rise: float) -> float:
    above = np.flatnonzero(~(along < along[0] + rise))  # NaN counts as risen
    if len(above) == 0:
        return float(radius[-1])
    k = int(above[0])
    if not np.isfinite(along[k]):
        return float(radius[k - 1])
    share = (along[0] + rise - along[k - 1]) / (along[k] - along[k - 1])
    return float(radius[k - 1] + share * (radius[k] - radius[k - 1]))


def _training(*runs: xr.Dataset) -> dict[str, list[float]]:
    last = {
        f"{name}": [float(run[name][-1]) for run in runs]
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    }
    return last | {
        "loss_fall": [fall(run["loss"].values) for run in runs],
        "gradient_fall": [fall(run["grad_norm"].values) for run in runs],
    }


def _curvature(curvature: xr.Dataset) -> dict[str, list[float]]:
    names = ("lambda_max", "lambda_max_residual", "lambda_min", "lambda_min_residual")
    return {name: curvature[name].values.tolist() for name in names} | {
        "gradient_norm": curvature["gradient_norm"].values.tolist()
    }


def _curvature_path(path: xr.Dataset) -> dict[str, list[float]]:
    return {
        "path_epoch": path["epoch"].values.tolist(),
        "path_lambda_max": path["lambda_max"].values.tolist(),
        "path_lambda_max_residual": path["lambda_max_residual"].values.tolist(),
        "path_sam": path["sam"].values.tolist(),
    }


def _spectrum(spectrum: xr.Dataset) -> dict[str, list[float]]:
    return {
        "trace": [float(spectrum["trace"]), float(spectrum["trace_stderr"])],
        "axis_curvature": spectrum["curvature"].values.tolist(),
        "mean_eigenvalue": [float(spectrum["mean"]), float(spectrum["mean_stderr"])],
    }


def _layers(layers: xr.Dataset) -> dict[str, list[float]]:
    """For each layer: parameters, largest eigenvalue, residual, trace, standard error."""
    names = ["parameters", "lambda_max", "lambda_max_residual", "trace", "trace_stderr"]
    rows = layers[names].to_array().transpose("layer", "variable").values
    return {f"layer {n}": row for n, row in zip(layers["layer"].values, rows.tolist(), strict=True)}


def _eigen_plane(plane: xr.Dataset) -> dict[str, list[float]]:
    return {
        "eigenvalues": plane["eigenvalue"].values.tolist(),
        "eigenvalue_residuals": plane["residual"].values.tolist(),
    }


def _slices(slices: xr.Dataset) -> dict[str, list[float]]:
    return {"random_curvature": slices["curvature"].values.tolist()}


def _plane(plane: xr.Dataset) -> dict[str, list[float]]:
    return {
        "monotone_share": [monotone_share(plane)],
        "convex_share": [convex_share(plane)],
        "valley_radius": [valley_radius(plane)],
    }


def _paths(*paths: xr.Dataset) -> dict[str, list[float]]:
    ranks = [spearmanr(path["snapshot"].values, path["plane_loss"].values) for path in paths]
    return {
        "plane_variance": [float(sum(path.attrs["explained_variance"][:2])) for path in paths],
        "plane_descent": [float(rank.statistic) for rank in ranks],
        "path_captured": [float(path.attrs["captured"]) for path in paths],
    }


def _interpolation(line: xr.Dataset) -> dict[str, list[float]]:
    return {
        "loss_barrier": [line.attrs["barrier"], line.attrs["test_barrier"]],
        "error_barrier": [line.attrs["accuracy_drop"], line.attrs["test_accuracy_drop"]],
    }


def _solutions(solutions: xr.Dataset) -> dict[str, list[float]]:
    accuracy = solutions["test_accuracy"].values
    stderr = np.sqrt(accuracy * (1 - accuracy) / solutions.attrs["test_samples"])
    found = {f"solution_{name}": values.values.tolist() for name, values in solutions.items()}
    return found | {"test_error_stderr": [float(stderr.max())]}


def _flatness(solutions: xr.Dataset, flatness: xr.Dataset) -> dict[str, list[float]]:
    """Each measure at each solution, and its rank correlations with test error and test loss."""
    against = (1 - solutions["test_accuracy"].values, solutions["test_loss"].values)
    errors = {name for name in flatness if str(name).endswith(("_residual", "_stderr"))}
    found = {f"solution_{name}": values.values.tolist() for name, values in flatness.items()}
    return found | {
        f"rank_{name}": [rank_correlation(flatness[name].values, other) for other in against]
        for name in flatness
        if name not in errors
    }


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's rank correlation; NaN where one side is constant.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 30.0]), np.array([0.0, 5.0, 6.0]))
        1.0
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.round(spearmanr(x, y).statistic, 12))


def _connections(table: xr.Dataset) -> dict[str, list[float]]:
    """For each path: barrier and accuracy drop on training and test data, and its length."""
    names = ["barrier", "test_barrier", "accuracy_drop", "test_accuracy_drop", "length"]
    rows = table[names].to_array().transpose("path", "variable").values
    paths = table.attrs["paths"]
    return {f"{path}_path": row for path, row in zip(paths, rows.tolist(), strict=True)}


def _rescaling(lines: xr.Dataset) -> dict[str, list[float]]:
    """Each measure before and after, and the largest difference of the lines over their range."""
    loss = lines["loss"].transpose("network", "alpha").values
    difference = float(np.abs(loss[1] - loss[0]).max() / np.ptp(loss[0]))
    names = [str(name) for name in lines.data_vars if lines[name].dims == ("network",)]
    return {f"rescaled_{name}": lines[name].values.tolist() for name in names} | {
        "rescaled_line_difference": [difference],
        "rescaling_factor": [float(lines.attrs["factor"])],
    }


def _sharpness(balls: xr.Dataset) -> dict[str, list[float]]:
    return {"ball_rise": balls["rise"].values.tolist()}


_MEASURES: dict[tuple[str, ...], Callable[..., dict[str, list[float]]]] = {
    ("training-a", "training-b"): _training,
    ("curvature",): _curvature,
    ("curvature-path",): _curvature_path,
    ("spectrum",): _spectrum,
    ("layers",): _layers,
    ("eigen-plane",): _eigen_plane,
    ("slices",): _slices,
    ("plane",): _plane,
    ("path-a", "path-b"): _paths,
    ("interpolation",): _interpolation,
    ("sharpness",): _sharpness,
    ("solutions",): _solutions,
    ("solutions", "flatness"): _flatness,
    ("connections",): _connections,
    ("rescaling",): _rescaling,
}
