"""The CUDA engine whole, planner and kernels, run by the SIMT layer, against torch in float64."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from models import labels, mlp, normal, seeded
from random_models import Apply, Combine, architectures, loss_and_targets, randomised
from simt.kernels import load
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops, gpu_check
from pylandscape.engines import cuda
from pylandscape.engines.cuda import CudaEngine, Generated
from pylandscape.engines.cuda_plan import SAMPLES_AT_ONCE, STORED_SHARE, CudaPlan
from pylandscape.engines.program import NotCovered

simt = load()


class HostEngine(CudaEngine):
    """The engine for GPUs with its kernels on the host; `room` and `reverse` are for tests."""

    device = "cpu"
    room = 1 << 30
    reverse = False

    def _check_precision(self) -> None:
        pass

    def _room(self) -> int:
        return self.room


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any) -> None:
        arrays = [a.numpy() if isinstance(a, Tensor) else a for a in arguments]
        for array in arguments[1:3]:
            array.fill_(float("nan"))  # what a kernel reads there it must have written
        simt.evaluate_points(*arrays, HostEngine.reverse)

    monkeypatch.setattr(_ops, "evaluate_points_on_device", run)
    monkeypatch.setattr(HostEngine, "room", 1 << 30)
    monkeypatch.setattr(HostEngine, "reverse", False)


def on_host(model: nn.Module, loss: Any, data: Any, precision: str = "fast") -> pl.Objective:
    """An objective in float32 that runs at all points on the engine for GPUs."""
    objective = pl.Objective(copy.deepcopy(model).float(), loss, data, engine="torch")
    objective._native = HostEngine(objective._engine, precision)
    return objective


def exact(model: nn.Module, loss: Any, data: Any) -> pl.Objective:
    return pl.Objective(copy.deepcopy(model).double(), loss, data, engine="torch")


def along(objective: pl.Objective, points: int, count: int = 2) -> dict[str, Tensor]:
    vectors = 0.05 * normal(count, objective.space.size)
    directions = pl.Directions.from_vectors(objective, vectors)
    coordinates = 2 * torch.rand(points, count, dtype=torch.float64, generator=seeded()) - 1
    return objective.evaluate_along(objective.center, directions, coordinates)


def assert_agree(
    model: nn.Module, loss: Any, data: Any, points: int = 4, count: int = 2,
    precision: str = "fast", tolerance: float = 1e-5,
) -> pl.Objective:  # fmt: skip
    objective = on_host(model, loss, data, precision)
    found = along(objective, points, count)
    expected = along(exact(model, loss, data), points, count)
    scale = float(expected["loss"].abs().max()) + 1e-3
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(
        found["loss_stderr"], expected["loss_stderr"], rtol=1e-3 + 10 * tolerance,
        atol=10 * tolerance * scale, equal_nan=True,
    )  # fmt: skip
    if "accuracy" in expected and precision == "fast":
        torch.testing.assert_close(found["accuracy"], expected["accuracy"], rtol=0, atol=1e-9)
    return objective


def classifier(model: nn.Module, samples: int, *shape: int) -> tuple[Tensor, Tensor]:
    inputs = normal(samples, *shape, seed=samples)
    with torch.no_grad():
        classes = copy.deepcopy(model).eval()(inputs[:1]).shape[1]
    return inputs, labels(samples, classes)


# -- architectures -------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(architectures(), st.integers(1, 37), st.integers(1, 3))
def test_random_architectures(
    case: tuple[nn.Module, tuple[int, ...]], samples: int, directions: int
) -> None:
    model, shape = case
    assume(any(True for _ in model.parameters()))
    inputs = normal(samples, *shape, seed=samples)
    loss, targets = loss_and_targets(model, inputs)
    try:
        assert_agree(model, loss, (inputs, targets), 3, directions, tolerance=5e-5)
    except NotCovered as obstacle:
        assume("pads its two sides differently" not in str(obstacle))
        raise


CONVOLUTIONS = {
    "a fused max-pool, odd sides": (nn.Conv2d(3, 7, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
    "a fused mean": (nn.Conv2d(3, 18, 3), nn.BatchNorm2d(18), nn.ReLU(), nn.AvgPool2d(2)),
    "groups, stride, dilation": (nn.Conv2d(3, 6, (3, 2), 2, (1, 0), (2, 1), groups=3), nn.SiLU()),
    "many outputs": (nn.Conv2d(3, 70, 1, bias=False), nn.ReLU(), nn.AvgPool2d(3)),
}


def convnet(name: str) -> nn.Module:
    torch.manual_seed(1)
    head = nn.Sequential(*copy.deepcopy(CONVOLUTIONS[name]), nn.Flatten(), nn.LazyLinear(5))
    head(torch.zeros(2, 3, 9, 7))
    return randomised(head)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    model = convnet(name)
    assert_agree(model, nn.CrossEntropyLoss(), classifier(model, 9, 3, 9, 7))


def residual_net() -> nn.Module:
    torch.manual_seed(2)
    block = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5))
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(),
            Combine(block, nn.Identity(), torch.add), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
        )
    )  # fmt: skip


def test_a_residual_block_is_one_step_per_convolution() -> None:
    model = residual_net()
    objective = assert_agree(model, nn.CrossEntropyLoss(), classifier(model, 21, 2, 6, 6))
    assert objective._native is not None
    assert objective._native.plan.steps == [
        "convolution, batch_norm, relu", "convolution, batch_norm, add, relu",
        "adaptive_avg_pool", "linear", "loss cross_entropy",
    ]  # fmt: skip


def test_explain_tells_the_kernels() -> None:
    objective = on_host(mlp(6, 3), nn.CrossEntropyLoss(), classifier(mlp(6, 3), 4, 6))
    objective.choice = "native"
    objective.__dict__["native_engine"] = objective._native
    text = pl.explain(objective)
    for fact in ("native on a GPU", "linear, tanh", "per sample and point of a launch"):
        assert fact in text


# -- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 2e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", ["mlp", *CONVOLUTIONS])
def test_tensor_cores_round_their_factors(name: str, precision: str, tolerance: float) -> None:
    model = mlp(6, 3) if name == "mlp" else convnet(name)
    shape = (6,) if isinstance(model[0], nn.Linear) else (3, 9, 7)
    data = classifier(model, 9, *shape)
    assert_agree(model, nn.CrossEntropyLoss(), data, 2, precision=precision, tolerance=tolerance)
    rounded, plain = (
        along(on_host(model, nn.CrossEntropyLoss(), data, p), 2) for p in (precision, "fast")
    )
    assert not torch.equal(rounded["loss"], plain["loss"])  # it is another kernel


@pytest.mark.parametrize("width", [1, 15, 16, 17, 64, 65, 130])
def test_widths_beside_the_tiles(width: int) -> None:
    torch.manual_seed(width)
    model = randomised(nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, width)))
    assert_agree(model, nn.MSELoss(), (normal(5, width), normal(5, width, seed=3)))


def test_more_rows_than_a_tile() -> None:
    model = mlp(3)
    assert_agree(model, nn.CrossEntropyLoss(), classifier(model, 261, 3), points=1)


# -- the launches ----------------------------------------------------------------------------------


def sums(objective: pl.Objective, points: int = 5) -> Tensor:
    return along(objective, points)["loss"]


@pytest.mark.parametrize("model", [mlp(6, 3), convnet("a fused mean")], ids=["mlp", "cnn"])
def test_launches_of_any_size_agree(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither the order of the blocks nor the points beside it change a bit of a result."""
    shape = (6,) if isinstance(model[0], nn.Linear) else (3, 9, 7)
    data = classifier(model, 67, *shape)
    objective = on_host(model, nn.CrossEntropyLoss(), data)
    expected = sums(objective)
    monkeypatch.setattr(HostEngine, "reverse", True)
    assert torch.equal(sums(objective), expected)
    monkeypatch.setattr(HostEngine, "reverse", False)
    plan = objective._native.plan  # type: ignore[union-attr]
    for points, samples in [(2, 67), (1, 67), (3, 10), (1, 1)]:
        monkeypatch.setattr(type(plan), "at_once", lambda *_: (points, samples))  # noqa: B023
        found = sums(objective)
        if samples == 67:
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_memory_of_a_launch_is_kept() -> None:
    model = mlp(6, 3)
    plan = on_host(model, nn.CrossEntropyLoss(), classifier(model, 30, 6))._native.plan  # type: ignore[union-attr]
    for room in [10_000, 100_000, 10**7, 10**9]:
        for samples, points, directions in [(1, 1, 0), (50_000, 2601, 2), (3, 10**6, 9)]:
            p, s = plan.at_once(samples, points, directions, room)
            assert 1 <= p <= min(points, 65535)
            assert 1 <= s <= min(samples, SAMPLES_AT_ONCE)
            assert 4 * plan.workspace(p, s, directions) <= room
    with pytest.raises(MemoryError, match=r"one sample at one point needs \d+ bytes"):
        plan.at_once(10, 10, 2, 100)


