"""perturb against a naive sum in float64, stored and generated directions."""

import pytest
import torch
from torch import Tensor

from pylandscape import _ops

EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
SIZES = [1, 2, 3, 7, 15, 16, 17, 64, 255, 2047, 2048, 2049, 10_007]


def naive(center: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    """[K, P] in float64."""
    return center.double() + torch.einsum("kd,dp->kp", coordinates.double(), directions.double())


def make(size: int, count: int, points: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size * 100 + count * 10 + points)
    shapes = (size,), (count, size), (points, count)
    w, d, c = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return w, d, c


def bound(center: Tensor, directions: Tensor, coordinates: Tensor) -> Tensor:
    """Roundings of the operator and of the reference: result, products and additions."""
    terms = coordinates.double().abs() @ directions.double().abs()
    eps = EPS[center.dtype] + EPS[torch.float64]
    return 1.01 * eps * (center.double().abs() + (len(directions) + 1) * terms)


def random_table(size: int, seed: int) -> Tensor:
    """Rows of all shapes that cover [0, size)."""
    generator = torch.Generator().manual_seed(seed)
    rows, offset = [], 0
    while offset < size:
        outer, count, inner = torch.randint(1, 9, (3,), generator=generator).tolist()
        if offset + outer * count * inner > size:
            outer, count, inner = 1, 1, size - offset
        rows += [(offset, outer, count, inner), (offset + outer * count * inner, 1, 0, 5)]
        offset += outer * count * inner
    return torch.tensor(rows).view(-1, 4)


def filters_of_elements(table: Tensor) -> Tensor:
    """The filter that each element belongs to, int64 [P]."""
    parts, first = [], 0
    for _, outer, rows, inner in table.tolist():
        parts.append((first + torch.arange(rows)).repeat_interleave(inner).repeat(outer))
        first += rows
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_stored_against_the_naive_sum(device: str, size: int, dtype: torch.dtype) -> None:
    for count, points in [(1, 1), (2, 5), (3, 2), (10, 3)]:
        w, d, c = make(size, count, points, dtype)
        points = _ops.perturb(w.to(device), d.to(device), c).cpu()
        error = (points.double() - naive(w, d, c)).abs()
        assert bool((error <= bound(w, d, c)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_generated_equals_stored(device: str, size: int, dtype: torch.dtype) -> None:
    table = random_table(size, seed=size)
    filters = int(table[:, 2].sum())
    for count, points in [(1, 1), (2, 5), (3, 2)]:
        w, _, c = make(size, count, points, dtype)
        seeds = torch.arange(count) - 1
        scales = torch.rand(count, filters, dtype=torch.float64)
        z = _ops.random_normal(seeds, size).to(dtype)
        d = scales.to(dtype)[:, filters_of_elements(table)] * z
        points = _ops.perturb_random(w.to(device), seeds, scales, table, c).cpu()
        assert torch.equal(points, _ops.perturb(w, d, c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_and_threads_give_the_same_bits(dtype: torch.dtype) -> None:
    size = 20_011
    w, d, c = make(size, 3, 4, dtype)
    table, seeds = random_table(size, seed=5), torch.tensor([1, 2, 3])
    scales = torch.rand(3, int(table[:, 2].sum()))
    results = []
    before = _ops.isa()
    for level in _ops.isa_levels():
        _ops.set_isa(level)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((_ops.perturb(w, d, c), _ops.perturb_random(w, seeds, scales, table, c)))
    _ops.set_isa(before)
    for stored, generated in results[1:]:
        assert torch.equal(stored, results[0][0])
        assert torch.equal(generated, results[0][1])


def test_the_origin_is_the_center(device: str) -> None:
    w, d, _ = make(1001, 2, 1, torch.float32)
    points = _ops.perturb(w.to(device), d.to(device), torch.zeros(1, 2))
    assert torch.equal(points[0].cpu(), w)


def test_points_do_not_depend_on_each_other(device: str) -> None:
    w, d, c = (tensor.to(device) for tensor in make(3001, 2, 7, torch.float32))
    rows = torch.cat([_ops.perturb(w, d, c[k : k + 1]) for k in range(len(c))])
    assert torch.equal(_ops.perturb(w, d, c), rows)


def test_nothing_to_do(device: str) -> None:
    table = torch.zeros(0, 4, dtype=torch.int64)
    seeds, scales = torch.tensor([1]), torch.zeros(1, 0)
    w, d, c = (tensor.to(device) for tensor in make(5, 1, 0, torch.float32))
    assert _ops.perturb(w, d, c).shape == (0, 5)
    empty = torch.zeros(0, device=device)
    assert _ops.perturb(empty, torch.zeros(1, 0, device=device), torch.ones(2, 1)).shape == (2, 0)
    assert _ops.perturb_random(empty, seeds, scales, table, torch.ones(2, 1)).shape == (2, 0)


def test_nan_and_infinity_stay_where_they_are(device: str) -> None:
    w, d, c = make(2100, 2, 2, torch.float32)
    w[3], d[1, 70], d[0, 2099], c[1, 0] = float("nan"), float("inf"), float("-inf"), 2.0
    points = _ops.perturb(w.to(device), d.to(device), c).cpu()
    finite = torch.ones(2100, dtype=torch.bool)
    finite[[3, 70, 2099]] = False
    assert bool(points[:, 3].isnan().all())
    assert points[1, 2099] == float("-inf")
    assert bool((torch.isfinite(points) == finite).all())


def test_out_is_written_and_returned() -> None:
    w, d, c = make(100, 2, 3, torch.float32)
    out = torch.full((3, 100), float("nan"))
    assert _ops.perturb(w, d, c, out=out) is out
    assert torch.equal(out, _ops.perturb(w, d, c))


def test_strided_arguments() -> None:
    w, d, c = make(100, 2, 3, torch.float32)
    expected = _ops.perturb(w, d, c)
    wide = torch.stack([w, w], dim=1)[:, 0]
    assert torch.equal(_ops.perturb(wide, d.T.contiguous().T, c.T.contiguous().T), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    w, d, c = make(50, 2, 3, dtype)
    loose = {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(_ops.perturb(w, d, c).double(), naive(w, d, c), **loose)
    table, seeds, scales = torch.tensor([[0, 1, 1, 50]]), torch.tensor([3, 4]), torch.ones(2, 1)
    z = _ops.random_normal(seeds, 50)
    points = _ops.perturb_random(w, seeds, scales, table, c)
    torch.testing.assert_close(points.double(), naive(w, z, c), **loose)


W, D, C = torch.zeros(6), torch.zeros(2, 6), torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), D, C), r"perturb: center must be a real vector \[P\], got"),
        ((W.long(), D, C), r"perturb: center must be a real vector \[P\], got"),
        ((W, D[:, :5], C), r"perturb: directions must have shape \[D, 6\] .*got .*\[2, 5\]"),
        ((W, D[:0], C), r"perturb: directions must have shape \[D, 6\] with D >= 1"),
        ((W, D.double(), C), r"perturb: directions must .*float32 .*got .*float64"),
        ((W, D, C[:, :1]), r"perturb: coordinates must have shape \[K, 2\]"),
        ((W, D, C, torch.zeros(2, 6)), r"perturb: out must be contiguous of shape \[1, 6\]"),
        ((W, D, C, torch.zeros(6, 1).T), None),
    ],
)
def test_bad_arguments(arguments: tuple[Tensor, ...], message: str | None) -> None:
    if message is None:
        assert _ops.perturb(*arguments) is arguments[3]  # a row is contiguous either way
        return
    with pytest.raises(ValueError, match=message):
        _ops.perturb(*arguments)


@pytest.mark.parametrize(
    ("table", "scales", "message"),
    [
        (
            [[0, 1, 2, 2]],
            torch.zeros(2, 2),
            "must describe 6 parameters and 2 filters, got 4 and 2",
        ),
        (
            [[0, 1, 2, 3]],
            torch.zeros(2, 3),
            "must describe 6 parameters and 3 filters, got 6 and 2",
        ),
        ([[1, 1, 2, 3]], torch.zeros(2, 2), "follow each other without gaps, got .* offset 0 was"),
        ([[0, 1, -2, -3]], torch.zeros(2, 2), "follow each other without gaps"),
        ([[0, 1, 6]], torch.zeros(2, 1), r"filter_table must be int64 of shape \[T, 4\]"),
        ([[0, 1, 2, 3]], torch.zeros(1, 2), r"scales must be real of shape \[2, F\]"),
    ],
)
def test_bad_tables(table: list[list[int]], scales: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ops.perturb_random(W, torch.tensor([1, 2]), scales, torch.tensor(table), C)


def test_opcheck() -> None:
    w, d, c = make(37, 2, 3, torch.float64)
    out = torch.zeros(3, 37, dtype=torch.float64)
    table, scales = torch.tensor([[0, 1, 1, 37]]), torch.ones(2, 1, dtype=torch.float64)
    torch.library.opcheck(torch.ops.pylandscape.perturb.default, (out, w, d, c))
    seeds = torch.tensor([1, 2])
    torch.library.opcheck(torch.ops.pylandscape.perturb.random, (out, w, seeds, scales, table, c))
