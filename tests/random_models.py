"""Random small networks of covered operators, for tests that compare engines."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from models import labels, normal
from torch import Tensor, nn

Draw = Callable[..., Any]
Shape = tuple[int, ...]
Problem = tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]

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

# Channels and features beside the lengths of vectors: 4, 8 and 16 floats.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 20, 33)


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
def architectures(draw: Draw) -> tuple[nn.Module, Shape]:
    """A float64 model in training mode with random parameters and statistics; its input's shape.

    Inputs are vectors, signals (or tokens) and images; outputs have any of these ranks.
    """
    rank = draw(st.sampled_from([0, 1, 2, 2]))
    shape = (draw(st.sampled_from(WIDTHS)), *(draw(st.integers(4, 11)) for _ in range(rank)))
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


def _shape_after(layers: list[nn.Module], shape: Shape) -> Shape:
    """Shape of one sample after the layers."""
    with torch.no_grad():
        out = nn.Sequential(*layers).eval()(torch.zeros(2, *shape))
    for layer in layers:
        layer.train()
    return tuple(out.shape[1:])


@st.composite
def _blocks(draw: Draw, shape: Shape) -> nn.Module:
    """A layer, or several that engines may join: a convolution and what follows it, a residual."""
    kind = draw(st.sampled_from(["layer", "layer", "stack", "stack", "residual", "gate"]))
    if kind == "stack":
        return draw(_stacks(shape))
    if kind == "residual":
        branches = [nn.Identity(), nn.Sequential(*draw(_same_shape(shape)), *draw(_tails(shape)))]
        combine = Combine(*draw(st.permutations(branches)), draw(st.sampled_from(COMBINATIONS)))
        return nn.Sequential(combine, *draw(_optional(_activations())))
    if kind == "gate" and len(shape) > 1:
        pool = nn.AdaptiveAvgPool2d(1) if len(shape) == 3 else nn.AdaptiveAvgPool1d(1)
        mix = _conv(shape)(shape[0], shape[0], 1)
        gate = nn.Sequential(pool, *draw(_optional(st.just(mix))), nn.Sigmoid())
        return Combine(*draw(st.permutations([nn.Identity(), gate])), torch.mul)
    return draw(_image_layers(shape) if len(shape) > 1 else _vector_layers(shape))


def _activations() -> st.SearchStrategy[nn.Module]:
    return st.sampled_from(ACTIVATIONS).map(lambda make: make())


def _optional(strategy: st.SearchStrategy[nn.Module]) -> st.SearchStrategy[list[nn.Module]]:
    return st.lists(strategy, max_size=1)


def _scaled() -> nn.Module:
    return Apply(lambda x: 0.5 * x - 0.25)


@st.composite
def _tails(draw: Draw, shape: Shape) -> list[nn.Module]:
    """Batch_norm and a function of each element, one of them or neither."""
    norm = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    function = st.one_of(_activations(), st.just(_scaled()))
    return [*draw(_optional(st.just(norm(shape[0])))), *draw(_optional(function))]


@st.composite
def _stacks(draw: Draw, shape: Shape) -> nn.Module:
    """A layer with weights, batch_norm, an activation, a pooling."""
    if len(shape) == 1:
        first: nn.Module = nn.Linear(shape[0], draw(st.sampled_from(WIDTHS)))
    else:
        first = draw(st.one_of(_convolutions(shape), _plain_convolutions(shape)))
    after = _shape_after([first], shape)
    layers = [first, *draw(_tails(after))]
    if len(after) == 3 and min(after[1:]) > 1:
        layers += draw(_optional(st.just(nn.MaxPool2d(2))))
    return nn.Sequential(*layers)


@st.composite
def _plain_convolutions(draw: Draw, shape: Shape) -> nn.Module:
    """The convolutions of most nets, which have kernels of their own."""
    out = draw(st.sampled_from(WIDTHS))
    return _conv(shape)(shape[0], out, 3, padding=1, bias=draw(st.booleans()))


@st.composite
def _same_shape(draw: Draw, shape: Shape) -> list[nn.Module]:
    if len(shape) == 1:
        return [nn.Linear(shape[0], shape[0])]
    kernel = draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, shape[0]]))
    return [_conv(shape)(shape[0], shape[0], kernel, padding="same", groups=groups)]


def _conv(shape: Shape) -> type[nn.Conv1d | nn.Conv2d]:
    return nn.Conv1d if len(shape) == 2 else nn.Conv2d


def _divisors(number: int, candidates: Sequence[int]) -> list[int]:
    return [g for g in candidates if number % g == 0]


@st.composite
def _vector_layers(draw: Draw, shape: Shape) -> nn.Module:
    (features,) = shape
    kind = draw(st.sampled_from(["linear", "norm", "activation", "movement", "dropout"]))
    if kind == "linear":
        return nn.Linear(features, draw(st.sampled_from(WIDTHS)), bias=draw(st.booleans()))
    if kind == "norm":
        affine = draw(st.booleans())
        groups = draw(st.sampled_from(_divisors(features, (1, 2, 4))))
        norms = [nn.BatchNorm1d(features, affine=affine)]
        norms += [nn.LayerNorm(features, elementwise_affine=affine)]
        if features > groups:  # torch refuses a group of one value
            norms.append(nn.GroupNorm(groups, features))
        return draw(st.sampled_from(norms))
    if kind == "movement":
        functions = [lambda x: x.flip(1), lambda x: x[:, ::2], lambda x: F.pad(x, (2, 1))]
        return Apply(draw(st.sampled_from(functions)))
    return nn.Dropout(0.5) if kind == "dropout" else draw(_activations())


@st.composite
def _image_layers(draw: Draw, shape: Shape) -> nn.Module:
    kinds = ["conv", "conv", "linear", "norm", "activation", "max_pool", "avg_pool", "movement"]
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        return draw(_convolutions(shape))
    if kind == "linear":  # of tokens, or along the rows of an image
        return nn.Linear(shape[-1], draw(st.sampled_from(WIDTHS)), bias=draw(st.booleans()))
    if kind == "norm":
        return draw(_image_norms(shape))
    if kind in ("max_pool", "avg_pool"):
        return draw(_pools(kind, shape))
    if kind == "movement":
        groups = draw(st.sampled_from(_divisors(shape[0], (1, 2, 3, 4))))
        functions = [lambda x: x.flip(1), lambda x: x.transpose(1, -1), lambda x: x[:, ::2]]
        functions += [lambda x: F.pad(x, (1, 0)), lambda x: F.channel_shuffle(x, groups)]
        functions += [lambda x: torch.cat([x, x.relu(), x[:, :1]], 1)]
        return Apply(draw(st.sampled_from(functions)))
    return draw(st.one_of(_activations(), st.just(_scaled())))


@st.composite
def _image_norms(draw: Draw, shape: Shape) -> nn.Module:
    channels, affine = shape[0], draw(st.booleans())
    batch_norm = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    groups = draw(st.sampled_from(_divisors(channels, (1, 2, 3, channels))))
    norms: list[nn.Module] = [batch_norm(channels)]
    if torch.Size(shape).numel() > groups:  # torch refuses a group of one value
        norms.append(nn.GroupNorm(groups, channels, affine=affine))
    norms += [nn.LayerNorm(s, elementwise_affine=affine) for s in (shape, shape[-1:])]
    return draw(st.sampled_from(norms))


@st.composite
def _convolutions(draw: Draw, shape: Shape) -> nn.Module:
    """Any of them, with zeros of its own around the image or other numbers of them on each side."""
    channels = shape[0]
    groups = draw(st.sampled_from(_divisors(channels, (1, 1, 2, channels))))
    kernel = [draw(st.integers(1, min(4, size))) for size in shape[1:]]
    fits = [2 * (k - 1) < size for k, size in zip(kernel, shape[1:], strict=True)]
    dilation = [draw(st.integers(1, 2)) if twice else 1 for twice in fits]
    padding = draw(st.sampled_from(["none", "even", "uneven"]))
    layer = _conv(shape)(
        channels,
        groups * draw(st.sampled_from([1, 3, 4, 8, 17])),
        tuple(kernel),
        stride=tuple(draw(st.integers(1, 3)) for _ in kernel),
        padding=tuple(draw(st.integers(0, 2)) if padding == "even" else 0 for _ in kernel),
        dilation=tuple(dilation),
        groups=groups,
        bias=draw(st.booleans()),
    )
    if padding != "uneven":
        return layer
    zeros = [draw(st.integers(0, 2)) for _ in range(2 * len(kernel))]
    return nn.Sequential(Apply(lambda x: F.pad(x, zeros)), layer)


@st.composite
def _pools(draw: Draw, kind: str, shape: Shape) -> nn.Module:
    rank, smallest = len(shape) - 1, min(shape[1:])
    kernel = draw(st.integers(1, min(3, smallest)))
    options: dict[str, Any] = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, kernel // 2)),
        "ceil_mode": draw(st.booleans()),
    }
    if kind == "max_pool":
        options["dilation"] = draw(st.integers(1, 2)) if 2 * (kernel - 1) < smallest else 1
        return (nn.MaxPool1d if rank == 1 else nn.MaxPool2d)(kernel, **options)
    if draw(st.booleans()):
        size = [draw(st.integers(1, length)) for length in shape[1:]]
        return nn.AdaptiveAvgPool1d(size[0]) if rank == 1 else nn.AdaptiveAvgPool2d(tuple(size))
    options["count_include_pad"] = draw(st.booleans())
    if rank == 1:
        return nn.AvgPool1d(kernel, **options)
    return nn.AvgPool2d(kernel, **options, divisor_override=draw(st.sampled_from([None, 3])))


@st.composite
def _heads(draw: Draw, shape: Shape) -> list[nn.Module]:
    outputs = draw(st.sampled_from(WIDTHS))
    if len(shape) == 1:
        return [nn.Linear(shape[0], outputs)]
    if draw(st.booleans()):
        size = int(torch.Size(shape).numel())
        return [nn.Flatten(), nn.Linear(size, outputs)]
    axes = tuple(range(2, len(shape) + 1))
    return [Apply(lambda x: x.mean(axes)), nn.Linear(shape[0], outputs)]


@st.composite
def problems(draw: Draw, max_samples: int) -> Problem:
    """A network with parameters, a loss and samples for it."""
    model, shape = draw(architectures().filter(lambda case: [*case[0].parameters()]))
    samples = draw(st.integers(1, max_samples))
    inputs = normal(samples, *shape, seed=samples)
    loss, targets = loss_and_targets(model, inputs)
    return model, loss, (inputs, targets)


def loss_and_targets(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    """Cross-entropy where the outputs are scores of several classes, else squared errors."""
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(inputs)
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return nn.CrossEntropyLoss(), labels(len(inputs), outputs.shape[1])
    return nn.MSELoss(), normal(*outputs.shape, seed=2)
