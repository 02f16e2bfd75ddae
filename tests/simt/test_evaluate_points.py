"""The CUDA engine whole, planner and kernels, run by the SIMT layer, against torch in float64."""

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import labels, mlp, normal, seeded
from random_models import (
    Apply,
    Combine,
    Problem,
    concatenate,
    loss_and_targets,
    problems,
    randomised,
)
from simt.host import (
    CONVOLUTIONS,
    HostEngine,
    both_ways,
    but_for_uneven_padding,
    classifier,
    convnet,
    exact,
    kernels_on_the_host,
    on_host,
    simt,
)
from simt.kernels import CSRC
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops, gpu_check
from pylandscape.engines import cuda
from pylandscape.engines.cuda import MATH
from pylandscape.engines.cuda_plan import SAMPLES_AT_ONCE
from pylandscape.engines.program import NotCovered

__all__ = ["kernels_on_the_host"]
KERNELS = {
    kernel
    for name in ("product", "layers", "loss")
    for kernel in re.findall(r"(\w+_kernel)\(", (CSRC / "cuda" / f"{name}.cuh").read_text())
}


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


# -- architectures -------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(problems(37), st.integers(1, 3))
def test_random_architectures(problem: Problem, directions: int) -> None:
    with but_for_uneven_padding():
        assert_agree(*problem, 3, directions, tolerance=5e-5)


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


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_factors_are_rounded_to_the_nearest(precision: str) -> None:
    """Tensor cores cut off what they do not use: an error to one side, which sums do not lose."""

    def rounded(x: Tensor) -> Tensor:
        if precision == "bf16":
            return x.bfloat16().double()
        return (x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32).double()

    torch.manual_seed(0)
    layer, x, y = nn.Linear(40, 3), normal(9, 40).abs().float(), normal(9, 3, seed=1).float()
    layer.weight.requires_grad_(False).abs_()
    layer.weight.requires_grad_(True)
    engine = on_host(layer, nn.MSELoss(), (x, y), precision)._native
    assert isinstance(engine, HostEngine)
    packed = engine._pack(engine.space.flatten(engine.reference.module.model))
    found = torch.zeros(1, 7, dtype=torch.float64)
    constants = engine.plan.constants(engine._state())
    engine._add_sums(found, packed, torch.zeros(1, 0), constants, 0, 9)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    outputs = rounded(x) @ rounded(weight).T + bias
    torch.testing.assert_close(found[0, 0], ((outputs - y) ** 2).mean(1).sum(), rtol=1e-6, atol=0)


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


# -- all of it ------------------------------------------------------------------------------------


def every_layer() -> nn.Module:
    torch.manual_seed(4)
    branch = nn.Sequential(nn.GroupNorm(2, 6), nn.AvgPool2d(3, 1, 1), nn.SiLU())
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(3, 2), nn.BatchNorm2d(6), nn.Tanh(),
            Combine(branch, nn.Identity(), torch.mul), Combine(nn.Tanh(), nn.ReLU(), concatenate),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5),
        )
    )  # fmt: skip


def test_every_kernel_runs_here() -> None:
    """Those of evaluate_points, for stored and for generated directions and in every precision."""
    simt.launched()
    cases = [(mlp(6, 3), (6,), nn.CrossEntropyLoss()), (every_layer(), (3, 9, 7), None)]
    widths = [(nn.Conv2d(1, n, 2), (1, 2, 2), None) for n in (16, 32, 64)]
    widths += [(nn.Sequential(nn.Identity(), nn.Linear(2, n)), (1, 2), None) for n in (16, 32, 64)]
    for model, shape, loss in [*cases, *widths]:
        inputs = normal(3, *shape)
        own, targets = loss_and_targets(model.double(), inputs)
        for precision in MATH:
            objective = on_host(model, loss or own, (inputs, targets), precision)
            both_ways(objective, pl.random_directions(objective, 1, ignore=None), 1)
    found = simt.launched()
    assert {name.partition("<")[0] for name in found} == KERNELS
    products = [name for name in found if name.startswith("product_kernel")]
    assert len(products) == 18  # on images and vectors, of three widths, in three precisions
    launches = {name for name in found if "Directions" in name}
    assert len(launches) == len(products) + 3


@pytest.mark.parametrize("name", ["mlp", "a fused mean"])
def test_no_samples_and_no_points(name: str) -> None:
    model = mlp(6, 3) if name == "mlp" else convnet(name)
    data = classifier(model, 5, *((6,) if name == "mlp" else (3, 9, 7)))
    engine = on_host(model, nn.CrossEntropyLoss(), data)._native
    assert isinstance(engine, HostEngine)
    packed = engine._pack(engine.space.flatten(engine.reference.module.model))
    for points, first, last in [(2, 3, 3), (0, 0, 5), (0, 2, 2)]:
        sums = torch.ones(points, 7, dtype=torch.float64)
        at, constants = torch.zeros(points, 0), engine.plan.constants(engine._state())
        engine._add_sums(sums, packed, at, constants, first, last)
        assert torch.equal(sums, torch.ones(points, 7, dtype=torch.float64))


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


@pytest.mark.parametrize("pixel", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("size", [2, 3])
def test_nan_in_a_window_of_a_pooling(size: int, pixel: tuple[int, int]) -> None:
    """Wherever it lies, in the pooling of a product and in one of its own."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(size, 2), nn.Flatten())
    data = normal(3, 1, 3, 3).float(), normal(3, 2).float()
    engine = on_host(model, nn.MSELoss(), data)._native
    assert isinstance(engine, HostEngine)
    engine._inputs = engine._inputs.clone()
    engine._inputs[1, 0, pixel[0], pixel[1]] = torch.nan
    packed = engine._pack(engine.space.flatten(engine.reference.module.model))
    constants, none = engine.plan.constants(engine._state()), torch.zeros(1, 0)
    for first, is_nan in [(0, False), (1, True), (2, False)]:
        found = torch.zeros(1, 7, dtype=torch.float64)
        engine._add_sums(found, packed, none, constants, first, first + 1)
        assert bool(found[0, 0].isnan()) is is_nan


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
    monkeypatch.setattr(_ops.library, "_C_cuda", None)
    objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), classifier(mlp(), 4, 4), engine="torch")
    with pytest.raises(NotCovered, match="the operators for CUDA are missing"):
        cuda.CudaEngine(objective._engine)
