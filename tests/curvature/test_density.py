"""`pl.spectral_density` on matrices of known spectrum: masses, widths, moments, error bars."""

import numpy as np
import pytest
import torch
import xarray as xr
from models import labels, normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.curvature import _krylov

THREE = [0.0] * 180 + [1.0] * 18 + [10.0] * 2  # masses 90, 9 and 1 %


def symmetric(values, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    vectors, _ = torch.linalg.qr(normal(len(values), len(values), seed=seed))
    matrix = (vectors * values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def continuous(n: int = 120) -> Tensor:
    """Eigenvalues of a bulk with two outliers."""
    bulk = torch.cos(torch.linspace(0, torch.pi, n - 2).double())
    return torch.cat([bulk, torch.tensor([3.0, 4.0]).double()])


def mass(found: xr.Dataset, low: float, high: float) -> float:
    return float(found.density.sel(eigenvalue=slice(low, high)).integrate("eigenvalue"))


def broadened(values: Tensor, found: xr.Dataset) -> np.ndarray:
    """The true density on the grid of a result, with the bumps that the result has."""
    sd = found.attrs["sd"]
    distances = (found.eigenvalue.values[:, None] - values.numpy()) / sd
    return np.exp(-(distances**2) / 2).mean(1) / (sd * (2 * np.pi) ** 0.5)


class Broken:
    """A matrix whose products end in Ctrl-C, or in NaN."""

    def __init__(self, after: int, error: type[BaseException] | None = KeyboardInterrupt) -> None:
        self.matrix = symmetric(continuous(30))
        self.shape, self.dtype, self.device = (30, 30), torch.float64, torch.device("cpu")
        self.left, self.error = after, error

    def __matmul__(self, v: Tensor) -> Tensor:
        self.left -= 1
        if self.left >= 0:
            return self.matrix @ v
        if self.error:
            raise self.error
        return v * torch.nan


@pytest.mark.parametrize("vectors", ["normal", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_masses_of_three_eigenvalues(dtype, vectors):
    found = pl.spectral_density(
        symmetric(THREE, dtype=dtype), 100, 20, broadening=0.01, vectors=vectors
    )
    for expected, (low, high) in zip(
        (0.9, 0.09, 0.01), ((-1, 0.5), (0.5, 5), (5, 11)), strict=True
    ):
        inside = found.weight.where((found.node > low) & (found.node < high), 0.0).sum("step")
        error = float(inside.std("probe", ddof=1)) / 10
        assert abs(float(inside.mean()) - expected) < 4 * error
        assert abs(mass(found, low, high) - float(inside.mean())) < 1e-5
        assert error < 0.15 * expected
    assert abs(float(found.density.integrate("eigenvalue")) - 1) < 1e-6
    assert found.attrs["products"] < 100 * 20  # each process ends where its quadrature is exact


@pytest.mark.parametrize("ahead", [3, 8])
def test_steps_under_way_at_once_change_nothing(monkeypatch, ahead):
    """As on a GPU; the processes of the first matrix end after three steps, of the second never.

    Moments are compared: a process that rounding lets pass its end has copies of its nodes, and how
    they share their weight means nothing.
    """
    for values in (THREE, continuous()):
        matrix = symmetric(values)
        expected = pl.spectral_density(matrix, 6, 20)
        monkeypatch.setitem(_krylov.STEPS_AHEAD, "cpu", ahead)
        found = pl.spectral_density(matrix, 6, 20)
        monkeypatch.undo()
        for power in range(6):
            moments = [(s.weight * s.node**power).sum("step").values for s in (found, expected)]
            np.testing.assert_allclose(*moments, rtol=1e-9)
    assert found.attrs["products"] == expected.attrs["products"] == 6 * 20


def test_widths_of_any_size_draw_alike():
    """A matrix times c has the density p(x / c) / c."""
    base, narrow, wide, shifted = (
        pl.spectral_density(matrix, 4, 20)
        for matrix in (
            symmetric(continuous()),
            symmetric(1e-3 * continuous()),
            symmetric(1e4 * continuous()),
            symmetric(continuous() - 2),
        )
    )
    for other, c, shift in ((narrow, 1e-3, 0), (wide, 1e4, 0), (shifted, 1, -2)):
        np.testing.assert_allclose(other.eigenvalue, c * base.eigenvalue + shift, atol=1e-9 * c)
        np.testing.assert_allclose(other.density * c, base.density, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(
            other.density_stderr * c, base.density_stderr, rtol=1e-5, atol=1e-9
        )
    for other, c in ((narrow, 1e-3), (wide, 1e4)):
        np.testing.assert_allclose(other.magnitude, c * base.magnitude, rtol=1e-9)
        np.testing.assert_allclose(other.log_density, base.log_density, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("vectors", ["normal", "rademacher"])
def test_moments_match_traces_within_their_errors(vectors):
    values = continuous()
    found = pl.spectral_density(symmetric(values), 200, 12, vectors=vectors)
    for k in range(1, 6):
        moments = (found.weight * found.node**k).sum("step")
        error = float(moments.std("probe", ddof=1)) / 200**0.5
        assert abs(float(moments.mean()) - float((values**k).mean())) < 4 * error
    assert abs(float(found.trace) - float(values.sum())) < 4 * float(found.trace_stderr)


def test_one_probe_is_a_quadrature_of_twice_its_steps():
    """u' H^k u = sum of weights times node^k for every k below 2 m."""
    matrix = symmetric(continuous(40))
    found = pl.spectral_density(matrix, 1, 6, seed=3)
    z = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    image, u = z / z.norm(), z / z.norm()
    for k in range(12):
        assert abs(float((found.weight * found.node**k).sum()) / float(u @ image) - 1) < 1e-10
        image = matrix @ image
    assert abs(float((found.weight * found.node**12).sum()) / float(u @ image) - 1) > 1e-8
    assert found.density_stderr.isnull().all()


def test_error_bars_cover_the_truth():
    """Two standard errors of eight probes hold a t-distributed error in 91 % of all cases."""
    values = continuous(80)
    matrix, total = symmetric(values), float(values.sum())
    covered, traces = [], []
    for seed in range(50):
        found = pl.spectral_density(matrix, 8, 30, 200, broadening=0.06, seed=seed)
        truth = broadened(values, found)
        seen = truth > 0.05 * truth.max()
        errors = np.abs(found.density.values - truth) / found.density_stderr.values
        covered.append((errors[seen] < 2).mean())
        traces.append(abs(float(found.trace) - total) < 2 * float(found.trace_stderr))
    assert 0.86 < np.mean(covered) < 0.96
    assert 0.80 <= np.mean(traces) <= 0.98


def test_the_log_spectrum_has_the_masses_of_its_decades_and_signs():
    values = torch.tensor([1e-4] * 60 + [-1e-2] * 30 + [10.0] * 10).double()
    found = pl.spectral_density(symmetric(values), 100, 12, seed=1, broadening=0.005)
    log = found.log_density.assign_coords(magnitude=np.log10(found.magnitude))
    assert abs(float(log.sum("sign").integrate("magnitude")) - 1) < 1e-6
    for sign, low, high, expected in ((1, -5, -3, 0.6), (-1, -3, -1, 0.3), (1, 0, 2, 0.1)):
        part = log.sel(sign=sign, magnitude=slice(low, high)).integrate("magnitude")
        assert abs(float(part) - expected) < 0.03


def test_bumps_are_those_of_curvlinops():
    reason = "curvlinops is not installed"
    module = pytest.importorskip("curvlinops.papyan2020traces.spectrum", reason=reason)
    found = pl.spectral_density(symmetric(continuous()), 1, 60, 1000)
    nodes = torch.from_numpy(found.node.values[0])
    vectors = torch.from_numpy(found.weight.values[0] ** 0.5)[None]
    ends = float(nodes.min()), float(nodes.max())
    grid, density = module.lanczos_approximate_spectrum_from_iter(
        (nodes, vectors), ends, 1000, 3.0, 0.05
    )
    np.testing.assert_allclose(found.eigenvalue, grid)
    np.testing.assert_allclose(found.density, density, rtol=1e-9, atol=1e-9)
    ends = float(nodes.abs().min()), float(nodes.abs().max())
    grid, density = module.lanczos_approximate_log_spectrum_from_iter(
        (nodes, vectors), ends, 1000, 1.04, 0.05, 0.0
    )
    ours = np.interp(
        np.log10(grid.numpy()), np.log10(found.magnitude), found.log_density.sum("sign")
    )
    np.testing.assert_allclose(ours, (density * grid).numpy() * np.log(10), atol=1e-3 * ours.max())


def test_probes_side_by_side_or_one_by_one():
    matrix = symmetric(continuous(40))
    row = 40 * 8
    together, pairs, single = (
        pl.spectral_density(matrix, 3, 10, memory=m * 11 * row) for m in (9, 2, 1)
    )
    for other in (pairs, single):
        xr.testing.assert_allclose(other, together)
    with pytest.raises(ValueError, match=f"memory must hold 11 vectors, {11 * row} bytes"):
        pl.spectral_density(matrix, 3, 10, memory=11 * row - 1)


@pytest.mark.parametrize("values", [[2.0] * 9, [0.0] * 9, [-3.0], [1.0, -1.0]])
def test_spectra_of_few_values(values):
    found = pl.spectral_density(symmetric(values), 3, 5)
    assert abs(float(found.density.integrate("eigenvalue")) - 1) < 1e-6
    assert float(found.lambda_max) == pytest.approx(max(values), abs=1e-12)
    assert float(found.lambda_min) == pytest.approx(min(values), abs=1e-12)
    assert found.attrs["products"] <= 3 * len(set(values))
    assert found.eigenvalue.diff("eigenvalue").min() > 0
    assert found.magnitude.diff("magnitude").min() > 0


def test_an_eigenvalue_lies_within_each_residual():
    values = continuous()
    found = pl.spectral_density(symmetric(values), 2, 20)
    node, residual = (found[name].values.reshape(-1) for name in ("node", "residual"))
    distances = np.abs(node[:, None] - values.numpy()).min(1)
    assert (distances <= residual + 1e-12).all()
    assert abs(float(found.lambda_max) - 4) <= float(found.lambda_max_residual) < 0.1


def test_narrow_bumps_get_more_grid_points():
    found = pl.spectral_density(symmetric(continuous()), 1, 5, 16, broadening=1e-3)
    assert found.sizes["eigenvalue"] > 2000
    assert abs(float(found.density.integrate("eigenvalue")) - 1) < 1e-6


def test_seeds_reproduce_and_leave_the_global_generator_alone():
    matrix = symmetric(continuous(40))
    state = torch.get_rng_state()
    first, again, other = (pl.spectral_density(matrix, 2, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    xr.testing.assert_identical(first, again)
    assert not np.array_equal(first.node, other.node)


def test_the_result_says_how_it_was_made(tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    objective = pl.Objective(model, nn.CrossEntropyLoss(), (normal(20, 4), labels(20, 3)))
    found = pl.spectral_density(pl.GGN(objective, only="2.*"), 2, 5, seed=7)
    expected = {"matrix": "GGN", "size": 21, "only": ["2.weight", "2.bias"], "seed": 7}
    expected |= {"probes": 2, "steps": 5, "vectors": "normal", "model": "Sequential"}
    assert expected.items() <= found.attrs.items()
    found.to_zarr(tmp_path / "density.zarr", zarr_format=3, consolidated=False)


def test_layers_are_the_blocks_of_the_dense_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    objective = pl.Objective(model, nn.CrossEntropyLoss(), (normal(20, 4), labels(20, 3)))
    at = objective.center + 0.1
    H = pl.Hessian(objective, at=at)
    dense = H @ torch.eye(H.shape[0]).double()
    spectra = pl.layer_spectra(H, probes=3, steps=30)
    assert spectra.layer.values.tolist() == ["0", "2"]
    assert spectra.attrs["products"] == int(spectra.node.notnull().sum())
    for layer, block in (("0", dense[:30, :30]), ("2", dense[30:, 30:])):
        values, part = torch.linalg.eigvalsh(block), spectra.sel(layer=layer)
        assert float(part.lambda_max) == pytest.approx(float(values[-1]), abs=1e-9)
        assert float(part.lambda_min) == pytest.approx(float(values[0]), abs=1e-9)
        assert abs(float(part.trace) - float(values.sum())) < 5 * float(part.trace_stderr)
        assert int(part.parameters) == len(block)
        assert float(np.trapezoid(part.density, part.eigenvalue)) == pytest.approx(1, abs=1e-6)


def test_an_interrupted_run_gives_what_it_has():
    with pytest.raises(pl.Interrupted, match="after 18 products") as stop:
        pl.spectral_density(Broken(9), 2, 20)
    assert stop.value.result.attrs["products"] == 18
    assert abs(float(stop.value.result.density.integrate("eigenvalue")) - 1) < 1e-6
    with pytest.raises(pl.Interrupted) as stop:
        pl.spectral_density(Broken(0), 2, 20)
    assert stop.value.result is None


@pytest.mark.parametrize(("options", "message"), [
    ({"probes": 0}, "probes must be an int >= 1"),
    ({"steps": 1}, "steps must be an int >= 2"),
    ({"resolution": 1}, "resolution must be an int >= 2"),
    ({"broadening": 0.0}, "broadening must be a part of the range"),
    ({"vectors": "uniform"}, "vectors must be one of normal, rademacher, got 'uniform'"),
    ({"seed": -1}, "seed must be an integer >= 0"),
])  # fmt: skip
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        pl.spectral_density(symmetric([1.0, 2.0]), **options)


def test_bad_matrices():
    with pytest.raises(ValueError, match="spectral_density: H must be symmetric"):
        pl.spectral_density(torch.arange(9.0).view(3, 3))
    with pytest.raises(TypeError, match=r"layer_spectra: H must be a pl\.Hessian"):
        pl.layer_spectra(torch.eye(3))
    with pytest.raises(ValueError, match="must be finite"):
        pl.spectral_density(Broken(3, error=None), 1, 10)
