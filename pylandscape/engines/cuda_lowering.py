"""From a Program to a plan for GPUs: which kernel runs which operator, and where activations lie.

Simpler than the CPU's plan: activations and parameters stay in torch's layout, so nothing is packed
and a flattening costs nothing. A step is one launch for many points and samples. A batch_norm, an
addition, an activation and a 2x2 pooling behind a convolution become part of it, the first three
behind a linear layer too; batch_norm is folded where it is used, from parameters formed there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pylandscape.engines import cuda_records as records
from pylandscape.engines.cuda_plan import CudaPlan
from pylandscape.engines.cuda_records import Epilogue, Step
from pylandscape.engines.layout import image_shape
from pylandscape.engines.lowering import State, paddings
from pylandscape.engines.program import Node, NotCovered, Program
from pylandscape.engines.records import (
    NONE,
    Activation,
    BinaryKind,
    FusedPool,
    LossKind,
    numbers,
)
from pylandscape.engines.simple_layers import LossSpec
from pylandscape.parameters import ParameterSpace


def make_cuda_plan(
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    space: ParameterSpace,
) -> CudaPlan:
    """Plans `program` for a GPU.

    Args:
        shapes: of the model's tensors by name.
        space: of the parameters that directions move.

    Raises:
        NotCovered: what the program asks for has no kernel.
    """
    planner = _Planner(program, shapes)
    for node in program.nodes:
        if node.output in planner.fused:
            continue
        if node.op not in _OPERATORS:
            raise NotCovered("has no CUDA kernel", node.op, node.source)
        _OPERATORS[node.op](planner, node)
    planner.lower_loss(loss)
    return planner.plan(space)


@dataclass
class _Value:
    """An activation: its floats per sample, and the steps between which it is alive."""

    size: int
    first: int = -1
    last: int = -1
    offset: int = NONE


class _Planner:
    """A Program on its way to a plan. The first of `values` is the input."""

    def __init__(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.program, self.shapes = program, shapes
        self.consumers: dict[int, list[Node]] = {}
        for node in program.nodes:
            for value in node.inputs:
                self.consumers.setdefault(value, []).append(node)
        self.values = [_Value(program.values[program.input].size)]
        self.value_of = {program.input: 0}  # program value: index in `values`
        self.fused: set[int] = set()
        self.steps: list[Step] = []
        self.labels: list[str] = []
        self.tensors: dict[str, int] = {}
        self.packed = 0
        # constants 0 to 2 serve activations without parameters
        self.constants: list[Callable[[State], Tensor]] = [lambda _: torch.zeros(3)]
        self.constant_count = 3
        self.indices: list[Tensor] = []
        self.index_count = 0

    # -- parts of steps ----------------------------------------------------------------------------

    def shape(self, value: int) -> tuple[int, ...]:
        return self.program.values[value].shape

    def tensor(self, name: str | None) -> int:
        """The offset of a tensor among the parameters."""
        if name is None:
            return NONE
        if name not in self.tensors:
            self.tensors[name] = self.packed
            self.packed += prod(self.shapes[name])
        return self.tensors[name]

    def constant(self, count: int, make: Callable[[State], Tensor]) -> int:
        offset, self.constant_count = self.constant_count, self.constant_count + count
        self.constants.append(make)
        return offset

    def index(self, table: Tensor) -> int:
        offset, self.index_count = self.index_count, self.index_count + table.numel()
        self.indices.append(table.reshape(-1).int())
        return offset

    def new_value(self, value: int) -> int:
        self.values.append(_Value(self.program.values[value].size))
        self.value_of[value] = len(self.values) - 1
        return self.value_of[value]

    def step(self, step: Step, reads: list[int], writes: int | None, label: str = "") -> None:
        for index in [*reads, *([] if writes is None else [writes])]:
            value = self.values[index]
            value.first = len(self.steps) if value.first < 0 else value.first
            value.last = len(self.steps)
        self.steps.append(step)
        self.labels.append(label or step.name)

    def sole_consumer(self, value: int) -> Node | None:
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 and value != self.program.output else None

    def absorb(self, node: Node) -> int:
        self.fused.add(node.output)
        return node.output

    def norm(self, node: Node, epilogue: Epilogue) -> None:
        mean, var, eps = node.tensors["mean"], node.tensors["var"], node.attrs["eps"]
        channels = self.shapes[mean][0]
        epilogue.gamma = self.tensor(node.tensors.get("weight"))
        epilogue.beta = self.tensor(node.tensors.get("bias"))
        epilogue.mean = self.constant(channels, lambda state: state[mean])
        epilogue.inverse_std = self.constant(
            channels, lambda state: (state[var].double() + eps).rsqrt()
        )

    def activation(self, node: Node, epilogue: Epilogue) -> None:
        if node.op == "scale":
            kind, values = Activation.AFFINE, [node.attrs["a"], node.attrs["b"], 0.0]
        else:
            kind = Activation[node.attrs["kind"].upper()]
            values = [float(node.attrs.get(name, 0.0)) for name in "abc"]
        epilogue.activation = kind
        epilogue.constants = self.constant(3, lambda _: torch.tensor(values)) if any(values) else 0

    def fuse(self, value: int, epilogue: Epilogue, *, norm: bool, add: bool) -> tuple[int, str]:
        """Takes the nodes behind `value` that fit its epilogue: batch_norm, add, activation.

        Returns the program value that comes out, and what was taken in words.
        """
        taken = ""
        follower = self.sole_consumer(value)
        if norm and follower is not None and follower.op == "batch_norm":
            self.norm(follower, epilogue)
            value, taken = self.absorb(follower), taken + ", batch_norm"
            follower = self.sole_consumer(value)
        if add and follower is not None and follower.op == "add":
            other = next((v for v in follower.inputs if v != value), None)
            if other in self.value_of and self.shape(other) == self.shape(value):
                epilogue.residual = self.value_of[other]
                value, taken = self.absorb(follower), taken + ", add"
                follower = self.sole_consumer(value)
        if follower is not None and follower.op in ("activation", "scale"):
            self.activation(follower, epilogue)
            value = self.absorb(follower)
            taken += f", {Activation(epilogue.activation).name.lower()}"
        return value, taken

    def fuse_pool(self, value: int) -> tuple[int, FusedPool]:
        """Takes a pooling over 2x2 windows side by side, if it comes next."""
        node = self.sole_consumer(value)
        if node is None or node.op not in ("max_pool", "avg_pool"):
            return value, FusedPool.NONE
        before, after = (image_shape(self.shape(v), "first") for v in (value, node.output))
        plain = (
            node.attrs["kernel"] == node.attrs["stride"] == (2, 2)
            and paddings(node) == ((0, 0), (0, 0))
            and node.attrs.get("dilation", (1, 1)) == (1, 1)
            and node.attrs.get("divisor") is None
            and after[1:] == (before[1] // 2, before[2] // 2)  # no windows that overhang
        )
        if not plain:
            return value, FusedPool.NONE
        return self.absorb(node), FusedPool.MAX if node.op == "max_pool" else FusedPool.AVERAGE

    # -- operators ---------------------------------------------------------------------------------

    def lower_conv(self, node: Node) -> None:
        source = self.value_of[node.inputs[0]]
        channels, height, width = image_shape(self.shape(node.inputs[0]), "first")
        outputs, out_h, out_w = image_shape(self.shape(node.output), "first")
        groups, (kernel_h, kernel_w) = node.attrs["groups"], node.attrs["kernel"]
        (top, left), _ = paddings(node)  # the other sides show in the shape of the output
        epilogue = Epilogue(bias=self.tensor(node.tensors.get("bias")))
        value, taken = self.fuse(node.output, epilogue, norm=True, add=True)
        pool = FusedPool.NONE
        if epilogue.residual == NONE:
            value, pool = self.fuse_pool(value)
            taken += f", {pool.name.lower()} pool" if pool else ""
        rows = out_h * out_w if not pool else 4 * (out_h // 2) * (out_w // 2)
        out = self.new_value(value)
        (stride_h, stride_w), depth = node.attrs["stride"], channels // groups * kernel_h * kernel_w
        taps = self.index(_taps(channels // groups, (height, width), node.attrs))
        step = records.Convolution(
            source, out, self.tensor(node.tensors["weight"]), epilogue, rows, outputs // groups,
            depth, groups, taps, channels, height, width, out_w, stride_h, stride_w, top, left,
            pool,
        )  # fmt: skip
        self.step(step, self._reads(source, epilogue), out, step.name + taken)

    def lower_linear(self, node: Node) -> None:
        source = self.value_of[node.inputs[0]]
        shape = self.shape(node.output)
        epilogue = Epilogue(bias=self.tensor(node.tensors.get("bias")))
        # batch_norm is over the first dimension, which of several is not the features
        value, taken = self.fuse(node.output, epilogue, norm=len(shape) == 1, add=True)
        out = self.new_value(value)
        depth = self.shape(node.inputs[0])[-1]
        weights = self.tensor(node.tensors["weight"])
        step = records.Linear(source, out, weights, epilogue, prod(shape[:-1]), shape[-1], depth)
        self.step(step, self._reads(source, epilogue), out, step.name + taken)

    def lower_pointwise(self, node: Node) -> None:
        source, epilogue = self.value_of[node.inputs[0]], Epilogue()
        if node.op == "batch_norm":
            self.norm(node, epilogue)
            value, taken = self.fuse(node.output, epilogue, norm=False, add=True)
            label = "batch_norm" + taken
        else:
            self.activation(node, epilogue)
            value, label = node.output, Activation(epilogue.activation).name.lower()
        shape = self.shape(value)
        out = self.new_value(value)
        inner = prod(shape[1:])
        step = records.Pointwise(source, out, inner, epilogue)
        self.step(step, self._reads(source, epilogue), out, label)

    def lower_binary(self, node: Node) -> None:
        left, right = (self.value_of[v] for v in node.inputs)
        epilogue, shape = Epilogue(), self.shape(node.output)
        left_map, right_map = (self._broadcast(self.shape(v), shape) for v in node.inputs)
        value, taken = self.fuse(node.output, epilogue, norm=False, add=False)
        out = self.new_value(value)
        kind = BinaryKind[node.op.upper()]
        step = records.Binary(left, right, out, left_map, right_map, kind, epilogue)
        self.step(step, [left, right], out, node.op + taken)

    def lower_pool(self, node: Node) -> None:
        source = self.value_of[node.inputs[0]]
        before = image_shape(self.shape(node.inputs[0]), "first")
        after = image_shape(self.shape(node.output), "first")
        out = self.new_value(node.output)
        sizes = (source, out, *before, after[1], after[2])
        if node.op == "adaptive_avg_pool":
            return self.step(records.AdaptivePool(*sizes), [source], out)
        (top, left), trailing = paddings(node)
        if (top, left) != trailing:
            raise NotCovered("pads its two sides differently", node.op, node.source)
        options: dict[str, int] = {"pad_h": top, "pad_w": left}
        for name in ("kernel", "stride", "dilation"):
            options[f"{name}_h"], options[f"{name}_w"] = node.attrs.get(name, (1, 1))
        if node.op == "max_pool":
            return self.step(records.MaxPool(*sizes, **options), [source], out)
        options["count_padding"] = int(node.attrs["count_include_pad"])
        options["divisor"] = node.attrs["divisor"] or 0
        self.step(records.AveragePool(*sizes, **options), [source], out)

    def lower_reindex(self, node: Node) -> None:
        """Nothing where only the shape changes; otherwise a copy from each input."""
        index: Tensor = node.attrs["index"]
        sizes = [self.program.values[v].size for v in node.inputs]
        if len(sizes) == 1 and torch.equal(index, torch.arange(sizes[0])):
            self.value_of[node.output] = self.value_of[node.inputs[0]]
            return
        out, start = self.new_value(node.output), 0
        for position, (value, size) in enumerate(zip(node.inputs, sizes, strict=True)):
            mine = (index >= start) & (index < start + size)
            if position == 0:
                mine |= index < 0  # zeros
            to, origin = mine.nonzero().flatten(), index[mine]
            pairs = torch.stack((to, torch.where(origin < 0, -1, origin - start)), 1)
            start += size
            if len(pairs):
                source = self.value_of[value]
                step = records.Gather(source, out, self.index(pairs), len(pairs))
                self.step(step, [source], out, f"gather {len(pairs)} elements")

    def lower_norm(self, node: Node) -> None:
        source, shape = self.value_of[node.inputs[0]], self.shape(node.output)
        out, size = self.new_value(node.output), prod(shape)
        if node.op == "layer_norm":
            modulus, inner = prod(shape[-node.attrs["dims"] :]), 1
            groups = size // modulus
        else:
            modulus, inner, groups = size, prod(shape[1:]), node.attrs["groups"]
        epsilon = self.constant(1, lambda _: torch.tensor([node.attrs["eps"]]))
        weight, bias = (self.tensor(node.tensors.get(role)) for role in ("weight", "bias"))
        step = records.Normalize(source, out, groups, epsilon, weight, bias, modulus, inner)
        self.step(step, [source], out, node.op)

    def lower_log_softmax(self, node: Node) -> None:
        self.value_of[node.output] = self.value_of[node.inputs[0]]  # part of the loss

    def lower_loss(self, loss: LossSpec) -> None:
        value = self.program.output
        shape = self.shape(value)
        if loss.kind == LossKind.CROSS_ENTROPY and len(shape) != 1:
            raise NotCovered(f"cross-entropy of outputs {list(shape)} has no CUDA kernel")
        source, outputs, given = self.value_of[value], prod(shape), loss.weights
        weights = smoothing = NONE
        if given is not None:
            weights = self.constant(outputs, lambda _: given.expand(shape))
        if loss.smoothing:
            smoothing = self.constant(1, lambda _: torch.tensor([loss.smoothing]))
        step = records.Loss(
            source, loss.kind, outputs, weights, smoothing, loss.ignore_index, loss.count_correct
        )
        self.step(step, [source], None, f"loss {loss.kind.name.lower()}")

    def _reads(self, source: int, epilogue: Epilogue) -> list[int]:
        return [source] if epilogue.residual == NONE else [source, epilogue.residual]

    def _broadcast(self, shape: tuple[int, ...], wanted: tuple[int, ...]) -> int:
        if shape == wanted:
            return NONE
        return self.index(torch.arange(prod(shape)).view(shape).expand(wanted))

    # -- the plan ----------------------------------------------------------------------------------

    def plan(self, space: ParameterSpace) -> CudaPlan:
        row = self._assign_memory()
        first, first_outputs = self.steps[0], 0
        linear_first = (
            isinstance(first, records.Linear)
            and first.input == 0
            and first.epilogue.residual == NONE
        )
        if isinstance(first, records.Linear) and linear_first:
            first_outputs = self.values[first.out].size
        head = records.Head(row, self.packed, linear_first, len(self.values), len(self.steps))
        parts: list[Any] = [head, *(records.Value(v.offset, v.size) for v in self.values)]
        flat = [n for part in parts for n in numbers(part)]
        flat += [n for step in self.steps for n in step.numbers()]
        empty = torch.zeros(0, dtype=torch.int32)
        return CudaPlan(
            numbers=torch.tensor(flat, dtype=torch.int64),
            indices=torch.cat([*self.indices, empty]),
            row=row,
            packed=self.packed,
            linear_first=linear_first,
            first_outputs=first_outputs,
            sizes=[value.size for value in self.values],
            origins=self._origins(space),
            records=self.steps,
            steps=self.labels,
            _tensors=self.tensors,
            _constants=self.constants,
        )

    def _origins(self, space: ParameterSpace) -> Tensor:
        moved = dict(zip((e.name for e in space.entries), space.entries, strict=True))
        first = dict(zip(moved, space.filter_slices(), strict=True))
        rows = []
        for name, offset in self.tensors.items():
            if name in moved:
                entry = moved[name]
                assert entry.blocks == 1  # several only in transposed convolutions, not covered
                rows.append((offset, entry.offset, entry.rows, entry.inner, first[name].start))
            else:
                rows.append((offset, 0, 1, max(1, prod(self.shapes[name])), space.filters))
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)

    def _assign_memory(self) -> int:
        """The lowest place for each activation beside those alive with it; floats per row."""
        placed: list[_Value] = []
        for value in sorted(self.values[1:], key=lambda v: -v.size):
            alive = [v for v in placed if v.first <= value.last and value.first <= v.last]
            value.offset = 0
            for other in sorted(alive, key=lambda v: v.offset):
                if value.offset + value.size <= other.offset:
                    break
                value.offset = max(value.offset, other.offset + other.size)
            placed.append(value)
        return max((v.offset + v.size for v in placed), default=0)


def _taps(channels: int, image: tuple[int, int], attrs: Mapping[str, Any]) -> Tensor:
    """(element, dy, dx) of every position of a window, in the order of the weights."""
    (kernel_h, kernel_w), (dilation_h, dilation_w) = attrs["kernel"], attrs["dilation"]
    channel, dy, dx = torch.meshgrid(
        torch.arange(channels),
        torch.arange(kernel_h) * dilation_h,
        torch.arange(kernel_w) * dilation_w,
        indexing="ij",
    )
    element = channel * image[0] * image[1] + dy * image[1] + dx
    return torch.stack((element, dy, dx), -1)


_OPERATORS: Mapping[str, Callable[[_Planner, Node], None]] = {
    "conv": _Planner.lower_conv,
    "linear": _Planner.lower_linear,
    "batch_norm": _Planner.lower_pointwise,
    "activation": _Planner.lower_pointwise,
    "scale": _Planner.lower_pointwise,
    "add": _Planner.lower_binary,
    "sub": _Planner.lower_binary,
    "mul": _Planner.lower_binary,
    "max_pool": _Planner.lower_pool,
    "avg_pool": _Planner.lower_pool,
    "adaptive_avg_pool": _Planner.lower_pool,
    "reindex": _Planner.lower_reindex,
    "layer_norm": _Planner.lower_norm,
    "group_norm": _Planner.lower_norm,
    "log_softmax": _Planner.lower_log_softmax,
}
