"""The spectral density of a symmetric matrix by stochastic Lanczos quadrature, with error bars."""

from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pylandscape._checks import require, show
from pylandscape.curvature._krylov import (
    Krylov,
    SymmetricOperator,
    check_operator,
    described,
    multiply,
)
from pylandscape.curvature._probes import Probes, Vectors, check_vectors
from pylandscape.curvature.operators import CurvatureOperator
from pylandscape.objective import Interrupted
from pylandscape.progress import progress_bar

Floats = NDArray[np.float64]

# The bumps of m nodes spread over a range meet at 1 / kappa of their height: Papyan 2020, section
# D.2. For the logarithmic scale he gives none; curvlinops found this one by his figure 15b.
_KAPPA, _LOG_KAPPA = 3.0, 1.04
_MARGIN = 0.05  # of the range, on either side: part of the range that the bumps are relative to
_REACH = 5.0  # standard deviations that the grid goes beyond the outermost nodes, at least
_FINENESS = 4  # grid points to a standard deviation, at least
_NOISE = 10  # |eigenvalues| below so many units of rounding of the largest are not told from zero


def spectral_density(
    H: SymmetricOperator,
    probes: int = 8,
    steps: int = 80,
    resolution: int = 1024,
    broadening: float | None = None,
    vectors: Vectors = "normal",
    memory: float = 2**30,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The density of the eigenvalues of H [n, n], p(x) = 1/n sum_i delta(x - lambda_i), broadened.

    Stochastic Lanczos quadrature: from each of K random unit vectors u a Lanczos process of m steps
    gives Ritz values theta_j and weights w_j = s_1j^2, the squares of the first components of the
    eigenvectors of its matrix T_m, such that

        sum_j w_j f(theta_j)  ~  u' f(H) u,      E[u' f(H) u] = tr f(H) / n,

    exactly for every polynomial f of degree below 2 m. The density is the mean over the probes of
    sum_j w_j N(x; theta_j, sd^2). Its standard error, from the spread over the probes, is that of
    the random vectors; it does not know of what m steps cannot resolve.

    Args:
        H: a `pl.Hessian`, `pl.GGN`, `pl.Fisher`, or anything symmetric with `shape`, `dtype`,
            `device` and `@` for blocks [n, K]; float32 or float64.
        probes: K. The error falls as 1 / sqrt(K); with one probe it is not known (NaN).
        steps: m, the products for each probe, at most n.
        resolution: the number of grid points; more are taken where a bump has less than four to
            its standard deviation.
        broadening: sd as a part of the range, whose margin of 5 % on either side counts; default
            1 / ((m - 1) sqrt(8 ln 3)) as in Papyan (2020), a third of the mean distance of m nodes.
            Spectra of any width are so drawn alike. The default shows single nodes where the
            spectrum is continuous; the mean is smooth from about 3 / m on.
        vectors: "normal", directions uniform on the sphere, or "rademacher", random signs.
        memory: bytes for the bases. Probes that fit run side by side, with products of blocks.
        seed: of the random vectors.
        progress: show a bar; by default on a terminal only.

    Returns:
        A dataset. Over `eigenvalue`: `density` and `density_stderr`, of integral 1. Over `sign` (1
        and -1) and `magnitude`: `log_density` and `log_density_stderr`, the density of
        log10 |lambda|, broadened by the same rule with ln 1.04 for ln 3 on the logarithmic range;
        both signs together have the integral 1. Over `probe` and `step`: the nodes themselves,
        `node`, `weight` and `residual`, within which an eigenvalue lies (NaN and weight 0 where a
        process ended early because its quadrature was exact). `lambda_max` and `lambda_min`, each
        with `_residual`, are the outermost nodes; `trace`, with `trace_stderr`, is n times the mean
        of sum_j w_j theta_j. The attributes hold `products`, `probes`, `steps`, `broadening`,
        `sd` and `log_sd` (the widths of the bumps), `vectors`, `seed`, and how H was made.

    Raises:
        TypeError: `H` is not such an operator.
        ValueError: another argument is out of range, or a product is not finite.
        Interrupted: on Ctrl-C; its `result` is the dataset of the steps done so far.

    Example:
        A matrix with 90 % of its eigenvalues at 0, 9 % at 1 and 1 % at 10:

        >>> import torch, pylandscape as pl
        >>> H = torch.diag(torch.tensor([0.0] * 90 + [1.0] * 9 + [10.0]))
        >>> found = pl.spectral_density(H, probes=64, steps=20, broadening=0.01)
        >>> near_zero = found.density.sel(eigenvalue=slice(None, 0.5)).integrate("eigenvalue")
        >>> abs(float(near_zero) - 0.9) < 0.02
        True
    """
    where = "spectral_density"
    check_operator(H, where)
    _check(where, probes, steps, resolution, broadening)
    check_vectors(vectors, seed, where)
    if broadening is None:
        broadening = 1 / ((steps - 1) * (8 * np.log(_KAPPA)) ** 0.5)
    run = _Run(H, min(steps, H.shape[0]), Probes(H, vectors, seed))
    together = run.side_by_side(probes, memory, where)

    def dataset() -> xr.Dataset:
        attrs = {"kind": "spectral density", "products": run.products, "probes": probes}
        attrs |= {"steps": steps, "broadening": broadening, "vectors": vectors, "seed": seed}
        noise = _NOISE * torch.finfo(H.dtype).eps
        found = _dataset(run.quadratures, H.shape[0], steps, resolution, broadening, noise)
        return found.assign_attrs(attrs | described(H))

    try:
        with progress_bar(probes * run.steps, "spectral density", "product", progress) as bar:
            for first in range(0, probes, together):
                run.go(min(together, probes - first), bar)
    except KeyboardInterrupt:
        stop = Interrupted({}, run.products, "products")
        stop.result = dataset() if run.quadratures else None
        raise stop from None
    return dataset()


def layer_spectra(
    H: CurvatureOperator,
    probes: int = 4,
    steps: int = 40,
    resolution: int = 1024,
    broadening: float | None = None,
    vectors: Vectors = "normal",
    memory: float = 2**30,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The spectral density of each layer's diagonal block of a curvature matrix.

    A layer is the module that holds the parameters: "conv1" for "conv1.weight" and "conv1.bias".
    Every block gets a `spectral_density` of its own, and with it its extreme eigenvalues, with
    residuals, and its trace, with a standard error.

    Args:
        H: a `pl.Hessian`, `pl.GGN` or `pl.Fisher`, of all parameters or restricted to some.
        probes, steps, resolution, broadening, vectors, memory, seed, progress: for each layer, as
            for `spectral_density`.

    Returns:
        The datasets of the layers along a new dimension `layer`, in the order of the model, with
        `parameters`, the size of each block. Every layer has its own range, so that `eigenvalue`
        and `magnitude` are coordinates over (`layer`, `point`) and (`layer`, `log_point`).
        `dataset.sel(layer="conv1")` is what `plots.density` takes.

    Raises:
        TypeError: `H` is not a curvature operator.
        ValueError: another argument is out of range, or a product is not finite.
        Interrupted: on Ctrl-C; its `result` is the dataset of the layer that was being done.

    Example:
        >>> import torch, pylandscape as pl
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> data = torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> H = pl.Hessian(pl.Objective(model, nn.CrossEntropyLoss(), data))
        >>> spectra = pl.layer_spectra(H, probes=2, steps=10)
        >>> spectra.layer.values.tolist(), spectra.parameters.values.tolist()
        (['0', '2'], [40, 27])
        >>> bool((spectra.lambda_max > spectra.lambda_min).all())
        True
    """
    where = "layer_spectra"
    require(
        isinstance(H, CurvatureOperator),
        f"{where}: H must be a pl.Hessian, pl.GGN or pl.Fisher, got {show(H)}.",
        TypeError,
    )
    _check(where, probes, steps, resolution, broadening)
    check_vectors(vectors, seed, where)
    layers: dict[str, list[str]] = {}
    for name in H.names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    found = []
    for layer, names in layers.items():
        block = H.block(names)
        each = spectral_density(
            block, probes, steps, resolution, broadening, vectors, memory, seed, progress
        )
        each = each.swap_dims(eigenvalue="point", magnitude="log_point")
        each = each.reset_coords(["eigenvalue", "magnitude"]).assign(parameters=block.shape[0])
        found.append(each.assign_coords(layer=layer))
    together = xr.concat(found, "layer", data_vars="all", coords="minimal", compat="override")
    products = sum(each.attrs["products"] for each in found)
    labels = np.array(list(layers), dtype=object)  # Zarr knows no other strings
    together = together.set_coords(["eigenvalue", "magnitude"]).assign_coords(layer=labels)
    return together.assign_attrs(
        found[0].attrs | H.describe() | {"kind": "spectra of layers", "products": products}
    )


