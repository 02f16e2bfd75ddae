"""Results to draw, and what is read off a figure."""

from types import SimpleNamespace

import numpy as np
import torch
import xarray as xr
from matplotlib.contour import QuadContourSet

import pylandscape as pl

ATTRS = {
    "model": "SmallCNN",
    "parameters": 61706,
    "samples": 2000,
    "population": 60000,
    "loss_function": "cross-entropy",
    "data": "MNIST",
    "dtype": "float32",
    "engine": "torch",
    "batchnorm": "frozen",
    "directions": "random, filter-normalised",
    "normalize": "filter",
    "ignore": "biasbn",
    "seed": 7,
}


def plane_of(function, nx=21, ny=21, extent=(1.0, 1.0), **attrs):
    x, y = (np.linspace(-e, e, n) for e, n in zip(extent, (nx, ny), strict=True))
    values = function(x[:, None], y[None, :]) + np.zeros((nx, ny))
    return xr.Dataset({"loss": (("alpha", "beta"), values)}, {"alpha": x, "beta": y}, ATTRS | attrs)


def bowl(x, y):
    return 0.2 + x**2 + 0.5 * y**2 + 0.05 * np.sin(9 * x)


def with_gaps():
    """NaN at (2, 3), infinite in a corner, the last columns not evaluated."""
    surface = plane_of(bowl)
    surface["loss"][2, 3] = np.nan
    surface["loss"][:3, 18:] = np.inf
    evaluated = np.ones((21, 21), dtype=bool)
    evaluated[17:] = False
    return surface.assign(evaluated=(("alpha", "beta"), evaluated))


def curve_of(function, n=41, low=-1.0, accuracy=True, **attrs):
    x = np.linspace(low, 1.0, n)
    loss = function(x)
    names = {"loss": loss, "loss_stderr": 0.02 * np.abs(loss) + 0.01}
    if accuracy:
        names["accuracy"] = np.exp(-np.abs(loss))
    return xr.Dataset(
        {name: ("alpha", value) for name, value in names.items()}, {"alpha": x}, ATTRS | attrs
    )


def hill(n=21):
    return curve_of(lambda t: 0.1 + 3 * t * (1 - t) ** 2, n, low=0.0)


