"""`pl.eigenpairs` on matrices of known spectrum and on a network, against dense eigensolvers."""

import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pylandscape as pl
from pylandscape.curvature import _krylov
from pylandscape.curvature._checkpoint import Checkpoint
from pylandscape.curvature._search import Search, Wanted
from pylandscape.progress import progress_bar

BULK = torch.linspace(-1, 1, 97).double().tolist()


def _matrix(values, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    vectors, _ = torch.linalg.qr(raw)
    matrix = (vectors * values) @ vectors.T
    return ((matrix + matrix.T) / 2).to(dtype)


def _wanted(values, k: int, which: str) -> torch.Tensor:
    """The eigenvalues to be found, by sorting all of them; sizes for "magnitude"."""
    falling = torch.as_tensor(values, dtype=torch.float64).sort(descending=True).values
    if which == "both" and 2 * k < len(falling):
        return torch.cat([falling[:k], falling[-k:]])
    return {
        "largest": falling[:k],
        "smallest": falling.flip(0)[:k],
        "both": falling,
        "magnitude": falling.abs().sort(descending=True).values[:k],
    }[which]


def _check(matrix: torch.Tensor, pairs: pl.Eigenpairs, expected: torch.Tensor, atol: float) -> None:
    """Right values, orthonormal vectors, and residuals that are what they are said to be."""
    found = pairs.values.abs() if pairs.which == "magnitude" else pairs.values
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    vectors = pairs.vectors.double()
    eye = torch.eye(len(expected), dtype=torch.float64)
    rounding = 100 * torch.finfo(matrix.dtype).eps
    torch.testing.assert_close(vectors.T @ vectors, eye, rtol=0, atol=rounding)
    residuals = (matrix.double() @ vectors - vectors * pairs.values).norm(dim=0)
    scale = float(matrix.double().norm())
    torch.testing.assert_close(pairs.residuals, residuals, rtol=0, atol=rounding * scale)
    assert pairs.converged
    assert pairs.products >= len(expected)


SPECTRA = {
    "outliers": [*BULK, 10, 5, 4, -3],
    "clustered": [*BULK, 10, 9.9999, 9.9998, 9.99],
    "multiple": [*BULK, 10, 10, 10, 5, 5, -4, -4],
    "indefinite": [*BULK, 8, -8, 7, -7, 6, -6],
    "few distinct values": [10] * 6 + [5] * 5 + [-1] * 9,
    "rank one": [0] * 40 + [3],
    "rank one, negative": [0] * 40 + [-3],
    "identity": [1] * 15,
    "zero": [0] * 12,
    "size one": [-2],
    "size two": [1, -1],
    "wide range": [10.0**-i for i in range(25)],
}


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name, which):
    matrix = _matrix(SPECTRA[name])
    pairs = pl.eigenpairs(matrix, k=4, which=which, tol=1e-8)
    expected = _wanted(SPECTRA[name], 4, which)
    _check(matrix, pairs, expected, atol=1e-7 * max(map(abs, SPECTRA[name])) + 1e-14)


@pytest.mark.parametrize("ahead", [1, 3, 8])
@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra_with_the_least_memory(name, which, ahead, monkeypatch):
    """Restarts, wherever the matrix is larger than the basis may be, change no answer.

    Nor do steps under way at once, as on a GPU.
    """
    monkeypatch.setitem(_krylov.STEPS_AHEAD, "cpu", ahead)
    matrix = _matrix(SPECTRA[name])
    n = len(matrix)
    rows = min(n, 2 * len(_wanted(SPECTRA[name], 3, which)) + 6) + 1
    pairs = pl.eigenpairs(matrix, k=3, which=which, tol=1e-7, memory=rows * n * 8)
    expected = _wanted(SPECTRA[name], 3, which)
    _check(matrix, pairs, expected, atol=1e-6 * max(map(abs, SPECTRA[name])) + 1e-14)
    with pytest.raises(ValueError, match=f"memory must hold {rows} vectors"):
        pl.eigenpairs(matrix, k=3, which=which, memory=rows * n * 8 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(8))