def test_little_memory_is_many_launches() -> None:
    HostEngine.room = 2000
    model = mlp(6, 3)
    assert_agree(model, nn.CrossEntropyLoss(), classifier(model, 67, 6))


def test_a_launch_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of gpu_check with kernels on the host; a graph here is a list of what was asked."""
    run, graphs = _ops.evaluate_points_on_device, []

    class Graph:
        def __init__(self) -> None:
            self.asked: list[Any] = []
            self.open = False
            graphs.append(self)

        def replay(self) -> None:
            for arguments in self.asked:
                run(*arguments)

    def launch(*arguments: Any) -> None:
        if graphs and graphs[-1].open:
            graphs[-1].asked.append(arguments)
        else:
            run(*arguments)

    @contextlib.contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        graph.open = True
        yield
        graph.open = False

    monkeypatch.setattr(_ops, "evaluate_points_on_device", launch)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    on_the_host = property(lambda objective: HostEngine(objective._engine))
    monkeypatch.setattr(pl.Objective, "native_engine", on_the_host)
    comparison = gpu_check.graph("cpu")
    assert len(graphs[0].asked) == 1
    assert comparison.error == 0
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    assert not gpu_check.graph("cpu").passed


# -- generated directions --------------------------------------------------------------------------


def both_ways(
    objective: pl.Objective, directions: pl.Directions, points: int = 3
) -> tuple[Tensor, Tensor]:
    """Losses with the directions stored and with them generated in the kernels."""
    count, losses = len(directions), []
    coordinates = torch.randn(points, count, dtype=torch.float64, generator=seeded())
    engine = objective._native
    assert isinstance(engine, HostEngine)
    for stored in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CudaPlan, "stores", lambda *_: stored)  # noqa: B023
            packed = engine._pack_along(objective.center, directions)
            assert isinstance(packed, Generated) is not stored
            found = objective.evaluate_along(objective.center, directions, coordinates)
        losses.append(found["loss"])
    return losses[0], losses[1]


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(architectures(), st.integers(1, 9), st.integers(1, 3), st.sampled_from(["filter", "model"]))
def test_generated_directions_are_the_stored_ones_to_the_bit(
    case: tuple[nn.Module, tuple[int, ...]], samples: int, count: int, normalize: str
) -> None:
    model, shape = case
    assume(any(True for _ in model.parameters()))
    inputs = normal(samples, *shape, seed=samples)
    loss, targets = loss_and_targets(model, inputs)
    try:
        objective = on_host(model, loss, (inputs, targets))
    except NotCovered as obstacle:
        assume("pads its two sides differently" not in str(obstacle))
        raise
    directions = pl.random_directions(objective, count, samples, normalize, ignore=None)
    stored, generated = both_ways(objective, directions)
    assert torch.equal(stored, generated)
    assert len(set(stored.tolist())) > 1 or objective.space.size < 4  # they do move something


@pytest.mark.parametrize("precision", ["fast", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["mlp", *CONVOLUTIONS])
def test_generated_directions_in_every_product(name: str, precision: str) -> None:
    model = mlp(6, 3) if name == "mlp" else convnet(name)
    data = classifier(model, 9, *((6,) if name == "mlp" else (3, 9, 7)))
    objective = on_host(model, nn.CrossEntropyLoss(), data, precision)
    directions = pl.random_directions(objective, 2, seed=5)
    stored, generated = both_ways(objective, directions)
    assert torch.equal(stored, generated)
    if precision == "fast":
        at = torch.randn(3, 2, dtype=torch.float64, generator=seeded())
        there = exact(model, nn.CrossEntropyLoss(), data)
        expected = there.evaluate_along(there.center, directions, at)["loss"]
        torch.testing.assert_close(generated, expected, rtol=2e-5, atol=0)


class Tied(nn.Module):
    """A weight that two layers share, a layer that is fixed, and norms of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7, bias=False)
        self.second.weight = self.first.weight
        self.fixed = nn.Linear(7, 5).requires_grad_(False)
        self.norm, self.last = nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).tanh()).tanh()
        return self.last(self.norm(self.fixed(x)))


