"""How `capture` puts a Program together: the entries of the exported graph and its data movement.

Nothing that only moves elements (views, permutations, slices, concatenations, zero padding) makes a
node by itself. A `View` keeps where its elements come from, so that a chain of movements becomes
one `reindex` at the operator that reads it, and none where the chain comes to nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pylandscape.engines.program import Node, NotCovered, Program, Value

MIXES = "mixes the samples of a batch or moves the batch dimension"

# Zero padding of one axis: before, after.
Pads = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class View:
    """An activation [B, *shape] as elements of values of the program.

    Args:
        shape: of one sample.
        inputs: the values the elements come from.
        index: positions in the flattened and concatenated inputs, -1 for a zero; None: the one
            input as it is.
        source: where the model makes it.
        unpadded: the view without the zeros around its last axes, and these zeros.
    """

    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    index: Tensor | None = None
    source: str = ""
    unpadded: "tuple[View, Pads] | None" = None


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the model by name; `shape` is that of the model's own tensor."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor written in the model's code."""

    tensor: Tensor


class Call:
    """One aten operator of the exported graph; fx nodes among its arguments are entries by now.

    Attributes:
        name: as in `aten.conv2d`.
        source: `file:line (code)`.
        shape: of the output, or of the first one, the batch dimension included.
        args, kwargs: the arguments as they stand; `call[name]` gives one by its name in the schema,
            or its default.
    """

    def __init__(self, node: fx.Node, name: str, source: str, entries: Mapping[fx.Node, Any]):
        target: Any = node.target  # an OpOverload
        self.target, self.name, self.source = target, name, source
        self.args: Any = fx.node.map_arg(node.args, entries.__getitem__)
        self.kwargs: Any = fx.node.map_arg(node.kwargs, entries.__getitem__)
        value = node.meta["val"]
        first = value[0] if isinstance(value, (tuple, list)) else value
        self.shape = tuple(first.shape)
        self._named: dict[str, Any] = {}
        for position, argument in enumerate(target._schema.arguments):
            given = position < len(self.args)
            default = argument.default_value if argument.has_default_value() else None
            self._named[argument.name] = (
                self.args[position] if given else self.kwargs.get(argument.name, default)
            )

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._named.get(name, default)

    def not_covered(self, reason: str) -> NotCovered:
        return NotCovered(reason, self.name, self.source)

    def misuse(self, parameter: "Parameter") -> NotCovered:
        return self.not_covered(f"uses {parameter.name!r} in a way that has no native kernel")

    def require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise self.not_covered(reason)

    def view(self, entry: Any) -> View:
        """An argument that must be an activation."""
        if isinstance(entry, Parameter):
            raise self.misuse(entry)
        if isinstance(entry, View):
            return entry
        raise self.not_covered("takes a constant in place of an activation")

    @property
    def input(self) -> View:
        """The first argument, an activation."""
        return self.view(self.args[0])

    def tensors(self, **roles: str) -> dict[str, str]:
        """Role -> name of the model's tensor, for the arguments that are given."""
        named = {}
        for role, argument in roles.items():
            entry = self[argument]
            if entry is None:
                continue
            self.require(
                isinstance(entry, Parameter) and not entry.transposed,
                f"takes a {role} that is not a parameter or buffer of the model as it is",
            )
            named[role] = entry.name
        return named


