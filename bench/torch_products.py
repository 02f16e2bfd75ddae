"""Hessian-vector products as well as PyTorch can do them: the baseline of their benchmark.

Forward over reverse (`jvp` of `grad`), eager and compiled, and reverse over reverse, with the graph
of the gradient built for every product or retained from one to the next; in either memory format,
with any batch size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pytorch_loop import arranged, has_convolution
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

BATCHES = (64, 128, 256, 512, 1024)
COMPILED_BATCHES = (64, 256, 1024)


@dataclass
class Way:
    """One way of forming H v; `retains` what depends on the point from one product to the next."""

    name: str
    product: Callable[[Tensor], Tensor]
    retains: bool = False


def ways(model: nn.Module, inputs: Tensor, targets: Tensor, retained: bool = True) -> Iterator[Way]:
    formats = (False, True) if inputs.ndim == 4 and has_convolution(model) else (False,)
    for channels_last in formats:
        for batch in BATCHES:
            if batch <= len(inputs):
                of_batch = _Batches(model, inputs, targets, batch, channels_last)
                yield of_batch.forward_over_reverse(compiled=False)
                yield of_batch.reverse_over_reverse()
                if retained:
                    yield of_batch.reverse_over_retained()
        for batch in COMPILED_BATCHES:
            if batch <= len(inputs):
                of_batch = _Batches(model, inputs, targets, batch, channels_last)
                yield of_batch.forward_over_reverse(compiled=True)


class _Batches:
    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, batch: int, channels_last: bool
    ) -> None:
        self.model, self.samples, self.arrange = model, len(inputs), arranged(channels_last)
        self.point = {n: self.arrange(p.detach()) for n, p in model.named_parameters()}
        self.pieces = [
            (self.arrange(x), y)
            for x, y in zip(inputs.split(batch), targets.split(batch), strict=True)
        ]
        self.how = f"{'channels-last' if channels_last else 'default'}, batch {batch}"

    def tangents(self, v: Tensor) -> dict[str, Tensor]:
        parts = v.split([p.numel() for p in self.point.values()])
        return {
            name: self.arrange(part.view(p.shape))
            for (name, p), part in zip(self.point.items(), parts, strict=True)
        }

    def flat(self, total: list[Tensor]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in total]) / self.samples

    def loss(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.model, parameters, (x,)), y, reduction="sum")

    def forward_over_reverse(self, compiled: bool) -> Way:
        def along(
            point: dict[str, Tensor], v: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> dict[str, Tensor]:
            return jvp(lambda p: grad(self.loss)(p, x, y), (point,), (v,))[1]

        run = torch.compile(along, dynamic=False) if compiled else along

        def product(v: Tensor) -> Tensor:
            tangents = self.tangents(v)
            parts = [list(run(self.point, tangents, x, y).values()) for x, y in self.pieces]
            return self.flat([torch.stack(p).sum(0) for p in zip(*parts, strict=True)])

        return Way(f"jvp(grad) {'compiled' if compiled else 'eager'}, {self.how}", product)

    def slopes(self, leaves: dict[str, Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        terms = self.loss(leaves, x, y)
        return list(torch.autograd.grad(terms, list(leaves.values()), create_graph=True))

    def leaves(self) -> dict[str, Tensor]:
        return {name: p.clone().requires_grad_() for name, p in self.point.items()}

    def reverse_over_reverse(self) -> Way:
        def product(v: Tensor) -> Tensor:
            tangents, parts = list(self.tangents(v).values()), []
            for x, y in self.pieces:
                leaves = self.leaves()
                slopes = self.slopes(leaves, x, y)
                parts.append(torch.autograd.grad(slopes, list(leaves.values()), tangents))
            return self.flat([torch.stack(p).sum(0) for p in zip(*parts, strict=True)])

        return Way(f"double backward, {self.how}", product)

    def reverse_over_retained(self) -> Way:
        leaves = self.leaves()
        slopes = [self.slopes(leaves, x, y) for x, y in self.pieces]

        def product(v: Tensor) -> Tensor:
            tangents = list(self.tangents(v).values())
            parts = [
                torch.autograd.grad(each, list(leaves.values()), tangents, retain_graph=True)
                for each in slopes
            ]
            return self.flat([torch.stack(p).sum(0) for p in zip(*parts, strict=True)])

        return Way(f"double backward, graph retained, {self.how}", product, retains=True)
