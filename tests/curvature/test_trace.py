"""`pl.trace`, `pl.frobenius_norm` and `pl.diagonal` on matrices of known spectrum."""

import numpy as np
import pytest
import torch
from models import labels, normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.curvature._probes import Probes
from pylandscape.curvature.trace import _Deflated

METHODS = ["xtrace", "hutch++", "hutchinson"]
VECTORS = ["normal", "rademacher"]


def symmetric(values, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    vectors, _ = torch.linalg.qr(normal(len(values), len(values), seed=seed))
    matrix = (vectors * values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def outliers(n: int = 100) -> Tensor:
    """A bulk of both signs and some large eigenvalues, of trace 55 + n / 4."""
    bulk = torch.linspace(-0.5, 1, n - 5).double()
    return torch.cat([bulk, torch.tensor([30.0, 20.0, 10.0, -8.0, 3.0]).double()])


class Counting:
    """A matrix that counts its products and may break off."""

    def __init__(self, matrix: Tensor, limit: float = np.inf, error: str = "interrupt") -> None:
        self.matrix, self.limit, self.error, self.products = matrix, limit, error, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += v.shape[1]
        if self.products <= self.limit:
            return self.matrix @ v
        if self.error == "nan":
            return v * torch.nan
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_trace_to_the_standard_error_asked_for(method, vectors, dtype):
    H = Counting(symmetric(outliers(), dtype=dtype))
    for tol in (0.2, 0.05):
        H.products = 0
        found = pl.trace(H, tol, method=method, vectors=vectors, max_products=20_000, seed=1)
        assert abs(found.value - float(outliers().sum())) < 4 * found.stderr + 1e-4
        assert found.converged
        assert found.stderr <= tol * abs(found.value)
        assert found.products == H.products
        assert (found.method, found.vectors, found.seed) == (method, vectors, 1)


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_trace_has_no_bias_and_errors_that_cover_it(method, vectors):
    matrix, exact = symmetric(outliers(60)), float(outliers(60).sum())
    values, errors = [], []
    for seed in range(100):
        found = pl.trace(matrix, 0.9, method=method, vectors=vectors, max_products=24, seed=seed)
        values.append(found.value)
        errors.append(found.stderr)
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / 10
    assert np.mean(np.abs(np.array(values) - exact) < 2 * np.array(errors)) > 0.75
    assert 0.6 < np.sqrt(np.mean(np.square(errors))) / np.std(values) < 1.6


@pytest.mark.parametrize("vectors", VECTORS)
def test_xtrace_is_its_definition(vectors):
    """For each i: tr Q'HQ with Q from all other vectors, and the i-th for the complement."""
    matrix, n, count = symmetric(outliers(40)), 40, 6
    run = _Deflated(matrix, Probes(matrix, vectors, 3), "xtrace", 2**30, "")
    run.add(4)
    run.add(2)
    omega = run.tests
    estimates = []
    for i in range(count):
        others = torch.cat([omega[:i], omega[i + 1 :]])
        Q, _ = torch.linalg.qr((others @ matrix).T)
        rest = omega[i] - Q @ (Q.T @ omega[i])
        scale = (n - count + 1) / float(rest @ rest) if vectors == "normal" else 1.0
        estimates.append(float(torch.trace(Q.T @ matrix @ Q) + scale * rest @ matrix @ rest))
    value, error = run.estimate()
    assert value == pytest.approx(np.mean(estimates), rel=1e-10)
    assert error == pytest.approx(np.std(estimates, ddof=1) / count**0.5, rel=1e-8)


def test_deflation_takes_fewer_products_where_few_eigenvalues_are_large():
    matrix = symmetric([100.0, 50.0, -20.0] + [0.1] * 197)
    products = {
        method: pl.trace(matrix, 0.01, method=method, max_products=50_000).products
        for method in METHODS
    }
    assert products["xtrace"] < products["hutchinson"] / 50
    assert products["hutch++"] < products["hutchinson"] / 50


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
@pytest.mark.parametrize(
    "values",
    [[3.0], [1.0, -1.0, 2.5], [0.0] * 30, [5.0] * 30, [2.0] + [0.0] * 40, [4.0, -4.0] + [0.0] * 40],
    ids=["one", "three", "zero", "identity", "rank one", "trace zero"],
)
def test_a_sketch_that_holds_the_matrix_is_exact(method, values):
    for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        found = pl.trace(symmetric(values, dtype=dtype), 0.01, 1e-3, method=method)
        assert abs(found.value - sum(values)) < rounding * max(1, max(map(abs, values)))
        assert found.stderr <= max(0.01 * abs(found.value), 1e-3)


def test_the_same_vectors_whatever_the_blocks():
    matrix = symmetric(outliers())
    one, two = (pl.trace(matrix, 0.9, method="hutchinson", max_products=n) for n in (18, 27))
    assert one.products == two.products  # both stop at the first look
    assert one == two


def test_an_error_that_is_not_reached_is_said():
    matrix = symmetric(outliers())
    with pytest.warns(UserWarning, match="trace: not converged: after 40 products.*max_products"):
        found = pl.trace(matrix, 1e-3, method="hutchinson", max_products=40)
    assert not found.converged
    row = 100 * 8
    with pytest.warns(UserWarning, match="after 20 products.*Raise memory"):
        pl.trace(matrix, 1e-3, memory=2 * 10 * row)
    with pytest.raises(ValueError, match=f"memory must hold 12 vectors, {12 * row} bytes"):
        pl.trace(matrix, memory=12 * row - 1)


def test_an_absolute_error_where_the_trace_is_zero():
    matrix = symmetric(torch.linspace(-1, 1, 100))
    found = pl.trace(matrix, tol=0, atol=0.5, method="hutchinson")
    assert found.stderr <= 0.5
    assert abs(found.value) < 4 * 0.5


@pytest.mark.parametrize("vectors", VECTORS)
def test_the_frobenius_norm(vectors):
    values = outliers()
    found = pl.frobenius_norm(symmetric(values), 0.02, vectors=vectors, max_products=5000)
    assert abs(found.value - float(values.norm())) < 4 * found.stderr
    assert found.stderr <= 0.02 * found.value
    assert pl.frobenius_norm(symmetric([0.0] * 30)).value == 0


def test_the_diagonal_within_its_errors():
    matrix = symmetric(outliers(60))
    few, many = (pl.diagonal(matrix, probes) for probes in (50, 800))
    for found in (few, many):
        errors = (found.value - matrix.diag()).abs() / found.stderr
        assert errors.max() < 5
        assert (errors < 2).double().mean() > 0.85
    expected = ((matrix**2).sum(1) - matrix.diag() ** 2).div(800).sqrt()
    torch.testing.assert_close(many.stderr, expected, rtol=0.15, atol=0)
    assert few.products == 50
    assert abs(float(many.value.sum()) - float(outliers(60).sum())) < 10


def test_a_network_against_its_dense_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    H = pl.Hessian(pl.Objective(model, nn.CrossEntropyLoss(), (normal(20, 4), labels(20, 3))))
    dense = H @ torch.eye(51).double()
    found = pl.trace(H, 0.02)
    assert abs(found.value - float(dense.trace())) < 4 * found.stderr + 1e-9
    assert {"matrix": "Hessian", "size": 51, "model": "Sequential"}.items() <= found.attrs.items()


def test_seeds_reproduce_and_leave_the_global_generator_alone():
    matrix = symmetric(outliers())
    state = torch.get_rng_state()
    for function in (pl.trace, pl.frobenius_norm, pl.diagonal):
        first, again, other = (function(matrix, seed=seed).value for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_run_gives_what_it_has():
    matrix = symmetric(outliers())
    with pytest.raises(pl.Interrupted, match="after 29 products") as stop:
        pl.trace(Counting(matrix, 30), 1e-6, method="hutchinson")
    assert stop.value.result.products == 29
    assert abs(stop.value.result.value - float(outliers().sum())) < 5 * stop.value.result.stderr
    with pytest.raises(pl.Interrupted) as stop:
        pl.diagonal(Counting(matrix, 20))
    assert stop.value.result.products == 16
    assert not stop.value.result.converged
    with pytest.raises(pl.Interrupted) as stop:
        pl.trace(Counting(matrix, 3))
    assert stop.value.result is None


@pytest.mark.parametrize(("call", "message"), [
    (lambda H: pl.trace(H, tol=1.0), "trace: tol must be at least 0 and below 1"),
    (lambda H: pl.trace(H, tol=0), "atol must be at least 0, above 0 where tol is 0"),
    (lambda H: pl.trace(H, atol=-1), "atol must be at least 0"),
    (lambda H: pl.trace(H, method="hutch"), r"method must be one of xtrace, hutch\+\+"),
    (lambda H: pl.trace(H, max_products=17), "max_products must be an int >= 18"),
    (lambda H: pl.trace(H, vectors="uniform"), "vectors must be one of normal, rademacher"),
    (lambda H: pl.frobenius_norm(H, seed=-1), "seed must be an integer >= 0"),
    (lambda H: pl.diagonal(H, probes=1), "diagonal: probes must be an int >= 2"),
    (lambda H: pl.trace(Counting(H, 2, "nan")), "must be finite"),
    (lambda H: pl.trace(torch.ones(2, 3)), "trace: H must be a square matrix"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(symmetric(outliers()))
