"""The table of lowerings, and what several of them need."""

from collections.abc import Callable, Sequence
from typing import Any

from pylandscape.engines.builder import MIXES, Builder, Call, Constant, View

Lowering = Callable[[Builder, Call], Any]
Pair = tuple[int, int]

LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Registers a function for these aten operators, all their overloads."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update({f"aten.{name}": function for name in names})
        return function

    return register


def number(entry: Any) -> float | None:
    """The value of a scalar argument: a Python number or a constant tensor of one element."""
    if isinstance(entry, Constant) and entry.tensor.numel() == 1 and entry.tensor.ndim <= 1:
        return None if entry.tensor.is_complex() else float(entry.tensor)
    return float(entry) if isinstance(entry, (int, float)) else None


def affine(build: Builder, call: Call, x: View, a: float, b: float) -> View:
    """a x + b."""
    if (a, b) == (1, 0):
        return x
    return build.emit(call, "scale", [x], {"a": float(a), "b": float(b)}, shape=x.shape)


def rank_of(call: Call) -> int:
    """Spatial dimensions of an operator such as conv1d, whose input must have a batch dimension."""
    rank = 1 if "1d" in call.name else 2
    call.require(len(call.shape) == rank + 2, MIXES)
    return rank


def per_axis(value: int | Sequence[int], rank: int) -> list[int]:
    """One number per axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def pair(values: Sequence[int], fill: int) -> Pair:
    """(height, width); what has no height gets `fill`."""
    height, width = values if len(values) == 2 else (fill, values[0])
    return height, width