def test_random_spectra_of_many_multiplicities(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(5, 40, (), generator=generator))
    values = torch.randint(-3, 4, (n,), generator=generator)
    matrix = _matrix(values, seed, dtype)
    for which in ("largest", "smallest", "both", "magnitude"):
        pairs = pl.eigenpairs(matrix, k=4, which=which, tol=1e-4, seed=seed)
        _check(matrix, pairs, _wanted(values, 4, which), atol=3e-4)


@pytest.mark.parametrize("seed", [0, 52, 240])
def test_a_pair_between_the_basis_and_its_complement_is_found(seed):
    """With little memory, at the last two seeds, a copy lies half in an unconverged Ritz vector."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(10, 40, (), generator=generator))
    values = torch.randn(n, generator=generator, dtype=torch.float64)
    values[: n // 2] = torch.randint(-3, 4, (n // 2,), generator=generator).double()
    expected = _wanted(values, 3, "both")
    rows = min(n, 2 * len(expected) + 6) + 1
    matrix = _matrix(values, seed)
    pairs = pl.eigenpairs(matrix, 3, "both", tol=1e-8, memory=rows * n * 8, seed=seed)
    _check(matrix, pairs, expected, atol=1e-7)


def test_the_search_for_copies_leaves_the_process_as_it_was():
    matrix = _matrix([*BULK, 10, 10, 5])
    rows = torch.empty(40, 100, dtype=torch.float64)
    search = Search(matrix, Wanted("largest", 2), 1e-3, 100, rows, 0, Checkpoint(None, 0, {}))
    search.bar = progress_bar(None, "", show=False)
    assert search._converge()
    missed = search._missed_vector()
    assert missed is not None
    assert missed @ matrix @ missed > 5.01
    m, process = search.process.size, search.process
    values, vectors, bounds = process.ritz()
    errors = matrix @ rows[:m].T @ torch.from_numpy(vectors)
    errors -= rows[:m].T @ torch.from_numpy(vectors * values)
    torch.testing.assert_close(errors.norm(dim=0), torch.from_numpy(bounds))
    along = (errors.T @ rows[m]).abs()
    torch.testing.assert_close(along, torch.from_numpy(bounds))  # all residuals lie along u


def test_every_pair_of_a_matrix():
    values = torch.linspace(-1, 2, 12).double()
    matrix = _matrix(values)
    for k in (12, 20):
        pairs = pl.eigenpairs(matrix, k=k)
        _check(matrix, pairs, values.flip(0), atol=1e-12)
        torch.testing.assert_close((pairs.vectors * pairs.values) @ pairs.vectors.T, matrix)


def test_goes_on_where_a_short_run_is_wrong():
    """One pair, and a run of two products for it is far from the answer, 10."""
    matrix = _matrix([*torch.linspace(-4, 4, 199).tolist(), 10.0])
    pairs = pl.eigenpairs(matrix, k=1)
    second = next(step for step in pairs.history if step.product == 2)
    assert second.values[0] < 5
    assert abs(pairs.values[0] - 10) < 1e-4
    assert pairs.residuals[0] <= 1e-3 * 10


def test_an_eigenvalue_lies_within_each_residual():
    values = torch.tensor([*BULK, 10, 5, 4], dtype=torch.float64)
    pairs = pl.eigenpairs(_matrix(values), k=5, tol=1e-2)
    distances = (pairs.values[:, None] - values).abs().min(1).values
    assert (distances <= pairs.residuals + 1e-12).all()
    assert (pairs.residuals <= 1e-2 * 10).all()


def test_without_the_search_for_copies():
    matrix = _matrix([*BULK, 10, 10, 5])
    both = pl.eigenpairs(matrix, k=2)
    one = pl.eigenpairs(matrix, k=2, copies=False)
    assert (both.values - torch.tensor([10.0, 10.0])).abs().max() < 1e-2
    assert (one.values - torch.tensor([10.0, 5.0])).abs().max() < 1e-2  # what one start sees
    assert one.products < both.products


def test_the_search_for_copies_guards_against_an_unlucky_start():
    """Seed 1 gives a start vector that is all but orthogonal to the first eigenvector."""
    start = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = torch.linalg.vector_norm(start).reciprocal() * start
    hidden = torch.eye(60).double()[0] - first[0] * first
    basis, _ = torch.linalg.qr(torch.stack([hidden, *torch.eye(60).double()[1:]], 1))
    values = torch.tensor([12.0, 10.0, *torch.linspace(-1, 1, 58).tolist()]).double()
    matrix = (basis * values) @ basis.T
    matrix = (matrix + matrix.T) / 2
    assert abs(pl.eigenpairs(matrix, k=1, seed=1, copies=False).values[0] - 10) < 0.01
    assert abs(pl.eigenpairs(matrix, k=1, seed=1).values[0] - 12) < 0.01


def test_not_converged_is_said():
    matrix = _matrix(torch.linspace(0, 1, 300))
    with pytest.warns(UserWarning, match="not converged: after 20 products.*Raise max_products"):
        pairs = pl.eigenpairs(matrix, k=4, max_products=20)
    assert not pairs.converged
    assert pairs.products == 20
    assert pairs.residuals.max() > 1e-3
    residuals = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, residuals)


def test_fewer_products_than_pairs_give_what_was_found():
    matrix = _matrix([3.0] * 5 + [0.0] * 5)
    with pytest.warns(UserWarning, match="not converged"):
        pairs = pl.eigenpairs(matrix, k=5, max_products=10)
    assert not pairs.converged
    assert len(pairs.values) == pairs.vectors.shape[1] == len(pairs.residuals) <= 5


def test_an_operator_that_is_not_symmetric_is_noticed():
    class Skewed:
        matrix = _matrix([*BULK, 10]) + 0.5 * torch.eye(98).double().roll(1, 0)
        shape, dtype, device = matrix.shape, matrix.dtype, matrix.device

        def __matmul__(self, v):
            return self.matrix @ v

    with pytest.warns(UserWarning, match="H is not symmetric"):
        pairs = pl.eigenpairs(Skewed(), k=1, tol=1e-6)
    assert not pairs.converged


def test_an_operator_may_return_its_argument():
    class Identity:
        shape, dtype, device = (9, 9), torch.float64, torch.device("cpu")

        def __matmul__(self, v):
            return v

    torch.testing.assert_close(pl.eigenpairs(Identity(), k=2).values, torch.ones(2).double())


def test_seeds_reproduce_and_leave_the_global_generator_alone():
    matrix = _matrix([*BULK, 10, 5])
    state = torch.get_rng_state()
    first, again, other = (pl.eigenpairs(matrix, k=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.vectors, other.vectors)
    torch.testing.assert_close(first.values, other.values, rtol=0, atol=1e-4)


def test_history_ends_with_the_result():
    pairs = pl.eigenpairs(_matrix([*BULK, 10, 5]), k=1)
    products = [step.product for step in pairs.history]
    assert products == sorted(set(products))
    assert products[-1] < pairs.products
    assert abs(pairs.history[-1].values[0] - pairs.values[0]) < 1e-9
    assert abs(pairs.history[-1].residuals[0] - pairs.residuals[0]) < 1e-9


def test_largest_entries_are_positive():
    vectors = pl.eigenpairs(_matrix([*BULK, 10, 5]), k=2, which="both").vectors
    assert (vectors.gather(0, vectors.abs().argmax(0)[None]) > 0).all()


@pytest.mark.parametrize("only", [None, "0.*"])
def test_a_network_against_the_dense_eigensolver(only):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = torch.randn(30, 4).double(), torch.randint(0, 3, (30,))
    H = pl.Hessian(pl.Objective(model, nn.CrossEntropyLoss(), data), only=only)
    values = torch.linalg.eigvalsh(H @ torch.eye(H.shape[0]).double())
    H.products = 0
    for which in ("both", "magnitude"):
        pairs = pl.eigenpairs(H, k=2, which=which, tol=1e-7)
        found = pairs.values.abs() if which == "magnitude" else pairs.values
        torch.testing.assert_close(found, _wanted(values, 2, which), rtol=0, atol=1e-9)
        assert pairs.products == H.products
        H.products = 0


class Breaking:
    """A matrix whose product number `limit` ends in Ctrl-C; afterwards it works again."""

    def __init__(self, matrix: torch.Tensor, limit: int) -> None:
        self.matrix, self.left = matrix, limit
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.matrix @ v


def _same(first: pl.Eigenpairs, second: pl.Eigenpairs) -> None:
    """Bit for bit, history included."""
    for name in ("values", "vectors", "residuals"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (first.products, first.converged) == (second.products, second.converged)
    assert [step.product for step in first.history] == [step.product for step in second.history]
    for one, two in zip(first.history, second.history, strict=True):
        assert one.values.tolist() == two.values.tolist()
        assert one.residuals.tolist() == two.residuals.tolist()


class TestBrokenOff:
    LARGE = (*torch.linspace(-4, 4, 77).tolist(), 5.0, 5.0, 6.0)  # with copies, and restarts

    def _run(self, H, **options):
        memory = 15 * 80 * H.dtype.itemsize  # the least for 4 pairs: the basis is often full
        return pl.eigenpairs(H, 2, "both", tol=1e-6, memory=memory, seed=5, **options)

    @pytest.mark.parametrize(
        ("every", "dtype", "ahead"),
        [*itertools.product([0, 1e9], [torch.float32, torch.float64], [1]), (0, torch.float64, 4)],
    )
    def test_a_resumed_run_equals_the_uninterrupted_one(
        self, tmp_path, every, dtype, ahead, monkeypatch
    ):
        """Broken off everywhere, in turn: while converging, in the search for copies, and after."""
        monkeypatch.setitem(_krylov.STEPS_AHEAD, "cpu", ahead)
        matrix = _matrix(self.LARGE, dtype=dtype)
        tol = {} if dtype == torch.float64 else {"max_products": 400}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # float32 does not reach 1e-6 everywhere
            counting = Breaking(matrix, 0)
            whole = self._run(counting, **tol)
            for limit in (1, 2, 5, 17, 40, *range(70, -counting.left, 11), -counting.left):
                file = tmp_path / f"{limit}.safetensors"
                options = {"checkpoint": file, "checkpoint_every": every} | tol
                with pytest.raises(pl.Interrupted):
                    self._run(Breaking(matrix, limit), **options)
                _same(self._run(matrix, **options), whole)
                assert not list(tmp_path.glob(".partial-*"))
                assert file.exists() == (not whole.converged)

    def test_a_killed_run_goes_on(self, tmp_path):
        """Killed without a chance to clean up: the file of the last writing is whole."""
        script = tmp_path / "run.py"
        script.write_text(
            "import os, sys, torch, pylandscape as pl\n"
            "matrix = torch.load(sys.argv[1])\n"
            "class H:\n"
            "    shape, dtype, device, left = matrix.shape, matrix.dtype, matrix.device, 30\n"
            "    def __matmul__(self, v):\n"
            "        H.left -= 1\n"
            "        if H.left == 0: os.kill(os.getpid(), 9)\n"
            "        return matrix @ v\n"
            "pl.eigenpairs(H(), 2, tol=1e-6, seed=5, checkpoint=sys.argv[2], checkpoint_every=0)\n"
        )
        matrix = _matrix(self.LARGE)
        torch.save(matrix, tmp_path / "matrix.pt")
        file = tmp_path / "state.safetensors"
        command = [sys.executable, str(script), str(tmp_path / "matrix.pt"), str(file)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == -9, done.stderr
        assert file.exists()
        resumed = pl.eigenpairs(matrix, 2, tol=1e-6, seed=5, checkpoint=file)
        _same(resumed, pl.eigenpairs(matrix, 2, tol=1e-6, seed=5))
        assert not file.exists()

    def test_more_products_finish_a_run_that_had_too_few(self, tmp_path):
        matrix, file = _matrix(self.LARGE), tmp_path / "state.safetensors"
        with pytest.warns(UserWarning, match="not converged: after 30 products"):
            self._run(matrix, checkpoint=file, max_products=30)
        again = self._run(matrix, checkpoint=file)
        assert torch.equal(again.vectors, self._run(matrix).vectors)
        assert again.converged

    @pytest.mark.parametrize("ahead", [1, 8])
    def test_what_is_known_is_in_the_error(self, ahead, monkeypatch):
        monkeypatch.setitem(_krylov.STEPS_AHEAD, "cpu", ahead)
        matrix = _matrix([*BULK, 10, 5])
        with pytest.raises(pl.Interrupted, match="interrupted after 12 products") as stop:
            pl.eigenpairs(Breaking(matrix, 13), k=2)
        pairs = stop.value.result
        assert not pairs.converged
        residuals = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        torch.testing.assert_close(pairs.residuals, residuals)
        assert abs(pairs.values[0] - 10) < 1e-3
        with pytest.raises(pl.Interrupted) as stop:
            pl.eigenpairs(Breaking(matrix, 1), k=2)
        assert stop.value.result is None

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path):
        matrix, file = _matrix(self.LARGE), tmp_path / "state.safetensors"
        with pytest.raises(pl.Interrupted):
            self._run(Breaking(matrix, 9), checkpoint=file)
        with pytest.raises(ValueError, match=r"k = 2 there and 3 here; which = .*Delete it"):
            pl.eigenpairs(matrix, 3, checkpoint=file)
        with pytest.raises(ValueError, match="checkpoint must be of the same matrix"):
            self._run(_matrix(self.LARGE, seed=1), checkpoint=file)
        file.write_bytes(b"x" * 100)
        with pytest.raises(ValueError, match="which cannot be read"):
            self._run(matrix, checkpoint=file)
        save_file({"a": torch.ones(1)}, file)
        with pytest.raises(ValueError, match="must be a file that eigenpairs wrote"):
            self._run(matrix, checkpoint=file)
        with pytest.raises(ValueError, match="checkpoint_every must be a number of seconds"):
            self._run(matrix, checkpoint=file, checkpoint_every=-1)
        with pytest.raises(TypeError, match="checkpoint must be the path of a file"):
            self._run(matrix, checkpoint=3)


def test_the_attributes_say_how_the_matrix_was_made():
    objective = pl.Objective(nn.Linear(3, 2), nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 2)))
    pairs = pl.eigenpairs(pl.GGN(objective, only="weight"), k=1)
    assert {"matrix": "GGN", "only": ["weight"], "model": "Linear"}.items() <= pairs.attrs.items()
    assert pl.eigenpairs(torch.eye(3), k=1).attrs == {}


class TestBadInput:
    def test_arguments(self):
        matrix = _matrix([1.0, 2.0, 3.0])
        for wrong in (0, -1, 1.5):
            with pytest.raises(ValueError, match="k must be an int >= 1"):
                pl.eigenpairs(matrix, k=wrong)
        for wrong in (0, -1e-3, 1, float("nan"), "1e-3"):
            with pytest.raises(ValueError, match="tol must be between 0 and 1"):
                pl.eigenpairs(matrix, tol=wrong)
        with pytest.raises(ValueError, match="which must be one of largest, smallest"):
            pl.eigenpairs(matrix, which="top")
        with pytest.raises(ValueError, match="max_products must be at least 4"):
            pl.eigenpairs(matrix, k=2, max_products=3)

    def test_operators(self):
        with pytest.raises(TypeError, match="H must have shape"):
            pl.eigenpairs([[1.0]])
        with pytest.raises(ValueError, match="square matrix"):
            pl.eigenpairs(torch.ones(2, 3))
        with pytest.raises(ValueError, match="float32 or float64"):
            pl.eigenpairs(torch.eye(3, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="must be symmetric"):
            pl.eigenpairs(torch.arange(9.0).view(3, 3))

    def test_products_that_are_not_finite(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match="H @ v must be finite"):
                pl.eigenpairs(torch.full((3, 3), torch.nan))
