"""A step of the Lanczos process."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pylandscape._checks import show
from pylandscape._ops.arguments import alike, vector_size
from pylandscape._ops.library import has_kernels

_BLOCK = 1 << 16  # columns that the plain torch code converts to float64 at once


class LanczosStep(NamedTuple):
    """What one step of the Lanczos process found, on the device of the basis.

    Attributes:
        coefficients: float64 [j + 1], v_i . H v_j for all rows: column j of V H V^T. The last is
            alpha, the one before the last beta; after a restart, the others are the coupling to the
            kept Ritz vectors.
        beta: float64 [], the norm of what is left of H v_j beyond the basis.
        breakdown: bool [], beta is negligible, or not finite, and row j + 1 was not written.
    """

    coefficients: Tensor
    beta: Tensor
    breakdown: Tensor

    @property
    def alpha(self) -> Tensor:
        """v_j . H v_j, float64 []."""
        return self.coefficients[-1]


def fetch_steps(steps: Sequence[LanczosStep]) -> list[LanczosStep]:
    """The same on the CPU: one wait for the device and one transfer for all of them.

    Example:
        >>> basis = torch.eye(2)
        >>> [step] = fetch_steps([lanczos_step(basis, torch.tensor([3.0, 4.0]), 0)])
        >>> float(step.alpha), float(step.beta), bool(step.breakdown), basis[1].tolist()
        (3.0, 4.0, False, [0.0, 1.0])
    """
    if not steps:
        return []
    parts = [torch.cat((s.coefficients, s.beta[None], s.breakdown[None].double())) for s in steps]
    found = torch.cat(parts).cpu().split([len(part) for part in parts])
    return [LanczosStep(part[:-2], part[-2], part[-1].bool()) for part in found]


def lanczos_step(
    basis: Tensor,
    product: Tensor,
    row: int,
    scale: Tensor | float = 0.0,
    tolerance: float | None = None,
) -> LanczosStep:
    """One step of the Lanczos process with full reorthogonalisation, in place.

    With w = H v_j in `product`, classical Gram-Schmidt done twice,

        h = V w,  w <- w - V^T h,  g = V w,  w <- w - V^T g,

    over all rows v_0 .. v_j of the basis V. It contains the three-term recurrence
    w <- w - alpha v_j - beta v_{j-1}, as h_j = alpha and h_{j-1} is the last beta, and twice is
    enough for orthogonality to rounding. Then v_{j+1} = w / |w| is written into row j + 1. Dot
    products are summed in float64, independently of the number of threads; the basis is read three
    times.

    Args:
        basis: contiguous [M, P], its rows 0 .. j orthonormal. Row j + 1 is overwritten.
        product: H v_j [P], contiguous, float32 or float64. Overwritten with what is left of it, not
            normalised.
        row: j, at most M - 2.
        scale: a lower bound on the norm of H, such as the largest |Ritz value| so far. A tensor,
            float64 [] beside the basis, is raised to |H v_j|: so it follows on a device.
        tolerance: it is a breakdown, an invariant subspace, when
            |w| <= tolerance * max(scale, |H v_j|); ten units of rounding by default. The basis says
            nothing beyond it then, and v_{j+1} would be noise.

    Returns:
        What was found, on the device; on CUDA nothing waits for it, see `fetch_steps`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or `row` is out of range.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0]).double())
        >>> V = torch.zeros(4, 3, dtype=torch.float64)
        >>> V[0] = 3**-0.5
        >>> steps = [lanczos_step(V, H @ V[j], j) for j in range(3)]
        >>> [round(float(step.alpha), 4) for step in steps], bool(steps[2].breakdown)
        ([2.3333, 2.8095, 1.8571], True)
    """
    size = vector_size("lanczos_step", "product", product)
    if product.dtype not in (torch.float32, torch.float64) or not product.is_contiguous():
        raise ValueError(
            f"lanczos_step: product must be contiguous, float32 or float64, got {show(product)}."
        )
    if (
        basis.ndim != 2
        or basis.shape[1] != size
        or not basis.is_contiguous()
        or not alike(basis, product)
    ):
        raise ValueError(
            f"lanczos_step: basis must be contiguous of shape [M, {size}], {product.dtype} on "
            f"{product.device} like the product, got {show(basis)} on {basis.device}."
        )
    if not 0 <= row <= len(basis) - 2:
        raise ValueError(
            f"lanczos_step: row must be from 0 to {len(basis) - 2} for a basis of {len(basis)} "
            f"rows, got {row}."
        )
    if not isinstance(scale, Tensor):
        scale = product.new_full((), scale, dtype=torch.float64)
    elif scale.shape != () or scale.dtype != torch.float64 or scale.device != product.device:
        raise ValueError(
            f"lanczos_step: scale must be a number or float64 of shape [] on {product.device}, got "
            f"{show(scale)} on {scale.device}."
        )
    if tolerance is None:
        tolerance = 10 * torch.finfo(product.dtype).eps
    with torch.no_grad():
        step = torch.ops.pylandscape.lanczos_step if has_kernels(product) else plain_lanczos_step
        return LanczosStep(*step(basis, product, row, scale, float(tolerance)))


def plain_lanczos_step(
    basis: Tensor, product: Tensor, row: int, scale: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in plain torch, for any device."""
    tiles = [*zip(basis[: row + 1].split(_BLOCK, 1), product.split(_BLOCK), strict=True)]
    norm = torch.linalg.vector_norm(product, dtype=torch.float64)
    coefficients = torch.zeros(row + 1, dtype=torch.float64, device=product.device)
    for _ in range(2):
        dots = sum(
            (rows.double() @ w.double() for rows, w in tiles), torch.zeros_like(coefficients)
        )
        for rows, w in tiles:
            w.copy_(w.double() - dots @ rows.double())
        coefficients += dots
    beta = torch.linalg.vector_norm(product, dtype=torch.float64)
    torch.fmax(scale, norm, out=scale)  # of NaN and a number, the number
    least = (tolerance * scale).clamp(min=torch.finfo(torch.float64).tiny)
    breakdown = ~((beta > least) & torch.isfinite(beta))
    if not breakdown:
        torch.mul(product, 1 / beta, out=basis[row + 1])
    return coefficients, beta, breakdown


@torch.library.register_fake("pylandscape::lanczos_step")
def _(
    basis: Tensor, product: Tensor, step: int, scale: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    coefficients = product.new_empty(step + 1, dtype=torch.float64)
    return coefficients, coefficients.new_empty(()), coefficients.new_empty((), dtype=torch.bool)
