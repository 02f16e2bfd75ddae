"""An orthonormal basis grown by products with a symmetric matrix: the Lanczos process."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape._checks import require, show
from pylandscape.engines.interrupts import DeferredInterrupt

# Steps that a device does between two looks at their results. Each look lets a GPU run dry for some
# tens of microseconds; a run that has converged finds out up to three products late.
STEPS_AHEAD = {"cuda": 4}


class SymmetricOperator(Protocol):
    """What is needed of a matrix: a `CurvatureOperator` has it, and a dense torch matrix."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __matmul__(self, v: Tensor, /) -> Tensor: ...


class Krylov:
    """Rows V [m, n], orthonormal, with T = V H V^T and one more row u, such that

        H V^T = V^T T + u coupling^T.

    The rows lie in storage that outlives the process: rows[first : first + m] is V and the row
    after it is u. The rows before `first` are frozen: V and u are orthogonal to them and T ignores
    them, so that the process sees the compression of H to their orthogonal complement.

    A step takes u into the basis. In a plain Lanczos process T is tridiagonal and the coupling is
    (0, ..., 0, beta); after a restart the same relation holds with T diagonal and a full coupling
    vector (thick restart, Wu and Simon 2000), so no case of its own is needed.

    On a GPU several steps are under way at once: the next u is written there, so that its product
    can be asked for before anybody here knows alpha and beta. They are fetched together, at sizes
    that `ahead` divides, when the basis is full, and whenever T, the coupling or the size is asked
    for. A step whose predecessor turns out to have ended the process is dropped: it started from
    the zeros that `take` leaves where no u is written, and all that it wrote lies behind the basis.

    Args:
        rows: storage [capacity + 1, N] with `first` orthonormal rows in front, overwritten behind.
        first: the number of frozen rows.
        start: the first direction, not zero; it is orthogonalised here.
    """

    def __init__(self, rows: Tensor, first: int, start: Tensor) -> None:
        self.rows = rows
        self.ahead = STEPS_AHEAD.get(rows.device.type, 1)
        self._reset(first)
        frozen = rows[:first]
        for _ in range(2):
            start = start - (start @ frozen.T) @ frozen
            start = start / torch.linalg.vector_norm(start)
        rows[first] = start

    def _reset(self, first: int) -> None:
        self.first = first
        self.capacity = len(self.rows) - 1 - first
        self._size = 0
        self._coupling = np.zeros(self.capacity)
        self._projected = np.zeros((self.capacity, self.capacity))
        self._under_way: list[_ops.LanczosStep] = []
        # |H v| at most, where the steps are
        self._largest = torch.zeros((), dtype=torch.float64, device=self.rows.device)

    @property
    def size(self) -> int:
        """m."""
        self._fetch()
        return self._size

    @property
    def coupling(self) -> np.ndarray:
        """[capacity], zeros from m on."""
        self._fetch()
        return self._coupling

    @property
    def projected(self) -> np.ndarray:
        """[capacity, capacity], of which T is the first m rows and columns."""
        self._fetch()
        return self._projected

    @property
    def exhausted(self) -> bool:
        """V spans an invariant subspace: its eigenpairs are exact and no further step exists."""
        return self.size > 0 and not self.coupling[: self.size].any()

    @property
    def _started(self) -> int:
        """m, with the steps under way."""
        return self._size + len(self._under_way)

    @property
    def full(self) -> bool:
        return self._started == self.capacity

    @property
    def between_fetches(self) -> bool:
        """Steps are under way, or would be had nobody asked: not the time to look at the results.

        It depends on the size only, so that a run takes the same decisions at the same sizes
        however often its state was looked at and saved meanwhile.
        """
        known_to_end = not self._under_way and self.exhausted
        return self._started % self.ahead > 0 and not self.full and not known_to_end

    @property
    def can_go_on(self) -> bool:
        """A further step exists, as far as is known without waiting."""
        return self.between_fetches or not (self.full or self.exhausted)

    @property
    def following(self) -> Tensor:
        """u [n], of which the next step needs the product."""
        return self.rows[self.first + self._started]

    @property
    def size_of_columns(self) -> float:
        """The largest norm of a column of T, a lower bound on the norm of H.

        Of the columns known here; steps under way can only make it larger.
        """
        m = self._size
        return float(np.linalg.norm(self._projected[:m, :m], axis=0).max(initial=0.0))

    def restore(self, first: int, projected: np.ndarray, coupling: np.ndarray) -> None:
        """Takes over T [m, m] and the coupling [m] of a process whose rows the storage holds."""
        self._reset(first)
        m = self._size = len(projected)
        self._coupling[:m], self._projected[:m, :m] = coupling, projected

    def end(self) -> None:
        """Forgets the basis, whose rows something else takes over."""
        self._reset(self.first)

    def step(self, H: SymmetricOperator, scale: float) -> None:
        """One product: takes u into the basis and finds the next u; errors as for `take`."""
        self.take(multiply(H, self.following, self.waits), scale)

    @property
    def waits(self) -> bool:
        """The next product may wait for its device: for the first, which says best what is wrong
        with a matrix, and wherever no steps are under way.
        """
        return self.ahead == 1 or self._started == 0

    def take(self, product: Tensor, scale: float) -> None:
        """Takes u into the basis and finds the next u.

        Args:
            product: H u [n], overwritten.
            scale: the size of the eigenvalues of H as far as known, to tell a next u from rounding.
                Steps under way may have seen more: so the size of all products counts too, which is
                known on the device.

        Raises:
            ValueError: the product, or an earlier one that was still under way, is not finite.
        """
        row = self.first + self._started
        if product.data_ptr() == self.rows[row].data_ptr():  # H = I may return its argument
            product = product.clone()
        with DeferredInterrupt():
            if self.ahead > 1:
                self.rows[row + 1] = 0.0
            known = scale if self.ahead == 1 else self._largest.clamp_(min=scale)
            step = _ops.lanczos_step(
                basis=self.rows, product=product.contiguous(), row=row, scale=known
            )
            self._under_way.append(step)
            if not self.between_fetches:
                self._fetch()

    def _fetch(self) -> None:
        """Waits for the steps under way; what follows on the last step of a process is dropped."""
        if not self._under_way:
            return
        with DeferredInterrupt():
            steps, self._under_way = _ops.fetch_steps(self._under_way), []
            for coefficients, beta, breakdown in steps:
                m, column = self._size, coefficients[self.first :].numpy()
                require(
                    bool(np.isfinite([*column, float(beta)]).all()),
                    "H @ v must be finite, got NaN or infinity in product "
                    f"{self.first + m + 1}. Look for them in the matrix.",
                )
                self._projected[: m + 1, m] = self._projected[m, : m + 1] = column
                self._coupling[:] = 0.0
                self._coupling[m] = 0.0 if breakdown else float(beta)
                self._size += 1
                if breakdown:
                    return

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues [m] of T, ascending, its eigenvectors [m, m], and the residual bounds [m].

        The bound |coupling . s_i| is the norm of H y - theta y for y = V^T s_i: |beta_m s_mi|.
        """
        m = self.size
        values, vectors = np.linalg.eigh(self.projected[:m, :m])
        return values, vectors, np.abs(self.coupling[:m] @ vectors)

    def vector(self, coefficients: np.ndarray) -> Tensor:
        """V^T s [n]."""
        s = torch.from_numpy(coefficients).to(self.rows)
        return s @ self.rows[self.first : self.first + self.size]

    def restart(self, values: np.ndarray, vectors: np.ndarray) -> None:
        """Shrinks the basis to Ritz vectors: eigenvalues [p] of T and its eigenvectors [m, p]."""
        m, p = self.size, len(values)
        with DeferredInterrupt():
            combine_rows(self.rows[self.first : self.first + m], vectors)
            if not self.exhausted:
                self.rows[self.first + p] = self.rows[self.first + m]
            self._coupling[:p] = self._coupling[:m] @ vectors
            self._coupling[p:] = 0.0
            self._projected[:p, :p] = np.diag(values)
            self._size = p


def combine_rows(rows: Tensor, coefficients: np.ndarray) -> None:
    """rows[:p] = coefficients^T rows, in place, for coefficients [m, p] and rows [m, n].

    In float64 and by blocks of columns: orthonormal rows stay so to the rounding of their own
    dtype, and the scratch memory does not grow with n.
    """
    p = coefficients.shape[1]
    weights = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(rows.device)
    for block in rows.split(8192, dim=1):
        block[:p] = (weights @ block.double()).to(rows.dtype)


def multiply(H: SymmetricOperator, v: Tensor, waits: bool = True) -> Tensor:
    """H v. Where it must not wait for the device, `H.unchecked` if there is one: without the look
    for NaN, which shows when the step is fetched.
    """
    return H @ v if waits else getattr(H, "unchecked", H.__matmul__)(v)


def check_operator(H: Any, where: str) -> None:
    """Raises unless `H` is a symmetric operator of a dtype that Lanczos works in."""
    needed = ("shape", "dtype", "device", "__matmul__")
    require(
        all(hasattr(H, name) for name in needed),
        f"{where}: H must have {', '.join(needed)}, got {show(H)}. Pass pl.Hessian(objective).",
        TypeError,
    )
    require(
        len(H.shape) == 2 and H.shape[0] == H.shape[1] >= 1,
        f"{where}: H must be a square matrix, got shape {list(H.shape)}.",
    )
    require(
        H.dtype in (torch.float32, torch.float64),
        f"{where}: H must be float32 or float64, got {H.dtype}. Convert it first.",
    )
    if isinstance(H, Tensor) and H.layout == torch.strided:
        require(
            torch.allclose(H, H.T, 1e-4, 1e-6 * float(H.abs().nan_to_num().max()), equal_nan=True),
            f"{where}: H must be symmetric, got a matrix that differs from its transpose.",
        )


def described(H: SymmetricOperator) -> dict[str, Any]:
    """How a matrix was made, for the attributes of results: nothing where it does not say so."""
    return H.describe() if hasattr(H, "describe") else {}
