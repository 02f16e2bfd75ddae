"""The samples of an objective: read once, kept in memory where they fit, the same on every pass."""

import contextlib
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
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from pylandscape._checks import alike, require, shapes, show
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
        TypeError: data of another kind.
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
        self._source: DataLoader | list[Any] = []  # of batches, where not kept as one
        self._kept: tuple[Any, Any] | None = None
        if isinstance(data, (tuple, list)) and len(data) == 2:
            self._kept = self.pair(data)
            self.population = sample_count(self._kept)
            if limit is not None:
                self._keep_only(limit, seed)
        elif isinstance(data, (Dataset, DataLoader)):
            self._read(data, limit, seed, _free_memory(device) // 2 if memory is None else memory)
        else:
            raise TypeError(
                "Objective: data must be a pair (inputs, targets) of tensors, a Dataset or a "
                f"DataLoader, got {show(data)}."
            )
        require(self.count > 0, "Objective: data must hold at least one sample, got none.")

    @property
    def in_memory(self) -> bool:
        """Whether the samples are kept as one tensor per leaf."""
        return self._kept is not None

    @cached_property
    def count(self) -> int:
        """N, the number of samples used."""
        if self._kept is not None:
            return sample_count(self._kept)
        return sum(sample_count(batch) for batch in self.batches(READ_BATCH))

    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """(inputs, targets) in order, `size` at a time (in the loader's sizes where not kept)."""
        if self._kept is not None:
            for start in range(0, self.count, size):
                yield pytree.tree_map(lambda leaf, s=start: leaf[s : s + size], self._kept)
            return
        with _untouched_generators(self._source):
            yield from map(self.pair, self._source)

    def take(self, index: Tensor) -> tuple[Any, Any]:
        """The samples of an index [B]; only where all are kept in memory."""
        return pytree.tree_map(lambda leaf: leaf.index_select(0, index), self._kept)

    def first(self, size: int) -> tuple[Any, Any]:
        """The first `size` samples, or as many as the first batch has."""
        return pytree.tree_map(lambda leaf: leaf[:size], next(iter(self.batches(size))))

    def map_inputs(self, convert: Callable[[Tensor], Tensor]) -> None:
        """Stores the input tensors converted, for example to another memory format."""
        if self._kept is not None:
            inputs, targets = self._kept
            self._kept = pytree.tree_map(convert, inputs), targets

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the samples in use, the same for every split into batches."""
        leaves = pytree.tree_leaves(self.first(1))
        digests = [hashlib.blake2b(f"{x.shape[1:]}{x.dtype}".encode()) for x in leaves]
        for batch in self.batches(READ_BATCH):
            for digest, leaf in zip(digests, pytree.tree_leaves(batch), strict=True):
                plain = leaf.cpu().contiguous().reshape(-1)
                if plain.numel():
                    digest.update(plain.view(torch.uint8).numpy())
        together = b"".join(digest.digest() for digest in digests)
        return hashlib.blake2b(together, digest_size=8).hexdigest()

    def _read(self, data: Any, limit: int | None, seed: int, memory: int) -> None:
        loader = data if isinstance(data, DataLoader) else _loader_of(data)
        if limit is not None:
            source = _samples_of(loader, limit)
            self.population = len(source)
            chosen = _draw(limit, self.population, seed)
            loader = _loader_of(Subset(source, chosen.tolist()), loader.collate_fn)
        if loader.drop_last:
            warnings.warn(
                "Objective: the DataLoader has drop_last=True: the samples of its last, incomplete "
                "batch are no part of the objective.",
                stacklevel=4,
            )
        kept, held = [], 0
        with _untouched_generators(loader):
            self._probe(loader)
            for batch in loader:
                kept.append(self.pair(batch))
                held += sum(leaf.nbytes for leaf in pytree.tree_leaves(kept[-1]))
                if held > memory:
                    self._source = loader
                    break
            else:
                self._keep(kept)
        if limit is None:
            self.population = self.count

    def _probe(self, loader: DataLoader) -> None:
        """Raises unless a second pass begins as the first."""
        first, second = (next(iter(loader), None) for _ in range(2))
        require(
            (first is None) == (second is None)
            and (first is None or alike(self.pair(first), self.pair(second), rtol=0, atol=0)),
            "Objective: data must be the same on every pass, got another first batch on the "
            "second: it is shuffled or augmented. Use shuffle=False and evaluation transforms.",
        )

    def _keep(self, batches: list[Any]) -> None:
        """As one tensor per leaf; batches of unlike shapes (padded sequences) stay as they are."""
        require(bool(batches), "Objective: data must hold at least one sample, got none.")
        structure = pytree.tree_structure(batches[0])
        columns = [[leaf.shape[1:] for leaf in pytree.tree_leaves(batch)] for batch in batches]
        if all(column == columns[0] for column in columns):
            leaves = zip(*map(pytree.tree_leaves, batches), strict=True)
            self._kept = pytree.tree_unflatten([torch.cat(parts) for parts in leaves], structure)
        else:
            self._source = batches

    def _keep_only(self, limit: int, seed: int) -> None:
        chosen = _draw(limit, self.population, seed)
        self._kept = pytree.tree_map(lambda leaf: leaf[chosen.to(leaf.device)], self._kept)

    def pair(self, batch: Any) -> tuple[Any, Any]:
        """A batch (inputs, targets), checked, on the device and in the dtype of the samples."""
        require(
            isinstance(batch, (tuple, list)) and len(batch) == 2,
            f"Objective: data must give pairs (inputs, targets), got {show(batch)}. "
            "Wrap the dataset, or give the DataLoader a collate_fn.",
        )
        inputs, targets = pytree.tree_map(
            lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf,
            tuple(batch),
        )
        counts = sample_count(inputs), sample_count(targets)
        require(
            counts[0] == counts[1] >= 0,
            "Objective: data must be tensors, as many inputs as targets along dimension 0, got "
            f"{shapes(inputs)} and {shapes(targets)}.",
        )
        return self._convert(inputs), self._convert(targets)

    def _convert(self, tree: Any) -> Any:
        def convert(leaf: Tensor) -> Tensor:
            leaf = leaf.detach()
            return leaf.to(self.device, self.dtype if leaf.is_floating_point() else None)

        return pytree.tree_map(convert, tree)


def _loader_of(dataset: Dataset, collate: Any = None) -> DataLoader:
    return DataLoader(dataset, batch_size=READ_BATCH, shuffle=False, collate_fn=collate)


def _samples_of(loader: DataLoader, limit: int) -> Any:
    """The map-style dataset whose samples a loader gives, all of them once."""
    plain = (
        not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in (SequentialSampler, RandomSampler)
    )
    require(
        plain,
        "Objective: samples must be None for an iterable dataset and for a DataLoader with a "
        f"sampler of its own, got {show(limit)}. Give a map-style dataset of the samples meant.",
    )
    return loader.dataset


def _draw(limit: int, population: int, seed: int) -> Tensor:
    require(
        isinstance(limit, int) and 1 <= limit <= population,
        f"Objective: samples must be an integer from 1 to {population}, got {show(limit)}.",
    )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(population, generator=generator)[:limit].sort().values


@contextlib.contextmanager
def _untouched_generators(source: Any) -> Iterator[None]:
    """Reading a loader draws random numbers, which must not be missing in a user's run."""
    own = getattr(source, "generator", None)
    state = None if own is None else own.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if own is not None:
                own.set_state(state)


def _free_memory(device: torch.device) -> int:
    """Bytes that may be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:  # on Linux the page cache counts as free
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
