"""Hessian-vector products by torch.compile, once they have cost enough to pay for it.

A product is traced down to aten operators, both derivatives taken, with the state of the module and
the batch as inputs; torch.compile gets that graph and never sees the user's Python. The graph is a
copy: attributes of the model that are no tensors count as they were when it was made.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pylandscape._checks import all_finite
from pylandscape.engines.module import FunctionalModule, unchanged

Product = Callable[[dict[str, Tensor], dict[str, Tensor], Any], list[Tensor]]

# Spent eagerly on batches of one kind before a graph is compiled for them: about what compiling
# costs. So both together cost at most twice the better of the two, and short work is never slowed.
SECONDS_BEFORE = 30.0
GRAPHS = 2  # kinds of batches that get one: all but the last, and the last; others stay eager
# Beside a tensor's norm, this share of the norm of all: derivatives that vanish are rounding.
SHARE = 0.01


class CompiledProducts:
    """Runs products of batches, eagerly or by a compiled graph.

    On a GPU only, unless `enabled` is set. A graph is used when its product of one batch has been
    the eager one to half the digits of the dtype; where there is none, or it fails, products stay
    eager and `obstacle` tells why.

    Args:
        module: the module whose products are taken.
    """

    def __init__(self, module: FunctionalModule) -> None:
        self._module = module
        self.enabled = module.samples.device.type == "cuda"
        self.backend, self.seconds_before = "inductor", SECONDS_BEFORE
        self.obstacle = ""
        self._graphs: dict[Hashable, Product] = {}
        self._seconds: defaultdict[Hashable, float] = defaultdict(float)

    def __reduce__(self) -> Any:
        """Where it is unpickled nothing is compiled yet."""
        return CompiledProducts, (self._module,)

    def __call__(
        self, product: Product, state: dict[str, Tensor], tangents: dict[str, Tensor], batch: Any
    ) -> list[Tensor]:
        """`product(state, tangents, batch)`, which must be a function of the tensors in these."""
        kind = self._kind(batch) if self.enabled and not self.obstacle else None
        if kind is None:
            return product(state, tangents, batch)
        if kind in self._graphs:
            try:
                return self._graphs[kind](state, tangents, batch)
            except Exception as error:  # what is the model's own fault comes again, eagerly
                self._give_up(error)
                return product(state, tangents, batch)
        # Work that is queued on a GPU is not waited for: where it is long, its queue is full.
        start = time.perf_counter()
        slopes = product(state, tangents, batch)
        self._seconds[kind] += time.perf_counter() - start
        if self._seconds[kind] > self.seconds_before and len(self._graphs) < GRAPHS:
            self._try_to_compile(kind, product, (state, tangents, batch), slopes)
        return slopes

    @property
    def in_use(self) -> bool:
        """Whether products are compiled from now on, of batches like those seen so far."""
        return bool(self._graphs)

    def describe(self) -> str:
        """A sentence on what is compiled, empty where nothing is to be."""
        if not self.enabled:
            return ""
        if self.obstacle:
            return f" Hessian-vector products are not compiled, because {self.obstacle}."
        if self.in_use:
            return " Hessian-vector products are compiled by torch.compile."
        return (
            " Hessian-vector products are compiled by torch.compile once they have taken "
            f"{self.seconds_before:.0f} s."
        )

    def _kind(self, batch: Any) -> Hashable | None:
        """What a graph is made for; None where a batch does not consist of tensors."""
        leaves = pytree.tree_leaves(batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        device = self._module.samples.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return autocast, *((leaf.shape, leaf.dtype) for leaf in leaves)

    def _try_to_compile(
        self, kind: Hashable, product: Product, arguments: tuple[Any, ...], expected: list[Tensor]
    ) -> None:
        """Makes a graph for batches of this kind, from a product whose result is known."""
        if not all(map(all_finite, expected)):
            return  # no two ways need agree on it
        try:
            with unchanged(self._module.model), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice on the user's settings
                # Of fake tensors, which have no values: Python cannot have branched on one. Of
                # copies: views of larger tensors trip an assertion in torch 2.14.
                trace = make_fx(
                    lambda state, tangents, batch: product(state, tangents, batch),
                    tracing_mode="fake", _allow_non_fake_inputs=True,
                )  # fmt: skip
                graph = trace(*pytree.tree_map(torch.clone, arguments))
                graph.graph.eliminate_dead_code()  # arithmetic of sizes, which Dynamo refuses
                graph.recompile()
                compiled = torch.compile(graph, backend=self.backend, fullgraph=True, dynamic=False)
                run = torch.no_grad()(compiled)
                error = largest_error(run(*arguments), expected)
        except Exception as failure:
            return self._give_up(failure)
        dtype = self._module.samples.dtype
        if not error <= torch.finfo(dtype).eps ** 0.5:
            self._graphs.clear()
            self.obstacle = f"the compiled product differs from the eager one by {error:.1g} of it"
            return None
        self._graphs[kind] = run
        return None

    def _give_up(self, error: Exception) -> None:
        self._graphs.clear()
        error = getattr(error, "inner_exception", error)  # the compiler's own, behind Dynamo's
        first_line = next(iter(str(error).strip().splitlines()), "")
        self.obstacle = f"of {type(error).__name__}: {first_line}".rstrip(": .")


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Over the tensors, the norm of the difference beside that of what is expected."""
    norms = torch.stack([y.double().norm() for y in expected])
    pairs = zip(found, expected, strict=True)
    differences = torch.stack([(x.double() - y.double()).norm() for x, y in pairs])
    errors = differences / (norms + SHARE * norms.norm())
    return float(errors.masked_fill(differences == 0, 0).max())
