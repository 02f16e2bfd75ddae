"""lanczos_step against Gram-Schmidt in float64 by torch, and what makes a Lanczos process right."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape._ops import LanczosStep
from pylandscape._ops.lanczos import plain_lanczos_step

DTYPES = [torch.float32, torch.float64]
ROUNDING = {torch.float32: 2e-6, torch.float64: 5e-15}
# sizes and rows beside the kernels' lanes, groups of rows and tiles
CASES = [(1, 1), (2, 1), (15, 3), (16, 4), (17, 5), (33, 8), (257, 9), (1030, 70), (4097, 1)]


def orthonormal(size: int, rows: int, dtype: torch.dtype) -> Tensor:
    """A basis [rows + 1, size] with `rows` orthonormal rows and NaN in the last."""
    generator = torch.Generator().manual_seed(size + rows)
    square = torch.randn(size, rows, generator=generator, dtype=torch.float64)
    basis = torch.full((rows + 1, size), float("nan"), dtype=dtype)
    basis[:rows] = torch.linalg.qr(square)[0].T
    return basis


def random_vector(size: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def naive(basis: Tensor, product: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The coefficients and what is left, in float64."""
    v, w = basis[:rows].double(), product.double()
    coefficients = torch.zeros(rows, dtype=torch.float64)
    for _ in range(3):
        coefficients += v @ w
        w = w - v.T @ (v @ w)
    return coefficients, w


def take(
    device: str, basis: Tensor, product: Tensor, row: int, **options: Any
) -> tuple[Tensor, Tensor, LanczosStep]:
    """Basis, product and what was found after a step on a device, back on the CPU."""
    there, rest = basis.to(device, copy=True), product.to(device, copy=True)
    [step] = _ops.fetch_steps([_ops.lanczos_step(there, rest, row, **options)])
    return there.cpu(), rest.cpu(), step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "rows"), CASES)
def test_against_gram_schmidt(device: str, size: int, rows: int, dtype: torch.dtype) -> None:
    basis, product = orthonormal(size, rows, dtype), random_vector(size, dtype)
    coefficients, rest = naive(basis, product, rows)
    before = basis.clone()
    basis, product, step = take(device, basis, product, rows - 1)
    tolerance = ROUNDING[dtype] * float(coefficients.norm() + rest.norm())
    torch.testing.assert_close(step.coefficients, coefficients, rtol=0, atol=tolerance)
    torch.testing.assert_close(product.double(), rest, rtol=0, atol=tolerance)
    assert step.alpha == step.coefficients[-1]
    assert torch.equal(basis[:rows], before[:rows])
    if rows == size:
        assert step.breakdown
        return
    assert abs(step.beta - float(rest.norm())) < tolerance
    assert not step.breakdown
    torch.testing.assert_close(basis[rows], (product.double() / step.beta).to(dtype))
    gram = basis.double() @ basis.double().T
    assert (gram - torch.eye(rows + 1)).abs().max() < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonality_when_almost_everything_cancels(device: str, dtype: torch.dtype) -> None:
    """Once is not enough here: what is left is 1e-4 of the product."""
    basis = orthonormal(3001, 20, dtype)
    inside = random_vector(20, dtype) @ basis[:20]
    product = inside + 1e-4 * torch.nn.functional.normalize(random_vector(3001, dtype, 2), dim=0)
    basis, _, step = take(device, basis, product, 19)
    assert not step.breakdown
    assert (basis[:20].double() @ basis[20].double()).abs().max() < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_coefficients_are_those_of_both_passes(device: str, dtype: torch.dtype) -> None:
    """H v_j = V^T h + w holds for any rows; here they are far enough from orthonormal to tell."""
    basis = orthonormal(1000, 9, dtype)
    basis[:9] += 0.01 * random_vector(9000, dtype, 3).view(9, 1000)
    product = random_vector(1000, dtype)
    before = product.double().clone()
    basis, product, step = take(device, basis, product, 8)
    again = basis[:9].double().T @ step.coefficients + product.double()
    torch.testing.assert_close(again, before, rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_invariant_subspace_is_a_breakdown(device: str, dtype: torch.dtype) -> None:
    basis = orthonormal(2001, 12, dtype)
    product = random_vector(12, dtype) @ basis[:12]
    basis, _, step = take(device, basis, product, 11)
    assert step.breakdown
    assert bool(basis[12].isnan().all())  # not written
    assert step.beta < ROUNDING[dtype] * float(step.coefficients.norm())


def test_breakdown_is_relative_to_the_matrix(device: str) -> None:
    """A product that is small beside the matrix is rounding, however it compares with itself."""
    for scale, breakdown in [(0.0, False), (1.0, True)]:
        basis, product = (
            orthonormal(100, 3, torch.float64),
            1e-16 * random_vector(100, torch.float64),
        )
        assert bool(take(device, basis, product, 2, scale=scale)[2].breakdown) is breakdown
    basis, product = orthonormal(100, 3, torch.float64), random_vector(100, torch.float64)
    assert take(device, basis, product, 2, tolerance=2.0)[2].breakdown


def test_a_tensor_of_the_scale_follows_the_products(device: str) -> None:
    scale = torch.tensor(0.5, dtype=torch.float64, device=device)
    basis = orthonormal(100, 3, torch.float64)
    for size, expected in [(0.1, 0.5), (4.0, 4.0), (2.0, 4.0), (float("nan"), 4.0)]:
        product = torch.nn.functional.normalize(random_vector(100, torch.float64), dim=0) * size
        step = take(device, basis, product, 2, scale=scale)[2]
        assert bool(step.breakdown) is (size != size)
        assert abs(float(scale) - expected) < 1e-12
    tiny = 1e-16 * random_vector(100, torch.float64)
    assert take(device, basis, tiny, 2, scale=scale)[2].breakdown


def test_a_zero_product_is_a_breakdown(device: str) -> None:
    basis = orthonormal(50, 2, torch.float64)
    _, _, step = take(device, basis, torch.zeros(50, dtype=torch.float64), 1)
    assert step.breakdown
    assert step.beta == 0
    assert step.coefficients.tolist() == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_reported(device: str, value: float) -> None:
    basis, product = orthonormal(5000, 5, torch.float32), random_vector(5000, torch.float32)
    product[4321] = value
    before = basis.clone()
    basis, _, step = take(device, basis, product, 4)
    assert step.breakdown
    assert not bool(torch.isfinite(step.coefficients).any())
    assert not bool(torch.isfinite(step.beta))
    assert torch.equal(basis[:5], before[:5])
    assert bool(basis[5].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 40, 300])
