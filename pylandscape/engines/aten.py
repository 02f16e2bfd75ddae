"""From aten operators to nodes of a Program: one function per kind of operator.

A function gets the Builder and the Call and gives the entry for the operator's output, or a list of
entries where it has several. What is not in `LOWERINGS` has no native kernel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pylandscape.engines.builder import MIXES, Builder, Call, Constant, Parameter, View

Lowering = Callable[[Builder, Call], Any]
LOWERINGS: dict[str, Lowering] = {}

Pair = tuple[int, int]


def _lowers(*names: str) -> Callable[[Lowering], Lowering]:
    def register(function: Lowering) -> Lowering:
        LOWERINGS.update({f"aten.{name}": function for name in names})
        return function

    return register


# -- layers with parameters ----------------------------------------------------------------------


@_lowers("conv1d", "conv2d")
def _convolution(build: Builder, call: Call) -> View:
    x, rank = call.input, _rank(call)
    tensors = call.tensors(weight="weight", bias="bias")
    kernel = call["weight"].shape[2:]
    dilation = _each(call["dilation"], rank)
    pads = _padding_of(call["padding"], kernel, dilation)
    if x.unpadded is not None and len(x.unpadded[1]) <= rank:
        x, zeros = x.unpadded
        zeros = ((0, 0),) * (rank - len(zeros)) + zeros
        pads = [(p[0] + z[0], p[1] + z[1]) for p, z in zip(pads, zeros, strict=True)]
    pads = [(0, 0)] * (2 - rank) + pads
    symmetric = all(before == after for before, after in pads)
    attrs = {
        "kernel": _pair(kernel, 1),
        "stride": _pair(_each(call["stride"], rank), 1),
        "padding": tuple(before for before, _ in pads) if symmetric else tuple(pads),
        "dilation": _pair(dilation, 1),
        "groups": call["groups"],
    }
    return build.emit(call, "conv", [x], attrs, tensors)


def _padding_of(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[Pair]:
    """Zeros before and after the image, per axis, of `valid`, `same` or numbers."""
    if padding == "valid":
        return [(0, 0) for _ in kernel]
    if padding == "same":  # the odd one goes behind
        overlap = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in overlap]
    return [(p, p) for p in _each(padding, len(kernel))]


@_lowers("linear")
def _linear(build: Builder, call: Call) -> View:
    x = call.input
    call.require(len(x.shape) > 0, MIXES)
    return build.emit(call, "linear", [x], tensors=call.tensors(weight="weight", bias="bias"))


@_lowers("addmm", "mm", "matmul")
def _matrix_product(build: Builder, call: Call) -> View:
    """x W^T + b: how models write a linear layer by hand."""
    with_bias = call.name == "aten.addmm"
    x, weight = call.args[1:3] if with_bias else call.args[:2]
    if isinstance(x, View) and isinstance(weight, View):
        raise call.not_covered("multiplies two activations, which has no native kernel")
    x = call.view(x)
    call.require(isinstance(weight, Parameter), "takes a constant in place of a parameter")
    call.require(
        weight.transposed and len(x.shape) > 0,
        f"uses {weight.name!r} as [in, out]; the native kernel takes linear(x, weight) with "
        "weight [out, in]",
    )
    tensors = {"weight": weight.name}
    if with_bias:
        bias = call["self"]
        plain = isinstance(bias, Parameter) and bias.shape == weight.shape[:1]
        call.require(plain, "takes a bias that is not a parameter [out]")
        call.require(call["alpha"] == 1 and call["beta"] == 1, "scales its operands")
        tensors["bias"] = bias.name
    return build.emit(call, "linear", [x], tensors=tensors)


@_lowers("_native_batch_norm_legit_no_training")
def _batch_norm(build: Builder, call: Call) -> list[View | None]:
    return [_normalise_by_running(build, call), None, None]


@_lowers("_native_batch_norm_legit")
def _training_batch_norm(build: Builder, call: Call) -> View:
    raise call.not_covered("normalises with the statistics of a batch")


def _normalise_by_running(build: Builder, call: Call) -> View:
    x = call.input
    call.require(1 <= len(x.shape) <= 3, "has no native kernel for three-dimensional images")
    tensors = call.tensors(mean="running_mean", var="running_var", weight="weight", bias="bias")
    return build.emit(call, "batch_norm", [x], {"eps": call["eps"]}, tensors)


@_lowers("instance_norm")
def _instance_norm(build: Builder, call: Call) -> View:
    if not call["use_input_stats"]:
        return _normalise_by_running(build, call)
    attrs = {"groups": call.input.shape[0], "eps": call["eps"]}
    tensors = call.tensors(weight="weight", bias="bias")
    return build.emit(call, "group_norm", [call.input], attrs, tensors)


@_lowers("group_norm")
def _group_norm(build: Builder, call: Call) -> View:
    attrs = {"groups": call["num_groups"], "eps": call["eps"]}
    tensors = call.tensors(weight="weight", bias="bias")
    return build.emit(call, "group_norm", [call.input], attrs, tensors)


@_lowers("layer_norm")
def _layer_norm(build: Builder, call: Call) -> View:
    dims = len(call["normalized_shape"])
    call.require(dims <= len(call.input.shape), MIXES)
    tensors = call.tensors(weight="weight", bias="bias")
    return build.emit(call, "layer_norm", [call.input], {"dims": dims, "eps": call["eps"]}, tensors)


# -- elementwise ---------------------------------------------------------------------------------


def _activation(kind: str, *arguments: str) -> Lowering:
    """The activation `kind` with a, b, c the arguments of these names."""

    def lower(build: Builder, call: Call) -> View:
        constants = dict(zip("abc", (float(call[name]) for name in arguments), strict=False))
        return build.emit(call, "activation", [call.input], {"kind": kind, **constants})

    return lower


for _kind in ("relu", "silu", "tanh", "sigmoid", "hardswish", "hardsigmoid"):
    _lowers(_kind)(_activation(_kind))
_lowers("leaky_relu")(_activation("leaky_relu", "negative_slope"))
_lowers("elu")(_activation("elu", "alpha", "scale", "input_scale"))
_lowers("softplus")(_activation("softplus", "beta", "threshold"))

# The constants of Klambauer et al. (2017), to double precision.
_SELU = {"a": 1.6732632423543772, "b": 1.0507009873554805, "c": 1.0}


@_lowers("selu")
def _selu(build: Builder, call: Call) -> View:
    return build.emit(call, "activation", [call.input], {"kind": "elu", **_SELU})


@_lowers("celu")
def _celu(build: Builder, call: Call) -> View:
    alpha = float(call["alpha"])
    attrs = {"kind": "elu", "a": alpha, "b": 1.0, "c": 1 / alpha}
    return build.emit(call, "activation", [call.input], attrs)


@_lowers("gelu")
def _gelu(build: Builder, call: Call) -> View:
    kind = "gelu_tanh" if call["approximate"] == "tanh" else "gelu"
    return build.emit(call, "activation", [call.input], {"kind": kind})


@_lowers("relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max")
def _clamp(build: Builder, call: Call) -> View:
    if call.name == "aten.relu6":
        low, high = 0.0, 6.0
    else:
        low = _bound(call, ("min_val", "min"), -math.inf)
        high = _bound(call, ("max_val", "max"), math.inf)
    attrs: dict[str, Any] = {"kind": "hardtanh", "a": low, "b": high}
    return build.emit(
        call,
        "activation",
        [call.input],
        {"kind": "relu"} if (low, high) == (0, math.inf) else attrs,
    )


def _bound(call: Call, names: Sequence[str], otherwise: float) -> float:
    bound = next((call.get(name) for name in names if call.get(name) is not None), otherwise)
    number = _number(bound)
    if number is None:
        raise call.not_covered("takes bounds that are no numbers")
    return number


@_lowers("rrelu")
def _rrelu(build: Builder, call: Call) -> View:
    call.require(not call["training"], "draws random numbers")
    slope = (float(call["lower"]) + float(call["upper"])) / 2
    return build.emit(call, "activation", [call.input], {"kind": "leaky_relu", "a": slope})


@_lowers("log_sigmoid")
def _log_sigmoid(build: Builder, call: Call) -> View:
    """-softplus(-x)."""
    softplus = {"kind": "softplus", "a": 1.0, "b": 20.0}
    x = build.emit(call, "activation", [_affine(build, call, call.input, -1, 0)], softplus)
    return _affine(build, call, x, -1, 0)


@_lowers("mish")
def _mish(build: Builder, call: Call) -> View:
    """x tanh(softplus(x))."""
    x = call.input
    gate = build.emit(call, "activation", [x], {"kind": "softplus", "a": 1.0, "b": 20.0})
    gate = build.emit(call, "activation", [gate], {"kind": "tanh"})
    return build.emit(call, "mul", [x, gate])


# -- arithmetic ----------------------------------------------------------------------------------


def _number(entry: Any) -> float | None:
    """The value of a scalar argument: a Python number or a constant tensor of one element."""
    if isinstance(entry, Constant) and entry.tensor.numel() == 1 and entry.tensor.ndim <= 1:
        return float(entry.tensor)
    return float(entry) if isinstance(entry, (int, float)) else None


def _operands(call: Call) -> tuple[View | float, View | float]:
    left, right = (entry if (n := _number(entry)) is None else n
                   for entry in (call["self"], call["other"]))  # fmt: skip
    return tuple(x if isinstance(x, float) else call.view(x) for x in (left, right))  # type: ignore[return-value]


def _affine(build: Builder, call: Call, x: View, a: float, b: float) -> View:
    """a x + b."""
    if (a, b) == (1, 0):
        return x
    return build.emit(call, "scale", [x], {"a": float(a), "b": float(b)}, shape=x.shape)


def _combine(build: Builder, call: Call, op: str, left: View, right: View) -> View:
    # with as many dimensions the two batch dimensions meet; otherwise samples meet other axes
    call.require(len(left.shape) == len(right.shape), MIXES)
    return build.emit(call, op, [left, right])


@_lowers("add", "sub", "subtract", "rsub")
def _add(build: Builder, call: Call) -> View:
    left, right = _operands(call)
    alpha = float(call["alpha"])
    if call.name == "aten.rsub":
        left, right = right, left
    sign = 1 if call.name == "aten.add" else -1
    if isinstance(right, float):
        return _affine(build, call, call.view(left), 1, sign * alpha * right)
    if isinstance(left, float):
        return _affine(build, call, right, sign * alpha, left)
    right = _affine(build, call, right, alpha, 0)
    return _combine(build, call, "add" if sign > 0 else "sub", left, right)


@_lowers("mul", "multiply")
def _multiply(build: Builder, call: Call) -> View:
    left, right = _operands(call)
    if isinstance(right, float):
        return _affine(build, call, call.view(left), right, 0)
    if isinstance(left, float):
        return _affine(build, call, right, left, 0)
    return _combine(build, call, "mul", left, right)


@_lowers("div", "divide", "true_divide")
def _divide(build: Builder, call: Call) -> View:
    _, divisor = _operands(call)
    call.require(call.get("rounding_mode") is None, "rounds")
    if not isinstance(divisor, float) or divisor == 0:
        raise call.not_covered("divides by something other than a number, not zero")
    return _affine(build, call, call.input, 1 / divisor, 0)


@_lowers("neg", "negative")
def _negate(build: Builder, call: Call) -> View:
    return _affine(build, call, call.input, -1, 0)


@_lowers("square", "pow")
def _square(build: Builder, call: Call) -> View:
    exponent = _number(call.get("exponent", 2))
    call.require(exponent == 2, "has a native kernel for squares only")
    return build.emit(call, "mul", [call.input, call.input])


@_lowers("log_softmax", "_log_softmax")
def _log_softmax(build: Builder, call: Call) -> View:
    axis = call["dim"] % len(call.shape)
    call.require(axis == 1, "has a native kernel for dimension 1, the classes, only")
    return build.emit(call, "log_softmax", [call.input])


# -- pooling and reductions ----------------------------------------------------------------------


@_lowers("max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices")
def _max_pool(build: Builder, call: Call) -> Any:
    attrs = {**_window(call), "dilation": _pair(_each(call["dilation"], _rank(call)), 1)}
    out = build.emit(call, "max_pool", [call.input], attrs)
    return [out, None] if call.name.endswith("indices") else out


@_lowers("avg_pool1d", "avg_pool2d")
def _avg_pool(build: Builder, call: Call) -> View:
    attrs = {
        **_window(call),
        "count_include_pad": call["count_include_pad"],
        "divisor": call.get("divisor_override"),
    }
    return build.emit(call, "avg_pool", [call.input], attrs)


def _window(call: Call) -> dict[str, Pair]:
    rank = _rank(call)
    kernel = _each(call["kernel_size"], rank)
    stride = _each(call["stride"] or kernel, rank)
    padding = _each(call["padding"], rank)
    return {"kernel": _pair(kernel, 1), "stride": _pair(stride, 1), "padding": _pair(padding, 0)}


@_lowers("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(build: Builder, call: Call) -> View:
    rank = _rank(call)
    size = _pair(call.shape[-rank:], 1)
    return build.emit(call, "adaptive_avg_pool", [call.input], {"size": size})


@_lowers("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(build: Builder, call: Call) -> list[View | None]:
    rank = _rank(call)
    sizes = list(zip(call.input.shape[-rank:], call.shape[-rank:], strict=True))
    even = all(size % windows == 0 for size, windows in sizes)
    call.require(even, "has a native kernel for windows of one size only")
    kernel = _pair([size // windows for size, windows in sizes], 1)
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0), "dilation": (1, 1)}
    return [build.emit(call, "max_pool", [call.input], attrs), None]


@_lowers("mean", "sum", "amax")
def _reduce(build: Builder, call: Call) -> View:
    """Over any axes but the batch, as a pooling of the whole image."""
    x = call.input
    call.require(call.get("dtype") is None, "changes the dtype")
    dims = call.get("dim") or []  # none: all
    axes = {dim % (len(x.shape) + 1) for dim in dims}
    call.require(bool(axes) and 0 not in axes, MIXES)
    kept = [axis for axis in range(1, len(x.shape) + 1) if axis not in axes]
    count = math.prod(x.shape[axis - 1] for axis in axes)

    def as_channels(t: Tensor) -> Tensor:
        return t.permute(0, *kept, *sorted(axes)).reshape(len(t), -1, count)

    if not (len(x.shape) == 3 and kept == [1]):  # [C, H, W] is an image as it stands
        x = build.move(call, as_channels, x)
    pooled = (x.shape[0], *(1 for _ in x.shape[1:]))
    if call.name == "aten.amax":
        whole = _pair(x.shape[1:], 1)
        attrs = {"kernel": whole, "stride": whole, "padding": (0, 0), "dilation": (1, 1)}
        y = build.emit(call, "max_pool", [x], attrs, shape=pooled)
    else:
        y = build.emit(call, "adaptive_avg_pool", [x], {"size": (1, 1)}, shape=pooled)
    if call.name == "aten.sum":
        y = _affine(build, call, y, count, 0)
    return build.move(call, lambda t: t.reshape(call.shape), y)


# -- data movement -------------------------------------------------------------------------------


@_lowers(
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("permute", "transpose", "t", "numpy_T", "movedim", "moveaxis", "swapaxes", "swapdims"),
    *("slice", "select", "narrow", "index", "index_select", "flip", "roll"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"),
    *("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unfold", "im2col"),
    *("unsafe_split", "unsafe_split_with_sizes"),
    *("expand", "repeat", "tile", "repeat_interleave"),
    *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
    *("upsample_nearest1d", "upsample_nearest2d"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
)
def _movement(build: Builder, call: Call) -> Any:
    if isinstance(call.args[0], Parameter):
        return _transposed(call, call.args[0])
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    leaves = [leaf.tensor.cpu() if isinstance(leaf, Constant) else leaf for leaf in leaves]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, (View, Parameter))]
    views = [call.view(leaves[place]) for place in places]

    def run(*numbers: Tensor) -> Any:
        for place, tensor in zip(places, numbers, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return call.target(*args, **kwargs)

    return build.move(call, run, *views)


def _transposed(call: Call, parameter: Parameter) -> Parameter:
    """A parameter matrix transposed, the one thing that a linear layer by hand does to it."""
    if len(parameter.shape) == 2:
        numbers = torch.arange(math.prod(parameter.shape)).view(parameter.shape)
        matrices = {False: numbers, True: numbers.T}
        moved = call.target(matrices[parameter.transposed], *call.args[1:], **call.kwargs)
        for transposed, matrix in matrices.items():
            if torch.equal(moved, matrix):
                return replace(parameter, transposed=transposed)
    raise call.misuse(parameter)


@_lowers("pad", "constant_pad_nd")
def _pad(build: Builder, call: Call) -> View:
    constant = call.get("mode", "constant") == "constant"
    zero = _number(call.get("value")) in (None, 0)
    call.require(zero or not constant, "pads with a value other than zero")
    out: View = _movement(build, call)
    pads = call["pad"]
    if constant and min(pads) >= 0:
        axes = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
        out.unpadded = (call.input, tuple(reversed(axes)))
    return out


@_lowers("clone", "detach", "alias", "contiguous", "_to_copy")
def _same(build: Builder, call: Call) -> Any:
    return call.args[0]


@_lowers("dropout", "native_dropout", "feature_dropout", "alpha_dropout")
def _dropout(build: Builder, call: Call) -> Any:
    raise call.not_covered("draws random numbers, outside of training too")


# -- sizes ---------------------------------------------------------------------------------------


def _rank(call: Call) -> int:
    """Spatial dimensions of an operator such as conv1d, whose input must have a batch dimension."""
    rank = 1 if "1d" in call.name else 2
    call.require(len(call.shape) == rank + 2, MIXES)
    return rank


def _each(value: int | Sequence[int], rank: int) -> list[int]:
    """One number per axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _pair(values: Sequence[int], fill: int) -> Pair:
    """(height, width); what has no height gets `fill`."""
    height, width = values if len(values) == 2 else (fill, values[0])
    return height, width