@pytest.mark.parametrize("count", [1, 3])
def test_generated_directions_of_tied_and_fixed_layers(count: int) -> None:
    model = randomised(Tied())
    data = classifier(model, 20, 7)
    objective = on_host(model, nn.CrossEntropyLoss(), data)
    stored, generated = both_ways(objective, pl.random_directions(objective, count, ignore=None))
    assert torch.equal(stored, generated)


def test_directions_are_generated_where_they_would_take_much_memory() -> None:
    model = mlp(6, 3)
    objective = on_host(model, nn.CrossEntropyLoss(), classifier(model, 10, 6))
    engine = objective._native
    assert isinstance(engine, HostEngine)
    taken = 4 * 2 * engine.plan.packed
    drawn = pl.random_directions(objective, 2)
    for room, generated in [(taken / STORED_SHARE, False), (taken / STORED_SHARE - 1, True)]:
        HostEngine.room = int(room)
        packed = engine._pack_along(objective.center, drawn)
        assert isinstance(packed, Generated) is generated
        if generated:
            assert packed.packed.shape == (1, engine.plan.packed)
            vectors = drawn.vectors.double().abs().sum(1)
            assert bool((packed.norms[1:] >= vectors).all())
        given_vectors = pl.Directions.from_vectors(objective, drawn.vectors)
        assert isinstance(engine._pack_along(objective.center, given_vectors), Tensor)


