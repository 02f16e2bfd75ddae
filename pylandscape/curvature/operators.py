"""Curvature matrices of a loss as linear operators over the flat parameter vector."""

import glob
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from pylandscape._checks import all_finite, require, show
from pylandscape.objective import Objective


def _difference_product(objective: Objective, v: Tensor, at: Tensor) -> Tensor:
    """(g(w + e v) - g(w - e v)) / 2e with e ||v|| = eps^(1/3) (1 + ||w||), column by column.

    That step balances the error of the quotient, of order e^2, with rounding, of order eps / e.
    """
    if v.ndim == 2:
        columns = [_difference_product(objective, column, at) for column in v.unbind(1)]
        return torch.stack(columns, 1) if columns else torch.empty_like(v)
    length = float(torch.linalg.vector_norm(v, dtype=torch.float64))
    if length == 0:
        return torch.zeros_like(v)
    size = float(torch.linalg.vector_norm(at, dtype=torch.float64))
    e = torch.finfo(v.dtype).eps ** (1 / 3) * (1 + size) / length
    ahead, behind = (objective.gradient(at=at + step * v) for step in (e, -e))
    return (ahead - behind) / (2 * e)


# What a kind of curvature matrix is: its product with vectors [P] or [P, K] at a point.
_PRODUCTS: dict[str, Callable[[Objective, Tensor, Tensor], Tensor]] = {
    "Hessian": lambda objective, v, at: objective.hessian_vector_product(v, at=at),
    "Hessian by finite differences": _difference_product,
    "GGN": lambda objective, v, at: objective.ggn_vector_product(v, at=at),
    "Fisher": lambda objective, v, at: objective.fisher_vector_product(v, at=at),
}


