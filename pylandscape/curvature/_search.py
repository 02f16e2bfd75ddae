"""The run behind `eigenpairs`: what is wanted, when it is found, what was missed, how to go on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pylandscape._checks import require
from pylandscape.curvature._checkpoint import Checkpoint
from pylandscape.curvature._krylov import Krylov, SymmetricOperator, combine_rows
from pylandscape.engines.interrupts import DeferredInterrupt

_MISS_PROBABILITY = 1e-3  # how sure the search for further copies of an eigenvalue is
_PROBE_STEPS = 10  # before a converged pair ends that search where the probability cannot
_TINY = np.finfo(float).tiny


class Step(NamedTuple):
    """The wanted pairs as they stood after so many products."""

    product: int
    values: np.ndarray  # [<= k]
    residuals: np.ndarray  # [<= k], bounds |beta_m s_mi|


@dataclass(frozen=True)
class Wanted:
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


class Search:
    """The run: locked pairs in the first rows of the storage, a Krylov process behind them."""

    def __init__(
        self,
        H: SymmetricOperator,
        wanted: Wanted,
        tol: float,
        limit: int,
        rows: Tensor,
        seed: int,
        store: Checkpoint,
    ) -> None:
        self.H, self.wanted, self.tol, self.limit, self.rows = H, wanted, tol, limit, rows
        self.n = H.shape[0]
        self.store = store
        self.products, self.complete = 0, False
        self.history: list[Step] = []
        self.scale = 0.0  # max |theta| seen
        self.target = 0.9 * tol  # the residuals computed in the end differ by rounding
        self.missed: Tensor | None = None  # a vector that leads to a pair better than the wanted
        self.locked = np.empty((0, 2))  # value and residual bound of each of the first rows
        self.generator = torch.Generator().manual_seed(seed)
        self.process = Krylov(rows, 0, self._random_vector())

    def run(self, bar: Any, copies: bool) -> None:
        """Until all wanted pairs have converged (then `complete`) or the products run out."""
        self.bar = bar
        self._resume()
        while self._converge():
            if self.missed is None:
                self.missed = self._missed_vector() if copies else None
                if self.missed is None:
                    self.complete = not copies or self.products < self.limit
                    return
                if self.target > self.tol / 4:
                    # locked pairs add their errors to those of the process behind them
                    self.target = self.tol / 4
                    continue
            self._lock(self.wanted.best(self.values()))
            self.process = Krylov(self.rows, len(self.locked), self.missed)
            self.missed = None

    def values(self) -> np.ndarray:
        """The eigenvalues known now."""
        return self._pairs()[:, 0]

    def pairs(self, exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Values [k], vectors [n, k] and residual bounds [k]; ends the run.

        Exact are values and residuals that come from one more product for each pair.
        """
        self._lock(self.wanted.best(self.values()))
        vectors = self.rows[: len(self.locked)].T.contiguous()
        values, residuals = torch.from_numpy(self.locked).unbind(1)
        if exact:
            images = self.H @ vectors
            self._count(vectors.shape[1])
            quotients = (vectors.double() * images.double()).sum(0)
            errors = images - vectors * quotients.to(vectors.dtype)
            values = quotients.cpu()
            residuals = torch.linalg.vector_norm(errors, dim=0, dtype=torch.float64).cpu()
        best = torch.from_numpy(self.wanted.best(values.numpy()))
        vectors = vectors[:, best.to(vectors.device)]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return values[best], vectors * largest.sign(), residuals[best]

    def _converge(self) -> bool:
        """Steps until the bounds of all wanted pairs, locked or not, are at most target * scale."""
        while True:
            if self.store.due and not self.process.between_fetches:
                self._save()
            if self._is_check_due():
                pairs = self._pairs()
                best = self.wanted.best(pairs[:, 0])
                self._record(pairs, best)
                enough = len(best) == self.wanted.count
                if enough and self._are_settled(pairs[best, 1]):
                    return True
                if self.process.exhausted:  # with fewer pairs than are wanted
                    self._lock(best)
                    self.process = Krylov(self.rows, len(self.locked), self._random_vector())
            if self.products >= self.limit:
                self._save()
                return False
            try:
                self._step(self.process)
            except KeyboardInterrupt:
                self._save()
                raise

    def _missed_vector(self) -> Tensor | None:
        """A vector [n] that leads to a pair better than the wanted ones, or None.

        A random vector starts a process in the complement of the basis. After t steps, the chance
        that an eigenvalue there exceeds its Ritz values by more than a fraction e of the width of
        the spectrum there is at most 1.648 sqrt(n) exp(-sqrt(e) (2 t - 1)).
        """
        pairs, margin = self._pairs(), self.target * self.scale
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
            if probe.between_fetches and self.products < self.limit:
                continue
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
        with DeferredInterrupt():
            combine_rows(self.rows[: len(pairs)], coefficients[:, chosen])
            self.locked = pairs[chosen]
            self.process.end()

    def _pairs(self) -> np.ndarray:
        """[locked + m, 2]: value and residual bound of all pairs known now."""
        values, _, bounds = self.process.ritz()
        return np.concatenate([self.locked, np.stack([values, bounds], axis=1)])

    def _is_check_due(self) -> bool:
        """After every step while that costs little against a product, later after some."""
        process, is_last = self.process, self.products >= self.limit
        if process.between_fetches and not is_last:
            return False
        size, is_last = process.size, is_last or process.exhausted
        fresh = range(max(1, size - process.ahead + 1), size + 1)  # at this size or passed since
        return size > 0 and (is_last or any(s % max(1, s // 16) == 0 for s in fresh))

    def _are_settled(self, bounds: np.ndarray) -> bool:
        # a start vector nearly without the wanted direction has a small residual at first
        few = self.products < self.wanted.count + 3 and not self.process.exhausted
        return not few and bool(bounds.max() <= self.target * self.scale)

    def _record(self, pairs: np.ndarray, best: np.ndarray) -> None:
        self.scale = max(self.scale, np.abs(pairs[:, 0]).max())
        if not self.history or self.history[-1].product < self.products:  # not so on going on
            self.history.append(Step(self.products, pairs[best, 0], pairs[best, 1]))
        last = best[pairs[best, 1].argmax()]
        self.bar.set_postfix_str(f"value {pairs[last, 0]:.5g}, residual {pairs[last, 1]:.1e}")

    def _save(self) -> None:
        process, width = self.process, max((len(step.values) for step in self.history), default=0)
        m, used = process.size, process.first + process.size + 1
        table = np.full((len(self.history), 1 + 2 * width), np.nan)
        for row, step in zip(table, self.history, strict=True):
            row[0] = step.product
            row[1 : 1 + len(step.values)] = step.values
            row[1 + width : 1 + width + len(step.values)] = step.residuals
        arrays = {
            "projected": process.projected[:m, :m],
            "coupling": process.coupling[:m],
            "locked": self.locked,
            "history": table,
        }
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        tensors |= {"rows": self.rows[:used], "generator": self.generator.get_state()}
        if self.missed is not None:
            tensors["missed"] = self.missed
        numbers = {"first": process.first, "products": self.products}
        self.store.save(tensors, numbers | {"scale": self.scale, "target": self.target})

    def _resume(self) -> None:
        """Takes over the state of a run that was broken off, where there is one.

        Raises:
            ValueError: it was one with another matrix.
        """
        state = self.store.load()
        if state is None:
            return
        tensors, numbers = state
        m, rows = len(tensors["projected"]), tensors["rows"]
        self.rows[: len(rows)] = rows.to(self.rows.device)
        self.generator.set_state(tensors["generator"])
        self.scale, self.target = numbers["scale"], numbers["target"]
        self.locked = tensors["locked"].numpy()
        if "missed" in tensors:
            self.missed = tensors["missed"].to(self.rows.device)
        for row in tensors["history"].numpy():
            values, residuals = np.split(row[1:], 2)
            known = ~np.isnan(values)
            self.history.append(Step(int(row[0]), values[known], residuals[known]))
        self.process.restore(
            numbers["first"], tensors["projected"].numpy(), tensors["coupling"].numpy()
        )
        if m:
            v = self.rows[numbers["first"] + m - 1]
            product = (self.H @ v).double()
            quotient = float(torch.dot(v.double(), product))
            expected = float(tensors["projected"][-1, -1])
            size = max(self.scale, float(torch.linalg.vector_norm(product)))
            require(
                abs(quotient - expected) <= torch.finfo(v.dtype).eps ** 0.5 * size,
                f"eigenpairs: checkpoint must be of the same matrix, got '{self.store.path}' of "
                f"one with v' H v = {expected:.6g} where this one gives {quotient:.6g}. "
                "Delete it or give another path.",
            )
        self._count(numbers["products"])

    def _count(self, products: int) -> None:
        self.products += products
        self.bar.update(products)

    def _random_vector(self) -> Tensor:
        vector = torch.randn(self.n, generator=self.generator, dtype=self.rows.dtype)
        return vector.to(self.rows.device)