def log_of(n=300):
    step = np.arange(n)
    names = {"loss": 2.3 * 0.98**step + 0.1, "grad_norm": 5.0 / (1 + step)}
    names["learning_rate"] = np.where(step < n // 2, 0.1, 0.01)
    return xr.Dataset({k: ("step", v) for k, v in names.items()}, {"step": step}, ATTRS)


def path_of(n=30):
    t = np.linspace(0, 1, n)
    names = {"alpha": 0.8 * (1 - t), "beta": 0.6 * (1 - t) ** 2, "distance": 0.2 * t * (1 - t)}
    names |= {"displacement": 1 - t, "loss": 2 * 0.1**t, "plane_loss": 2.1 * 0.1**t}
    return xr.Dataset(
        {k: ("snapshot", v) for k, v in names.items()},
        {"step": ("snapshot", 10 * np.arange(n))},
        ATTRS | {"explained_variance": [0.812, 0.123]},
    )


def measures_of(n=6):
    values = np.array([3.0, 1.0, 40.0, 7.0, 190.0, 12.0])[:n]
    names = {"lambda_max": values, "lambda_max_residual": 0.1 * values}
    names |= {"error": 0.01 * np.sqrt(values), "flat": np.ones(n)}
    return xr.Dataset({k: ("solution", v) for k, v in names.items()}, attrs=ATTRS)


def pairs_of(values=(-0.5, 42.0, 7.0), converged=True):
    values = torch.tensor(values, dtype=torch.float64)
    residuals = torch.linspace(0.1, 0.3, len(values), dtype=torch.float64)
    return SimpleNamespace(values=values, residuals=residuals, converged=converged, attrs=ATTRS)


def spectrum_of(matrix=None, **options):
    n = 60
    values = torch.cat([torch.linspace(-0.1, 1, n - 2), torch.tensor([4.0, 9.0])])
    matrix = torch.diag(values.double()) if matrix is None else matrix
    found = pl.spectral_density(matrix, probes=3, steps=20, **options)
    return found.assign_attrs(ATTRS | {"matrix": "Hessian", "size": n})


def layers_of(count=4):
    n = np.arange(1.0, count + 1)
    names = {"lambda_max": 10.0**n, "lambda_max_residual": 1.0 + 0 * n, "lambda_min": 2 - n}
    names |= {"lambda_min_residual": 0.1 * n, "trace": 3 - n, "trace_stderr": 0.5 * n}
    names |= {"parameters": (1000 * n).astype(int)}
    layer = [f"block.{k}.conv1" for k in range(count)]
    return xr.Dataset({k: ("layer", v) for k, v in names.items()}, {"layer": layer}, ATTRS)


def curvatures_of(count=2, mean=4e-4):
    names = {
        "curvature": 1e-3 * np.arange(1.0, count + 1),
        "principal": np.linspace(8, -0.002, count),
    }
    numbers = {"lambda_max": 42.0, "lambda_min": -1.5, "mean": mean, "mean_stderr": 1e-4}
    variables = {k: ("axis", v) for k, v in names.items()} | numbers
    return xr.Dataset(variables, {"axis": [f"direction {k + 1}" for k in range(count)]}, ATTRS)


def eigenvalue_path_of():
    step = np.array([0, 10, 100, 1000])
    names = {"lambda_max": [1.0, 30.0, 9.0, 4.0], "lambda_max_residual": [0.5, 0.1, 0.1, 0.1]}
    return xr.Dataset({k: ("step", v) for k, v in names.items()}, {"step": step}, ATTRS)


def barriers_of(pairs=3):
    t, height = np.linspace(0, 1, 21), np.array([1.3, 0.2, 0.02])
    share = 1 + 0.1 * np.arange(pairs)
    loss = 0.01 + 4 * share[:, None, None] * height[:, None] * t * (1 - t)
    names = {"loss": loss, "accuracy": 1 / (1 + loss), "test_loss": 0.3 + loss}
    columns = {k: (("pair", "path", "alpha"), v) for k, v in names.items()}
    for name in ("barrier", "test_barrier"):
        columns[name] = (("pair", "path"), share[:, None] * height)
    return xr.Dataset(columns, {"path": ["straight", "aligned", "curve"], "alpha": t}, ATTRS)


def curve_plane_of(bends=1, off=0.0):
    t, nodes = np.linspace(0, 1, 31), np.linspace(-0.6, 0.6, bends + 2)
    path = {"alpha": 1.2 * t - 0.6, "beta": 2 * t * (1 - t), "distance": off * t * (1 - t)}
    columns = {f"path_{k}": ("t", v) for k, v in path.items()}
    columns |= {"node_alpha": ("node", nodes), "node_beta": ("node", 0.8 * np.cos(2.6 * nodes))}
    return plane_of(bowl).assign(columns)


def profile_of(n=9):
    x = np.geomspace(1e-3, 10, n)
    names = {"gradient_limit": 0.02 * x, "curvature_limit": x**2}
    names |= {"quadratic": 0.02 * x + x**2, "rise": 0.02 * x + x**2 + x**3}
    attrs = ATTRS | {"lambda_max": 2.0, "gradient_norm": 0.02}
    return xr.Dataset({k: ("epsilon", v) for k, v in names.items()}, {"epsilon": x}, attrs)


def spiked():
    """A bowl with a few values that would flatten it, on a linear scale."""
    surface = plane_of(lambda x, y: 1 + x**2 + y**2, 31, 31)
    surface["loss"][0, :3] = 60.0
    return surface


LONG = {"data": "a/path/without/spaces/" * 6 + "cost_in_$", "directions": "of many words " * 20}


def caption_of(figure):
    return figure.findobj(lambda artist: artist.get_gid() == "caption")[0].get_text()


def words(figure):
    return caption_of(figure).replace("\n", " ").replace("\u00a0", " ")


def find(figure, gid):
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def contours(figure):
    """The filled contours and the lines of a figure."""
    sets = [a for a in figure.axes[0].collections if isinstance(a, QuadContourSet)]
    return next(a for a in sets if a.filled), next(a for a in sets if not a.filled)


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]
