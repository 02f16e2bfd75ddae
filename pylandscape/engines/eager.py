"""The torch engine: the module through eager PyTorch, the reference for every other engine."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from pylandscape.engines.module import Buffers, FunctionalModule
from pylandscape.losses import PerSample, SampleLoss

Metric = Callable[[Any, Any], PerSample]

# Float64 sums over the samples, per point and metric: of a, a^2, a b, b, b^2.
MOMENTS = 5


class EagerEngine:
    """Sums of losses and metrics, gradients and Hessian-vector products over all samples."""

    name = "torch"

    def __init__(
        self, module: FunctionalModule, loss: SampleLoss, metrics: Mapping[str, Metric]
    ) -> None:
        self.module, self.space = module, module.space
        self.loss, self.metrics = loss, dict(metrics)
        self._forward_mode = True  # until an operator turns out not to have it

    def moments(
        self, vectors: Iterable[Tensor], buffers: Iterable[Buffers | None]
    ) -> Iterator[Tensor]:
        """For each point [P], float64 sums [1 + metrics, 5]: the loss first, see `MOMENTS`.

        Point by point where the samples are kept in memory; otherwise every batch that is read
        serves all the points.
        """
        points = zip(vectors, buffers, strict=False)
        if self.module.samples.in_memory:
            for point in points:
                yield self._moments_of([point])[0]
        else:
            yield from self._moments_of(list(points))

    def loss_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss (float64 scalar) and its gradient [P] in the dtype of `vector`."""
        loss = torch.zeros((), dtype=torch.float64, device=vector.device)
        total = torch.zeros_like(vector, dtype=torch.float64)
        with self.module.evaluating(), _differentiable_attention():
            state = self.module.state(vector.detach())
            point = {e.name: state[e.name].detach().requires_grad_() for e in self.space.entries}
            for inputs, targets in self.module.batches():
                with torch.enable_grad():
                    terms = self.loss(
                        self.module.forward({**state, **point}, inputs), targets
                    ).values.sum()
                    slopes = torch.autograd.grad(terms, list(point.values()), allow_unused=True)
                self._add(total, slopes)
                loss += terms.detach()
        return loss / self.total_weight, (total / self.total_weight).to(vector.dtype)

    def hessian_vector_product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """H v [P] by Pearlmutter's R-operator: forward over reverse, else reverse over reverse.

        Under the BatchNorm policy `recompute` the statistics count as constants.
        """
        total = torch.zeros_like(vector, dtype=torch.float64)
        with self.module.evaluating(), _differentiable_attention():
            state = self.module.state(vector.detach())
            point = {entry.name: state.pop(entry.name).detach() for entry in self.space.entries}
            tangent = self.module.layout(self.space.unflatten(direction.detach()))
            for inputs, targets in self.module.batches():

                def terms(
                    parameters: dict[str, Tensor], x: Any = inputs, y: Any = targets
                ) -> Tensor:
                    return self.loss(
                        self.module.forward({**state, **parameters}, x), y
                    ).values.sum()

                self._add(total, self._product(terms, point, tangent))
        return (total / self.total_weight).to(vector.dtype)

    @cached_property
    def total_weight(self) -> float:
        """The sum of the loss's weights over all samples: N where the loss has none."""
        return sum(self.loss.weight(y) for _, y in self.module.batches())

    # -- one pass -------------------------------------------------------------------------------

    @torch.no_grad()
    def _moments_of(self, points: list[tuple[Tensor, Buffers | None]]) -> Tensor:
        with self.module.evaluating():
            states = [self.module.state(vector, own) for vector, own in points]
            sums = torch.zeros(
                len(points), 1 + len(self.metrics), MOMENTS,
                dtype=torch.float64, device=self.module.samples.device,
            )  # fmt: skip
            measures: list[Metric] = [self.loss, *self.metrics.values()]
            for inputs, targets in self.module.batches():
                for point_sums, state in zip(sums, states, strict=True):
                    outputs = self.module.forward(state, inputs)
                    for row, measure in zip(point_sums, measures, strict=True):
                        row += _sums(measure(outputs, targets))
        return sums

    def _product(
        self, terms: Callable[[dict[str, Tensor]], Tensor], point: Any, tangent: Any
    ) -> Iterable[Tensor | None]:
        if self._forward_mode:
            try:
                return jvp(grad(terms), (point,), (tangent,))[1].values()
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error).lower():
                    raise
                self._forward_mode = False
        with torch.enable_grad():
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in point.items()}
            slopes = torch.autograd.grad(
                terms(leaves), list(leaves.values()), create_graph=True, allow_unused=True
            )
            along = sum(
                (slope * tangent[name]).sum()
                for name, slope in zip(leaves, slopes, strict=True)
                if slope is not None and slope.requires_grad
            )
            if not isinstance(along, Tensor):  # a loss linear in every parameter
                return [None] * len(leaves)
            return torch.autograd.grad(along, list(leaves.values()), allow_unused=True)

    def _add(self, total: Tensor, slopes: Iterable[Tensor | None]) -> None:
        for entry, slope in zip(self.space.entries, slopes, strict=True):
            if slope is not None:
                total[entry.slice] += slope.detach().reshape(-1)


def _sums(term: PerSample) -> Tensor:
    a = term.values.double()
    if term.weights is None:
        total = a.sum()
        count = total.new_tensor(float(len(a)))
        return torch.stack((total, a @ a, total, count, count))
    b = term.weights.double()
    return torch.stack((a.sum(), a @ a, a @ b, b.sum(), b @ b))


@contextlib.contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