class Builder:
    """Collects the values and nodes of a Program for batches of B = `batch` samples."""

    def __init__(self, batch: int, input_shape: tuple[int, ...]) -> None:
        self.batch = batch
        self.values = [Value(input_shape)]
        self.nodes: list[Node] = []
        self._of_view: dict[View, int] = {}
        self.input = View(input_shape, (0,))

    def program(self, output: View) -> Program:
        result = self.value(output)
        return Program(tuple(self.values), tuple(self.nodes), 0, result)

    def value(self, view: View) -> int:
        """The index of the value that holds a view, by a `reindex` if there is none yet."""
        if view.index is None:
            return view.inputs[0]
        if view not in self._of_view:
            attrs = {"index": view.index}
            self._of_view[view] = self._append("reindex", view.inputs, view.shape, attrs, {}, view)
        return self._of_view[view]

    def emit(
        self,
        call: Call,
        op: str,
        inputs: Sequence[View],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, str] | None = None,
        shape: Sequence[int] | None = None,
    ) -> View:
        """Appends a node; its output has the shape of the call's, or that given for a sample."""
        if shape is None:
            call.require(call.shape[:1] == (self.batch,), MIXES)
            shape = call.shape[1:]
        values = tuple(map(self.value, inputs))
        return View(
            tuple(shape), (self._append(op, values, shape, attrs or {}, tensors or {}, call),)
        )

    def _append(
        self,
        op: str,
        inputs: tuple[int, ...],
        shape: Sequence[int],
        attrs: Mapping[str, Any],
        tensors: Mapping[str, str],
        origin: Call | View,
    ) -> int:
        self.values.append(Value(tuple(shape)))
        output = len(self.values) - 1
        self.nodes.append(Node(op, inputs, output, dict(attrs), dict(tensors), origin.source))
        return output

    def move(self, call: Call, movement: Callable[..., Any], *views: View) -> Any:
        """What a function that only moves elements makes of views: a view, or a pytree of them.

        It runs on tensors [B, ...] of numbers that are different for all elements of all samples,
        0 meaning a zero, so that its result tells where each element came from.
        """
        elements = self._elements(dict.fromkeys(value for view in views for value in view.inputs))
        moved = movement(*(self._numbered(view, elements) for view in views))
        return pytree.tree_map(lambda numbers: self._located(call, numbers, elements), moved)

    def _elements(self, inputs: Iterable[int]) -> "_Elements":
        values = tuple(inputs)
        ends = list(accumulate(self.values[value].size for value in values))
        ranges = map(range, [0, *ends[:-1]], ends)
        return _Elements(dict(zip(values, ranges, strict=True)), ends[-1])

    def _numbered(self, view: View, elements: "_Elements") -> Tensor:
        numbers = torch.cat([torch.arange(r.start, r.stop) for r in map(elements.of, view.inputs)])
        numbers += 1
        if view.index is not None:
            numbers = torch.where(view.index < 0, 0, numbers[view.index])
        # float64, for some operators have no integer kernel
        return self._all_samples(numbers.view(view.shape), elements.total).double()

    def _all_samples(self, numbers: Tensor, total: int) -> Tensor:
        """The numbers of one sample for the whole batch: shifted, but for the zeros."""
        shifts = [sample * total for sample in range(self.batch)]
        return torch.stack([torch.where(numbers > 0, numbers + shift, 0) for shift in shifts])

    def _located(self, call: Call, moved: Tensor, elements: "_Elements") -> View:
        call.require(moved.numel() > 0, "makes an empty tensor")
        call.require(moved.shape[:1] == (self.batch,), MIXES)
        numbers = moved[0].long()
        call.require(torch.equal(self._all_samples(numbers, elements.total), moved.long()), MIXES)
        return self._view(numbers - 1, elements, call.source)

    def _view(self, index: Tensor, elements: "_Elements", source: str) -> View:
        """The view of a located index [*shape], without the values that nothing comes from."""
        shape, index = tuple(index.shape), index.reshape(-1)
        chosen = {
            value: (index >= r.start) & (index < r.stop) for value, r in elements.ranges.items()
        }
        used = [value for value, mask in chosen.items() if mask.any()] or list(chosen)[:1]
        kept, compact = self._elements(used), torch.full_like(index, -1)
        for value in used:
            moved_by = kept.of(value).start - elements.of(value).start
            compact = torch.where(chosen[value], index + moved_by, compact)
        if shape == self.values[used[0]].shape and torch.equal(compact, torch.arange(kept.total)):
            return View(shape, tuple(used))
        return View(shape, tuple(used), compact, source)


@dataclass(frozen=True)
class _Elements:
    """The flattened and concatenated elements of some values: where each lies, how many in all."""

    ranges: Mapping[int, range]
    total: int

    def of(self, value: int) -> range:
        return self.ranges[value]
