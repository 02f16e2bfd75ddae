"""A naive interpreter of Programs, one function per operator: the reference for native engines."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pylandscape.engines.program import Program

Attrs = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def state_of(model: nn.Module, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Parameters and buffers by their first names."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {k: t.detach().to(dtype) if t.is_floating_point() else t for k, t in named}


def run_program(program: Program, state: Tensors, inputs: Tensor) -> Tensor:
    """The output [B, ...] for inputs [B, ...], in the precision of the inputs."""
    values: dict[int, Tensor] = {program.input: inputs}
    assert inputs.shape[1:] == program.values[program.input].shape
    for node in program.nodes:
        tensors = {role: state[name] for role, name in node.tensors.items()}
        shape = program.values[node.output].shape
        arguments = [values[value] for value in node.inputs]
        out = _OPERATORS[node.op](arguments, {**node.attrs, "shape": shape}, tensors)
        assert out.shape == (len(inputs), *shape), (node, out.shape)
        values[node.output] = out
    return values[program.output]


def _conv(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    """As a sum over kernel positions of strided slices of the padded image."""
    (x,), weight = xs, tensors["weight"]
    flat = x.ndim == 3
    image = x.unsqueeze(2) if flat else x
    weight = weight.unsqueeze(2) if flat else weight
    (top, bottom), (left, right) = (p if isinstance(p, tuple) else (p, p) for p in attrs["padding"])
    image = F.pad(image, (left, right, top, bottom))
    (kh, kw), (sh, sw), (dh, dw) = attrs["kernel"], attrs["stride"], attrs["dilation"]
    groups, height, width = (
        attrs["groups"],
        attrs["shape"][1] if not flat else 1,
        attrs["shape"][-1],
    )
    image = image.unflatten(1, (groups, -1))
    weight = weight.unflatten(0, (groups, -1))
    out = torch.zeros(len(x), attrs["shape"][0], height, width, dtype=x.dtype)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + sh * (height - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (width - 1) + 1, sw)
            part = torch.einsum("bgchw,gkc->bgkhw", image[..., rows, columns], weight[..., i, j])
            out += part.flatten(1, 2)
    if "bias" in tensors:
        out += tensors["bias"][:, None, None]
    return out.squeeze(2) if flat else out


def _linear(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    out = torch.einsum("...i,oi->...o", xs[0], tensors["weight"])
    return out + tensors["bias"] if "bias" in tensors else out


def _batch_norm(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    (x,) = xs
    shape = (-1, *(1 for _ in x.shape[2:]))
    mean, var = tensors["mean"].view(shape), tensors["var"].view(shape)
    return _affine((x - mean) / (var + attrs["eps"]).sqrt(), tensors, shape)


def _layer_norm(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    (x,) = xs
    dims = tuple(range(-attrs["dims"], 0))
    return _affine(_standard(x, dims, attrs["eps"]), tensors, x.shape[-attrs["dims"] :])


def _group_norm(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    (x,) = xs
    grouped = x.reshape(len(x), attrs["groups"], -1)
    out = _standard(grouped, (2,), attrs["eps"]).view_as(x)
    return _affine(out, tensors, (-1, *(1 for _ in x.shape[2:])))


def _standard(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def _affine(x: Tensor, tensors: Tensors, shape: Any) -> Tensor:
    if "weight" in tensors:
        x = x * tensors["weight"].reshape(shape)
    return x + tensors["bias"].reshape(shape) if "bias" in tensors else x


def _activation(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    (x,) = xs
    a, b, c = (attrs.get(name) for name in "abc")
    functions = {
        "relu": lambda: x.clamp(min=0),
        "leaky_relu": lambda: torch.where(x > 0, x, a * x),
        "hardtanh": lambda: x.clamp(a, b),
        "elu": lambda: torch.where(x > 0, b * x, b * a * torch.expm1(c * x)),
        "gelu": lambda: x * torch.special.ndtr(x),
        "gelu_tanh": lambda: (
            x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        ),
        "silu": lambda: x / (1 + torch.exp(-x)),
        "tanh": lambda: torch.tanh(x),
        "sigmoid": lambda: 1 / (1 + torch.exp(-x)),
        "softplus": lambda: torch.where(a * x > b, x, torch.log1p(torch.exp(a * x)) / a),
        "hardswish": lambda: x * (x + 3).clamp(0, 6) / 6,
        "hardsigmoid": lambda: (x + 3).clamp(0, 6) / 6,
    }
    return functions[attrs["kind"]]()


def _max_pool(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    def largest(image: Tensor, rows: list[int], columns: list[int], size: int) -> Tensor:
        return image[..., rows, :][..., columns].amax((2, 3))

    return _pool(xs[0], attrs, largest)


def _avg_pool(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    def mean(image: Tensor, rows: list[int], columns: list[int], size: int) -> Tensor:
        count = size if attrs["count_include_pad"] else len(rows) * len(columns)
        return image[..., rows, :][..., columns].sum((2, 3)) / (attrs["divisor"] or count)

    return _pool(xs[0], attrs, mean)


def _pool(x: Tensor, attrs: Attrs, reduce: Callable[..., Tensor]) -> Tensor:
    """`reduce(image, rows, columns, elements in the padded image)` for every window."""
    image = x.unsqueeze(2) if x.ndim == 3 else x
    heights, widths = (1, *attrs["shape"][1:])[-2:]
    windows = [
        reduce(image, rows, columns, full_rows * full_columns)
        for rows, full_rows in (_span(i, image.shape[2], 0, attrs) for i in range(heights))
        for columns, full_columns in (_span(j, image.shape[3], 1, attrs) for j in range(widths))
    ]
    return torch.stack(windows, -1).reshape(len(x), *attrs["shape"])


def _span(position: int, size: int, axis: int, attrs: Attrs) -> tuple[list[int], int]:
    """Where a window reads the image along an axis; how much of it lies in the padded image."""
    padding = attrs["padding"][axis]
    start = position * attrs["stride"][axis] - padding
    step = attrs.get("dilation", (1, 1))[axis]
    places = range(start, start + step * attrs["kernel"][axis], step)
    padded = [place for place in places if place < size + padding]
    return [place for place in padded if 0 <= place < size], len(padded)


def _adaptive_avg_pool(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    (x,) = xs
    image = x.unsqueeze(2) if x.ndim == 3 else x
    edges = [
        [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        for size, count in zip(image.shape[2:], attrs["size"], strict=True)
    ]
    means = [
        image[:, :, top:bottom, left:right].mean((2, 3))
        for top, bottom in edges[0]
        for left, right in edges[1]
    ]
    return torch.stack(means, -1).reshape(len(x), *attrs["shape"])


def _scale(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return attrs["a"] * xs[0] + attrs["b"]


def _reindex(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    flat = torch.cat([x.flatten(1) for x in xs], 1)
    moved = torch.where(attrs["index"] < 0, 0, flat[:, attrs["index"]])
    return moved.reshape(len(flat), *attrs["shape"])


def _log_softmax(xs: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return xs[0] - xs[0].logsumexp(1, keepdim=True)


_OPERATORS: dict[str, Callable[[list[Tensor], Attrs, Tensors], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "activation": _activation,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "add": lambda xs, attrs, tensors: xs[0] + xs[1],
    "sub": lambda xs, attrs, tensors: xs[0] - xs[1],
    "mul": lambda xs, attrs, tensors: xs[0] * xs[1],
    "scale": _scale,
    "reindex": _reindex,
    "log_softmax": _log_softmax,
}
