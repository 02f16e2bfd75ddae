"""Snapshot files: the tensors of a model after some step of training, in safetensors.

A file holds parameters and persistent buffers, as `state_dict` names them, without the name parts
that wrappers add. Its metadata (strings, by the format) has the step, the epoch, the names of the
parameters that were trained, and for a tied tensor, which is stored once, its further names. A
compressed snapshot holds differences to the snapshot `base` for the tensors named in `deltas`.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pylandscape._checks import require
from pylandscape._files import replacing
from pylandscape.parameters import ParameterSpace, unwrap
from pylandscape.trajectory.deltas import Base, decode, encode, in_deltas

FORMAT = "pylandscape snapshot 1"
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module"}  # torch.compile, activation checkpointing


class DamagedSnapshot(ValueError):
    """A snapshot file that cannot be read."""


def canonical_name(name: str) -> str:
    """The name of a tensor in the model as its class defines it, without wrappers inside it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of `model` itself (not copies) by canonical name."""
    state = unwrap(model).state_dict(keep_vars=True)
    return {canonical_name(name): x for name, x in state.items() if isinstance(x, Tensor)}


def buffers_for(
    model: nn.Module, state: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """The buffers of `model`, by its own names, with values from `state` where it has them."""
    names = {name: canonical_name(name) for name, _ in model.named_buffers()}
    return {name: state[key].to(device) for name, key in names.items() if key in state}


def write_durably(file: Path, write: Callable[[Path], None]) -> None:
    """Has `write` fill a new file that takes the name `file`, whole, once it is on the disk."""
    with replacing(file) as partial:
        write(partial)
        _sync(partial)
    _sync(file.parent)  # the name is in the folder, which has to reach the disk as well


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_snapshot(
    file: Path, model: nn.Module, step: int, epoch: int, base: Base | None = None
) -> Base | None:
    """Writes the tensors of `model` into `file`, whole or not at all.

    Args:
        file, model, step, epoch: what is written where.
        base: what to store the differences to, if possible.

    Returns:
        The snapshot as the base of the next one, or None where it was stored as it is.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owner_of: dict[Any, str] = {}
    tensors = named_tensors(model)
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        owner = owner_of.setdefault(place, name) if tensor.numel() else name
        if owner == name:
            stored[name] = _storable(tensor)
        else:
            aliases[name] = owner
    trained = [name for name, x in tensors.items() if x.requires_grad and name not in aliases]
    facts: dict[str, Any] = {"step": step, "epoch": epoch, "trained": trained, "aliases": aliases}
    delta = encode(stored, base)
    if delta is not None:
        facts |= {"base": delta.base.file, "deltas": list(delta.reader), "errors": delta.errors}
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in facts.items()}
    written = dict(stored if delta is None else delta.tensors)
    write_durably(file, lambda partial: save_file(written, partial, metadata))
    return None if delta is None else Base(file.name, delta.reader, delta.base.depth + 1)


