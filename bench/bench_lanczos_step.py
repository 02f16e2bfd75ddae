"""lanczos_step against the best PyTorch, and against the memory bandwidth of the machine.

The figures say what share of the measured bandwidth the step reaches, counting three readings of
the basis and nothing else. Bandwidth is measured between the candidates: the sum of a tensor as
large as the basis (reading), and the triad a = b + s c on arrays of the same total size.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pylandscape import _ops

CASES = [
    (1_000_000, 100, torch.float32),
    (1_000_000, 20, torch.float32),
    (500_000, 100, torch.float64),
    (218_000, 50, torch.float32),
    (10_000, 50, torch.float32),
]


def make(size: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An orthonormal basis with room for one more row, and a product."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.zeros(rows + 1, size, dtype=dtype)
    basis[:rows] = torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=dtype))[0].T
    return basis, torch.randn(size, generator=generator, dtype=dtype)


def gram_schmidt_twice(basis: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The same step in eager torch, in place and in the dtype of the basis."""
    v = basis[:-1]
    first = v @ w
    w.addmv_(v.T, first, alpha=-1)
    second = v @ w
    w.addmv_(v.T, second, alpha=-1)
    beta = torch.linalg.vector_norm(w)
    torch.div(w, beta, out=basis[-1])
    return first + second, beta


@pytest.mark.parametrize(("size", "rows", "dtype"), CASES)
def test_lanczos_step(
    compare: Callable[..., dict[str, float]], size: int, rows: int, dtype: torch.dtype
) -> None:
    basis, product = make(size, rows, dtype)
    compiled = torch.compile(gram_schmidt_twice, dynamic=False)
    w, beside = product.clone(), basis.clone()
    step = _ops.lanczos_step(basis, w, rows - 1)
    for peer in (gram_schmidt_twice, compiled):
        v = product.clone()
        coefficients, beta = peer(beside, v)
        torch.testing.assert_close(step.coefficients, coefficients.double(), rtol=1e-3, atol=1e-3)
        assert abs(float(beta) - step.beta) < 1e-4 * step.beta
        torch.testing.assert_close(basis[rows], beside[rows], rtol=1e-3, atol=1e-6)
    del beside

    large = max(basis.numel() // 3, 32_000_000)  # beyond any cache
    a, b, c = torch.ones(3, large, dtype=dtype)
    candidates = {
        "ours": lambda: _ops.lanczos_step(basis, w, rows - 1),
        "torch": lambda: gram_schmidt_twice(basis, w),
        "torch.compile": lambda: compiled(basis, w),
        "triad": lambda: torch.add(a, b, alpha=2.0, out=c),
        "sum of the basis": lambda: basis.sum(),
    }
    basis_bytes = rows * size * dtype.itemsize

    def figures(seconds: dict[str, float]) -> dict[str, float]:
        reached = 3e-9 * basis_bytes / seconds["ours"]
        triad = 3e-9 * large * dtype.itemsize / seconds["triad"]
        reading = 1e-9 * basis.numel() * dtype.itemsize / seconds["sum of the basis"]
        return {
            "gigabytes_per_second": reached,
            "triad_gigabytes_per_second": triad,
            "reading_gigabytes_per_second": reading,
            "share_of_triad": reached / triad,
            "share_of_reading": reached / reading,
        }

    compare(candidates, repeats=9, figures=figures)
