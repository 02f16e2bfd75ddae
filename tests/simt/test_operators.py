"""The CUDA kernels of the small operators, run by the SIMT layer, against the CPU operators."""

import itertools

import pytest
import torch
from simt.kernels import load
from torch import Tensor

from pylandscape import _ops

simt = load()
DTYPES = [torch.float32, torch.float64]
BOTH_WAYS = [False, True]  # the order of the blocks


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def random_table(size: int, seed: int, longest: int = 9) -> Tensor:
    """A filter table of all kinds of rows, empty ones too, that covers [0, size)."""
    generator = torch.Generator().manual_seed(seed)
    rows, offset = [[0, 1, 0, 3]], 0
    while offset < size:
        outer, count = torch.randint(1, 5, (2,), generator=generator).tolist()
        inner = int(torch.randint(1, longest, (), generator=generator))
        if offset + outer * count * inner > size:
            outer, count, inner = 1, 1, size - offset
        rows += [[offset, outer, count, inner], [offset + outer * count * inner, 2, 3, 0]]
        offset += outer * count * inner
    return torch.tensor(rows)


def device_table(table: Tensor) -> Tensor:
    """With the number of the first filter of each row, as `read_filter_table` adds it."""
    first = table[:, 2].cumsum(0) - table[:, 2]
    return torch.cat((table, first[:, None]), 1).contiguous()


def first_chunks(table: Tensor) -> Tensor:
    counts = table[:, 1] * table[:, 2] * -(-table[:, 3] // 4096)
    return torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = torch.int32 if a.dtype == torch.float32 else torch.int64
    return torch.equal(a.view(kind), b.view(kind))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1023, 5000])
def test_random_normal_is_the_cpus_to_the_bit(size: int) -> None:
    seeds = torch.tensor([0, -1, 2**62 + 17])
    out = torch.full((3, size), float("nan"))
    simt.random_normal(out.numpy(), seeds.numpy(), False)
    assert same_bits(out, _ops.random_normal(seeds, size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", BOTH_WAYS)
@pytest.mark.parametrize(
    ("size", "count", "points"), [(1, 1, 1), (255, 2, 8), (770, 3, 9), (5, 1, 0)]
)
def test_perturb_is_the_cpus_to_the_bit(
    size: int, count: int, points: int, reverse: bool, dtype: torch.dtype
) -> None:
    w, d, c = (
        draw(size, dtype=dtype),
        draw(count, size, dtype=dtype),
        draw(points, count, dtype=dtype),
    )
    if points > 0 and size > 2:
        w[1], d[0, 2], c[0, 0] = float("nan"), float("inf"), -2.0
    out = torch.full((points, size), 7.0, dtype=dtype)
    simt.perturb(*(t.numpy() for t in (out, w, d, c)), reverse)
    assert same_bits(out, _ops.perturb(w, d, c))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "count", "points"), [(1, 1, 1), (2, 2, 3), (1030, 2, 9), (615, 3, 4)]
)
def test_generated_directions_are_the_cpus_to_the_bit(
    size: int, count: int, points: int, dtype: torch.dtype
) -> None:
    table = random_table(size, seed=size)
    w, c = draw(size, dtype=dtype), draw(points, count, dtype=dtype)
    seeds, scales = torch.arange(count) * 7 - 3, draw(count, int(table[:, 2].sum())).double()
    out = torch.full((points, size), 7.0, dtype=dtype)
    arrays = (out, w, seeds, scales, device_table(table), c)
    simt.perturb_random(*(t.numpy() for t in arrays), False)
    assert same_bits(out, _ops.perturb_random(w, seeds, scales, table, c))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 6])
