"""The samples of an objective: read once, kept in memory where they fit, the same on every pass."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from pylandscape._checks import require, show
from pylandscape.losses import sample_count

READ_BATCH = 256  # samples per read of a Dataset


class Samples:
    """(inputs, targets) of N samples, as the objective reads them.

    Args:
        data: a pair of tensors (or pytrees of tensors with one sample per index of dimension 0), a
            Dataset of pairs, or a DataLoader of pairs.
        limit: use only so many samples, drawn without replacement; None uses all.
        seed: of that draw.
        device: where the samples are kept and used.
        dtype: floating-point tensors are converted to it.
        memory: bytes of samples to keep; more is read anew on every pass. Default: half of what is
            free.

    Raises:
        ValueError: shapes that do not fit together, no samples, or a loader that gives another
            first batch on a second pass.
    """

    def __init__(
        self,
        data: Any,
        *,
        limit: int | None = None,
        seed: int = 0,
        device: torch.device,
        dtype: torch.dtype,
        memory: int | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self._loader: DataLoader | None = None
        self._kept: tuple[Any, Any] | None = None
        if isinstance(data, (tuple, list)) and len(data) == 2:
            self._kept = self._pair(data)
            self.population = sample_count(self._kept)
            if limit is not None:
                self._keep_only(limit, seed)
        elif isinstance(data, (Dataset, DataLoader)):
            self._read(data, limit, seed, _free_memory() // 2 if memory is None else memory)
        else:
            raise TypeError(
                "Objective: data must be a pair (inputs, targets) of tensors, a Dataset or a "
                f"DataLoader, got {show(data)}."
            )
        require(self.count > 0, "Objective: data must hold at least one sample, got none.")

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    @cached_property
    def count(self) -> int:
        """N, the number of samples used."""
        if self._kept is not None:
            return sample_count(self._kept)
        return sum(sample_count(batch) for batch in self.batches(READ_BATCH))

    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) in order, `size` at a time (in the loader's sizes where not kept)."""
        if self._kept is None:
            assert self._loader is not None
            yield from (self._pair(batch) for batch in self._loader)
            return
        for start in range(0, self.count, size):
            yield pytree.tree_map(lambda leaf, s=start: leaf[s : s + size], self._kept)

    def first(self, size: int) -> tuple[Any, Any]:
        return next(iter(self.batches(size)))

    def map_inputs(self, convert: Callable[[Tensor], Tensor]) -> None:
        """Stores the input tensors converted, for example to another memory format."""
        if self._kept is not None:
            inputs, targets = self._kept
            self._kept = pytree.tree_map(convert, inputs), targets

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the samples in use (of the first batch where they are not kept)."""
        digest = hashlib.blake2b(digest_size=8)
        tree = self._kept if self._kept is not None else self.first(READ_BATCH)
        for leaf in pytree.tree_leaves(tree):
            digest.update(f"{list(leaf.shape)}{leaf.dtype}".encode())
            plain = leaf.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return digest.hexdigest()

    def _read(self, data: Any, limit: int | None, seed: int, memory: int) -> None:
        loader = data if isinstance(data, DataLoader) else _loader_of(data)
        if limit is not None:
            source = loader.dataset
            require(
                not isinstance(source, IterableDataset),
                "Objective: samples must be None for an iterable dataset, got "
                f"{limit}. Give a map-style dataset or fewer samples.",
            )
            chosen = _draw(limit, len(source), seed)  # type: ignore[arg-type]
            self.population = len(source)  # type: ignore[arg-type]
            loader = _loader_of(Subset(source, chosen.tolist()), loader.collate_fn)
        if loader.drop_last:
            warnings.warn(
                "Objective: the DataLoader has drop_last=True: the samples of its last, incomplete "
                "batch are no part of the objective.",
                stacklevel=4,
            )
        first = _probe(loader)
        kept, held = [], 0
        for batch in loader if first is not None else ():
            kept.append(self._pair(batch))
            held += sum(leaf.nbytes for leaf in pytree.tree_leaves(kept[-1]))
            if held > memory:
                self._loader = loader
                break
        else:
            require(bool(kept), "Objective: data must hold at least one sample, got none.")
            self._kept = _concatenate(kept)
        if limit is None:
            self.population = self.count

    def _keep_only(self, limit: int, seed: int) -> None:
        chosen = _draw(limit, self.population, seed)
        self._kept = pytree.tree_map(lambda leaf: leaf[chosen.to(leaf.device)], self._kept)

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        require(
            isinstance(batch, (tuple, list)) and len(batch) == 2,
            f"Objective: data must give pairs (inputs, targets), got {show(batch)}.",
        )
        inputs, targets = pytree.tree_map(
            lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf,
            tuple(batch),
        )
        counts = sample_count(inputs), sample_count(targets)
        require(
            counts[0] == counts[1] >= 0,
            "Objective: data must have as many inputs as targets along dimension 0, got "
            f"{_shapes(inputs)} and {_shapes(targets)}.",
        )
        return self._convert(inputs), self._convert(targets)

    def _convert(self, tree: Any) -> Any:
        def convert(leaf: Tensor) -> Tensor:
            leaf = leaf.detach()
            return leaf.to(self.device, self.dtype if leaf.is_floating_point() else None)

        return pytree.tree_map(convert, tree)


def _shapes(tree: Any) -> str:
    return " and ".join(
        str(list(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__
        for leaf in pytree.tree_leaves(tree)
    )


def _loader_of(dataset: Dataset, collate: Any = None) -> DataLoader:
    return DataLoader(dataset, batch_size=READ_BATCH, shuffle=False, collate_fn=collate)


def _draw(limit: int, population: int, seed: int) -> Tensor:
    require(
        isinstance(limit, int) and 1 <= limit <= population,
        f"Objective: samples must be an integer from 1 to {population}, got {show(limit)}.",
    )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(population, generator=generator)[:limit].sort().values


def _concatenate(batches: list[Any]) -> Any:
    leaves = zip(*(pytree.tree_leaves(batch) for batch in batches), strict=True)
    joined = [torch.cat(list(parts)) for parts in leaves]
    return pytree.tree_unflatten(joined, pytree.tree_structure(batches[0]))


def _probe(loader: DataLoader) -> Any:
    """The first batch, after a second pass has given the same one; None of an empty loader.

    The state of the global generators is put back: reading data must not change a user's run.
    """
    with torch.random.fork_rng(devices=[]):
        first, second = (next(iter(loader), None) for _ in range(2))
    if first is None:
        return None
    same = all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)
        for a, b in zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    )
    require(
        same,
        "Objective: data must be the same on every pass, got another first batch on the second: "
        "the loader shuffles or augments. Use shuffle=False and evaluation transforms.",
    )
    return first


def _free_memory() -> int:
    """Bytes of free main memory."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
