"""Random small networks of covered operators, for tests that compare engines."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Draw = Callable[..., Any]

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.2),
    nn.ReLU6,
    lambda: nn.Hardtanh(-0.5, 1.5),
    lambda: nn.ELU(0.7),
    nn.SELU,
    lambda: nn.CELU(0.4),
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    lambda: nn.Softplus(1.5, 4),
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Mish,
]


class Combine(nn.Module):
    """Both branches, then one operator on their outputs."""

    def __init__(self, left: nn.Module, right: nn.Module, operator: Callable[..., Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.operator = left, right, operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.left(x), self.right(x))


class Apply(nn.Module):
    """A function of the activation as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def concatenate(left: Tensor, right: Tensor) -> Tensor:
    return torch.cat([left, right], 1)


COMBINATIONS: list[Callable[..., Tensor]] = [torch.add, torch.sub, torch.mul, concatenate]


@st.composite
def architectures(draw: Draw) -> tuple[nn.Module, tuple[int, ...]]:
    """A float64 model in training mode with random parameters and statistics; its input's shape."""
    rank = draw(st.sampled_from([0, 1, 2]))
    channels = draw(st.integers(1, 6))
    shape = (channels, *(draw(st.integers(4, 11)) for _ in range(rank)))
    torch.manual_seed(draw(st.integers(0, 999)))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        layers.append(draw(_blocks(_shape_after(layers, shape))))
    if draw(st.booleans()):
        layers += draw(_heads(_shape_after(layers, shape)))
    return randomised(nn.Sequential(*layers)), shape


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with parameters and statistics that no identity hides behind."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith("running_mean") or (tensor.ndim == 1 and tensor.is_floating_point()):
                tensor.uniform_(-1, 1)
    return model.double()


def _shape_after(layers: list[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one sample after the layers."""
    with torch.no_grad():
        out = nn.Sequential(*layers).eval()(torch.zeros(1, *shape))
    for layer in layers:
        layer.train()
    return tuple(out.shape[1:])


@st.composite
def _blocks(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    single = _image_layers(shape) if len(shape) > 1 else _vector_layers(shape)
    kind = draw(st.sampled_from(["single", "single", "residual", "gate"]))
    if kind == "residual":
        operator = draw(st.sampled_from(COMBINATIONS))
        body = nn.Sequential(draw(_same_shape(shape)), draw(_activations()))
        return Combine(nn.Identity(), body, operator)
    if kind == "gate" and len(shape) > 1:
        pool = nn.AdaptiveAvgPool2d(1) if len(shape) == 3 else nn.AdaptiveAvgPool1d(1)
        return Combine(nn.Identity(), nn.Sequential(pool, nn.Sigmoid()), torch.mul)
    return draw(single)


def _activations() -> st.SearchStrategy[nn.Module]:
    return st.sampled_from(ACTIVATIONS).map(lambda make: make())


@st.composite
def _same_shape(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    if len(shape) == 1:
        return nn.Linear(shape[0], shape[0])
    kernel = draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, shape[0]]))
    return _conv(len(shape) - 1)(shape[0], shape[0], kernel, padding="same", groups=groups)


def _conv(rank: int) -> type[nn.Conv1d | nn.Conv2d]:
    return nn.Conv1d if rank == 1 else nn.Conv2d


@st.composite
def _vector_layers(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    (features,) = shape
    kind = draw(st.sampled_from(["linear", "batch_norm", "layer_norm", "activation", "dropout"]))
    if kind == "linear":
        return nn.Linear(features, draw(st.integers(1, 9)), bias=draw(st.booleans()))
    if kind == "batch_norm":
        return nn.BatchNorm1d(features, affine=draw(st.booleans()))
    if kind == "layer_norm":
        return nn.LayerNorm(features, elementwise_affine=draw(st.booleans()))
    return nn.Dropout(0.5) if kind == "dropout" else draw(_activations())


@st.composite
def _image_layers(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    rank, channels = len(shape) - 1, shape[0]
    kinds = ["conv", "conv", "norm", "activation", "max_pool", "avg_pool", "movement"]
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        return draw(_convolutions(shape))
    if kind == "norm":
        batch_norm = nn.BatchNorm1d if rank == 1 else nn.BatchNorm2d
        groups = draw(st.sampled_from([g for g in (1, 2, 3, channels) if channels % g == 0]))
        norms = [batch_norm(channels), nn.GroupNorm(groups, channels), nn.LayerNorm(shape[1:])]
        return draw(st.sampled_from(norms))
    if kind in ("max_pool", "avg_pool"):
        return draw(_pools(kind, shape))
    if kind == "movement":
        functions = [lambda x: x.flip(1), lambda x: x.transpose(1, -1), lambda x: x[:, ::2]]
        functions += [lambda x: F.pad(x, (1, 0))]
        return Apply(draw(st.sampled_from(functions)))
    return draw(_activations())


@st.composite
def _convolutions(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    rank, channels = len(shape) - 1, shape[0]
    groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    kernel = [draw(st.integers(1, min(3, size))) for size in shape[1:]]
    fits = [2 * (k - 1) < size for k, size in zip(kernel, shape[1:], strict=True)]
    dilation = [draw(st.integers(1, 2)) if twice else 1 for twice in fits]
    padded = draw(st.booleans())
    return _conv(rank)(
        channels,
        groups * draw(st.integers(1, 4)),
        tuple(kernel),
        stride=tuple(draw(st.integers(1, 3)) for _ in kernel),
        padding=tuple(draw(st.integers(0, 2)) if padded else 0 for _ in kernel),
        dilation=tuple(dilation),
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def _pools(draw: Draw, kind: str, shape: tuple[int, ...]) -> nn.Module:
    rank = len(shape) - 1
    kernel = draw(st.integers(1, min(3, *shape[1:])))
    options: dict[str, Any] = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, kernel // 2)),
        "ceil_mode": draw(st.booleans()),
    }
    if kind == "max_pool":
        return (nn.MaxPool1d if rank == 1 else nn.MaxPool2d)(kernel, **options)
    options["count_include_pad"] = draw(st.booleans())
    return (nn.AvgPool1d if rank == 1 else nn.AvgPool2d)(kernel, **options)


@st.composite
def _heads(draw: Draw, shape: tuple[int, ...]) -> list[nn.Module]:
    outputs = draw(st.integers(1, 5))
    if len(shape) == 1:
        return [nn.Linear(shape[0], outputs)]
    if draw(st.booleans()):
        size = int(torch.Size(shape).numel())
        return [nn.Flatten(), nn.Linear(size, outputs)]
    axes = tuple(range(2, len(shape) + 1))
    return [Apply(lambda x: x.mean(axes)), nn.Linear(shape[0], outputs)]
