"""Random vectors z with E[z z'] = I, from which traces and densities are estimated."""

from typing import Literal, get_args

import torch
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.curvature._krylov import SymmetricOperator

Vectors = Literal["normal", "rademacher"]


class Probes:
    """Random vectors for a matrix H [n, n], in its dtype and on its device.

    "normal" vectors are uniform on the sphere of radius sqrt(n): normal ones, whose length, which
    says nothing, is taken out. "rademacher" vectors are random signs.
    """

    def __init__(self, H: SymmetricOperator, vectors: Vectors, seed: int) -> None:
        self.n, self.dtype, self.device = H.shape[0], H.dtype, H.device
        self.vectors, self.seed = vectors, seed
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """The next `count` vectors, rows of [count, n]: the same ones whatever the counts."""
        return torch.stack([self._one() for _ in range(count)]).to(self.device)

    def _one(self) -> Tensor:
        if self.vectors == "rademacher":
            signs = torch.randint(0, 2, (self.n,), generator=self.generator)
            return (2 * signs - 1).to(self.dtype)
        z = torch.randn(self.n, generator=self.generator, dtype=torch.float64)
        return (z * (self.n**0.5 / torch.linalg.vector_norm(z))).to(self.dtype)


def check_vectors(vectors: str, seed: int, where: str) -> None:
    require(
        vectors in get_args(Vectors),
        f"{where}: vectors must be one of {', '.join(get_args(Vectors))}, got {show(vectors)}.",
    )
    require(
        isinstance(seed, int) and seed >= 0,
        f"{where}: seed must be an integer >= 0, got {show(seed)}.",
    )
