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
    """What a reader has of a snapshot: the next one may be stored as its difference to it."""

    file: str
    tensors: Tensors
    depth: int = 0  # how many snapshots it builds on itself


@dataclass(frozen=True)
class Delta:
    """A snapshot as differences to a base; `errors` are those of the reader's tensors."""

    base: Base
    tensors: Tensors
    reader: Tensors
    changed: list[str]
    errors: dict[str, float]


def encode(tensors: Tensors, base: Base | None) -> Delta | None:
    """`tensors` against `base`, or None where the snapshot has to be whole."""
    if base is None or base.depth + 1 >= WHOLE_EVERY or tensors.keys() != base.tensors.keys():
        return None
    changed = [name for name, x in tensors.items() if x.dtype in DTYPES]
    stored = dict(tensors)
    reader = {name: x.clone() for name, x in tensors.items() if x.dtype not in DTYPES}
    squares = change = largest = 0.0
    for name in changed:
        wanted, before = tensors[name], base.tensors[name]
        stored[name] = (wanted - before).to(torch.bfloat16)
        reader[name] = decode(before, stored[name])
        error = (reader[name].double() - wanted.double()).abs()
        squares += float(error.square().sum())
        change += float((wanted.double() - before.double()).square().sum())
        largest = max(largest, float(error.max())) if error.numel() else largest
    if not math.isfinite(squares):  # NaN would stay in all that builds on it
        return None
    errors = {"norm": squares**0.5, "largest": largest, "norm_of_change": change**0.5}
    return Delta(base, stored, reader, changed, errors)


def decode(before: Tensor, delta: Tensor) -> Tensor:
    return before + delta.to(before.dtype)
