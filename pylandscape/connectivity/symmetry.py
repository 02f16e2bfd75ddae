"""Which hidden units of a network can change places without changing its function.

Found from the captured Program, for any net of which it knows the operators. Every element of every
activation gets a label: the unit that it belongs to, and a place that tells apart what the elements
of one unit are (the position in the image, the operators that it went through). A layer with
weights makes new units; all else hands labels on. Where two activations are added or multiplied,
the units that meet are tied. A tensor of weights then has a label for every index of the dimension
that meets an activation, and two units may change places if and only if each of them occurs at the
same places of the same tensors. So the groups of exchangeable units come out by themselves: the
channels of a residual stream are one group, those of chunks or of the groups of a GroupNorm are
apart, and what a layer's 49 inputs per channel behind a flattening are moves together.

Units whose exchange could not be undone, the outputs of the network among them, stay where they
are.
"""

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from pylandscape._checks import require
from pylandscape.engines.capture import capture
from pylandscape.engines.program import Node, NotCovered, Program
from pylandscape.objective import Objective

Integers = NDArray[np.int64]
Rows = tuple[int, int]  # a range of dimension 0
Token = tuple[int, int, int]  # where a unit occurs: axis, key, n-th index of that key

NONE = -1  # no unit: the input, constants, units that are mixed
ZERO = 0  # the place of padding


@dataclass(frozen=True, eq=False)
class Axis:
    """The indices of one tensor of the model that go with the units of a group.

    Attributes:
        tensor: name of the parameter or buffer.
        dim: the dimension that the indices are of; None counts the elements of the whole tensor.
        rows: only these indices of dimension 0 are meant (a group of a convolution); None: all.
        index: int64 [slots, units], the indices of each unit.
    """

    tensor: str
    dim: int | None
    rows: Rows | None
    index: Tensor

    def units_first(self, tensor: Tensor) -> Tensor:
        """What `tensor` holds of each unit, [units, rest]."""
        chosen = tensor if self.rows is None else tensor[slice(*self.rows)]
        first = chosen.reshape(-1) if self.dim is None else chosen.movedim(self.dim, 0)
        return first.reshape(len(first), -1)[self.index].transpose(0, 1).flatten(1)

    def permute(self, tensor: Tensor, order: Tensor) -> Tensor:
        """A copy of `tensor` in which unit r is what was unit order[r]."""
        out = tensor.clone(memory_format=torch.contiguous_format)
        part = out if self.rows is None else out[slice(*self.rows)]
        if self.dim is None:
            part = part.view(-1)
        dim = self.dim or 0
        where = self.index.reshape(-1).to(tensor.device)
        source = self.index[:, order.cpu()].reshape(-1).to(tensor.device)
        part.index_copy_(dim, where, part.index_select(dim, source))
        return out


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can change places, and the tensors that have to be permuted with them.

    Attributes:
        name: of the layer that makes them, the first one where units of several are tied.
        size: the number of units.
        axes: every place where they occur.
        producers: the weights of the layers that make them.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    producers: tuple[str, ...]

    def __repr__(self) -> str:
        tensors = ", ".join(dict.fromkeys(axis.tensor for axis in self.axes))
        return f"Group({self.name!r}, {self.size} units, {tensors})"


def permutation_groups(objective: Objective, where: str = "permutation_groups") -> list[Group]:
    """The groups of hidden units of the objective's model that can change places.

    Any order of the units of a group gives a network with the same function, once every tensor in
    `axes` is permuted with them. Parameters that are frozen stay as they are, and so do the units
    that they belong to.

    Raises:
        ValueError: the model has an operator that is not known, or no group.

    Example:
        >>> import torch, pylandscape as pl
        >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> data = torch.randn(9, 4), torch.randint(0, 3, (9,))
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> objective = pl.Objective(torch.nn.Sequential(*layers), loss, data)
        >>> pl.permutation_groups(objective)
        [Group('0', 8 units, 0.weight, 0.bias, 2.weight)]
    """
    model = objective.model
    varied = {entry.name for entry in objective.space.entries}
    frozen = {name for name, _ in model.named_parameters() if name not in varied}
    try:
        groups = groups_of(model, objective.data.first(4)[0], frozen)
    except NotCovered as obstacle:
        raise ValueError(
            f"{where}: objective must have a model of operators whose units are known, but "
            f"{obstacle}."
        ) from None
    require(
        bool(groups),
        f"{where}: objective must have a model with hidden units that can change places, got "
        f"{type(model).__name__} with none.",
    )
    return groups


