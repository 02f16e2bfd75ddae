"""Extreme eigenpairs of a symmetric matrix by a Lanczos process that runs until they converge."""

import os
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pylandscape._checks import require, show, users_level
from pylandscape.curvature._checkpoint import Checkpoint
from pylandscape.curvature._krylov import SymmetricOperator, check_operator, described
from pylandscape.curvature._search import Search, Step, Wanted
from pylandscape.objective import Interrupted
from pylandscape.progress import progress_bar

Which = Literal["largest", "smallest", "both", "magnitude"]

_SPARE_ROWS = 6  # the least room beside the wanted vectors in which restarts still make progress
_MOST_ROWS = 256  # a larger basis saves few products and costs more in its own algebra


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
        attrs: how the matrix was made.
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
    attrs: dict[str, Any] = field(repr=False, default_factory=dict)


def eigenpairs(
    H: SymmetricOperator,
    k: int = 5,
    which: Which = "largest",
    tol: float = 1e-3,
    max_products: int | None = None,
    memory: float = 2**30,
    seed: int = 0,
    copies: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    progress: bool | None = None,
) -> Eigenpairs:
    """The extreme eigenpairs of a symmetric matrix that is known by its products with vectors.

    Lanczos with full reorthogonalisation. It goes on until every wanted pair (theta_i, y_i) has

        ||H y_i - theta_i y_i|| = |beta_m s_mi| <= tol * max_j |theta_j|,

    s_i the i-th eigenvector of the projected matrix T_m, however many products that takes. When the
    basis is full it is restarted from its best Ritz vectors (thick restart, Wu and Simon 2000).

    One start vector reaches one eigenvector of each eigenvalue, and none that it has by chance next
    to nothing of. So when all pairs have converged, a new random vector looks for missed ones in
    the complement of the basis, until the chance that one beats the k-th pair by more than the
    tolerance is below 1e-3 by the bound of Kuczynski and Wozniakowski (1992), or until it converges
    itself; what it finds is pursued in the same way.

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
        copies: look for missed pairs, some ten products more. Without it, copies of multiple
            eigenvalues are missing, and some runs end at another eigenvalue than the wanted one,
            with a small residual, because the start vector had next to nothing of the right one:
            with k = 1 and tol = 1e-3, one in 1,500 where the first two eigenvalues are 20 % apart
            and 25 in 1,500 where they are 2 % apart, against none in 300 with the search.
        checkpoint: a file to keep the state of the run in. Where it exists, the run goes on from
            there, with the result that it would have had without the break, bit for bit; it must
            be of the same matrix and arguments (but `max_products`, which may be raised). It is
            removed when the run has converged.
        checkpoint_every: seconds between two writings; Ctrl-C writes as well.
        progress: show a bar with the current value and residual; by default on a terminal only.

    Raises:
        TypeError: `H` is not such an operator.
        ValueError: another argument is out of range, a product is not finite, or the checkpoint is
            of another run.
        Interrupted: on Ctrl-C; its `result` holds the pairs so far, not converged, with the bounds
            |beta_m s_mi| as residuals.

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
    wanted = Wanted(which, min(n, 2 * k if which == "both" else k))
    limit = 10 * n + 1000 if max_products is None else max_products
    require(
        limit >= 2 * wanted.count,
        f"eigenpairs: max_products must be at least {2 * wanted.count} for {wanted.count} pairs, "
        f"got {show(max_products)}. One product finds a pair at best, one more checks it.",
    )
    rows = _storage(H, wanted.count, memory)
    settings = {"n": n, "dtype": str(H.dtype), "k": k, "which": which, "tol": tol, "seed": seed}
    settings |= {"copies": bool(copies), "rows": len(rows)}
    store = Checkpoint(checkpoint, checkpoint_every, settings)
    search = Search(H, wanted, tol, limit - wanted.count, rows, seed, store)

    def result(pairs: tuple[Tensor, Tensor, Tensor], converged: bool) -> Eigenpairs:
        return Eigenpairs(
            *pairs, search.products, converged, search.history, which, tol, seed, described(H)
        )

    with progress_bar(max_products, f"{wanted.count} eigenpairs", "product", progress) as bar:
        try:
            search.run(bar, copies)
            values, vectors, residuals = search.pairs(exact=True)
        except KeyboardInterrupt:
            stop = Interrupted({}, search.products, "products")
            stop.result = result(search.pairs(), False) if len(search.values()) else None
            raise stop from None
    reached = len(values) == wanted.count and bool(residuals.max() <= tol * search.scale)
    if not (converged := search.complete and reached):
        warnings.warn(
            f"eigenpairs: not converged: after {search.products} products the largest residual is "
            f"{float(residuals.max()):.3g}, asked for {tol * search.scale:.3g}. "
            + _advice(search.complete, reached, H.dtype),
            stacklevel=users_level(),
        )
    if search.complete:
        store.discard()
    return result((values, vectors, residuals), converged)


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
