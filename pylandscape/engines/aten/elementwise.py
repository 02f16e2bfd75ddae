"""Activations and arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

from pylandscape.engines.aten.registry import Lowering, affine, lowers, number
from pylandscape.engines.builder import MIXES, Builder, Call, View


def _activation(kind: str, *arguments: str) -> Lowering:
    """The activation `kind` with a, b, c the arguments of these names."""

    def lower(build: Builder, call: Call) -> View:
        constants = dict(zip("abc", (float(call[name]) for name in arguments), strict=False))
        return build.emit(call, "activation", [call.input], {"kind": kind, **constants})

    return lower


for _kind in ("relu", "silu", "tanh", "sigmoid", "hardswish", "hardsigmoid"):
    lowers(_kind)(_activation(_kind))
lowers("leaky_relu")(_activation("leaky_relu", "negative_slope"))
lowers("elu")(_activation("elu", "alpha", "scale", "input_scale"))
lowers("softplus")(_activation("softplus", "beta", "threshold"))

# The constants of Klambauer et al. (2017), to double precision.
_SELU = {"a": 1.6732632423543772, "b": 1.0507009873554805, "c": 1.0}


@lowers("selu")
def _selu(build: Builder, call: Call) -> View:
    return build.emit(call, "activation", [call.input], {"kind": "elu", **_SELU})


@lowers("celu")
def _celu(build: Builder, call: Call) -> View:
    alpha = float(call["alpha"])
    attrs = {"kind": "elu", "a": alpha, "b": 1.0, "c": 1 / alpha}
    return build.emit(call, "activation", [call.input], attrs)


@lowers("gelu")
def _gelu(build: Builder, call: Call) -> View:
    kind = "gelu_tanh" if call["approximate"] == "tanh" else "gelu"
    return build.emit(call, "activation", [call.input], {"kind": kind})


@lowers("relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max")
def _clamp(build: Builder, call: Call) -> View:
    if call.name == "aten.relu6":
        low, high = 0.0, 6.0
    else:
        low = _bound(call, ("min_val", "min"), -math.inf)
        high = _bound(call, ("max_val", "max"), math.inf)
    attrs: dict[str, Any] = {"kind": "hardtanh", "a": low, "b": high}
    if (low, high) == (0, math.inf):
        attrs = {"kind": "relu"}
    return build.emit(call, "activation", [call.input], attrs)


def _bound(call: Call, names: Sequence[str], otherwise: float) -> float:
    bound = next((call.get(name) for name in names if call.get(name) is not None), otherwise)
    value = number(bound)
    if value is None:
        raise call.not_covered("takes bounds that are no numbers")
    return value


@lowers("rrelu")
def _rrelu(build: Builder, call: Call) -> View:
    call.require(not call["training"], "draws random numbers")
    slope = (float(call["lower"]) + float(call["upper"])) / 2
    return build.emit(call, "activation", [call.input], {"kind": "leaky_relu", "a": slope})


@lowers("log_sigmoid")
def _log_sigmoid(build: Builder, call: Call) -> View:
    """-softplus(-x)."""
    softplus = {"kind": "softplus", "a": 1.0, "b": 20.0}
    x = build.emit(call, "activation", [affine(build, call, call.input, -1, 0)], softplus)
    return affine(build, call, x, -1, 0)


@lowers("mish")
def _mish(build: Builder, call: Call) -> View:
    """x tanh(softplus(x))."""
    x = call.input
    gate = build.emit(call, "activation", [x], {"kind": "softplus", "a": 1.0, "b": 20.0})
    gate = build.emit(call, "activation", [gate], {"kind": "tanh"})
    return build.emit(call, "mul", [x, gate])


def _operands(call: Call) -> tuple[View | float, View | float]:
    return _operand(call, "self"), _operand(call, "other")


def _operand(call: Call, name: str) -> View | float:
    value = number(call[name])
    return call.view(call[name]) if value is None else value


def _combine(build: Builder, call: Call, op: str, left: View, right: View) -> View:
    # with as many dimensions the two batch dimensions meet; otherwise samples meet other axes
    call.require(len(left.shape) == len(right.shape), MIXES)
    return build.emit(call, op, [left, right])


@lowers("add", "sub", "subtract", "rsub")
def _add(build: Builder, call: Call) -> View:
    left, right = _operands(call)
    alpha = float(call["alpha"])
    if call.name == "aten.rsub":
        left, right = right, left
    sign = 1 if call.name == "aten.add" else -1
    if isinstance(right, float):
        return affine(build, call, call.view(left), 1, sign * alpha * right)
    if isinstance(left, float):
        return affine(build, call, right, sign * alpha, left)
    right = affine(build, call, right, alpha, 0)
    return _combine(build, call, "add" if sign > 0 else "sub", left, right)


@lowers("mul", "multiply")
def _multiply(build: Builder, call: Call) -> View:
    left, right = _operands(call)
    if isinstance(right, float):
        return affine(build, call, call.view(left), right, 0)
    if isinstance(left, float):
        return affine(build, call, right, left, 0)
    return _combine(build, call, "mul", left, right)


@lowers("div", "divide", "true_divide")
def _divide(build: Builder, call: Call) -> View:
    _, divisor = _operands(call)
    call.require(call.get("rounding_mode") is None, "rounds")
    if not isinstance(divisor, float) or divisor == 0:
        raise call.not_covered("divides by something other than a number, not zero")
    return affine(build, call, call.input, 1 / divisor, 0)


@lowers("neg", "negative")
def _negate(build: Builder, call: Call) -> View:
    return affine(build, call, call.input, -1, 0)


@lowers("square", "pow")
def _square(build: Builder, call: Call) -> View:
    exponent = number(call.get("exponent", 2))
    call.require(exponent == 2, "has a native kernel for squares only")
    return build.emit(call, "mul", [call.input, call.input])


@lowers("log_softmax", "_log_softmax")
def _log_softmax(build: Builder, call: Call) -> View:
    axis = call["dim"] % len(call.shape)
    call.require(axis == 1, "has a native kernel for dimension 1, the classes, only")
    return build.emit(call, "log_softmax", [call.input])
