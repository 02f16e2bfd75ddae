"""Small modules and data that the tests share. Everything is seeded and in float64."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pylandscape as pl


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def labels(count: int, classes: int, *more: int, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, (count, *more), generator=seeded(seed))


def initialised(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with seeded normal parameters, none of them zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn / max(1, parameter[0].numel() if parameter.ndim else 1) ** 0.5)
    return model.to(dtype)


def mlp(inputs: int = 4, classes: int = 3) -> nn.Module:
    return initialised(
        nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, classes)), seed=3
    )


def convnet(norm: bool = False, classes: int = 3, channels: int = 1) -> nn.Module:
    layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    if norm:
        layers.insert(1, nn.BatchNorm2d(4))
    return initialised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 9, classes)), seed=4)


class Attention(nn.Module):
    """Embedding, attention and a feed-forward block, with tokens of shape [B, T]."""

    def __init__(self, kind: str, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(7, width)
        if kind == "layer":
            self.mix = nn.TransformerEncoderLayer(width, 2, 6, batch_first=True)
        elif kind == "multihead":
            self.mix = nn.MultiheadAttention(width, 2, batch_first=True)
        else:
            self.mix = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.kind == "layer":
            x = self.mix(x)
        elif self.kind == "multihead":
            x = x + self.mix(x, x, x, need_weights=False)[0]
        else:
            x = x + F.scaled_dot_product_attention(*self.mix(x)[:, None].chunk(3, -1))[:, 0]
        return self.head(x.mean(1))


class Residual(nn.Module):
    """Two convolutions around a shortcut, as in ResNets."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(width, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def resnet(width: int = 6) -> nn.Module:
    """Three blocks, the second of which halves the image and doubles the channels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        Residual(width, width), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4),
    )  # fmt: skip


class Shift(nn.Module):
    """A parameter vector as it is: outputs x w for rows x of the inputs."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Point(nn.Module):
    """A model whose output is a function of its parameter vector, for losses in closed form."""

    def __init__(self, function: Callable[[Tensor], Tensor], w: Any) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.as_tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w).expand(len(x), 1)


def function_objective(function: Callable[[Tensor], Tensor], w: Any) -> pl.Objective:
    """L(w) = function(w), at w."""
    data = torch.zeros(1, 1).double(), torch.zeros(1, 1).double()
    return pl.Objective(Point(function, w), lambda outputs, _: outputs.mean(), data)


def quadratic(curvatures: Tensor, w: Any) -> pl.Objective:
    """L(w) = sum_i curvatures_i w_i^2 / 2, at w."""
    return function_objective(lambda w: (curvatures * w**2).sum() / 2, w)


def own_value(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is the output itself: L(w) = mean of x w, linear in w."""
    return outputs


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """(x w - y)^2 / 2 per sample: L is a parabola with Hessian X'X / N."""
    return (outputs - targets) ** 2 / 2


def classifier(
    model: nn.Module | None = None, count: int = 12, loss: object = None, **options: object
) -> pl.Objective:
    """Cross-entropy of a small net on seeded data."""
    model = mlp() if model is None else model
    data = normal(count, 4), labels(count, 3)
    return pl.Objective(model, loss or nn.CrossEntropyLoss(), data, **options)


def flat_gradient(objective: pl.Objective, value: Tensor, model: nn.Module) -> Tensor:
    """The gradient of a scalar with respect to the objective's parameters, by plain autograd."""
    named = dict(model.named_parameters())
    leaves = [named[entry.name] for entry in objective.space.entries]
    slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(x) if s is None else s).reshape(-1)
            for x, s in zip(leaves, slopes, strict=True)
        ]
    )
