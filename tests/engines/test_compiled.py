"""Products by torch.compile: the eager ones, where that works, and nothing but them where not."""

import pickle
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import Attention, convnet, labels, mlp, normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.compiled import GRAPHS, CompiledProducts, largest_error
from pylandscape.engines.eager import EagerEngine

FEATURES, IMAGES, TOKENS = normal(11, 4), normal(11, 1, 6, 6), labels(11, 7, 5, seed=2)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Neither on torch's stacks of modes nor in the settings of the compiler."""
    config = torch._dynamo.config.get_config_copy()
    yield
    assert torch._dynamo.config.get_config_copy() == config
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0
    assert torch.overrides._len_torch_function_stack() == 0


def compiling(
    model: nn.Module, data: Any = FEATURES, backend: Any = "aot_eager", **options: Any
) -> tuple[pl.Objective, CompiledProducts]:
    """An objective whose products are compiled as soon as there has been one."""
    options = {"loss": nn.CrossEntropyLoss(), "batch_size": 4, "engine": "torch"} | options
    data = (data, labels(11, 3)) if isinstance(data, Tensor) else data
    objective = pl.Objective(model, data=data, **options)
    products = objective._engine.compiled
    products.enabled, products.seconds_before, products.backend = True, 0.0, backend
    return objective, products


def assert_the_eager_ones(objective: pl.Objective, times: int = 3) -> None:
    """At several points, with the model unchanged bit for bit."""
    eager = objective.replace()
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    for seed in range(times):
        v = normal(objective.space.size, seed=seed).to(objective.dtype)
        at = objective.center + 0.1 * v
        found = objective.hessian_vector_product(v, at)
        torch.testing.assert_close(found, eager.hessian_vector_product(v, at))
    assert not eager._engine.compiled.in_use
    after = objective.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# -- what is compiled ------------------------------------------------------------------------------


class Shared(nn.Module):
    """Parameters that are shared, fixed, normalised or unused, and a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        net = mlp(4, 4)
        self.net, self.unused = nn.Sequential(net, net), nn.Linear(2, 2).double()
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3).double())
        net[0].bias.requires_grad_(False)
        self.scale = torch.tensor(0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scale * self.net(x))


class InPlace(nn.Module):
    """Writes into its activations, one of which no later line names, and keeps one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = y = self.net(x)
        y[:, 0] = (2 * y[:, 1]).exp()
        part = y[:, 1:]
        part.mul_(0.5)
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, FEATURES),
    "batch_norm": (lambda: convnet(norm=True), IMAGES),
    "attention": (lambda: Attention("multihead").double(), TOKENS),
    "shared and fixed": (Shared, FEATURES),
    "in place": (InPlace, FEATURES),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_the_eager_ones(name: str, dtype: torch.dtype) -> None:
    """Of the full batches and of the smaller last one."""
    make, inputs = MODELS[name]
    weighted = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0], dtype=dtype))
    objective, products = compiling(make(), inputs, dtype=dtype, loss=weighted)
    assert_the_eager_ones(objective)
    assert products.obstacle == ""
    assert len(products._graphs) == 2


def test_by_inductor() -> None:
    objective, products = compiling(convnet(norm=True), IMAGES, "inductor", batch_size=11)
    assert_the_eager_ones(objective, times=2)
    assert products.obstacle == ""
    assert products.in_use


def test_statistics_of_each_batch() -> None:
    objective, products = compiling(convnet(norm=True), IMAGES, batchnorm="batch")
    assert_the_eager_ones(objective, times=2)
    assert products.in_use


def test_batches_of_many_sizes_get_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is made twice: not for directions that are columns, nor under no_grad."""
    monkeypatch.setattr("pylandscape.data._free_memory", lambda device: 0)  # the loader's batches
    batches = [(FEATURES[:n], labels(n, 3)) for n in (5, 1, 3, 2, 5)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    made = 0

    def counting(graph: Any, _: Any) -> Any:
        nonlocal made
        made += 1
        return graph.forward

    objective, products = compiling(mlp(), loader, counting)
    assert_the_eager_ones(objective, times=2)
    objective.hessian_vector_product(normal(objective.space.size, 2))
    with torch.no_grad():
        objective.hessian_vector_product(normal(2, objective.space.size)[1])
    assert made == len(products._graphs) == GRAPHS


# -- when ------------------------------------------------------------------------------------------


def test_only_on_a_gpu_unless_asked() -> None:
    objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), (FEATURES, labels(11, 3)))
    assert not objective._engine.compiled.enabled
    there: Any = SimpleNamespace(samples=SimpleNamespace(device=torch.device("cuda")))
    assert CompiledProducts(there).enabled


def test_not_before_they_have_cost_as_much_as_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted for every size of batch on its own."""
    objective, products = compiling(mlp())
    products.seconds_before = 10.0
    seconds = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))  # a second a batch
    v = normal(objective.space.size)
    for _ in range(5):
        objective.hessian_vector_product(v)  # of two full batches and one of 3 samples
    assert not products.in_use
    objective.hessian_vector_product(v)
    assert len(products._graphs) == 1
    for _ in range(5):
        objective.hessian_vector_product(v)
    assert len(products._graphs) == 2