def test_levels_and_threads_give_the_same_bits(rows: int, dtype: torch.dtype) -> None:
    size = 9001
    start, product = orthonormal(size, rows, dtype), random_vector(size, dtype)
    results: list[tuple[Tensor, Tensor, LanczosStep]] = []
    before = _ops.isa()
    for level in _ops.isa_levels():
        _ops.set_isa(level)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            basis, rest = start.clone(), product.clone()
            step = _ops.lanczos_step(basis, rest, rows - 1)
            results.append((basis, rest, step))
    _ops.set_isa(before)
    for basis, rest, step in results[1:]:
        assert torch.equal(basis, results[0][0])
        assert torch.equal(rest, results[0][1])
        assert torch.equal(step.coefficients, results[0][2].coefficients)
        assert step[1:] == results[0][2][1:]


def test_a_whole_process_gives_the_eigenvalues(device: str) -> None:
    """n steps from a generic vector reduce a matrix to a tridiagonal one with its eigenvalues."""
    n = 60
    eigenvalues = torch.linspace(-2, 5, n, dtype=torch.float64) ** 3
    rotation = torch.linalg.qr(random_vector(n * n, torch.float64).view(n, n))[0]
    matrix = rotation @ torch.diag(eigenvalues) @ rotation.T
    matrix = matrix.to(device)
    basis = torch.zeros(n + 1, n, dtype=torch.float64, device=device)
    basis[0] = torch.nn.functional.normalize(random_vector(n, torch.float64), dim=0)
    tridiagonal = torch.zeros(n, n, dtype=torch.float64)
    for j in range(n):
        step = _ops.lanczos_step(basis, matrix @ basis[j], j)
        tridiagonal[: j + 1, j] = step.coefficients
        if j + 1 < n:
            tridiagonal[j + 1, j] = step.beta
    assert step.breakdown
    norm = eigenvalues.abs().max()
    assert torch.triu(tridiagonal, 2).abs().max() < 1e-13 * norm  # the recurrence has three terms
    assert (tridiagonal - tridiagonal.T).abs().max() < 1e-13 * norm  # beta comes back
    torch.testing.assert_close(
        torch.linalg.eigvalsh(tridiagonal), eigenvalues, rtol=0, atol=float(1e-13 * norm)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_torch_does_the_same(dtype: torch.dtype) -> None:
    """What serves tensors on other devices."""
    for product in (random_vector(3000, dtype), orthonormal(3000, 7, dtype)[2] * 3):
        basis = orthonormal(3000, 7, dtype)
        plain_basis, rest = basis.clone(), product.clone()
        tolerance, scale = 10 * torch.finfo(dtype).eps, torch.zeros((), dtype=torch.float64)
        coefficients, beta, breakdown = plain_lanczos_step(plain_basis, rest, 6, scale, tolerance)
        step = _ops.lanczos_step(basis, product, 6)
        assert bool(breakdown) == bool(step.breakdown)
        close = {"rtol": 0, "atol": ROUNDING[dtype] * float(coefficients.norm() + beta)}
        torch.testing.assert_close(coefficients, step.coefficients, **close)
        torch.testing.assert_close(beta, step.beta, **close)
        torch.testing.assert_close(plain_basis, basis, equal_nan=True, **close)


B, W = torch.zeros(3, 4), torch.zeros(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((B, W.half(), 0), "lanczos_step: product must be contiguous, float32 or float64, got"),
        ((B, torch.zeros(8)[::2], 0), "lanczos_step: product must be contiguous"),
        (
            (B.double(), W, 0),
            r"basis must be contiguous of shape \[M, 4\], .*float32",
        ),
        ((torch.zeros(4, 3).T, W, 0), r"lanczos_step: basis must be contiguous of shape \[M, 4\]"),
        ((B, W, 2), "lanczos_step: row must be from 0 to 1 for a basis of 3 rows, got 2"),
        ((B, W, -1), "lanczos_step: row must be from 0 to 1"),
        ((B, W, 0, torch.zeros(())), r"scale must be a number or float64 of shape \[\] on cpu"),
    ],
)
def test_bad_arguments(arguments: tuple[Tensor, Tensor, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ops.lanczos_step(*arguments)


def test_opcheck() -> None:
    basis, product = orthonormal(37, 3, torch.float64), random_vector(37, torch.float64)
    basis[3], scale = 0, torch.zeros((), dtype=torch.float64)
    torch.library.opcheck(torch.ops.pylandscape.lanczos_step, (basis, product, 2, scale, 1e-14))
