"""Compressed snapshots: the change since the snapshot before, rounded to bfloat16.

The change is taken from what a reader has of that snapshot, not from what the model was then, so
that errors do not add up: |error| <= 2^-8 |change| for each element, beside the rounding of one
addition. Every `WHOLE_EVERY`-th snapshot is whole, which bounds what reading one costs and what a
damaged file takes with it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE_EVERY = 16
DTYPES = (torch.float32, torch.float64)  # for shorter ones a delta would save nothing

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Base:
    """What a reader has of a snapshot: the next one may be stored as its difference to it.

    `tensors` are those whose differences are stored, see `in_deltas`.
    """

    file: str
    tensors: Tensors
    depth: int = 0  # how many snapshots it builds on itself


@dataclass(frozen=True)
class Delta:
    """A snapshot as differences to a base; `errors` are those of the reader's tensors."""

    base: Base
    tensors: Tensors
    reader: Tensors
    errors: dict[str, float]


def in_deltas(tensors: Tensors) -> dict[str, Tensor]:
    """Those of `tensors` that are stored as differences."""
    return {name: x for name, x in tensors.items() if x.dtype in DTYPES}


def encode(tensors: Tensors, base: Base | None) -> Delta | None:
    """`tensors` against `base`, or None where the snapshot has to be whole."""
    wanted = in_deltas(tensors)
    if base is None or base.depth + 1 >= WHOLE_EVERY or _kinds(wanted) != _kinds(base.tensors):
        return None
    stored, reader = dict(tensors), {}
    squares = largest = 0.0
    for name, x in wanted.items():
        before = base.tensors[name]
        stored[name] = (x - before).to(torch.bfloat16)
        reader[name] = decode(before, stored[name])
        error = (reader[name].double() - x.double()).abs()
        squares += float(error.square().sum())
        largest = max(largest, float(error.max())) if error.numel() else largest
    if not math.isfinite(squares):  # NaN would stay in all that builds on it
        return None
    return Delta(base, stored, reader, {"norm": squares**0.5, "largest": largest})


def _kinds(tensors: Tensors) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (x.shape, x.dtype) for name, x in tensors.items()}


def decode(before: Tensor, delta: Tensor) -> Tensor:
    return before + delta.to(before.dtype)
