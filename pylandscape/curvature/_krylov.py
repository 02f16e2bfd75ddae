"""An orthonormal basis grown by products with a symmetric matrix: the Lanczos process."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pylandscape import _ops
from pylandscape._checks import require, show
from pylandscape.engines.interrupts import DeferredInterrupt


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

    Args:
        rows: storage [capacity + 1, N] with `first` orthonormal rows in front, overwritten behind.
        first: the number of frozen rows.
        start: the first direction, not zero; it is orthogonalised here.
    """

    def __init__(self, rows: Tensor, first: int, start: Tensor) -> None:
        self.rows = rows
        self.first = first
        self.size = 0
        self.capacity = len(rows) - 1 - first
        self.coupling = np.zeros(self.capacity)
        self.projected = np.zeros((self.capacity, self.capacity))
        frozen = rows[:first]
        for _ in range(2):
            start = start - (start @ frozen.T) @ frozen
            start = start / torch.linalg.vector_norm(start)
        rows[first] = start

    @property
    def exhausted(self) -> bool:
        """V spans an invariant subspace: its eigenpairs are exact and no further step exists."""
        return self.size > 0 and not self.coupling[: self.size].any()

    @property
    def full(self) -> bool:
        return self.size == self.capacity

    @property
    def following(self) -> Tensor:
        """u [n], of which the next step needs the product."""
        return self.rows[self.first + self.size]

    @property
    def size_of_columns(self) -> float:
        """The largest norm of a column of T, a lower bound on the norm of H."""
        m = self.size
        return float(np.linalg.norm(self.projected[:m, :m], axis=0).max(initial=0.0))

    def restore(self, first: int, projected: np.ndarray, coupling: np.ndarray) -> None:
        """Takes over T [m, m] and the coupling [m] of a process whose rows the storage holds."""
        m = self.size = len(projected)
        self.first = first
        self.capacity = len(self.rows) - 1 - first
        self.coupling = np.zeros(self.capacity)
        self.projected = np.zeros((self.capacity, self.capacity))
        self.coupling[:m], self.projected[:m, :m] = coupling, projected

    def step(self, H: SymmetricOperator, scale: float) -> None:
        """One product: takes u into the basis and finds the next u; errors as for `take`."""
        self.take(H @ self.following, scale)

    def take(self, product: Tensor, scale: float) -> None:
        """Takes u into the basis and finds the next u.

        Args:
            product: H u [n], overwritten.
            scale: the size of the eigenvalues of H as far as known, to tell a next u from rounding.

        Raises:
            ValueError: the product is not finite.
        """
        m, row = self.size, self.first + self.size
        if product.data_ptr() == self.rows[row].data_ptr():  # H = I may return its argument
            product = product.clone()
        with DeferredInterrupt():
            step = _ops.lanczos_step(
                basis=self.rows, product=product.contiguous(), row=row, scale=scale
            )
            column = step.coefficients[self.first :].numpy()
            require(
                bool(np.isfinite([*column, step.beta]).all()),
                f"H @ v must be finite, got NaN or infinity in product {row + 1}. "
                "Look for them in the matrix.",
            )
            self.projected[: m + 1, m] = self.projected[m, : m + 1] = column
            self.coupling[:] = 0.0
            self.coupling[m] = 0.0 if step.breakdown else step.beta
            self.size += 1

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
            self.coupling[:p] = self.coupling[:m] @ vectors
            self.coupling[p:] = 0.0
            self.projected[:p, :p] = np.diag(values)
            self.size = p


def combine_rows(rows: Tensor, coefficients: np.ndarray) -> None:
    """rows[:p] = coefficients^T rows, in place, for coefficients [m, p] and rows [m, n].

    In float64 and by blocks of columns: orthonormal rows stay so to the rounding of their own
    dtype, and the scratch memory does not grow with n.
    """
    p = coefficients.shape[1]
    weights = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(rows.device)
    for block in rows.split(8192, dim=1):
        block[:p] = (weights @ block.double()).to(rows.dtype)


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
