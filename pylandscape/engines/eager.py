"""The torch engine: the module through eager PyTorch, the reference for every other engine."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pylandscape._checks import require
from pylandscape.engines.compiled import CompiledProducts
from pylandscape.engines.module import Buffers, FunctionalModule
from pylandscape.engines.points import Points
from pylandscape.losses import PerSample, SampleLoss

Metric = Callable[[Any, Any], PerSample]
Slopes = list[Tensor | None]  # one per parameter tensor
# The values of a batch, and the linear map M of tangents to cotangents in a product J' M J v.
Inner = Callable[[Any], tuple[list[Tensor], Callable[[Slopes], Slopes]]]
TrainingStep = Callable[[Tensor, Any], tuple[Tensor, Tensor]]

# Float64 sums over the samples, per point and metric: of a, a^2, a b, b, b^2.
MOMENTS = 5
STREAM_BYTES = 256 << 20  # of points that share one reading of the samples


def _by_column(
    product: Callable[["EagerEngine", Tensor, Tensor], Tensor],
) -> Callable[["EagerEngine", Tensor, Tensor], Tensor]:
    """Lets a product with a direction [P] take several, [P, K]."""

    @functools.wraps(product)
    def of_columns(engine: "EagerEngine", vector: Tensor, directions: Tensor) -> Tensor:
        if directions.ndim == 1:
            return product(engine, vector, directions)
        columns = [product(engine, vector, column) for column in directions.unbind(1)]
        return torch.stack(columns, 1) if columns else torch.empty_like(directions)

    return of_columns


class EagerEngine:
    """Sums of losses and metrics, gradients and curvature products over all samples."""

    name = "torch"

    def __init__(
        self, module: FunctionalModule, loss: SampleLoss, metrics: Mapping[str, Metric]
    ) -> None:
        self.module, self.space = module, module.space
        self.loss, self.metrics = loss, dict(metrics)
        self.compiled = CompiledProducts(module)
        self._forward_mode = True  # until an operator turns out not to have it
        self._differentiable = False  # until some batch shows that the parameters reach the loss

    def moments(
        self, points: Points, buffers: Iterable[Buffers | None] | None = None
    ) -> Iterator[Tensor]:
        """For each point, float64 sums [1 + metrics, 5]: the loss first, see `MOMENTS`.

        `buffers` are the module's own at each point, where they are not the same at all of them.

        Point by point where the samples are kept in memory; otherwise every batch that is read
        serves many points.
        """
        pairs = zip(
            points.rows(), itertools.repeat(None) if buffers is None else buffers, strict=False
        )
        together = 1
        if not self.module.samples.in_memory:
            bytes_of_point = self.space.size * self.module.samples.dtype.itemsize
            together = max(1, STREAM_BYTES // bytes_of_point)
        while part := list(itertools.islice(pairs, together)):
            yield from self._moments_of(part)

    def loss_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss (float64 scalar) and its gradient [P] in the dtype of `vector`."""
        loss = torch.zeros((), dtype=torch.float64, device=vector.device)
        total = torch.zeros_like(vector, dtype=torch.float64)
        with self._differentiating(), torch.enable_grad():
            state = self.module.state(vector.detach())
            leaves = {e.name: state[e.name].detach().requires_grad_() for e in self.space.entries}
            for batch in self.module.batches():

                def run(batch: Any = batch) -> tuple[Tensor, Slopes]:
                    terms = self._sum_of(batch)
                    return terms.detach(), _slopes(terms, leaves)

                terms, slopes = self.module.within({**state, **leaves}, run)
                loss += terms
                self._add(total, slopes)
        self._require_differentiable()
        return loss / self.total_weight, (total / self.total_weight).to(vector.dtype)

    @_by_column
    def hessian_vector_product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """H v [P] by Pearlmutter's R-operator: forward over reverse, else reverse over reverse.

        On a GPU forward over reverse is compiled once it has cost much, see `CompiledProducts`.
        Under the BatchNorm policy `recompute` the statistics count as constants.
        """
        total = torch.zeros_like(vector, dtype=torch.float64)
        # of one layout in all calls, which a compiled product is made for
        vector, direction = vector.detach().contiguous(), direction.detach().contiguous()
        with self._differentiating():
            state = self.module.state(vector)
            tangents = self.module.layout(self.space.unflatten(direction))
            for batch in self.module.batches():
                self._add(total, self._product(state, tangents, batch))
        self._require_differentiable()
        return (total / self.total_weight).to(vector.dtype)

    @_by_column
    def ggn_vector_product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """G v [P], G = sum_i J_i' H_i J_i / sum_i b_i; H_i is the Hessian of a_i in the outputs."""
        return self._product_of_factors(vector, direction, self._outputs)

    @_by_column
    def fisher_vector_product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """F v [P], F = sum_i (grad a_i) (grad a_i)' / b_i / sum_i b_i."""
        return self._product_of_factors(vector, direction, self._terms)

    @contextlib.contextmanager
    def training(self) -> Iterator[TrainingStep]:
        """A function (vector [P], batch) -> (mean loss, gradient [P]) in training mode.

        The parameters are leaves of their own: the gradient of slices of one vector would be added
        up from as many vectors [P].
        """
        module = self.module
        state = module.state(torch.zeros(self.space.size, device=module.samples.device), buffers={})

        def step(vector: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
            module.check_interrupt()
            parameters = module.layout(self.space.unflatten(vector.detach()))
            leaves = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
            inputs, targets = batch
            pair = (module.as_stored(inputs) if module.samples.in_memory else inputs), targets

            def run() -> tuple[Tensor, Slopes]:
                terms = self._sum_of(pair)
                return terms.detach(), _slopes(terms, leaves)

            terms, slopes = module.within({**state, **leaves}, run)
            parts = [
                torch.zeros_like(leaf) if slope is None else slope
                for leaf, slope in zip(leaves.values(), slopes, strict=True)
            ]
            self._require_differentiable()
            weight = self.loss.weight(targets)
            return terms / weight, torch.cat([part.reshape(-1) for part in parts]) / weight

        with module.training(), torch.enable_grad():
            yield step

    def derivatives_of(
        self, batch: Any, vector: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the sum of a batch's loss terms and its Hessian times `direction` [P]."""
        gradient, product = (torch.zeros_like(vector, dtype=torch.float64) for _ in range(2))
        with self._differentiating():
            state = self.module.state(vector.detach())
            leaves = {e.name: state[e.name].detach().requires_grad_() for e in self.space.entries}
            tangents = self.module.layout(self.space.unflatten(direction.detach()))
            with torch.enable_grad():
                slopes = self.module.within(
                    {**state, **leaves}, lambda: _slopes(self._sum_of(batch), leaves)
                )
            self._add(gradient, slopes)
            self._add(product, self._product(state, tangents, batch))
        return gradient, product

    @functools.cached_property
    def total_weight(self) -> float:
        """The sum of the loss's weights over all samples: N where the loss has none."""
        return sum(self.loss.weight(y) for _, y in self.module.batches())

    @contextlib.contextmanager
    def _differentiating(self) -> Iterator[None]:
        """Without kernels that lack derivatives.

        Fused attention has no second one; cuDNN's recurrent nets have none in evaluation mode.
        """
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.module.model.modules())
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
        with self.module.evaluating(), sdpa_kernel(SDPBackend.MATH), cudnn:
            yield

    # -- one pass -------------------------------------------------------------------------------

    def _moments_of(self, points: list[tuple[Tensor, Buffers | None]]) -> Tensor:
        with self.module.evaluating(), torch.no_grad():
            states = [self.module.state(vector, own) for vector, own in points]
            sums = torch.zeros(
                len(points), 1 + len(self.metrics), MOMENTS,
                dtype=torch.float64, device=self.module.samples.device,
            )  # fmt: skip
            measures: list[Metric] = [self.loss, *self.metrics.values()]
            for inputs, targets in self.module.batches():
                for point_sums, state in zip(sums, states, strict=True):
                    outputs = self.module.within(state, functools.partial(self.module.call, inputs))
                    for row, measure in zip(point_sums, measures, strict=True):
                        row += _sums(measure(outputs, targets))
        return sums

    def _sum_of(self, batch: Any) -> Tensor:
        """The sum of the loss terms of one batch, with the module's tensors as they are now."""
        inputs, targets = batch
        terms = self.loss(self.module.call(inputs), targets).values.sum()
        self._differentiable |= terms.requires_grad
        return terms

    def _require_differentiable(self) -> None:
        require(
            self._differentiable,
            "Objective: loss must depend on the parameters by operations that autograd follows, "
            f"got {self.loss.name}, which does not. Look for detach(), item(), numpy() or "
            "reentrant checkpointing in the model and the loss.",
        )

    def _product(self, state: dict[str, Tensor], tangents: dict[str, Tensor], batch: Any) -> Slopes:
        """The derivative along `tangents` of the slopes of one batch."""
        if not self._forward_mode:
            return self._product_in_reverse(state, tangents, batch)
        _load_forward_mode()
        try:
            return [*self.compiled(self._forward_over_reverse, state, tangents, batch)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # An operator without forward mode, an old-style autograd.Function, a backward hook,
            # activation checkpointing. Any other error comes again here.
            product = self._product_in_reverse(state, tangents, batch)
            self._forward_mode = False
            return product

    def _forward_over_reverse(
        self, state: dict[str, Tensor], tangents: dict[str, Tensor], batch: Any
    ) -> list[Tensor]:
        point = {name: state[name].detach() for name in tangents}

        def terms(parameters: dict[str, Tensor]) -> Tensor:
            return self.module.within({**state, **parameters}, lambda: self._sum_of(batch))

        with _DifferentiableWeightNorm():
            return list(jvp(grad(terms), (point,), (tangents,))[1].values())

    def _product_in_reverse(
        self, state: dict[str, Tensor], tangents: dict[str, Tensor], batch: Any
    ) -> Slopes:
        leaves = {name: state[name].detach().requires_grad_() for name in tangents}

        def run() -> Slopes:
            slopes = _slopes(self._sum_of(batch), leaves, create_graph=True)
            return _slopes(_dot(slopes, tangents.values()), leaves)

        try:
            with torch.enable_grad(), _DifferentiableWeightNorm():
                return self.module.within({**state, **leaves}, run)
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            raise NotImplementedError(
                f"hessian_vector_product: model and loss must be twice differentiable, got: {error}"
            ) from error

    def _product_of_factors(self, vector: Tensor, direction: Tensor, inner: Inner) -> Tensor:
        """J' M J v, for J and M as `inner` has them of a batch, as a mean over all samples."""
        total = torch.zeros_like(vector, dtype=torch.float64)
        with self._differentiating(), _DifferentiableWeightNorm(), torch.enable_grad():
            state = self.module.state(vector.detach())
            tangents = self.module.layout(self.space.unflatten(direction.detach()))
            for batch in self.module.batches():
                self._add(total, self._factors(state, tangents, batch, inner))
        self._require_differentiable()
        return (total / self.total_weight).to(vector.dtype)

    def _factors(
        self, state: dict[str, Tensor], tangents: dict[str, Tensor], batch: Any, inner: Inner
    ) -> Slopes:
        """J' M J t of one batch: J t comes with the values, or by a second pass backwards."""
        leaves = {name: state[name].detach().requires_grad_() for name in tangents}

        def forward() -> Slopes:
            values, middle = inner(batch)
            duals = [forward_ad.unpack_dual(value) for value in values]
            along = middle([None if t is None else t.detach() for _, t in duals])
            return _slopes(_dot([value for value, _ in duals], along), leaves)

        def reverse() -> Slopes:
            values, middle = inner(batch)
            u = {str(k): torch.zeros_like(x).requires_grad_() for k, x in enumerate(values)}
            slopes = _slopes(_dot(values, u.values()), leaves, create_graph=True)
            along = middle(_slopes(_dot(slopes, tangents.values()), u))  # linear in u
            return _slopes(_dot(values, along), leaves)

        if self._forward_mode:
            _load_forward_mode()
            try:
                with forward_ad.dual_level():
                    duals = {n: forward_ad.make_dual(x, tangents[n]) for n, x in leaves.items()}
                    return self.module.within({**state, **duals}, forward)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # as in `_product`
                slopes = self.module.within({**state, **leaves}, reverse)
                self._forward_mode = False
                return slopes
        return self.module.within({**state, **leaves}, reverse)

    def _outputs(self, batch: Any) -> tuple[list[Tensor], Callable[[Slopes], Slopes]]:
        """The outputs that vary with the parameters; M is the Hessian of the loss in them."""
        inputs, targets = batch
        parts, structure = pytree.tree_flatten(self.module.call(inputs))
        varied = [k for k, x in enumerate(parts) if isinstance(x, Tensor) and x.requires_grad]

        def hessian(along: Slopes) -> Slopes:
            fixed = [_primal(part) for part in parts]
            points = {str(k): fixed[k].requires_grad_() for k in varied}
            terms = self.loss(pytree.tree_unflatten(fixed, structure), targets).values.sum()
            self._differentiable |= terms.requires_grad
            slopes = _slopes(terms, points, create_graph=True)
            return _slopes(_dot(slopes, along), points)

        return [parts[k] for k in varied], hessian

    def _terms(self, batch: Any) -> tuple[list[Tensor], Callable[[Slopes], Slopes]]:
        """The loss terms a_i; M is 1 / b_i on the diagonal, and 0 where a sample has no weight."""
        inputs, targets = batch
        values, weights = self.loss(self.module.call(inputs), targets)
        self._differentiable |= values.requires_grad

        def divide(along: Slopes) -> Slopes:
            if weights is None:
                return along
            return [x if x is None else (x / weights).where(weights > 0, 0) for x in along]

        return [values] if values.requires_grad else [], divide

    def _add(self, total: Tensor, slopes: Slopes) -> None:
        for entry, slope in zip(self.space.entries, slopes, strict=True):
            if slope is not None:
                total[entry.slice] += slope.detach().reshape(-1)


def _sums(term: PerSample) -> Tensor:
    a = term.values.double()
    if term.weights is None:
        total = a.sum()
        count = total.new_full((), len(a))
        return torch.stack((total, a @ a, total, count, count))
    b = term.weights.double()
    return torch.stack((a.sum(), a @ a, a @ b, b.sum(), b @ b))


def _slopes(value: Tensor, leaves: dict[str, Tensor], create_graph: bool = False) -> Slopes:
    """The gradient of a scalar, None for leaves that it does not depend on."""
    if not value.requires_grad:
        return [None] * len(leaves)
    return list(
        torch.autograd.grad(
            value, list(leaves.values()), create_graph=create_graph, allow_unused=True
        )
    )


def _dot(first: Iterable[Tensor | None], second: Iterable[Tensor | None]) -> Tensor:
    """The sum of all inner products; a missing tensor counts as zero."""
    pairs = zip(first, second, strict=True)
    products = [(x * y).sum() for x, y in pairs if x is not None and y is not None]
    return torch.stack(products).sum() if products else torch.zeros(())


def _primal(part: Any) -> Any:
    """A part of the outputs as a constant, without the tangent that it may carry."""
    return forward_ad.unpack_dual(part).primal.detach() if isinstance(part, Tensor) else part


class _DifferentiableWeightNorm(TorchFunctionMode):
    """Weight normalisation by plain operators.

    The fused one counts the norms as constants in its backward pass: a wrong second derivative,
    without an error (torch 2.14).
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        direction, length, dim = args
        return direction * (length / torch.norm_except_dim(direction, 2, dim))


@functools.cache
def _load_forward_mode() -> None:
    """The first use makes torch compile decompositions through torch.jit, which it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