class CurvatureOperator:
    """A symmetric matrix [n, n] of second-order information, known by its products with vectors.

    Made by `pl.Hessian`, `pl.GGN` and `pl.Fisher`. n is the number of selected parameters: with
    `only`, the operator is the principal block of the matrix that belongs to them, and its vectors
    have one entry for each.

    Attributes:
        kind: "Hessian", "GGN", "Fisher" or "Hessian by finite differences".
        objective: the function whose curvature this is.
        at: the point [P], fixed when the operator was made.
        names: the selected parameter tensors, in order.
        products: how many matrix-vector products were done so far.
    """

    def __init__(
        self,
        kind: str,
        objective: Objective,
        at: Tensor | None = None,
        only: str | Iterable[str] | None = None,
    ) -> None:
        require(
            isinstance(objective, Objective),
            f"{kind}: objective must be a pl.Objective, got {show(objective)}.",
            TypeError,
        )
        space = objective.space
        entries = space.entries if only is None else space.select(only)
        self.kind = kind
        self.objective = objective
        self.at = objective.center if at is None else self._point(at)
        self.names = tuple(entry.name for entry in entries)
        self.products = 0
        self._slices = None if len(entries) == len(space.entries) else [e.slice for e in entries]
        self._size = sum(entry.size for entry in entries)

    @property
    def shape(self) -> tuple[int, int]:
        return self._size, self._size

    @property
    def dtype(self) -> torch.dtype:
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        return self.objective.device

    def __repr__(self) -> str:
        n = self._size
        block = "" if self._slices is None else f", block of {len(self.names)} tensors"
        return f"{self.kind}({n} x {n}, {self.dtype}, {self.device}{block})"

    def block(self, names: Iterable[str]) -> "CurvatureOperator":
        """The principal block for the parameters with these names, at the same point."""
        patterns = [glob.escape(name) for name in names]
        return CurvatureOperator(self.kind, self.objective, self.at, patterns)

    def describe(self) -> dict[str, Any]:
        """How results are made, for their attributes: only strings, numbers and lists of them."""
        block = {} if self._slices is None else {"only": list(self.names)}
        made = self.objective.describe(derivatives=True)
        return {"matrix": self.kind, "size": self._size} | block | made

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with a vector [n] or with every column of a block [n, K].

        Raises:
            ValueError: `v` has another length, dtype or device, or the product is not finite.
        """
        product = self.unchecked(v)
        if not all_finite(product):
            raise ValueError(f"{self.kind} @ v: the product must be finite, got {self._cause(v)}")
        return product

    def unchecked(self, v: Tensor) -> Tensor:
        """The product, finite or not: on a GPU nothing waits for it."""
        self._check_vector(v)
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return self.restrict(_PRODUCTS[self.kind](self.objective, self.embed(v), self.at))

    def embed(self, v: Tensor) -> Tensor:
        """[n] or [n, K] -> [P] or [P, K]: zero for all parameters that are not selected."""
        if self._slices is None:
            return v
        whole = v.new_zeros(self.objective.space.size, *v.shape[1:])
        parts = v.split([s.stop - s.start for s in self._slices])
        for place, part in zip(self._slices, parts, strict=True):
            whole[place] = part
        return whole

    def restrict(self, v: Tensor) -> Tensor:
        """[P] or [P, K] -> [n] or [n, K]: the entries of the selected parameters."""
        return v if self._slices is None else torch.cat([v[place] for place in self._slices])

    def to_scipy(self) -> LinearOperator:
        """The same matrix for scipy: takes and returns numpy arrays in the operator's dtype."""
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def product(v: np.ndarray) -> np.ndarray:
            tensor = torch.from_numpy(np.ascontiguousarray(v, dtype=dtype)).to(self.device)
            return (self @ tensor).cpu().numpy()

        return LinearOperator(
            self.shape, matvec=product, rmatvec=product, matmat=product, rmatmat=product,
            dtype=dtype,
        )  # fmt: skip

    def _point(self, at: Tensor) -> Tensor:
        size = self.objective.space.size
        require(
            isinstance(at, Tensor) and at.shape == (size,),
            f"{self.kind}: at must be a point of shape [{size}], got {show(at)}. "
            "It must come from a model of the same architecture.",
        )
        return at.detach().to(device=self.device, dtype=self.dtype, copy=True)

    def _check_vector(self, v: Any) -> None:
        what, n = f"{self.kind} @ v: v", self._size
        require(
            isinstance(v, Tensor),
            f"{what} must be a tensor, got {show(v)}. Directions have theirs in .vectors.",
            TypeError,
        )
        require(
            v.ndim in (1, 2) and v.shape[0] == n,
            f"{what} must have shape [{n}] or [{n}, K], got {show(v)}. "
            "A vector of another model, or of another selection of parameters, does not fit.",
        )
        require(
            v.dtype == self.dtype and v.device == self.device,
            f"{what} must be {self.dtype} on {self.device}, got {v.dtype} on {v.device}. "
            "Convert it with v.to(H.device, H.dtype).",
        )

    def _cause(self, v: Tensor) -> str:
        """Why a product is not finite: the first culprit on the way to it."""
        if not all_finite(v):
            return "NaN or infinite entries in v. Check the vector."
        if not all_finite(self.at):
            return "NaN or infinite parameters. The model has diverged: use an earlier state."
        loss, gradient = self.objective.loss_and_gradient(at=self.at)
        if not np.isfinite(loss):
            return f"a loss of {loss} at this point. Check the model and the data."
        if not all_finite(gradient):
            return f"a gradient that is not finite (loss {loss:.6g}). Check the loss function."
        return (
            f"NaN or infinity from the second derivative alone (loss {loss:.6g}, finite gradient). "
            "Something like sqrt or norm at 0 is in the model or the loss, or float32 overflows."
        )


