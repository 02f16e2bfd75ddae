"""Pooling, and reductions as a pooling of the whole image."""

import math
from typing import Any

from torch import Tensor

from pylandscape.engines.aten.registry import Pair, affine, lowers, pair, per_axis, rank_of
from pylandscape.engines.builder import MIXES, Builder, Call, View


@lowers("max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices")
def _max_pool(build: Builder, call: Call) -> Any:
    attrs = {**_window(call), "dilation": pair(per_axis(call["dilation"], rank_of(call)), 1)}
    out = build.emit(call, "max_pool", [call.input], attrs)
    return [out, None] if call.name.endswith("indices") else out


@lowers("avg_pool1d", "avg_pool2d")
def _avg_pool(build: Builder, call: Call) -> View:
    attrs = {
        **_window(call),
        "count_include_pad": call["count_include_pad"],
        "divisor": call.get("divisor_override"),
    }
    return build.emit(call, "avg_pool", [call.input], attrs)


def _window(call: Call) -> dict[str, Pair]:
    rank = rank_of(call)
    kernel = per_axis(call["kernel_size"], rank)
    stride = per_axis(call["stride"] or kernel, rank)
    padding = per_axis(call["padding"], rank)
    return {"kernel": pair(kernel, 1), "stride": pair(stride, 1), "padding": pair(padding, 0)}


@lowers("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(build: Builder, call: Call) -> View:
    rank = rank_of(call)
    size = pair(call.shape[-rank:], 1)
    return build.emit(call, "adaptive_avg_pool", [call.input], {"size": size})


@lowers("adaptive_max_pool1d", "adaptive_max_pool2d")
def _adaptive_max_pool(build: Builder, call: Call) -> list[View | None]:
    rank = rank_of(call)
    sizes = list(zip(call.input.shape[-rank:], call.shape[-rank:], strict=True))
    even = all(size % windows == 0 for size, windows in sizes)
    call.require(even, "has a native kernel for windows of one size only")
    kernel = pair([size // windows for size, windows in sizes], 1)
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0), "dilation": (1, 1)}
    return [build.emit(call, "max_pool", [call.input], attrs), None]


@lowers("mean", "sum", "amax")
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
        whole = pair(x.shape[1:], 1)
        attrs = {"kernel": whole, "stride": whole, "padding": (0, 0), "dilation": (1, 1)}
        y = build.emit(call, "max_pool", [x], attrs, shape=pooled)
    else:
        y = build.emit(call, "adaptive_avg_pool", [x], {"size": (1, 1)}, shape=pooled)
    if call.name == "aten.sum":
        y = affine(build, call, y, count, 0)
    return build.move(call, lambda t: t.reshape(call.shape), y)
