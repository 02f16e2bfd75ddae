"""A model as a short list of operators: what `capture` makes of a module and native engines run.

Shapes are those of one sample in torch's order, the batch dimension left out: (C, H, W), (C, L),
(T, K), (K,). Sizes of windows are pairs (height, width); a one-dimensional layer has height 1.

    conv               cross-correlation of an image with zeros around it
                       kernel, stride, padding, dilation, groups; weight, bias?
    linear             W x + b over the last dimension
                       weight, bias?
    batch_norm         (x - mean) / sqrt(var + eps) * weight + bias over the first dimension
                       eps; mean, var, weight?, bias?
    layer_norm         normalised over the last `dims` dimensions
                       dims, eps; weight?, bias?
    group_norm         normalised over each of `groups` groups of channels
                       groups, eps; weight?, bias?
    activation         a function of each element, see ACTIVATIONS
                       kind, a?, b?, c?
    max_pool           the largest of each window, padding left out
                       kernel, stride, padding, dilation
    avg_pool           the sum of each window over `divisor`, or where that is None over the number
                       of its elements, of those inside the image if not `count_include_pad`
                       kernel, stride, padding, count_include_pad, divisor
    adaptive_avg_pool  means of a grid of windows that cover the image
                       size
    add, sub, mul      of two values of as many dimensions, broadcast like torch
    scale              a x + b
                       a, b
    reindex            element i is element index[i] of the flattened and concatenated inputs, zero
                       where index[i] is -1
                       index (int64, one per element of the output)
    log_softmax        over the first dimension, only as the last node

The second line names the attributes and, after a semicolon, the roles of tensors; `?` marks what
may be missing. `padding` is a pair, or ((top, bottom), (left, right)) where two sides differ.
Windows that overhang the padded image (`ceil_mode`) show in the shape of the output only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

# Elementwise functions by `kind`, with the attributes they read.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "relu": (),
    "leaky_relu": ("a",),  # slope a below zero
    "hardtanh": ("a", "b"),  # min(max(x, a), b), either bound may be infinite
    "elu": ("a", "b", "c"),  # b x above zero, b a (exp(c x) - 1) below
    "gelu": (),
    "gelu_tanh": (),
    "silu": (),
    "tanh": (),
    "sigmoid": (),
    "softplus": ("a", "b"),  # log(1 + exp(a x)) / a, x itself where a x > b
    "hardswish": (),
    "hardsigmoid": (),
}

# Attributes that need no mention in a table.
_USUAL = {
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
    "groups": 1,
    "count_include_pad": True,
    "divisor": None,
}


class NotCovered(Exception):
    """A model that the native engine cannot run, and the first thing in the way.

    Attributes:
        operator: the aten name of the operator, or empty.
        source: `file:line (code)` where the model calls it, or empty.
        reason: what is wrong, to be read after the two.
    """

    def __init__(self, reason: str, operator: str = "", source: str = "") -> None:
        self.operator, self.source, self.reason = operator, source, reason
        super().__init__(" ".join(filter(None, (operator, source and f"at {source}", reason))))


@dataclass(frozen=True)
class Value:
    """One activation of one sample."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator.

    Args:
        op: see the table above.
        inputs, output: indices into `Program.values`.
        attrs: what the operator needs besides tensors.
        tensors: role -> name of a parameter or buffer of the model.
        source: `file:line (code)` where the model calls it.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    attrs: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, eq=False)
class Program:
    """Nodes in an order in which they can run, from the value `input` to the value `output`."""

    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    input: int
    output: int

    @property
    def flops(self) -> int:
        """Floating-point operations per sample of convolutions and linear layers."""
        return sum(self._flops(node) for node in self.nodes)

    def _flops(self, node: Node) -> int:
        source, result = self.values[node.inputs[0]], self.values[node.output]
        if node.op == "conv":
            window = source.shape[0] // node.attrs["groups"] * prod(node.attrs["kernel"])
            return 2 * result.size * window
        return 2 * result.size * source.shape[-1] if node.op == "linear" else 0

    def describe(self) -> str:
        """A table of the nodes: operator, shape of the output, parameters, attributes."""
        head = ("operator", "output", "parameters", "attributes")
        rows = [head, ("input", _times(self.values[self.input].shape), "", "")]
        for node in self.nodes:
            kind = str(node.attrs["kind"]) if node.op == "activation" else node.op
            shape = _times(self.values[node.output].shape)
            parameters = [node.tensors[role] for role in ("weight", "bias") if role in node.tensors]
            rows.append((kind, shape, _names(parameters), self._attributes(node)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, f"{self.flops / 1e6:.4g} MFLOP per sample"])

    def _attributes(self, node: Node) -> str:
        if node.op == "reindex":
            index: Tensor = node.attrs["index"]
            sizes = [self.values[value].size for value in node.inputs]
            same = len(sizes) == 1 and index.tolist() == list(range(sizes[0]))
            return "same elements" if same else f"{len(index)} of {sum(sizes)} elements"
        shown = (
            (name, value)
            for name, value in node.attrs.items()
            if name != "kind" and (name not in _USUAL or _USUAL[name] != value)
        )
        return ", ".join(f"{name} {_short(value)}" for name, value in shown)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        nested = any(isinstance(item, tuple) for item in value)
        return str(value) if nested else _times(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _names(names: Iterable[str]) -> str:
    """Names grouped by their module: `layer1.conv: weight, bias`."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        grouped.setdefault(module, []).append(leaf)
    return "; ".join(
        f"{module}: {', '.join(leaves)}" if module else ", ".join(leaves)
        for module, leaves in grouped.items()
    )
