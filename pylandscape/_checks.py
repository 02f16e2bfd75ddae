"""Errors in one form: `<function>: <argument> must ..., got .... <what to do>`."""

from typing import Any

import torch


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


def show(value: Any) -> str:
    """A wrong argument in a few words: tensors by shape and dtype, plain values by repr."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    plain = isinstance(value, (str, int, float, tuple, list, type(None)))
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."
