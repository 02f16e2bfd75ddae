"""Points in parameter space, as engines take them."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class DirectionSet(Protocol):
    """D directions, one by one or as points on them; `Directions` is one."""

    def __len__(self) -> int: ...

    @property
    def streams(self) -> tuple[Tensor, Tensor] | None:
        """Seeds [D] and the scale of each filter [D, F] of directions that are not stored."""

    def vector(self, index: int) -> Tensor:
        """[P]"""

    def stream(self, center: Tensor, coordinates: Tensor) -> Iterator[Tensor]:
        """The points center + sum_j c[k, j] d_j, one by one."""


class Points:
    """K points, explicit rows [K, P] or center + sum_j c[k, j] d_j.

    Args:
        center: [P], or [K, P] where there are no directions.
        directions: D of them, or None.
        coordinates: [K, D] with directions.
    """

    def __init__(
        self,
        center: Tensor,
        directions: DirectionSet | None = None,
        coordinates: Tensor | None = None,
    ) -> None:
        self.center, self.directions, self.coordinates = center, directions, coordinates

    def __len__(self) -> int:
        return len(self.center if self.coordinates is None else self.coordinates)

    def rows(self) -> Iterator[Tensor]:
        """The points [P] one by one."""
        if self.directions is None or self.coordinates is None:
            return iter(self.center)
        return self.directions.stream(self.center, self.coordinates)