class _Quadrature(NamedTuple):
    """Nodes, their weights, which sum to 1, and their residual bounds, each [<= m]."""

    nodes: Floats
    weights: Floats
    residuals: Floats


class _Run:
    """Lanczos processes from random vectors, some side by side; of the finished ones, the nodes."""

    def __init__(self, H: SymmetricOperator, steps: int, probes: Probes) -> None:
        self.H, self.steps, self.probes = H, steps, probes
        self._done: list[_Quadrature] = []
        self._processes: list[Krylov] = []

    def side_by_side(self, probes: int, memory: float, where: str) -> int:
        """How many processes have room at once."""
        needed = (self.steps + 1) * self.H.shape[0] * self.H.dtype.itemsize
        require(
            isinstance(memory, (int, float)) and memory >= needed,
            f"{where}: memory must hold {self.steps + 1} vectors, {needed} bytes, got "
            f"{show(memory)}. Give more, or ask for fewer steps.",
        )
        return min(probes, int(memory // needed))

    @property
    def products(self) -> int:
        return sum(len(quadrature.nodes) for quadrature in self.quadratures)

    @property
    def quadratures(self) -> list[_Quadrature]:
        """Those of the finished processes and, as they stand, of the others."""
        return self._done + [_quadrature(process) for process in self._processes if process.size]

    def go(self, count: int, bar: Any) -> None:
        """All steps of `count` further processes."""
        n, H = self.H.shape[0], self.H
        for start in self.probes.draw(count):
            rows = torch.empty(self.steps + 1, n, dtype=H.dtype, device=H.device)
            self._processes.append(Krylov(rows, 0, start))
        while going := [p for p in self._processes if p.can_go_on]:
            starts = torch.stack([process.following for process in going], 1)
            images = multiply(H, starts, waits=any(process.waits for process in going))
            for process, image in zip(going, images.T.contiguous(), strict=True):
                process.take(image, process.size_of_columns)
            bar.update(len(going))
        self._done, self._processes = self.quadratures, []


def _quadrature(process: Krylov) -> _Quadrature:
    nodes, vectors, residuals = process.ritz()
    return _Quadrature(nodes, vectors[0] ** 2, residuals)


def _dataset(
    found: list[_Quadrature], n: int, steps: int, points: int, broadening: float, noise: float
) -> xr.Dataset:
    """The variables that `spectral_density` returns."""
    nodes, weights, residuals = (
        np.stack([np.pad(part, (0, steps - len(part)), constant_values=fill) for part in parts])
        for parts, fill in zip(zip(*found, strict=True), (np.nan, 0.0, np.nan), strict=True)
    )
    scale = float(np.nanmax(np.abs(nodes))) or 1.0
    grid, sd = _grid(nodes, broadening, points, (noise * scale, 0.01 * scale))
    decades = np.log10(np.abs(nodes).clip(noise * scale))
    wider = broadening * (np.log(_KAPPA) / np.log(_LOG_KAPPA)) ** 0.5
    log_grid, log_sd = _grid(decades, wider, points, (1e-6, 1.0))
    signs = np.array([1, -1])
    of_sign = [np.where(np.where(nodes < 0, -1, 1) == sign, weights, 0.0) for sign in signs]
    density, error = _mean(_bumps(nodes, weights, grid, sd))
    of_signs = [_mean(_bumps(decades, part, log_grid, log_sd)) for part in of_sign]
    trace, trace_error = _mean(n * np.nansum(nodes * weights, axis=1))
    variables: dict[str, Any] = {
        "density": ("eigenvalue", density),
        "density_stderr": ("eigenvalue", error),
        "log_density": (("sign", "magnitude"), np.stack([mean for mean, _ in of_signs])),
        "log_density_stderr": (("sign", "magnitude"), np.stack([e for _, e in of_signs])),
        "node": (("probe", "step"), nodes),
        "weight": (("probe", "step"), weights),
        "residual": (("probe", "step"), residuals),
        "trace": trace,
        "trace_stderr": trace_error,
    }
    for name, index in (("lambda_max", np.nanargmax(nodes)), ("lambda_min", np.nanargmin(nodes))):
        variables |= {name: nodes.flat[index], f"{name}_residual": residuals.flat[index]}
    return xr.Dataset(
        variables,
        coords={"eigenvalue": grid, "magnitude": 10.0**log_grid, "sign": signs},
        attrs={"sd": sd, "log_sd": log_sd},
    )


def _grid(
    values: Floats, broadening: float, points: int, narrow: tuple[float, float]
) -> tuple[Floats, float]:
    """A grid that holds the bumps at `values`, and their standard deviation.

    Values within narrow[0] of each other are one, drawn in a range of narrow[1].
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if high - low <= narrow[0]:
        low, high = low - narrow[1] / 2, low + narrow[1] / 2
    sd = broadening * (1 + 2 * _MARGIN)  # in units of the range
    reach = max(_MARGIN, _REACH * sd)
    count = max(points, 1 + int(np.ceil(_FINENESS * (1 + 2 * reach) / sd)))
    width = high - low
    return np.linspace(low - reach * width, high + reach * width, count), sd * width


def _bumps(nodes: Floats, weights: Floats, grid: Floats, sd: float) -> Floats:
    """sum_j w_j N(x; theta_j, sd^2) for each probe, [K, len(grid)]."""
    rows = []
    for theta, w in zip(nodes, weights, strict=True):
        known = ~np.isnan(theta)
        distances = (grid - theta[known, None]) / sd
        rows.append(w[known] @ np.exp(-(distances**2) / 2) / (sd * (2 * np.pi) ** 0.5))
    return np.stack(rows)


def _mean(values: Floats) -> tuple[Floats, Floats]:
    """The mean over the probes, axis 0, and its standard error, NaN for a single probe."""
    count = len(values)
    if count == 1:
        return values[0], np.full_like(values[0], np.nan)
    return values.mean(0), values.std(0, ddof=1) / count**0.5


def _check(where: str, probes: int, steps: int, resolution: int, broadening: float | None) -> None:
    require(
        isinstance(probes, int) and probes >= 1,
        f"{where}: probes must be an int >= 1, got {show(probes)}.",
    )
    require(
        isinstance(steps, int) and steps >= 2,
        f"{where}: steps must be an int >= 2, got {show(steps)}.",
    )
    require(
        isinstance(resolution, int) and resolution >= 2,
        f"{where}: resolution must be an int >= 2, got {show(resolution)}.",
    )
    require(
        broadening is None or (isinstance(broadening, (int, float)) and 0 < broadening <= 1),
        f"{where}: broadening must be a part of the range between 0 and 1, got {show(broadening)}.",
    )