def Hessian(
    objective: Objective,
    at: Tensor | None = None,
    only: str | Iterable[str] | None = None,
    finite_differences: bool = False,
) -> CurvatureOperator:
    """The Hessian of the mean loss, H_ij = d^2 L / dw_i dw_j, as a linear operator [n, n].

    A product H v is the directional derivative of the gradient (Pearlmutter 1994): exact, at the
    price of a few gradients, and P x P numbers are never formed.

    Args:
        objective: the loss L: R^P -> R.
        at: the point w [P]; the model's parameters at this moment by default.
        only: a shell-style pattern, or several, of parameter names ("conv1.*", "*.weight"). The
            operator is then the principal block of H for the parameters whose names match one.
        finite_differences: for models or losses without second derivatives: the central difference
            (g(w + e v) - g(w - e v)) / 2e of gradients. In float32 it is right to two or three
            digits only, and symmetric no better than that.

    Raises:
        ValueError: `at` is a point of another model, or `only` matches no parameter name.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 as the mean squared error of a linear model:

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).sqrt().double()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> H = pl.Hessian(objective)
        >>> H.shape
        (2, 2)
        >>> torch.allclose(H @ torch.eye(2).double(), torch.diag(torch.tensor([3.0, 1.0])).double())
        True
    """
    kind = "Hessian by finite differences" if finite_differences else "Hessian"
    return CurvatureOperator(kind, objective, at, only)


def GGN(
    objective: Objective, at: Tensor | None = None, only: str | Iterable[str] | None = None
) -> CurvatureOperator:
    """The generalised Gauss-Newton matrix of the loss (Schraudolph 2002) as an operator [n, n].

    With L = sum_i a_i / sum_i b_i, J_i the Jacobian of the model's outputs for sample i in the
    parameters, and H_i the Hessian of a_i in these outputs,

        G = sum_i J_i' H_i J_i / sum_i b_i,
        H = G + sum_i sum_o (da_i/do) d^2o/dw^2 / sum_i b_i.

    The second part of the Hessian, the curvature of the outputs o themselves, is left out, so that
    G is positive semi-definite where the loss is convex in the outputs (cross-entropy, squared
    error) and equal to H where the model is linear in w. For cross-entropy of logits it is the
    Fisher matrix of the model's own predictions. A softmax inside the model counts as model.

    Args:
        objective: the loss L: R^P -> R.
        at: the point w [P]; the model's parameters at this moment by default.
        only: patterns of parameter names, as for `pl.Hessian`.

    Raises:
        ValueError: `at` is a point of another model, or `only` matches no parameter name.
        TypeError: `objective` is not an Objective.

    Example:
        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(4, 3)
        >>> data = torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> objective = pl.Objective(model, torch.nn.CrossEntropyLoss(), data)
        >>> v = torch.randn(15)
        >>> torch.allclose(pl.GGN(objective) @ v, pl.Hessian(objective) @ v, atol=1e-6)
        True
    """
    return CurvatureOperator("GGN", objective, at, only)


def Fisher(
    objective: Objective, at: Tensor | None = None, only: str | Iterable[str] | None = None
) -> CurvatureOperator:
    """The empirical Fisher matrix as a linear operator [n, n]: the second moment of the gradients.

    With g_i the gradient of the loss a_i / b_i of sample i, for the targets of the data,

        F = sum_i b_i g_i g_i' / sum_i b_i,

    positive semi-definite. The weights b_i are 1 but for losses that weight their mean themselves
    (class weights, `ignore_index`): a sample of weight 2 counts like two samples. It is not the
    Fisher matrix of the model's own predictions, which for cross-entropy is `pl.GGN`, and not close
    to the Hessian in general (Kunstner et al. 2019).

    Args:
        objective: the loss L: R^P -> R.
        at: the point w [P]; the model's parameters at this moment by default.
        only: patterns of parameter names, as for `pl.Hessian`.

    Raises:
        ValueError: `at` is a point of another model, or `only` matches no parameter name.
        TypeError: `objective` is not an Objective.

    Example:
        With a single sample F = g g':

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(4, 3)
        >>> data = torch.randn(1, 4), torch.tensor([2])
        >>> objective = pl.Objective(model, torch.nn.CrossEntropyLoss(), data)
        >>> g, v = objective.gradient(), torch.randn(15)
        >>> torch.allclose(pl.Fisher(objective) @ v, g * (g @ v), atol=1e-6)
        True
    """
    return CurvatureOperator("Fisher", objective, at, only)
