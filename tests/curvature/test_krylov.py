"""The relation H V^T = V^T T + u coupling^T that everything else in Lanczos rests on."""

import numpy as np
import pytest
import torch

from pylandscape import _ops
from pylandscape.curvature import _krylov
from pylandscape.curvature._krylov import Krylov, combine_rows

N = 24


@pytest.fixture
def matrix() -> torch.Tensor:
    raw = torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (raw + raw.T) / 2


def _vector(seed: int) -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _check(process: Krylov, matrix: torch.Tensor, frozen: torch.Tensor) -> None:
    """The relation in the complement of the frozen rows, and orthonormality of all rows."""
    first, m = process.first, process.size
    rows = process.rows[: first + m + 1]
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double())
    assert torch.equal(rows[:first], frozen)
    basis, u = rows[first : first + m], rows[first + m]
    projected = torch.from_numpy(process.projected[:m, :m])
    coupling = torch.from_numpy(process.coupling[:m])
    images = matrix @ basis.T
    images -= frozen.T @ (frozen @ images)
    torch.testing.assert_close(images, basis.T @ projected + torch.outer(u, coupling))


@pytest.fixture
def fetches(monkeypatch) -> list[int]:
    """How many steps each look at a device brought."""
    found: list[int] = []

    def fetch(steps):
        found.append(len(steps))
        return real(steps)

    real = _ops.fetch_steps
    monkeypatch.setattr(_ops, "fetch_steps", fetch)
    return found


def _ahead(monkeypatch, steps: int) -> None:
    """As many steps under way as on a GPU."""
    monkeypatch.setitem(_krylov.STEPS_AHEAD, "cpu", steps)


@pytest.mark.parametrize("first", [0, 3])
def test_the_relation_survives_steps_and_restarts(matrix, first):
    rows = torch.full((first + 9, N), torch.nan, dtype=torch.float64)
    frozen = torch.linalg.qr(torch.stack([_vector(seed) for seed in range(3)], 1))[0].T[:first]
    rows[:first] = frozen
    process = Krylov(rows, first, _vector(9))
    assert process.capacity == 8
    for _ in range(3):
        while not process.full:
            process.step(matrix, 1.0)
            _check(process, matrix, frozen)
        values, vectors, bounds = process.ritz()
        kept = [7, 0, 5]
        process.restart(values[kept], vectors[:, kept])
        _check(process, matrix, frozen)
        again, _, same = process.ritz()
        np.testing.assert_allclose(again, np.sort(values[kept]))
        np.testing.assert_allclose(same, bounds[sorted(kept)], atol=1e-12)


def test_bounds_are_the_residual_norms(matrix):
    process = Krylov(torch.empty(9, N).double(), 0, _vector(1))
    for _ in range(6):
        process.step(matrix, 1.0)
    values, vectors, bounds = process.ritz()
    for value, coefficients, bound in zip(values, vectors.T, bounds, strict=True):
        y = process.vector(coefficients)
        assert abs(float((matrix @ y - value * y).norm()) - bound) < 1e-12


def test_an_invariant_subspace_exhausts_the_process():
    matrix = torch.diag(torch.tensor([2.0] * 5 + [1.0] * 19).double())
    process = Krylov(torch.empty(9, N).double(), 0, _vector(1))
    process.step(matrix, 1.0)
    assert not process.exhausted
    process.step(matrix, 1.0)
    assert process.exhausted
    np.testing.assert_allclose(process.ritz()[0], [1.0, 2.0])
    assert not process.ritz()[2].any()


def test_the_whole_space_exhausts_the_process_even_with_noise():
    class Noisy:
        shape, dtype, device = (4, 4), torch.float32, torch.device("cpu")
        generator = torch.Generator().manual_seed(0)

        def __matmul__(self, v):
            return v * torch.arange(4.0) + 1e-3 * torch.randn(4, generator=self.generator)

    process = Krylov(torch.full((6, 4), torch.nan), 0, torch.ones(4))
    for _ in range(4):
        assert not process.exhausted
        process.step(Noisy(), 3.0)
    assert process.exhausted