def test_nothing_to_do(size: int, dtype: torch.dtype) -> None:
    """No parameters, no points, no streams: nothing is launched, and nothing is written."""
    simt.launched()
    table, empty = torch.tensor([[0, 1, 0, 3], [0, 1, 1, size]]), torch.zeros(0, dtype=torch.int64)
    w, d, scales = draw(size, dtype=dtype), draw(1, size, dtype=dtype), draw(1, 1).double()
    points = 0 if size else 3
    out, c = torch.zeros(points, size, dtype=dtype), draw(points, 1, dtype=dtype)
    simt.perturb(*(t.numpy() for t in (out, w, d, c)), False)
    arrays = (out, w, torch.tensor([1]), scales, device_table(table), c)
    simt.perturb_random(*(t.numpy() for t in arrays), False)
    none = torch.zeros(0, 1, dtype=torch.float64)
    arrays = (none, empty, device_table(table), first_chunks(table))
    simt.filter_norms_random(*(t.numpy() for t in arrays), False)
    simt.random_normal(torch.zeros(0, size).numpy(), empty.numpy(), False)
    assert simt.launched() == set()


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_without_parameters(dtype: torch.dtype) -> None:
    table, norms = torch.tensor([[0, 2, 3, 0]]), torch.full((3,), -1.0, dtype=torch.float64)
    arrays = (norms, torch.zeros(0, dtype=dtype), device_table(table), first_chunks(table))
    simt.filter_norms(*(t.numpy() for t in arrays), False)
    assert torch.equal(norms, torch.zeros(3, dtype=torch.float64))
    step = lanczos_step(torch.zeros(2, 0, dtype=dtype), torch.zeros(0, dtype=dtype), 0)
    assert (float(step.coefficients), float(step.beta), bool(step.breakdown)) == (0, 0, True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_among_generated_directions(dtype: torch.dtype) -> None:
    size, table = 11, torch.tensor([[0, 1, 2, 4], [8, 1, 1, 3]])
    w, c = draw(size, dtype=dtype), draw(9, 2, dtype=dtype)
    scales = draw(2, 3).double()
    w[1], w[10], scales[1, 1], c[4, 0] = torch.nan, torch.inf, torch.inf, torch.nan
    out = torch.zeros(9, size, dtype=dtype)
    seeds = torch.tensor([3, 4])
    arrays = (out, w, seeds, scales, device_table(table), c)
    simt.perturb_random(*(t.numpy() for t in arrays), False)
    expected = _ops.perturb_random(w, seeds, scales, table, c)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert out[:, 1].isnan().all()
    assert out[4].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "longest"), [(1, 2), (700, 9), (3001, 200), (9001, 5000)])
def test_filter_norms_are_the_cpus_to_the_bit(size: int, longest: int, dtype: torch.dtype) -> None:
    """And so are directions that are scaled by them."""
    table = random_table(size, seed=longest, longest=longest)
    vector = draw(size, dtype=dtype)
    out = torch.full((int(table[:, 2].sum()),), -1.0, dtype=torch.float64)
    arrays = (out, vector, device_table(table), first_chunks(table))
    simt.filter_norms(*(t.numpy() for t in arrays), size % 2 == 0)
    assert same_bits(out, _ops.filter_norms(vector, table))


def test_a_long_run_of_a_filter_norm() -> None:
    table = torch.tensor([[0, 1, 1, 9000], [9000, 2, 2, 4100]])
    for value in (1.0, float("inf"), float("nan")):
        vector = draw(25400)
        vector[20000] = value
        out = torch.zeros(3, dtype=torch.float64)
        arrays = (out, vector, device_table(table), first_chunks(table))
        simt.filter_norms(*(t.numpy() for t in arrays), False)
        assert same_bits(out, _ops.filter_norms(vector, table))


def test_norms_of_generated_directions_are_the_cpus_to_the_bit() -> None:
    table = random_table(1500, seed=1, longest=90)
    seeds = torch.tensor([5, -9])
    expected = _ops.normal_filter_norms(seeds, table)
    out = torch.zeros_like(expected)
    arrays = (out, seeds, device_table(table), first_chunks(table))
    simt.filter_norms_random(*(t.numpy() for t in arrays), False)
    assert same_bits(out, expected)