# -- losses ----------------------------------------------------------------------------------------

LOSSES = {
    "weights": (nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0])), "classes"),
    "smoothing": (
        nn.CrossEntropyLoss(torch.tensor([0.2, 3.0, 1.0]), label_smoothing=0.3),
        "classes",
    ),
    "ignored": (nn.CrossEntropyLoss(ignore_index=1), "classes"),
    "squared": (nn.MSELoss(), "numbers"),
    "absolute": (nn.L1Loss(), "numbers"),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5, 1.0])), "bits"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    loss, kind = LOSSES[name]
    inputs, classes = normal(70, 6), labels(70, 3)
    targets = {
        "classes": classes,
        "numbers": normal(70, 3, seed=4),
        "bits": 1.0 * (normal(70, 3, seed=5) > 0),
    }
    double = copy.deepcopy(loss).double()
    model = mlp(6, 3)
    found = along(on_host(model, loss, (inputs, targets[kind])), 3)
    expected = along(exact(model, double, (inputs, targets[kind])), 3)
    for key in ("loss", "loss_stderr"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=0)


def test_log_softmax_before_its_loss() -> None:
    model = nn.Sequential(mlp(6, 3), nn.LogSoftmax(1))
    assert_agree(model, nn.NLLLoss(), classifier(model, 20, 6))


# -- what is not finite ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.MaxPool1d(2), nn.Hardtanh(), nn.Softplus()],
    ids=lambda m: type(m).__name__,
)
def test_nan_and_infinity_propagate(layer: nn.Module, value: float) -> None:
    """From a weight to the sums, through layers that compare."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (1, 4)), layer, nn.Flatten())
    with torch.no_grad():
        model[0].weight.abs_()
    data = normal(8, 6).abs().float(), normal(8, 2 if isinstance(layer, nn.MaxPool1d) else 4)
    engine = on_host(model, nn.MSELoss(), data)._native
    assert engine is not None
    packed = engine._pack(engine.space.flatten(engine.reference.module.model))
    packed[0, 3] = value
    found = torch.zeros(1, 7, dtype=torch.float64)
    none = torch.zeros(1, 0)
    engine._add_sums(found, packed, none, engine.plan.constants(engine._state()), 0, 8)  # type: ignore[attr-defined]
    bounded = isinstance(layer, nn.Hardtanh) and value == float("inf")
    assert bool(found[0, 0].isfinite()) is bounded


def test_points_that_are_not_finite_go_to_torch() -> None:
    model = mlp(6, 3)
    data = classifier(model, 10, 6)
    objective = on_host(model, nn.CrossEntropyLoss(), data)
    directions = pl.Directions.from_vectors(objective, normal(1, objective.space.size).float())
    at = torch.tensor([[0.0], [float("nan")], [0.1]])
    losses = objective.evaluate_along(objective.center, directions, at)["loss"]
    assert losses.isnan().tolist() == [False, True, False]


def test_an_operator_without_a_kernel_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Apply(lambda x: x.softmax(1)), nn.Flatten())
    with pytest.raises(NotCovered, match=r"softmax.* has no native kernel"):
        on_host(model, nn.CrossEntropyLoss(), (normal(4, 1, 5, 5), labels(4, 3)))


def test_tf32_needs_a_gpu() -> None:
    data = classifier(mlp(), 4, 4)
    with pytest.raises(ValueError, match="'tf32' needs a GPU"):
        pl.Objective(mlp().float(), nn.CrossEntropyLoss(), data, engine="native", precision="tf32")


def test_without_the_operators_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "_C_cuda", None)
    objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), classifier(mlp(), 4, 4), engine="torch")
    with pytest.raises(NotCovered, match="the operators for CUDA are missing"):
        cuda.CudaEngine(objective._engine)
