"""filter_norms against sums of squares per filter by index, in float64."""

import pytest
import torch
from torch import Tensor

from pylandscape import _ops

TABLES = [
    [(0, 1, 1, 1)],
    [(0, 1, 3, 1), (3, 1, 1, 2)],
    [(0, 1, 16, 9), (144, 1, 1, 16), (160, 1, 5, 31), (315, 1, 5, 32), (475, 1, 5, 33)],
    [(0, 7, 5, 4), (140, 3, 2, 1), (146, 2, 3, 40)],  # transposed convolutions
    [(0, 1, 3, 4095), (12285, 1, 3, 4096), (24573, 1, 3, 4097), (36864, 1, 1, 40_000)],
    [(0, 3, 2, 9000)],
    [(0, 1, 2000, 3), (6000, 500, 40, 1), (26_000, 1, 0, 7), (26_000, 1, 4, 0)],
]


def naive(vector: Tensor, table: list[tuple[int, int, int, int]]) -> Tensor:
    """[F] in float64, element by element."""
    first = 0
    sums = torch.zeros(sum(row[2] for row in table), dtype=torch.float64)
    for offset, outer, rows, inner in table:
        filters = (first + torch.arange(rows)).repeat_interleave(inner).repeat(outer)
        part = vector[offset : offset + outer * rows * inner].double()
        sums.index_add_(0, filters, part * part)
        first += rows
    return sums.sqrt()


def make(table: list[tuple[int, int, int, int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    size = max(offset + outer * rows * inner for offset, outer, rows, inner in table)
    generator = torch.Generator().manual_seed(size)
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    return vector, torch.tensor(table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", TABLES)
def test_against_the_naive_sum(
    device: str, table: list[tuple[int, int, int, int]], dtype: torch.dtype
) -> None:
    vector, rows = make(table, dtype)
    norms = _ops.filter_norms(vector.to(device), rows).cpu()
    assert norms.dtype == torch.float64
    assert torch.equal(norms, _ops.filter_norms(vector, rows))  # the same bits everywhere
    torch.testing.assert_close(norms, naive(vector, table), rtol=1e-12, atol=0)


@pytest.mark.parametrize("table", TABLES)
def test_generated_equals_stored(device: str, table: list[tuple[int, int, int, int]]) -> None:
    vector, rows = make(table, torch.float32)
    seeds = torch.tensor([5, -1])
    norms = _ops.normal_filter_norms(seeds, rows)
    for seed, row in zip(seeds, norms, strict=True):
        z = _ops.random_normal(int(seed), len(vector), device)
        assert torch.equal(row, _ops.filter_norms(z, rows).cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", TABLES[-3:])
def test_levels_and_threads_give_the_same_bits(
    table: list[tuple[int, int, int, int]], dtype: torch.dtype
) -> None:
    vector, rows = make(table, dtype)
    results = []
    before = _ops.isa()
    for level in _ops.isa_levels():
        _ops.set_isa(level)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_ops.filter_norms(vector, rows))
    _ops.set_isa(before)
    assert all(torch.equal(norms, results[0]) for norms in results)


def test_small_numbers_are_not_lost(device: str) -> None:
    """A float32 sum of squares would underflow, and overflow."""
    table = torch.tensor([[0, 1, 2, 100]])
    vector = torch.cat([torch.full((100,), 1e-30), torch.full((100,), 1e30)])
    expected = 10 * vector[::100].double()
    norms = _ops.filter_norms(vector.to(device), table).cpu()
    torch.testing.assert_close(norms, expected, rtol=1e-15, atol=0)


def test_nan_and_infinity_stay_in_their_filter(device: str) -> None:
    vector = torch.ones(5000)
    vector[70], vector[170] = float("nan"), float("-inf")
    norms = _ops.filter_norms(vector.to(device), torch.tensor([[0, 1, 50, 100]]))
    assert bool(norms[0].isnan())
    assert norms[1] == float("inf")
    assert bool((norms[2:] == 10).all())


def test_no_filters(device: str) -> None:
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert _ops.filter_norms(torch.zeros(0, device=device), none).shape == (0,)
    assert _ops.normal_filter_norms(3, none).shape == (0,)


def test_other_dtypes_and_strides() -> None:
    table = [(0, 7, 5, 4), (140, 1, 3, 10)]
    vector, rows = make(table, torch.bfloat16)
    torch.testing.assert_close(_ops.filter_norms(vector, rows), naive(vector, table))
    wide = torch.stack([vector, vector], dim=1).float()[:, 0]
    assert torch.equal(_ops.filter_norms(wide, rows), _ops.filter_norms(vector.float(), rows))


@pytest.mark.parametrize(
    ("vector", "table", "message"),
    [
        (torch.zeros(2, 2), [[0, 1, 2, 2]], r"filter_norms: vector must be a real vector \[P\]"),
        (torch.zeros(5), [[0, 1, 2, 2]], "filter_norms: filter_table must describe 5 parameters"),
        (torch.zeros(4), [[1, 1, 1, 3]], r"filter_norms: .* got \(1, 1, 1, 3\) where offset 0"),
        (torch.zeros(4), [[0, 1, 2, 1], [3, 1, 1, 1]], "where offset 2 was expected"),
        (torch.zeros(4), [0, 1, 2, 2], r"filter_norms: filter_table must be int64 .*\[T, 4\]"),
    ],
)
def test_bad_arguments(vector: Tensor, table: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ops.filter_norms(vector, torch.tensor(table))


def test_opcheck() -> None:
    vector, rows = make(TABLES[2], torch.float64)
    torch.library.opcheck(torch.ops.pylandscape.filter_norms.default, (vector, rows))
    torch.library.opcheck(torch.ops.pylandscape.filter_norms.random, (torch.tensor([1, 2]), rows))