def lanczos_step(
    basis: Tensor, product: Tensor, row: int, scale: float = 0.0, reverse: bool = False
) -> _ops.LanczosStep:
    tolerance = 10 * torch.finfo(product.dtype).eps
    coefficients = torch.full((row + 1,), float("nan"), dtype=torch.float64)
    beta, breakdown = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.bool)
    largest = torch.tensor(scale, dtype=torch.float64)
    size = float(product.double().norm())
    simt.lanczos_step(
        basis.numpy(), product.numpy(), row, largest.numpy(), tolerance,
        coefficients.numpy(), beta.numpy(), breakdown.numpy(), reverse,
    )  # fmt: skip
    if size < float("inf"):
        torch.testing.assert_close(float(largest), max(scale, size))
    return _ops.LanczosStep(coefficients, beta, breakdown)


def orthonormal(size: int, rows: int, dtype: torch.dtype) -> Tensor:
    basis = torch.full((rows + 1, size), float("nan"), dtype=dtype)
    basis[:rows] = torch.linalg.qr(draw(size, rows, dtype=torch.float64))[0].T
    return basis


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "rows"), [(1, 1), (2, 1), (33, 8), (1023, 3), (1025, 9), (3000, 12)]
)
def test_lanczos_step(size: int, rows: int, dtype: torch.dtype) -> None:
    basis, product = orthonormal(size, rows, dtype), draw(size, dtype=dtype, seed=1000)
    expected_basis, rest = basis.clone(), product.clone()
    again_basis, again = basis.clone(), product.clone()
    expected = _ops.lanczos_step(expected_basis, rest, rows - 1)
    step = lanczos_step(basis, product, rows - 1)
    close = {"rtol": 0, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(step.coefficients, expected.coefficients, **close)
    torch.testing.assert_close(product, rest, **close)
    torch.testing.assert_close(basis, expected_basis, equal_nan=True, **close)
    assert abs(step.beta - expected.beta) < close["atol"] * max(1, float(expected.beta))
    assert bool(step.breakdown) is bool(expected.breakdown) is (rows == size)
    other = lanczos_step(again_basis, again, rows - 1, reverse=True)
    assert same_bits(again_basis, basis)
    assert same_bits(other.coefficients, step.coefficients)
    assert other[1:] == step[1:]


@pytest.mark.parametrize(
    ("value", "scale"),
    [*itertools.product([float("nan"), float("inf"), float("-inf")], [0.0, 1.0])],
)
def test_a_lanczos_step_reports_nan_and_infinity(value: float, scale: float) -> None:
    basis, product = orthonormal(1500, 3, torch.float32), draw(1500)
    product[1200] = value
    step = lanczos_step(basis, product, 2, scale)
    assert step.breakdown
    assert not bool(torch.isfinite(step.coefficients).any())
    assert bool(basis[3].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lanczos_step_orthogonalises_twice(dtype: torch.dtype) -> None:
    """What is left of a product that lies almost in the span is orthogonal to it all the same."""
    basis, rows = orthonormal(1500, 5, dtype), 5
    inside = draw(rows, dtype=torch.float64) @ basis[:rows].double()
    product = (1e4 * inside + draw(1500, dtype=torch.float64, seed=9) / 40).to(dtype)
    assert not lanczos_step(basis, product, rows - 1).breakdown
    overlap = basis[:rows].double() @ basis[rows].double()
    assert overlap.abs().max() < 20 * torch.finfo(dtype).eps


def test_a_lanczos_step_in_an_invariant_subspace() -> None:
    basis = orthonormal(1500, 5, torch.float64)
    product = draw(5, dtype=torch.float64) @ basis[:5]
    assert lanczos_step(basis, product, 4).breakdown
    tiny = 1e-17 * draw(1500, dtype=torch.float64)
    assert not lanczos_step(basis, tiny.clone(), 4).breakdown
    assert lanczos_step(basis, tiny, 4, scale=1.0).breakdown
