"""The flat parameter vector w in R^P and its structure."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pylandscape._checks import require, show


@dataclass(frozen=True)
class Entry:
    """One parameter tensor inside the flat vector.

    Element (g, o, r, i) of the tensor lies at `offset + ((g * outer + o) * rows + r) * inner + i`
    and belongs to filter (g, r). For all but transposed convolutions blocks = outer = 1, and a
    filter is one index of dimension 0; a tensor of at most one dimension is one filter.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    blocks: int
    outer: int
    rows: int
    inner: int

    @property
    def size(self) -> int:
        return self.blocks * self.outer * self.rows * self.inner

    @property
    def filters(self) -> int:
        return self.blocks * self.rows

    @property
    def is_vector(self) -> bool:
        """At most one dimension: biases and norm scales, what `ignore="biasbn"` leaves out."""
        return len(self.shape) <= 1

    @property
    def slice(self) -> slice:
        return slice(self.offset, self.offset + self.size)


class ParameterSpace:
    """The trainable parameters of a model as one vector w in R^P: names, shapes, offsets, filters.

    Tied parameters appear once, under their first name. Two spaces are equal when names and shapes
    agree in order.

    Example:
        >>> import torch
        >>> space = ParameterSpace.from_model(torch.nn.Linear(3, 2))
        >>> space.size, space.filters, [entry.name for entry in space.entries]
        (8, 3, ['weight', 'bias'])
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self.size = sum(entry.size for entry in self.entries)
        self.filters = sum(entry.filters for entry in self.entries)

    @classmethod
    def from_model(cls, model: nn.Module) -> "ParameterSpace":
        """The space of the parameters of `model` that require a gradient.

        Raises:
            ValueError: no such parameter, an uninitialised lazy parameter, or a complex one.
        """
        model = unwrap(model)
        owners = {
            f"{prefix}.{name}" if prefix else name: module
            for prefix, module in model.named_modules()
            for name in module._parameters
        }
        entries, offset = [], 0
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            require(
                not isinstance(parameter, nn.UninitializedParameter),
                f"ParameterSpace: model must have initialised parameters, got the lazy {name!r}. "
                "Run one batch through the model first.",
            )
            require(
                not parameter.is_complex(),
                f"ParameterSpace: model must have real parameters, got complex {name!r}.",
            )
            shape = tuple(parameter.shape)
            entry = Entry(name, shape, offset, *_filter_layout(shape, owners.get(name)))
            entries.append(entry)
            offset += entry.size
        require(
            offset > 0,
            "ParameterSpace: model must have at least one parameter that requires a gradient, got "
            f"{type(model).__name__} with none. Unfreeze what is to be varied.",
        )
        return cls(entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterSpace) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        tensors = len(self.entries)
        return f"ParameterSpace({self.size} parameters, {tensors} tensors, {self.filters} filters)"

    @cached_property
    def filter_table(self) -> Tensor:
        """Int64 [T, 4], rows (offset, outer, rows, inner), for the native operators.

        Element (o, r, i) of row t lies at `offset + (o * rows + r) * inner + i` and belongs to the
        r-th filter of the row; filters are numbered through the table.
        """
        rows = [
            (entry.offset + g * (entry.size // entry.blocks), entry.outer, entry.rows, entry.inner)
            for entry in self.entries
            for g in range(entry.blocks)
        ]
        return torch.tensor(rows, dtype=torch.int64)

    @cached_property
    def filter_sizes(self) -> Tensor:
        """Int64 [F]: the number of parameters of each filter."""
        return torch.cat(
            [torch.full((e.filters,), e.outer * e.inner, dtype=torch.int64) for e in self.entries]
        )

    def filter_slices(self) -> list[slice]:
        """For each entry, where its filters lie in a vector over all filters [F]."""
        slices, start = [], 0
        for entry in self.entries:
            slices.append(slice(start, start + entry.filters))
            start += entry.filters
        return slices

    def flatten(
        self,
        tensors: Mapping[str, Tensor] | nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """One vector [P], a copy, from a model or a mapping that has every name of this space.

        Raises:
            TypeError: neither a module nor a mapping.
            ValueError: a name is missing or has another shape.
        """
        if isinstance(tensors, nn.Module):
            tensors = dict(unwrap(tensors).named_parameters(remove_duplicate=False))
        require(
            isinstance(tensors, Mapping),
            f"flatten: tensors must be a module or a mapping by name, got {show(tensors)}.",
            TypeError,
        )
        parts = []
        for entry in self.entries:
            tensor = tensors.get(entry.name)
            if tensor is None or tuple(tensor.shape) != entry.shape:
                got = "no such name" if tensor is None else f"shape {list(tensor.shape)}"
                raise ValueError(
                    f"flatten: tensors must hold {entry.name!r} of shape {list(entry.shape)}, got "
                    f"{got}. They must come from a model of the same architecture."
                )
            parts.append(tensor.detach().reshape(-1).to(dtype=dtype, device=device))
        return torch.cat(parts)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of `vector` [P] by parameter name, in the parameters' shapes."""
        require(
            vector.ndim == 1 and vector.shape[0] == self.size,
            f"unflatten: vector must have shape [{self.size}], got {show(vector)}. "
            "It must come from a model of the same architecture.",
        )
        return {e.name: vector[e.slice].view(e.shape) for e in self.entries}

    @torch.no_grad()
    def write_(self, model: nn.Module, vector: Tensor) -> None:
        """Copies `vector` into the parameters of `model`: the one call that changes a model."""
        parameters = dict(unwrap(model).named_parameters(remove_duplicate=False))
        for name, tensor in self.unflatten(vector).items():
            parameters[name].copy_(tensor)

    def select(self, patterns: str | Iterable[str]) -> tuple[Entry, ...]:
        """The entries whose names match one of the shell-style patterns, in order.

        Raises:
            ValueError: nothing matches.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = tuple(
            e for e in self.entries if any(fnmatch.fnmatchcase(e.name, p) for p in patterns)
        )
        names = ", ".join([e.name for e in self.entries[:8]] + ["..."] * (len(self.entries) > 8))
        require(
            bool(chosen),
            f"select: patterns must match at least one parameter name, got {show(patterns)}. "
            f"The names are: {names}.",
        )
        return chosen


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile wrappers."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, parallel):
            model = model.module
        else:
            return model


def _filter_layout(shape: tuple[int, ...], owner: nn.Module | None) -> tuple[int, int, int, int]:
    """(blocks, outer, rows, inner) of a parameter, see `Entry`."""
    size = int(torch.Size(shape).numel())
    if len(shape) <= 1:
        return 1, 1, 1, size
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        # weight [groups * in, out, ...]: the filter of an output channel is a column of its group
        groups = owner.groups
        return groups, shape[0] // groups, shape[1], size // (shape[0] * shape[1])
    return 1, 1, shape[0], size // shape[0] if shape[0] else 0