def _storable(tensor: Tensor) -> Tensor:
    """On the CPU and contiguous; a view is copied, since the format refuses overlapping memory."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class Snapshot:
    """One snapshot on disk; only its header is read at construction.

    Args:
        file: the file.
        earlier: snapshots that are open already, by name of their file; a compressed snapshot
            builds on one of the same folder.

    Raises:
        DamagedSnapshot: the file is not a complete snapshot, or one that it builds on is not.
    """

    def __init__(self, file: Path, earlier: "Mapping[str, Snapshot] | None" = None) -> None:
        self.file = file
        with self._open() as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DamagedSnapshot(self._damage(f"its format is {metadata.get('format')!r}"))
            self.step: int = json.loads(metadata["step"])
            self.epoch: int = json.loads(metadata["epoch"])
            self.trained: list[str] = json.loads(metadata["trained"])
            self.aliases: dict[str, str] = json.loads(metadata["aliases"])
            self.errors: dict[str, float] = json.loads(metadata.get("errors", "{}"))
            self._deltas: set[str] = set(json.loads(metadata.get("deltas", "[]")))
            names = list(tensors.keys())
            stored = {name: tensors.get_slice(name).get_shape() for name in names}
        shared = {name: stored[owner] for name, owner in self.aliases.items()}
        self.shapes: dict[str, list[int]] = stored | shared
        self._base: Snapshot | None = None
        if "base" in metadata:
            name = json.loads(metadata["base"])
            known = (earlier or {}).get(name)
            self._base = known or Snapshot(file.with_name(name), earlier)

    @property
    def depth(self) -> int:
        """How many other snapshots this one builds on."""
        return 0 if self._base is None else self._base.depth + 1

    def state(self) -> dict[str, Tensor]:
        """Every tensor by name, copies in main memory; tied names share one tensor."""
        state = self.owned()
        return state | {name: state[owner] for name, owner in self.aliases.items()}

    def owned(self) -> dict[str, Tensor]:
        """The tensors that the file holds, without the further names of tied ones."""
        before = {} if self._base is None else self._base.owned()
        state = {}
        with self._open() as tensors:
            for name in self.shapes:
                if name in self._deltas:
                    state[name] = decode(before.pop(name), tensors.get_tensor(name))
                elif name not in self.aliases:
                    state[name] = tensors.get_tensor(name).clone()
        return state

    def as_base(self) -> Base:
        """The base of a compressed snapshot that follows this one."""
        return Base(self.file.name, in_deltas(self.owned()), self.depth)

    def read(self, row: Tensor, space: ParameterSpace, start: int = 0) -> None:
        """Fills `row` with elements start, start + 1, ... of the flat vector.

        The file is mapped into memory, so that only what is asked for is read from the disk.
        """
        stop = start + row.shape[0]
        at = 0
        for piece in self._pieces(space, start, stop):
            row[at : at + len(piece)] = piece
            at += len(piece)

    def _pieces(self, space: ParameterSpace, start: int, stop: int) -> list[Tensor]:
        """Elements start, ..., stop - 1 of the flat vector, tensor by tensor, as stored."""
        before = [] if self._base is None else self._base._pieces(space, start, stop)
        pieces: list[Tensor] = []
        with self._open() as tensors:
            for entry in space.entries:
                low, high = max(start, entry.offset), min(stop, entry.offset + entry.size)
                if low < high:
                    name = self._stored(canonical_name(entry.name))
                    flat = tensors.get_tensor(name).view(-1)
                    piece = flat[low - entry.offset : high - entry.offset]
                    in_delta = name in self._deltas
                    pieces.append(decode(before[len(pieces)], piece) if in_delta else piece)
        return pieces

    def dtype(self, space: ParameterSpace) -> torch.dtype:
        """The floating-point type of the parameters of `space` in the file, the widest if mixed."""
        names = {self._stored(canonical_name(entry.name)) for entry in space.entries}
        return functools.reduce(torch.promote_types, map(self._dtype, sorted(names)))

    def _dtype(self, name: str) -> torch.dtype:
        if name in self._deltas and self._base is not None:
            return self._base._dtype(name)
        with self._open() as tensors:
            return tensors.get_tensor(name).dtype

    def check(self, space: ParameterSpace) -> None:
        """Raises ValueError at the first parameter in which snapshot and `space` disagree."""
        wanted = {canonical_name(entry.name): list(entry.shape) for entry in space.entries}
        self._compare(wanted, [*wanted, *self.trained])

    def differing(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The names under which `tensors` has other values, beyond the error of compression."""
        allowed = self.errors.get("largest", 0.0)
        return [n for n, x in self.state().items() if not _same(x, tensors[n].detach(), allowed)]

    def check_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError at the first tensor, buffers included, that is not as in the file."""
        wanted = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self._compare(wanted, [*wanted, *self.shapes])

    def _compare(self, wanted: dict[str, list[int]], names: list[str]) -> None:
        owned = {self._stored(name) for name in wanted}
        for name in names:
            got, recorded = wanted.get(name), self.shapes.get(name)
            require(
                got == recorded or (got is None and self._stored(name) in owned),
                f"Trajectory: model must be the recorded one, got {_describe(got)} for {name!r} "
                f"where {self.file.name} has {_describe(recorded)}. "
                "Use a model of the recorded architecture, with the same parameters trainable.",
            )

    def _stored(self, name: str) -> str:
        return self.aliases.get(name, name)

    def _damage(self, reason: object) -> str:
        return (
            f"Trajectory: snapshot {self.file} must be a complete snapshot file, got a damaged or "
            f"foreign one ({reason}). Delete it, or read the rest with skip_damaged=True."
        )

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.file, framework="pt") as tensors:
                yield tensors
        except (SafetensorError, OSError) as error:
            raise DamagedSnapshot(self._damage(error)) from error


def _describe(shape: list[int] | None) -> str:
    return "no tensor" if shape is None else f"shape {shape}"


def _same(a: Tensor, b: Tensor, allowed: float) -> bool:
    b = b.to(a.device)
    near = (a - b).abs() <= allowed if allowed and a.is_floating_point() else a == b
    return bool((near | ((a != a) & (b != b))).all())
