"""What only moves elements, or does nothing."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pylandscape.engines.aten.registry import lowers, number
from pylandscape.engines.builder import Builder, Call, Constant, Parameter, View


@lowers(
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
        matrices = {True: numbers.T, False: numbers}  # one element counts as transposed
        moved = call.target(matrices[parameter.transposed], *call.args[1:], **call.kwargs)
        for transposed, matrix in matrices.items():
            if torch.equal(moved, matrix):
                return replace(parameter, transposed=transposed)
    raise call.misuse(parameter)


@lowers("pad", "constant_pad_nd")
def _pad(build: Builder, call: Call) -> View:
    constant = call.get("mode", "constant") == "constant"
    zero = number(call.get("value")) in (None, 0)
    call.require(zero or not constant, "pads with a value other than zero")
    out: View = _movement(build, call)
    pads = call["pad"]
    if constant and min(pads, default=0) >= 0:
        axes = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
        out.unpadded = (call.input, tuple(reversed(axes)))
    return out


@lowers("clone", "detach", "alias", "contiguous", "_to_copy")
def _same(build: Builder, call: Call) -> Any:
    return call.args[0]


@lowers("dropout", "native_dropout", "feature_dropout", "alpha_dropout")
def _dropout(build: Builder, call: Call) -> Any:
    raise call.not_covered("draws random numbers, outside of training too")