def test_a_copy_starts_anew() -> None:
    objective, products = compiling(mlp())
    objective.hessian_vector_product(normal(objective.space.size))
    assert products.in_use
    copied = pickle.loads(pickle.dumps(objective._engine))
    assert isinstance(copied, EagerEngine)
    assert not copied.compiled.in_use


# -- where it does not work ------------------------------------------------------------------------


class Branches(nn.Module):
    """What is computed depends on the values, in a way that only Python sees."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y.tanh() if float(y.sum().detach()) > 0 else y.sin()


def wrong(graph: Any, _: Any) -> Any:
    return lambda *tensors: [1.001 * x for x in graph(*tensors)]


def broken(*_: Any) -> Any:
    raise OSError("no compiler.\nAnd more.")


@pytest.mark.parametrize(
    ("backend", "obstacle"),
    [
        (wrong, "the compiled product differs from the eager one by 0.001 of it"),
        (broken, "of OSError: no compiler"),
    ],
)
def test_they_stay_eager(backend: Any, obstacle: str) -> None:
    objective, products = compiling(mlp(), backend=backend)
    assert_the_eager_ones(objective)
    assert products.obstacle == obstacle
    assert not products.in_use


def test_a_graph_that_fails_in_use_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, products = compiling(mlp())
    objective.hessian_vector_product(normal(objective.space.size))

    def fail(*_: Any) -> Any:
        raise RuntimeError("no more")

    for kind in products._graphs:
        monkeypatch.setitem(products._graphs, kind, fail)
    assert_the_eager_ones(objective)
    assert products.obstacle == "of RuntimeError: no more"
    assert not products.in_use


def test_branches_on_values_stay_eager() -> None:
    objective, products = compiling(Branches())
    assert_the_eager_ones(objective)
    assert products.obstacle != ""


def test_what_is_not_finite_says_nothing() -> None:
    objective, products = compiling(mlp())
    v = normal(objective.space.size)
    assert objective.hessian_vector_product(v, at=torch.nan * v).isnan().all()
    assert (products.obstacle, products.in_use) == ("", False)
    assert_the_eager_ones(objective)
    assert products.in_use


def test_an_error_is_measured_for_every_tensor() -> None:
    large, small, none = torch.full((4,), 3.0), torch.full((9,), 1e-2), torch.zeros(2)
    expected = [large, small, none]
    assert largest_error(expected, expected) == 0
    assert largest_error([large, 2 * small, none], expected) > 0.1
    assert largest_error([large, small, none + 1e-9], expected) < 1e-7
    assert largest_error([none], [none]) == 0
    assert largest_error([none + 1], [none]) == torch.inf
    assert largest_error([none + torch.nan], [none]) != 0


# -- Ctrl-C ----------------------------------------------------------------------------------------


def test_an_interrupted_compilation_leaves_nothing() -> None:
    """Pressed twice, Ctrl-C acts in the middle of it; pressed once, before the next batch."""
    presses = 2

    def interrupted(graph: Any, _: Any) -> Any:
        nonlocal presses
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        presses = 0
        return graph

    objective, products = compiling(InPlace(), backend=interrupted)
    model, v = objective.model, normal(objective.space.size)
    before = [dict(module.__dict__) for module in model.modules()]
    for presses, compiled in [(2, False), (1, True)]:  # noqa: B007
        with pytest.raises(KeyboardInterrupt):
            objective.hessian_vector_product(v)
        assert products.in_use is compiled
        assert [dict(module.__dict__) for module in model.modules()] == before
    assert products.obstacle == ""
    assert_the_eager_ones(objective)


# -- what is told of it ----------------------------------------------------------------------------


def test_it_is_told() -> None:
    objective, products = compiling(mlp())
    products.seconds_before = 30.0
    assert "compiled by torch.compile once they have taken 30 s." in str(pl.explain(objective))
    H = pl.Hessian(objective)
    assert "compiled" not in pl.eigenpairs(H).attrs
    products.seconds_before = 0.0
    assert pl.eigenpairs(H).attrs["compiled"] == "hessian_vector_product"
    assert str(pl.explain(objective)).endswith("products are compiled by torch.compile.")
    objective, _ = compiling(mlp(), backend=broken)
    assert "compiled" not in pl.eigenpairs(pl.Hessian(objective)).attrs
    assert "not compiled, because of" in str(pl.explain(objective))
