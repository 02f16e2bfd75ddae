"""Extreme eigenpairs of a symmetric matrix by a Lanczos process that runs until they converge."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.curvature._krylov import Krylov, SymmetricOperator, check_operator, combine_rows
from pylandscape.progress import progress_bar

Which = Literal["largest", "smallest", "both", "magnitude"]

_SPARE_ROWS = 6  # the least room beside the wanted vectors in which restarts still make progress
_MOST_ROWS = 256  # a larger basis saves few products and costs more in its own algebra
_MISS_PROBABILITY = 1e-3  # how sure the search for further copies of an eigenvalue is
_PROBE_STEPS = 10  # before a converged pair ends that search where the probability cannot
_TINY = np.finfo(float).tiny


class Step(NamedTuple):
    """The wanted pairs as they stood after so many products."""

    product: int
    values: np.ndarray  # [<= k]
    residuals: np.ndarray  # [<= k], bounds |beta_m s_mi|


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric matrix H [n, n], with their errors.

    Attributes:
        values: float64 [k], best first: descending for "largest", "magnitude" (by size) and "both",
            ascending for "smallest".
        vectors: [n, k], orthonormal columns in H's dtype; the largest entry of each is positive.
        residuals: float64 [k], ||H v - value v||, computed anew with the vectors returned: an
            eigenvalue lies within this distance of each value.
        products: matrix-vector products used, those for the residuals included.
        converged: every residual is at most tol times the largest |value| seen, and the search for
            further copies of multiple eigenvalues was finished.
        history: the values and residual bounds after each check of the run.
        which, tol, seed: as they were asked for.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    residuals: Tensor
    products: int
    converged: bool
    history: list[Step] = field(repr=False)
    which: str
    tol: float
    seed: int


def eigenpairs(
    H: SymmetricOperator,
    k: int = 5,
    which: Which = "largest",
    tol: float = 1e-3,
    max_products: int | None = None,
    memory: float = 2**30,
    seed: int = 0,
    copies: bool | None = None,
    progress: bool | None = None,
) -> Eigenpairs:
    """The extreme eigenpairs of a symmetric matrix that is known by its products with vectors.

    Lanczos with full reorthogonalisation. It goes on until every wanted pair (theta_i, y_i) has

        ||H y_i - theta_i y_i|| = |beta_m s_mi| <= tol * max_j |theta_j|,

    s_i the i-th eigenvector of the projected matrix T_m, however many products that takes. When the
    basis is full it is restarted from its best Ritz vectors (thick restart, Wu and Simon 2000).

    One start vector reaches one eigenvector of each eigenvalue. So when k > 1 pairs have converged,
    a new random vector looks for missed copies in the complement of the basis, until the chance
    that one beats the k-th pair by more than the tolerance is below 1e-3 by the bound of Kuczynski
    and Wozniakowski (1992), or until it converges itself; what it finds is pursued in the same way.

    Args:
        H: a `pl.Hessian`, or anything symmetric with `shape`, `dtype`, `device` and `@`, such as a
            dense torch matrix; float32 or float64.
        k: how many pairs; at each end for "both". At most n exist.
        which: "largest" or "smallest" by algebraic value, "both" ends in one run, or "magnitude".
        tol: residual at which a pair counts as converged, relative to the largest |eigenvalue|. The
            error of a well separated eigenvalue is of the order of tol squared. In float32, no less
            than about 1e-6 can be reached.
        max_products: stop after so many products, converged or not; 10 n + 1000 by default.
        memory: the most bytes that the basis may take.
        seed: of the random start vectors.
        copies: look for missed copies, some ten products more; by default for k > 1. For k = 1 it
            guards against a start vector that has by chance, about once in a thousand, next to
            nothing of the wanted eigenvector.
        progress: show a bar with the current value and residual; by default on a terminal only.

    Raises:
        TypeError: `H` is not such an operator.
        ValueError: another argument is out of range, or a product is not finite.

    Warns:
        UserWarning: not every pair converged. The residuals say how far each one is.

    Example:
        >>> import torch, pylandscape as pl
        >>> H = torch.diag(torch.tensor([10.0, 10.0, 4.0, 1.0, -3.0]).double())
        >>> pl.eigenpairs(H, k=3).values.round(decimals=6).tolist()
        [10.0, 10.0, 4.0]
        >>> pl.eigenpairs(H, k=1, which="both").values.round(decimals=6).tolist()
        [10.0, -3.0]
    """
    check_operator(H, "eigenpairs")
    n = H.shape[0]
    require(isinstance(k, int) and k >= 1, f"eigenpairs: k must be an int >= 1, got {show(k)}.")
    require(
        which in get_args(Which),
        f"eigenpairs: which must be one of {', '.join(get_args(Which))}, got {show(which)}.",
    )
    require(
        isinstance(tol, (int, float)) and 0 < tol < 1,
        f"eigenpairs: tol must be between 0 and 1, got {show(tol)}.",
    )
    wanted = _Wanted(which, min(n, 2 * k if which == "both" else k))
    limit = 10 * n + 1000 if max_products is None else max_products
    require(
        limit >= 2 * wanted.count,
        f"eigenpairs: max_products must be at least {2 * wanted.count} for {wanted.count} pairs, "
        f"got {show(max_products)}. One product finds a pair at best, one more checks it.",
    )
    search = _Search(H, wanted, tol, limit - wanted.count, _storage(H, wanted.count, memory), seed)
    with progress_bar(max_products, f"{wanted.count} eigenpairs", "product", progress) as bar:
        search.run(bar, copies=k > 1 if copies is None else copies)
        values, vectors, residuals = search.final_pairs()
    reached = len(values) == wanted.count and bool(residuals.max() <= tol * search.scale)
    if not (converged := search.complete and reached):
        warnings.warn(
            f"eigenpairs: not converged: after {search.products} products the largest residual is "
            f"{float(residuals.max()):.3g}, asked for {tol * search.scale:.3g}. "
            + _advice(search.complete, reached, H.dtype),
            stacklevel=2,
        )
    return Eigenpairs(
        values, vectors, residuals, search.products, converged, search.history, which, tol, seed
    )


@dataclass(frozen=True)
class _Wanted:
    """Which eigenvalues are wanted, and how many in all."""

    which: str
    count: int

    def best(self, values: np.ndarray, count: int | None = None) -> np.ndarray:
        """Indices of the best `count` values, or of all when there are fewer, best first."""
        count = min(len(values), self.count if count is None else count)
        if self.which == "both":
            order = np.argsort(-values, kind="stable")
            return np.delete(order, np.s_[(count + 1) // 2 : len(order) - count // 2])
        keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
        return np.argsort(keys[self.which], kind="stable")[:count]

    def bounds(self, values: np.ndarray) -> tuple[float, float]:
        """(upper, lower): another eigenvalue above or below would be among the wanted, `values`."""
        if self.which == "both":
            half = (len(values) + 1) // 2
            return values[:half].min(), values[half:].max()
        size = np.abs(values).min()
        return {
            "largest": (values.min(), -np.inf),
            "smallest": (np.inf, values.max()),
            "magnitude": (size, -size),
        }[self.which]


class _Search:
    """The run: locked pairs in the first rows of the storage, a Krylov process behind them."""

    def __init__(
        self, H: SymmetricOperator, wanted: _Wanted, tol: float, limit: int, rows: Tensor, seed: int
    ) -> None:
        self.H, self.wanted, self.tol, self.limit, self.rows = H, wanted, tol, limit, rows
        self.n = H.shape[0]
        self.products = 0
        self.complete = False
        self.history: list[Step] = []
        self.scale = 0.0  # max |theta| seen
        self.locked = np.empty((0, 2))  # value and residual bound of each of the first rows
        self.generator = torch.Generator().manual_seed(seed)
        self.process = Krylov(rows, 0, self._random_vector())

    def run(self, bar: Any, copies: bool) -> None:
        """Until all wanted pairs have converged (then `complete`) or the products run out."""
        self.bar = bar
        target = 0.9 * self.tol  # the residuals that are computed in the end differ by rounding
        while self._converge(target):
            missed = self._missed_vector(target) if copies else None
            if missed is None:
                self.complete = not copies or self.products < self.limit
                return
            if target > self.tol / 4:
                # locked pairs add their errors to those of the process behind them
                target = self.tol / 4
                if not self._converge(target):
                    return
            self._lock(self.wanted.best(self._pairs()[:, 0]))
            self.process = Krylov(self.rows, len(self.locked), missed)

    def final_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values [k], vectors [n, k], residuals [k], by one more product for each wanted pair."""
        self._lock(self.wanted.best(self._pairs()[:, 0]))
        vectors = self.rows[: len(self.locked)].T.contiguous()
        images = self.H @ vectors
        self._count(vectors.shape[1])
        values = (vectors.double() * images.double()).sum(0)
        errors = images - vectors * values.to(vectors.dtype)
        residuals = torch.linalg.vector_norm(errors, dim=0, dtype=torch.float64)
        best = torch.from_numpy(self.wanted.best(values.cpu().numpy()))
        vectors = vectors[:, best.to(vectors.device)]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return values.cpu()[best], vectors * largest.sign(), residuals.cpu()[best]

    def _converge(self, target: float) -> bool:
        """Steps until the bounds of all wanted pairs, locked or not, are at most target * scale."""
        while True:
            if self._is_check_due():
                pairs = self._pairs()
                best = self.wanted.best(pairs[:, 0])
                self._record(pairs, best)
                enough = len(best) == self.wanted.count
                if enough and self._are_settled(pairs[best, 1], target):
                    return True
                if self.process.exhausted:  # with fewer pairs than are wanted
                    self._lock(best)
                    self.process = Krylov(self.rows, len(self.locked), self._random_vector())
            if self.products >= self.limit:
                return False
            self._step(self.process)

    def _missed_vector(self, target: float) -> Tensor | None:
        """A vector [n] that leads to a pair better than the wanted ones, or None.

        A random vector starts a process in the complement of the basis. After t steps, the chance
        that an eigenvalue there exceeds its Ritz values by more than a fraction e of the width of
        the spectrum there is at most 1.648 sqrt(n) exp(-sqrt(e) (2 t - 1)).
        """
        pairs, margin = self._pairs(), target * self.scale
        if len(pairs) == self.n:
            return None
        best = self.wanted.best(pairs[:, 0])
        upper, lower = self.wanted.bounds(pairs[best, 0])
        self._settle(best[best >= len(self.locked)] - len(self.locked), upper, lower, margin)
        first = self.process.first + self.process.size
        following = self.rows[first].clone()
        probe = Krylov(self.rows, first, self._random_vector())
        steps = 0
        while self.products < self.limit:
            self._step(probe)
            steps += 1
            values, vectors, bounds = probe.ritz()
            distances = np.minimum(upper - values, values - lower) + margin
            extreme = distances.argmin()
            if distances[extreme] < 0:
                missed = probe.vector(vectors[:, extreme])
                self.rows[first] = following
                return missed
            gap = max(0.0, distances[extreme] - margin / 2)
            width = gap + (values + bounds).max() - (values - bounds).min() + _TINY
            chance = 1.648 * self.n**0.5 * np.exp(-((gap / width) ** 0.5) * (2 * steps - 1))
            stuck = steps >= _PROBE_STEPS and bounds[extreme] <= margin
            if probe.exhausted or chance < _MISS_PROBABILITY or stuck:
                return None
        return None

    def _settle(self, own: np.ndarray, upper: float, lower: float, margin: float) -> None:
        """Drops from the basis what could hide a better pair between itself and the complement.

        A Ritz pair at distance d from being wanted that is coupled to the complement by b can lift
        an eigenvalue there by b^2 / d (Schur complement). All that stay, the wanted ones of this
        process (`own`) aside, may do so by half of the margin.
        """
        values, vectors, bounds = self.process.ritz()
        distances = np.minimum(upper - values, values - lower) + margin
        lifts = bounds**2 / np.maximum(distances, margin + _TINY)
        lifts[own] = 0.0
        order = np.lexsort((lifts, ~np.isin(np.arange(len(values)), own)))
        kept = order[np.cumsum(lifts[order]) <= margin / 2]
        if len(self.rows) <= self.n:
            kept = kept[: max(self.wanted.count, self.process.capacity // 2)]
        self.process.restart(values[kept], vectors[:, kept])

    def _step(self, process: Krylov) -> None:
        if process.full:
            self._restart(process)
        process.step(self.H, self.scale)
        self._count(1)

    def _restart(self, process: Krylov) -> None:
        values, vectors, _ = process.ritz()
        most = max(self.wanted.count, process.capacity // 2)
        kept = self.wanted.best(values, min(most, process.capacity - 2))
        process.restart(values[kept], vectors[:, kept])

    def _lock(self, chosen: np.ndarray) -> None:
        """Moves the chosen pairs (indices of `_pairs`) to the first rows; ends the process."""
        pairs, size = self._pairs(), len(self.locked)
        _, vectors, _ = self.process.ritz()
        coefficients = np.eye(len(pairs))
        coefficients[size:, size:] = vectors
        combine_rows(self.rows[: len(pairs)], coefficients[:, chosen])
        self.locked = pairs[chosen]

    def _pairs(self) -> np.ndarray:
        """[locked + m, 2]: value and residual bound of all pairs known now."""
        values, _, bounds = self.process.ritz()
        return np.concatenate([self.locked, np.stack([values, bounds], axis=1)])

    def _is_check_due(self) -> bool:
        """After every step while that costs little against a product, later after some."""
        size = self.process.size
        last = self.process.exhausted or self.products >= self.limit
        return size > 0 and (last or size % max(1, size // 16) == 0)

    def _are_settled(self, bounds: np.ndarray, target: float) -> bool:
        # a start vector nearly without the wanted direction has a small residual at first
        few = self.products < self.wanted.count + 3 and not self.process.exhausted
        return not few and bool(bounds.max() <= target * self.scale)

    def _record(self, pairs: np.ndarray, best: np.ndarray) -> None:
        self.scale = max(self.scale, np.abs(pairs[:, 0]).max())
        self.history.append(Step(self.products, pairs[best, 0], pairs[best, 1]))
        last = best[pairs[best, 1].argmax()]
        self.bar.set_postfix_str(f"value {pairs[last, 0]:.5g}, residual {pairs[last, 1]:.1e}")

    def _count(self, products: int) -> None:
        self.products += products
        self.bar.update(products)

    def _random_vector(self) -> Tensor:
        vector = torch.randn(self.n, generator=self.generator, dtype=self.rows.dtype)
        return vector.to(self.rows.device)


def _storage(H: SymmetricOperator, count: int, memory: float) -> Tensor:
    """Rows for the basis and the next vector: as many as are useful and fit into `memory` bytes."""
    n = H.shape[0]
    row_bytes = n * torch.empty(0, dtype=H.dtype).element_size()
    least = min(n, 2 * count + _SPARE_ROWS)
    capacity = min(n, max(_MOST_ROWS, 4 * count), int(memory / row_bytes) - 1)
    require(
        capacity >= least,
        f"eigenpairs: memory must hold {least + 1} vectors of {row_bytes} bytes for {count} pairs, "
        f"got {show(memory)} bytes. Give {(least + 1) * row_bytes} or more.",
    )
    return torch.empty(capacity + 1, n, dtype=H.dtype, device=H.device)


def _advice(complete: bool, reached: bool, dtype: torch.dtype) -> str:
    if complete:
        return f"H is not symmetric or not deterministic, or {dtype} does not reach this tol."
    if reached:
        return "The search for further copies was cut off: raise max_products or pass copies=False."
    return "Raise max_products or tol."
