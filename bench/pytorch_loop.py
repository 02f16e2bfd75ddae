"""The loss at many points as well as PyTorch can do it: the baseline of the plane benchmarks.

New weights at every point rule out everything that bakes them in (freezing, packing ahead). What is
left is a loop over points and batches with `functional_call`, eager or compiled, in either memory
format, with any batch size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

torch._dynamo.config.recompile_limit = 64  # each network, format and batch size is one of its own

BATCHES = (64, 128, 256, 512, 1024, 2048)
COMPILED_BATCHES = (64, 256, 1024)


@dataclass
class Loop:
    """One way of running the loop."""

    name: str
    losses: Callable[[Tensor], Tensor]  # points [K, P] -> losses [K]


def peers_loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Loop:
    """What landscape packages do: eager, default memory format, batches of 128."""
    return _loop(model, inputs, targets, 128, channels_last=False, compiled=False)


def loops(model: nn.Module, inputs: Tensor, targets: Tensor) -> Iterator[Loop]:
    """Every combination worth trying for this model."""
    formats = (False, True) if inputs.ndim == 4 and has_convolution(model) else (False,)
    for channels_last in formats:
        for batch in BATCHES:
            if batch <= len(inputs):
                yield _loop(model, inputs, targets, batch, channels_last, compiled=False)
        for batch in COMPILED_BATCHES:
            if batch <= len(inputs):
                yield _loop(model, inputs, targets, batch, channels_last, compiled=True)


def has_convolution(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _loop(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    batch: int,
    channels_last: bool,
    compiled: bool,
) -> Loop:
    names = [(name, p.shape, p.numel()) for name, p in model.named_parameters()]
    arrange = arranged(channels_last)

    def total(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, parameters, (x,))
        return F.cross_entropy(outputs, y, reduction="sum")

    run = torch.compile(total, dynamic=False) if compiled else total
    pieces = [
        (arrange(x), y) for x, y in zip(inputs.split(batch), targets.split(batch), strict=True)
    ]

    def losses(points: Tensor) -> Tensor:
        result = torch.empty(len(points), dtype=torch.float64)
        with torch.no_grad():
            for k, point in enumerate(points):
                parts = point.split([count for _, _, count in names])
                parameters = {
                    name: arrange(part.view(shape))
                    for (name, shape, _), part in zip(names, parts, strict=True)
                }
                sums = torch.stack([run(parameters, x, y) for x, y in pieces])
                result[k] = sums.double().sum() / len(inputs)
        return result

    how = ("compiled" if compiled else "eager", "channels-last" if channels_last else "default")
    return Loop(f"{how[0]}, {how[1]}, batch {batch}", losses)


def arranged(channels_last: bool) -> Callable[[Tensor], Tensor]:
    """Puts a tensor in a memory format."""
    return _channels_last if channels_last else torch.Tensor.contiguous


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        return tensor.contiguous()
    # also where one channel makes the strides ambiguous, which `contiguous` would leave as they are
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)
