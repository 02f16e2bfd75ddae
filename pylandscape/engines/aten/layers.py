"""Layers with parameters: convolutions, linear layers, norms."""

from collections.abc import Sequence
from typing import Any

from pylandscape.engines.aten.registry import Pair, lowers, pair, per_axis, rank_of
from pylandscape.engines.builder import MIXES, Builder, Call, Parameter, View


@lowers("conv1d", "conv2d")
def _convolution(build: Builder, call: Call) -> View:
    x, rank = call.input, rank_of(call)
    tensors = call.tensors(weight="weight", bias="bias")
    kernel = call["weight"].shape[2:]
    dilation = per_axis(call["dilation"], rank)
    pads = _padding_of(call["padding"], kernel, dilation)
    if x.unpadded is not None and len(x.unpadded[1]) <= rank:
        x, zeros = x.unpadded
        zeros = ((0, 0),) * (rank - len(zeros)) + zeros
        pads = [(p[0] + z[0], p[1] + z[1]) for p, z in zip(pads, zeros, strict=True)]
    pads = [(0, 0)] * (2 - rank) + pads
    symmetric = all(before == after for before, after in pads)
    attrs = {
        "kernel": pair(kernel, 1),
        "stride": pair(per_axis(call["stride"], rank), 1),
        "padding": tuple(before for before, _ in pads) if symmetric else tuple(pads),
        "dilation": pair(dilation, 1),
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
    return [(p, p) for p in per_axis(padding, len(kernel))]


@lowers("linear")
def _linear(build: Builder, call: Call) -> View:
    x = call.input
    call.require(len(x.shape) > 0, MIXES)
    return build.emit(call, "linear", [x], tensors=call.tensors(weight="weight", bias="bias"))


@lowers("addmm", "mm", "matmul")
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


@lowers("_native_batch_norm_legit_no_training")
def _batch_norm(build: Builder, call: Call) -> list[View | None]:
    return [_normalise_by_running(build, call), None, None]


@lowers("_native_batch_norm_legit")
def _training_batch_norm(build: Builder, call: Call) -> View:
    raise call.not_covered("normalises with the statistics of a batch")


def _normalise_by_running(build: Builder, call: Call) -> View:
    x = call.input
    call.require(1 <= len(x.shape) <= 3, "has no native kernel for three-dimensional images")
    tensors = call.tensors(mean="running_mean", var="running_var", weight="weight", bias="bias")
    return build.emit(call, "batch_norm", [x], {"eps": call["eps"]}, tensors)


@lowers("instance_norm")
def _instance_norm(build: Builder, call: Call) -> View:
    if not call["use_input_stats"]:
        return _normalise_by_running(build, call)
    attrs = {"groups": call.input.shape[0], "eps": call["eps"]}
    tensors = call.tensors(weight="weight", bias="bias")
    return build.emit(call, "group_norm", [call.input], attrs, tensors)


@lowers("group_norm")
def _group_norm(build: Builder, call: Call) -> View:
    attrs = {"groups": call["num_groups"], "eps": call["eps"]}
    tensors = call.tensors(weight="weight", bias="bias")
    return build.emit(call, "group_norm", [call.input], attrs, tensors)


@lowers("layer_norm")
def _layer_norm(build: Builder, call: Call) -> View:
    dims = len(call["normalized_shape"])
    call.require(dims <= len(call.input.shape), MIXES)
    tensors = call.tensors(weight="weight", bias="bias")
    return build.emit(call, "layer_norm", [call.input], {"dims": dims, "eps": call["eps"]}, tensors)
