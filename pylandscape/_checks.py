"""Errors in one form: `<function>: <argument> must ..., got .... <what to do>`."""

import inspect
from typing import Any

import torch
from torch.utils import _pytree as pytree


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


def show(value: Any) -> str:
    """A wrong argument in a few words: tensors by shape and dtype, plain values by repr."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    if not _is_plain(value):
        return f"{type(value).__name__} of {len(value)}" if _is_list(value) else _class(value)
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def users_level() -> int:
    """The `stacklevel` with which a warning points at the caller of this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("pylandscape"):
        frame, level = frame.f_back, level + 1
    return level


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; ten times faster than to ask every one of them."""
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def shapes(tree: Any) -> str:
    """The shapes of the tensors in a pytree, the first few."""
    leaves = pytree.tree_leaves(tree)
    texts = [str(list(x.shape)) if isinstance(x, torch.Tensor) else _class(x) for x in leaves]
    return " and ".join(texts[:4] + [f"{len(texts) - 4} more"] * (len(texts) > 4))


def alike(first: Any, second: Any, rtol: float, atol: float) -> bool:
    """Whether the tensors in two pytrees agree; NaN agrees with NaN."""
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
        for a, b in pairs
        if isinstance(a, torch.Tensor)
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _is_plain(value: Any) -> bool:
    if _is_list(value):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float, type(None)))


def _class(value: Any) -> str:
    return type(value).__name__