def groups_of(model: nn.Module, inputs: Any, frozen: Set[str] = frozenset()) -> list[Group]:
    """The groups of a module, the units that a `frozen` tensor belongs to left out.

    Raises:
        NotCovered: the first operator that is not known.
    """
    shapes = {n: tuple(x.shape) for n, x in (*model.named_parameters(), *model.named_buffers())}
    return _Tracer(capture(model, inputs), shapes).groups(frozen)


@dataclass
class _Labels:
    """The unit (or NONE) and the place of every element of an activation."""

    unit: Integers
    place: Integers


@dataclass
class _Columns:
    """The labels of the indices along one dimension: the same unit in all that an index holds."""

    unit: Integers
    key: Integers

    @classmethod
    def none(cls, count: int) -> "_Columns":
        return cls(np.full(count, NONE), np.arange(count))


Where = tuple[str, int | None, Rows | None]


class _Tracer:
    def __init__(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.program, self.shapes = program, shapes
        self.units, self.places = 0, ZERO + 1
        self.ties: list[Integers] = []  # pairs [K, 2]
        self.fixed: list[Integers] = []
        self.axes: dict[Where, _Columns] = {}
        self.made: dict[int, str] = {}  # first unit -> the weight of the layer that makes it
        size = program.values[program.input].shape
        self.labels = {program.input: self._fresh(np.full(size, NONE), np.arange(prod(size)))}
        for number, node in enumerate(program.nodes):
            self.labels[node.output] = self._follow(node, number)
        self.fixed.append(self.labels[program.output].unit.ravel())

    # -- operators ---------------------------------------------------------------------------------

    def _follow(self, node: Node, number: int) -> _Labels:
        inputs = [self.labels[value] for value in node.inputs]
        shape = self.program.values[node.output].shape
        if node.op in ("add", "sub", "mul"):
            return self._meet(*inputs)
        if node.op == "reindex":
            return self._moved(inputs, node.attrs["index"].numpy(), shape)
        if node.op == "conv":
            return self._conv(node, inputs[0], shape)
        if node.op == "linear":
            return self._linear(node, inputs[0], shape)
        if node.op in ("max_pool", "avg_pool", "adaptive_avg_pool"):
            return self._spread(self._columns(inputs[0], 0), shape)
        if node.op in ("batch_norm", "group_norm"):
            columns = self._columns(inputs[0], 0)
            for name in node.tensors.values():
                self._register((name, 0, None), columns)
            groups = node.attrs.get("groups", shape[0])
            if groups not in (1, shape[0]):
                block = np.arange(shape[0]) // (shape[0] // groups)
                self._register((f"node {number}", 0, None), _Columns(columns.unit, block))
        if node.op == "layer_norm":
            self._layer_norm(node, number, inputs[0])
        return self._fresh(inputs[0].unit, inputs[0].place)

    def _conv(self, node: Node, x: _Labels, shape: tuple[int, ...]) -> _Labels:
        columns, weight = self._columns(x, 0), node.tensors["weight"]
        groups, channels = node.attrs["groups"], len(columns.unit)
        inside, outside = channels // groups, shape[0] // groups
        if inside == 1 and groups > 1:  # depthwise: the unit of an output is that of its input
            unit = np.repeat(columns.unit, outside)
            key = (columns.key[:, None] * outside + np.arange(outside)).ravel()
            out = _Columns(unit, key)
        else:
            out = self._new_units(shape[0], weight, np.arange(shape[0]) // outside)
            for group in range(groups):
                part = slice(group * inside, (group + 1) * inside)
                rows = None if groups == 1 else (group * outside, (group + 1) * outside)
                self._register((weight, 1, rows), _Columns(columns.unit[part], columns.key[part]))
        self._register_rows(node, out)
        return self._spread(_Columns(out.unit, out.key if inside == 1 else 0 * out.key), shape)

    def _linear(self, node: Node, x: _Labels, shape: tuple[int, ...]) -> _Labels:
        weight, outputs = node.tensors["weight"], shape[-1]
        rows = self._rows(x, 1)
        if rows is not None:  # it works along a dimension of positions, alike for every unit
            self._register((weight, 1, None), _Columns.none(self.shapes[weight][1]))
            self._register_rows(node, _Columns.none(outputs))
            return self._spread(rows, shape)
        self._register((weight, 1, None), self._columns(x, x.unit.ndim - 1))
        out = self._new_units(outputs, weight, np.zeros(outputs, dtype=np.int64))
        self._register_rows(node, out)
        last_first = self._spread(out, (outputs, *shape[:-1]))
        return _Labels(*(np.moveaxis(a, 0, -1) for a in (last_first.unit, last_first.place)))

    def _layer_norm(self, node: Node, number: int, x: _Labels) -> None:
        trailing = x.unit.ndim - node.attrs["dims"]
        size = prod(x.unit.shape[trailing:])
        columns = _Columns.none(size)
        if self._rows(x, node.attrs["dims"]) is None:
            flat = _Labels(x.unit.reshape(-1, size), x.place.reshape(-1, size))
            columns = self._columns(flat, 1)
        for name in (*node.tensors.values(), f"node {number}"):
            self._register((name, None, None), columns)

    def _meet(self, a: _Labels, b: _Labels) -> _Labels:
        """Sum or product: units that meet are tied, but one that meets several stays in place."""
        ua, ub, pa, pb = np.broadcast_arrays(a.unit, b.unit, a.place, b.place)
        both = (ua != NONE) & (ub != NONE) & (ua != ub)
        pairs = np.unique(np.stack([ua[both], ub[both]], 1), axis=0)
        crowded = [_repeated(pairs[:, side]) for side in (0, 1)]
        self.fixed += crowded
        loose_a, loose_b = (np.isin(u, c) for u, c in zip((ua, ub), crowded, strict=True))
        kept = ~(np.isin(pairs[:, 0], crowded[0]) | np.isin(pairs[:, 1], crowded[1]))
        self.ties.append(pairs[kept])
        unit = np.where((ua == NONE) | loose_a, np.where(loose_b, NONE, ub), ua)
        # what stays in place tells its elements apart by itself
        columns = [pa, pb, np.where(loose_a, ua, NONE), np.where(loose_b, ub, NONE)]
        return self._fresh(unit, _identify(np.stack([c.ravel() for c in columns], 1)))

    def _moved(self, inputs: list[_Labels], index: Integers, shape: tuple[int, ...]) -> _Labels:
        unit = np.append(np.concatenate([x.unit.ravel() for x in inputs]), NONE)
        place = np.append(np.concatenate([x.place.ravel() for x in inputs]), ZERO)
        return _Labels(unit[index].reshape(shape), place[index].reshape(shape))

    # -- labels ------------------------------------------------------------------------------------

    def _fresh(self, unit: Integers, place: Integers) -> _Labels:
        """The labels of a new activation: the same places, told apart from those of the others."""
        place = place.reshape(unit.shape)
        low = int(place.min())
        moved = place - low + self.places
        self.places += int(place.max()) - low + 1
        return _Labels(unit, moved)

    def _new_units(self, count: int, weight: str, key: Integers) -> _Columns:
        unit = np.arange(self.units, self.units + count)
        self.made[self.units] = weight
        self.units += count
        return _Columns(unit, key)

    def _spread(self, columns: _Columns, shape: tuple[int, ...]) -> _Labels:
        """The labels of an activation [*n, *rest] that has the units and keys of its n columns."""
        count = len(columns.unit)
        rest = prod(shape) // count
        unit = np.repeat(columns.unit, rest).reshape(shape)
        return self._fresh(unit, columns.key.reshape(count, 1) * rest + np.arange(rest))

    def _columns(self, x: _Labels, axis: int) -> _Columns:
        """The labels of the indices along `axis`; units that share an index are fixed."""
        columns = _constant(_Labels(*(np.moveaxis(a, axis, 0) for a in (x.unit, x.place))))
        if columns is not None:
            return columns
        self.fixed.append(x.unit.ravel())
        return _Columns.none(x.unit.shape[axis])

    def _rows(self, x: _Labels, trailing: int) -> _Columns | None:
        """The labels of what lies along the last dimensions, where these hold no other unit and
        the indices along them do: layers along positions."""
        size = prod(x.unit.shape[x.unit.ndim - trailing :])
        flat = _Labels(x.unit.reshape(-1, size), x.place.reshape(-1, size))
        across = _constant(_Labels(flat.unit.T, flat.place.T))
        return _constant(flat) if across is None else None

    def _register_rows(self, node: Node, out: _Columns) -> None:
        for role in ("weight", "bias"):
            if role in node.tensors:
                self._register((node.tensors[role], 0, None), out)

    def _register(self, where: Where, columns: _Columns) -> None:
        """Notes the labels of a tensor's indices; a second use of a tensor ties its units."""
        if where not in self.axes:
            self.axes[where] = columns
            return
        before = self.axes[where]
        both = (before.unit != NONE) & (columns.unit != NONE)
        self.ties.append(np.stack([before.unit[both], columns.unit[both]], 1))
        self.fixed += [before.unit[~both], columns.unit[~both]]
        key = _identify(np.stack([before.key, columns.key], 1))
        self.axes[where] = _Columns(np.where(both, before.unit, NONE), key)

    # -- groups ------------------------------------------------------------------------------------

    def groups(self, frozen: Set[str]) -> list[Group]:
        """Units that occur at the same places of the same tensors, tied ones as one."""
        ties = np.concatenate([np.empty((0, 2), dtype=np.int64), *self.ties])
        shape = (self.units, self.units)
        graph = coo_array((np.ones(len(ties)), (ties[:, 0], ties[:, 1])), shape=shape)
        _, class_of = connected_components(graph, directed=False)
        held = [columns.unit for (name, _, _), columns in self.axes.items() if name in frozen]
        stuck = np.concatenate([*self.fixed, *held])
        fixed = set(class_of[stuck[stuck != NONE]].tolist()) | self._entangled(class_of)
        found: dict[int, dict[Token, int]] = defaultdict(dict)  # class -> token -> index
        for number, columns in enumerate(self.axes.values()):
            seen: dict[tuple[int, int], int] = defaultdict(int)
            labels = zip(columns.unit.tolist(), columns.key.tolist(), strict=True)
            for index, (unit, key) in enumerate(labels):
                if unit != NONE:
                    own = int(class_of[unit])
                    found[own][number, key, seen[own, key]] = index
                    seen[own, key] += 1
        alike: dict[tuple[Token, ...], list[int]] = defaultdict(list)
        for own, places in found.items():
            if own not in fixed:
                alike[tuple(sorted(places))].append(own)
        names: dict[str, int] = defaultdict(int)
        groups = []
        for signature, classes in alike.items():
            if len(classes) > 1:
                groups.append(self._group(signature, [found[own] for own in classes], names))
        return groups

    def _entangled(self, class_of: Integers) -> set[int]:
        """Classes that tie two units of one layer: which of them is which is not told apart."""
        layer = np.searchsorted(np.array(list(self.made)), np.arange(self.units), side="right")
        pairs, counts = np.unique(np.stack([class_of, layer], 1), axis=0, return_counts=True)
        return set(pairs[counts > 1, 0].tolist())

    def _group(
        self,
        signature: tuple[Token, ...],
        units: list[dict[Token, int]],
        names: dict[str, int],
    ) -> Group:
        slots: dict[int, list[Token]] = defaultdict(list)
        for token in signature:
            slots[token[0]].append(token)
        axes = []
        for number, (tensor, dim, rows) in enumerate(self.axes):
            if number in slots and tensor in self.shapes:
                index = torch.tensor([[unit[s] for unit in units] for s in slots[number]])
                axes.append(Axis(tensor, dim, rows, index))
        makers = set(self.made.values())
        producers = [a.tensor for a in axes if a.tensor in makers and a.dim == 0]
        name = (producers or [axes[0].tensor])[0].removesuffix("weight").rstrip(".") or "weight"
        names[name] += 1
        name = name if names[name] == 1 else f"{name} ({names[name]})"
        return Group(name, len(units), tuple(axes), tuple(producers))


def _constant(x: _Labels) -> _Columns | None:
    """The labels of the indices of dimension 0, or None where an index holds two units."""
    unit, place = (a.reshape(len(a), -1) for a in (x.unit, x.place))
    own = unit.max(axis=1)
    if ((unit != NONE) & (unit != own[:, None])).any():
        return None
    if (place == place[0]).all():
        return _Columns(own, np.zeros(len(own), dtype=np.int64))
    return _Columns(own, _identify(place))


def _identify(rows: Integers) -> Integers:
    """A number for each row, the same for equal rows."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _repeated(values: Integers) -> Integers:
    found, counts = np.unique(values, return_counts=True)
    return found[counts > 1]
