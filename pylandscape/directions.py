"""Directions in parameter space: random and normalised, or vectors of any origin."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pylandscape import _ops
from pylandscape._checks import all_finite, require, show
from pylandscape.parameters import ParameterSpace

if TYPE_CHECKING:
    from pylandscape.objective import Objective

NORMALIZATIONS = ("filter", "layer", "weight", "model", "none", "li2018")
CHUNK_BYTES = 64 << 20  # of points formed at once


class Directions:
    """D vectors in a parameter space, and how they were made.

    Either stored, [D, P], or random: then only a seed per direction and a scale per direction and
    filter [D, F] are kept, and element i is computed where it is needed, the same on every worker,
    thread count and device.

    Attributes:
        space: the space they lie in.
        center: the point they belong to [P], or None: the objective's own parameters.
        labels: a name for each, for axes.
        attrs: how they were made, for results.
    """

    def __init__(
        self,
        space: ParameterSpace,
        *,
        stored: Tensor | None = None,
        seeds: Tensor | None = None,
        scales: Tensor | None = None,
        center: Tensor | None = None,
        labels: Sequence[str] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self.space, self.center = space, center
        self._stored, self._seeds, self._scales = stored, seeds, scales
        self._placed: Tensor | None = None  # the stored ones where and as they are used
        count = len(self)
        self.labels = list(labels or [f"direction {j + 1}" for j in range(count)])
        self.attrs = dict(attrs or {})

    @classmethod
    def from_vectors(
        cls,
        space: "ParameterSpace | Objective",
        vectors: Tensor,
        *,
        center: Tensor | None = None,
        labels: Sequence[str] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> "Directions":
        """Directions from vectors [D, P] (or one, [P]), used as they are.

        Example:
            >>> import torch
            >>> space = ParameterSpace.from_model(torch.nn.Linear(2, 1))
            >>> directions = Directions.from_vectors(space, torch.eye(3))
            >>> len(directions), directions[1].vectors.tolist()
            (3, [[0.0, 1.0, 0.0]])
        """
        space = space if isinstance(space, ParameterSpace) else space.space
        vectors = torch.atleast_2d(vectors).detach() if isinstance(vectors, Tensor) else vectors
        require(
            isinstance(vectors, Tensor)
            and vectors.ndim == 2
            and vectors.shape[1] == space.size
            and len(vectors) > 0,
            f"Directions.from_vectors: vectors must be a tensor of shape [D, {space.size}], got "
            f"{show(vectors)}.",
        )
        require(
            labels is None or len(labels) == len(vectors),
            f"Directions.from_vectors: labels must be {len(vectors)} in number, got "
            f"{show(labels)}.",
        )
        require(
            center is None or center.shape == (space.size,),
            f"Directions.from_vectors: center must have shape [{space.size}], got {show(center)}.",
        )
        require(
            all_finite(vectors),
            "Directions.from_vectors: vectors must be finite, got NaN or inf.",
        )
        attrs = {"directions": f"{len(vectors)} given vectors"} | dict(attrs or {})
        return cls(space, stored=vectors, center=center, labels=labels, attrs=attrs)

    def __len__(self) -> int:
        kept = self._stored if self._stored is not None else self._seeds
        assert kept is not None
        return len(kept)

    def __getitem__(self, which: int | slice) -> "Directions":
        if not isinstance(which, slice):
            which = range(len(self))[which]  # negative indices, and IndexError beyond the end
            which = slice(which, which + 1)

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[which]

        return Directions(
            self.space,
            stored=part(self._stored),
            seeds=part(self._seeds),
            scales=part(self._scales),
            center=self.center,
            labels=self.labels[which],
            attrs=self.attrs,
        )

    def __repr__(self) -> str:
        return f"Directions({len(self)} in R^{self.space.size}, {self.attrs.get('directions', '')})"

    @property
    def is_generated(self) -> bool:
        """Whether the directions are kept as seeds and scales."""
        return self._stored is None

    @property
    def streams(self) -> tuple[Tensor, Tensor] | None:
        """Seeds int64 [D] and scales float64 [D, F] of generated directions."""
        if self._seeds is None or self._scales is None:
            return None
        return self._seeds, self._scales

    @property
    def vectors(self) -> Tensor:
        """All of them [D, P], float32 where they are random."""
        if self._stored is not None:
            return self._stored
        origin = torch.zeros(self.space.size)
        return self.points(origin, torch.eye(len(self)))

    def vector(self, index: int) -> Tensor:
        """Direction `index` [P]."""
        return self[index].vectors[0]

    def points(self, center: Tensor, coordinates: Tensor) -> Tensor:
        """The points center + sum_j c[k, j] d_j [K, P], in dtype and on device of `center`.

        Args:
            center: [P].
            coordinates: [K, D].
        """
        if self._stored is not None or not _ops.has_kernels(center):
            return _ops.perturb(center, self._on(center), coordinates)
        assert self._seeds is not None
        assert self._scales is not None
        return _ops.perturb_random(
            center, self._seeds, self._scales, self.space.filter_table, coordinates
        )

    def stream(self, center: Tensor, coordinates: Tensor) -> Iterator[Tensor]:
        """The same points one by one, formed a chunk at a time so that memory stays bounded."""
        chunk = max(1, CHUNK_BYTES // (self.space.size * center.element_size()))
        for start in range(0, len(coordinates), chunk):
            yield from self.points(center, coordinates[start : start + chunk])

    def _on(self, center: Tensor) -> Tensor:
        """The vectors beside `center`, moved there once."""
        placed = self._stored if self._placed is None else self._placed
        if placed is None or (placed.device, placed.dtype) != (center.device, center.dtype):
            placed = self._placed = self.vectors.to(center.device, center.dtype)
        return placed


def random_directions(
    objective: "Objective",
    count: int = 2,
    seed: int = 0,
    normalize: str = "filter",
    ignore: str | None = "biasbn",
) -> Directions:
    """Random normal directions, normalised against the objective's own parameters w.

    Args:
        objective: where.
        count: D.
        seed: two seeds give two sets of directions; direction j is the same for every `count`.
        normalize: with d the raw normal direction,

            - `filter` (Li et al. 2018): d_f <- d_f ||w_f|| / (||d_f|| + 1e-10) for every filter f;
            - `layer`: d_l <- d_l ||w_l|| / ||d_l|| for every tensor l;
            - `weight`: d <- d * w elementwise;
            - `model`: d <- d ||w|| / ||d|| over all parameters;
            - `none`: d as drawn;
            - `li2018`: `filter`, but tensors of at most one dimension are copied from w, as the
              reference program does without its `biasbn`. Such directions are far from orthogonal:
              for comparison with that program only.
        ignore: `biasbn` leaves tensors of at most one dimension (biases, norm scales) at zero, as
            Li et al. do in all their figures; None varies them, each normalised as one filter.

    Raises:
        ValueError: an unknown `normalize` or `ignore`, `count` < 1, or nothing left to vary.

    Example:
        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(20, 5)
        >>> data = torch.randn(8, 20), torch.randn(8, 5)
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), data)
        >>> d = pl.random_directions(objective, count=1, seed=3).vectors[0, :100].view(5, 20)
        >>> torch.allclose(d.norm(dim=1), model.weight.norm(dim=1), rtol=1e-4)
        True
    """
    require(
        isinstance(count, int) and count >= 1,
        f"random_directions: count must be a positive integer, got {show(count)}.",
    )
    require(
        normalize in NORMALIZATIONS,
        f"random_directions: normalize must be one of {NORMALIZATIONS}, got {show(normalize)}.",
    )
    require(
        ignore in ("biasbn", None),
        f"random_directions: ignore must be 'biasbn' or None, got {show(ignore)}.",
    )
    require(
        isinstance(seed, int) and seed >= 0,
        f"random_directions: seed must be an integer >= 0, got {show(seed)}.",
    )
    space, center = objective.space, objective.center.cpu()
    ignore = None if normalize == "li2018" else ignore
    require(
        bool(_kept_filters(space, ignore).any()),
        "random_directions: ignore must leave something to vary, got 'biasbn' for a model whose "
        "parameters all have at most one dimension. Use ignore=None.",
    )
    attrs = {
        "directions": f"random, {normalize}-normalised",
        "normalize": normalize,
        "ignore": ignore or "nothing",
        "seed": seed,
    }
    seeds = torch.tensor([_derived_seed(seed, j) for j in range(count)])
    if normalize in ("weight", "li2018"):
        stored = torch.stack(
            [_elementwise(space, center, int(s), normalize, ignore) for s in seeds]
        )
        return Directions(space, stored=stored, attrs=attrs)
    scales = torch.stack([_scales(space, center, int(s), normalize, ignore) for s in seeds])
    return Directions(space, seeds=seeds, scales=scales, attrs=attrs)


def difference_directions(objective: "Objective", *models: nn.Module | Tensor) -> Directions:
    """From the objective's own parameters to those of other models: d_j = w_j - w.

    Coordinate 1 on axis j is model j; with two models the plane goes through all three.

    Args:
        objective: gives the center w.
        models: modules of the same architecture, or flat vectors [P].

    Example:
        >>> import torch, pylandscape as pl
        >>> a, b = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
        >>> objective = pl.Objective(a, torch.nn.MSELoss(), (torch.randn(9, 4), torch.randn(9, 1)))
        >>> towards = pl.difference_directions(objective, b)
        >>> there = objective.center + towards.vectors[0]
        >>> torch.allclose(there, objective.space.flatten(b))
        True
    """
    require(bool(models), "difference_directions: models must hold at least one, got none.")
    center = objective.center
    rows = []
    for model in models:
        named = objective.space.unflatten(model) if isinstance(model, Tensor) else model
        rows.append(objective.space.flatten(named, center.dtype, center.device))
    return Directions.from_vectors(
        objective.space,
        torch.stack(rows) - center,
        center=center,
        labels=[f"towards model {j + 1}" for j in range(len(rows))],
        attrs={"directions": f"differences to {len(rows)} models"},
    )


def _derived_seed(seed: int, index: int) -> int:
    """A seed for direction `index` of a set, independent of the size of the set."""
    return int(
        np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def _kept_filters(space: ParameterSpace, ignore: str | None) -> Tensor:
    """1 for the filters that vary, 0 for those left out, float64 [F]."""
    kept = torch.ones(space.filters, dtype=torch.float64)
    if ignore == "biasbn":
        for entry, where in zip(space.entries, space.filter_slices(), strict=True):
            kept[where] = 0.0 if entry.is_vector else 1.0
    return kept


def _scales(
    space: ParameterSpace, center: Tensor, seed: int, normalize: str, ignore: str | None
) -> Tensor:
    """The factor of each filter of the raw direction, float64 [F]."""
    kept = _kept_filters(space, ignore)
    if normalize == "none":
        return kept
    table = space.filter_table
    of_center = _ops.filter_norms(center, table).cpu()
    of_raw = _ops.normal_filter_norms(seed, table)
    if normalize == "filter":
        return kept * of_center / (of_raw + 1e-10)
    if normalize == "model":
        return kept * (of_center.norm() / (kept * of_raw).norm())
    scales = torch.empty_like(kept)
    for where in space.filter_slices():
        length = of_raw[where].norm()
        scales[where] = of_center[where].norm() / length if length > 0 else 0.0  # 0: no elements
    return kept * scales


def _elementwise(
    space: ParameterSpace, center: Tensor, seed: int, normalize: str, ignore: str | None
) -> Tensor:
    """Directions that are no per-filter multiple of the raw one, [P]."""
    if normalize == "weight":
        direction = _ops.random_normal(seed, space.size, center.device).to(center) * center
        for entry in space.entries:
            if ignore == "biasbn" and entry.is_vector:
                direction[entry.slice] = 0
        return direction
    scales = _scales(space, center, seed, "filter", "biasbn")
    direction = _ops.perturb_random(
        torch.zeros_like(center), torch.tensor([seed]), scales[None], space.filter_table,
        torch.ones(1, 1, dtype=center.dtype),
    )[0]  # fmt: skip
    for entry in space.entries:
        if entry.is_vector:
            direction[entry.slice] = center[entry.slice]
    return direction