def test_combine_rows_in_place():
    rows = torch.randn(5, 9000, dtype=torch.float64)  # more columns than one block has
    coefficients = np.random.default_rng(0).normal(size=(5, 3))
    expected = torch.from_numpy(coefficients.T) @ rows
    last = rows[3:].clone()
    combine_rows(rows, coefficients)
    torch.testing.assert_close(rows[:3], expected)
    assert torch.equal(rows[3:], last)


@pytest.mark.parametrize(
    ("ahead", "expected"), [(1, [1] * 8 + [1] * 5), (3, [3, 3, 2, 3, 2]), (8, [8, 5])]
)
def test_steps_are_fetched_together(matrix, monkeypatch, fetches, ahead, expected):
    """Also after a restart, at sizes that `ahead` divides, and to the same bits."""

    def run() -> Krylov:
        process = Krylov(torch.full((9, N), torch.nan, dtype=torch.float64), 0, _vector(9))
        while not process.full:
            process.step(matrix, 1.0)
        values, vectors, _ = process.ritz()
        process.restart(values[:3], vectors[:, :3])
        while not process.full:
            process.step(matrix, 1.0)
        return process

    one_by_one = run()
    fetches.clear()
    _ahead(monkeypatch, ahead)
    process = run()
    assert fetches == expected
    _check(process, matrix, torch.empty(0, N).double())
    np.testing.assert_array_equal(process.projected, one_by_one.projected)
    assert torch.equal(process.rows, one_by_one.rows)


def test_to_ask_is_to_fetch(matrix, monkeypatch, fetches):
    _ahead(monkeypatch, 8)
    process = Krylov(torch.empty(9, N).double(), 0, _vector(9))
    for _ in range(3):
        process.step(matrix, 1.0)
        assert process.between_fetches
    assert not fetches
    assert process.size == 3
    assert fetches == [3]
    assert process.between_fetches  # the next are fetched when they would have been
    _check(process, matrix, torch.empty(0, N).double())
    process.step(matrix, 1.0)
    assert process.ritz()[0].shape == (4,)


@pytest.mark.parametrize("asked_after", [2, 3, 5, 8])
def test_steps_behind_the_end_of_a_process_are_dropped(monkeypatch, asked_after):
    matrix = torch.diag(torch.tensor([2.0] * 5 + [1.0] * 19).double())
    _ahead(monkeypatch, 8)
    process = Krylov(torch.full((9, N), torch.nan, dtype=torch.float64), 0, _vector(1))
    for _ in range(asked_after):
        process.step(matrix, 0.0)
    assert process.size == 2
    assert process.exhausted
    assert not process.between_fetches
    assert not process.can_go_on
    assert not process.projected[:, 2:].any()
    assert not process.coupling.any()
    assert not process.rows[2 : asked_after + 1].any()  # products of zeros only
    np.testing.assert_allclose(process.ritz()[0], [1.0, 2.0])


def test_a_product_that_is_not_finite_is_named_when_it_is_fetched(matrix, monkeypatch):
    _ahead(monkeypatch, 8)
    process = Krylov(torch.empty(9, N).double(), 0, _vector(1))
    for step in range(5):
        process.take(matrix @ process.following * (torch.nan if step == 3 else 1.0), 1.0)
    with pytest.raises(ValueError, match=r"got NaN or infinity in product 4\. Look"):
        process.ritz()
    assert process.size == 3
    _check(process, matrix, torch.empty(0, N).double())


def test_only_the_first_product_waits_for_the_device(matrix, monkeypatch):
    class Operator:
        shape, dtype, device = matrix.shape, matrix.dtype, matrix.device

        def __matmul__(self, v):
            calls.append("@")
            return matrix @ v

        def unchecked(self, v):
            calls.append("unchecked")
            return matrix @ v

    for ahead, expected in [(1, ["@"] * 4), (3, ["@", *["unchecked"] * 3])]:
        _ahead(monkeypatch, ahead)
        calls: list[str] = []
        process = Krylov(torch.empty(9, N).double(), 0, _vector(1))
        for _ in range(4):
            process.step(Operator(), 1.0)
        assert calls == expected
