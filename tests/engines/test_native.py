"""The native engine against torch in float64, over architectures, losses and states of a model."""

import copy
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import labels, mlp, normal, seeded
from random_models import Combine, Problem, problems, randomised
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops
from pylandscape.engines.points import Points

Data = tuple[Tensor, Tensor]


class Trio(NamedTuple):
    """One loss: on the native engine, on torch in float64, and on torch in float32."""

    native: pl.Objective
    exact: pl.Objective
    plain: pl.Objective


def objectives(model: nn.Module, loss: Any, data: Data, **options: Any) -> Trio:
    single, double = copy.deepcopy(model).float(), model.double()
    return Trio(
        pl.Objective(single, loss, data, engine="native", **options),
        pl.Objective(double, loss, data, engine="torch"),
        pl.Objective(single, loss, data, engine="torch"),
    )


def along(objective: pl.Objective, vectors: Tensor, coordinates: Tensor) -> dict[str, Tensor]:
    directions = pl.Directions.from_vectors(objective, vectors)
    return objective.evaluate_along(objective.center, directions, coordinates)


def assert_agree(trio: Trio, count: int = 2, points: int = 4, scale: float = 0.05) -> None:
    """Loss, standard error and accuracy along `count` directions."""
    vectors = scale * normal(count, trio.exact.space.size)
    coordinates = 2 * torch.rand(points, count, dtype=torch.float64, generator=seeded()) - 1
    found, expected, plain = (along(o, vectors, coordinates) for o in trio)
    assert found.keys() == expected.keys()
    # where float32 does more than round the loss, it does so to PyTorch too
    rounding = (plain["loss"] - expected["loss"]).abs().max()
    slack = float((2e-6 * expected["loss"].abs().max() + 1e-7).maximum(20 * rounding))
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0, atol=slack)
    torch.testing.assert_close(
        found["loss_stderr"], expected["loss_stderr"], rtol=1e-3, atol=10 * slack, equal_nan=True
    )
    if "accuracy" in expected:
        assert (found["accuracy"] - expected["accuracy"]).abs().max() < 1.5 / trio.native.samples


# -- architectures -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(problems(37), st.integers(1, 3), st.sampled_from(["fast", "exact"]))
def test_random_architectures(problem: Problem, directions: int, precision: str) -> None:
    before = _ops.isa()
    try:
        for level in _ops.isa_levels():
            _ops.set_isa(level)
            trio = objectives(*problem, precision=precision)
            assert_agree(trio, count=directions, points=2)
    finally:
        _ops.set_isa(before)


def small_resnet() -> nn.Module:
    """Convolutions of all kinds: stem, Winograd with a residual, stride, depthwise, groups."""
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
    )
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            Combine(body, nn.Identity(), torch.add),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1, groups=16),
            nn.Conv2d(16, 20, 1, groups=4),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(20, 5),
        )
    )


@pytest.fixture(scope="module")
def images() -> Data:
    return normal(70, 3, 10, 9), labels(70, 5)


@pytest.mark.parametrize("precision", ["fast", "exact"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lines_planes_and_grids(level: str, precision: str, count: int, images: Data) -> None:
    trio = objectives(small_resnet(), nn.CrossEntropyLoss(), images, precision=precision)
    assert_agree(trio, count=count)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 33, 70])
def test_any_number_of_samples(samples: int, images: Data) -> None:
    data = images[0][:samples], images[1][:samples]
    assert_agree(objectives(small_resnet(), nn.CrossEntropyLoss(), data), points=1)
    flat = data[0].flatten(1)[:, :21], data[1]
    net = randomised(nn.Sequential(nn.Linear(21, 19), nn.GELU(), nn.Linear(19, 5)))
    assert_agree(objectives(net, nn.CrossEntropyLoss(), flat), points=1)


@pytest.mark.parametrize("points", [1, 2, 65, 200])
def test_any_number_of_points(points: int) -> None:
    """A net that starts with a Linear shares the products of its first layer among points."""
    net = randomised(nn.Sequential(nn.Linear(4, 19), nn.Tanh(), nn.Linear(19, 3)))
    data = normal(40, 4), labels(40, 3)
    assert_agree(objectives(net, nn.CrossEntropyLoss(), data), points=points)


def test_explicit_points(level: str, images: Data) -> None:
    native, exact, _ = objectives(small_resnet(), nn.CrossEntropyLoss(), images)
    points = exact.center + 0.05 * normal(3, exact.space.size)
    found, expected = native.evaluate(points), exact.evaluate(points)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=0)
    assert native.loss() == pytest.approx(exact.loss(), rel=1e-5)


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_threads_change_no_bit(level: str, precision: str, images: Data) -> None:
    dense = randomised(nn.Sequential(nn.Flatten(), nn.Linear(270, 33), nn.ReLU(), nn.Linear(33, 5)))
    for net in (small_resnet(), dense):
        native, *_ = objectives(net, nn.CrossEntropyLoss(), images, precision=precision)
        directions = pl.random_directions(native, seed=4)
        coordinates = torch.rand(5, 2, generator=seeded(), dtype=torch.float64)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values = native.evaluate_along(native.center, directions, coordinates)
            results.append(torch.stack(list(values.values())))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


def test_how_points_are_shared_out_to_calls_changes_no_bit(images: Data) -> None:
    native, *_ = objectives(small_resnet(), nn.CrossEntropyLoss(), images)
    directions = pl.random_directions(native, seed=4)
    coordinates = torch.rand(5, 2, generator=seeded(), dtype=torch.float64)
    results = []
    for seconds in (1e-9, 1e-3, 10):  # a call per point and few samples, or one for everything
        native.native_engine._seconds = seconds
        results.append(native.evaluate_along(native.center, directions, coordinates)["loss"])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_call_has_a_block_for_every_thread(images: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one block takes longer than a call should, between two looks for Ctrl-C."""
    native, *_ = objectives(small_resnet(), nn.CrossEntropyLoss(), images)
    engine = native.native_engine
    add_sums, ranges = engine._add_sums, []

    def spied(*arguments: Any) -> None:
        ranges.append(arguments[-2:])
        add_sums(*arguments)

    monkeypatch.setattr(engine, "_add_sums", spied)
    monkeypatch.setattr(engine.plan, "block", 2)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        ranges.clear()
        engine._seconds = 1e9
        native.evaluate(native.center[None])
        step = 2 * threads
        assert ranges == [
            (first, min(native.samples, first + step)) for first in range(0, native.samples, step)
        ]


def test_stored_and_generated_directions_are_the_same(level: str, images: Data) -> None:
    native, *_ = objectives(small_resnet(), nn.CrossEntropyLoss(), images)
    generated = pl.random_directions(native, 2, seed=1)
    stored = pl.Directions.from_vectors(native, generated.vectors)
    coordinates = torch.rand(3, 2, generator=seeded(), dtype=torch.float64)
    assert generated.is_generated
    pair = [native.evaluate_along(native.center, d, coordinates) for d in (generated, stored)]
    assert torch.equal(pair[0]["loss"], pair[1]["loss"])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 0, 1, 2)])
def test_strides_of_the_data(order: tuple[int, ...], images: Data) -> None:
    inverse = [order.index(axis) for axis in range(4)]
    inputs = images[0].permute(order).contiguous().permute(inverse)
    net = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(224, 5)))
    assert_agree(objectives(net, nn.CrossEntropyLoss(), (inputs, images[1])), points=1)
    expanded = inputs[:, :1].expand(-1, 3, -1, -1)
    assert_agree(objectives(net, nn.CrossEntropyLoss(), (expanded, images[1])), points=1)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn", "squeezenet1_0"])
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10)
    if name == "vgg11_bn":  # whose matrices of 100 million parameters would test nothing more
        model.classifier = nn.Linear(25088, 10)
    trio = objectives(model, nn.CrossEntropyLoss(), (normal(3, 3, 64, 64), labels(3, 10)))
    assert_agree(trio, count=1, points=1, scale=1e-3)


# -- losses --------------------------------------------------------------------------------------

N, C = 23, 5
CLASSES = labels(N, C)
WEIGHTS = torch.tensor([0.5, 0, 2, 1.5, 1])

LOSSES: dict[str, tuple[nn.Module, nn.Module, Tensor]] = {
    "cross-entropy": (nn.Identity(), nn.CrossEntropyLoss(), CLASSES),
    "smoothed": (nn.Identity(), nn.CrossEntropyLoss(label_smoothing=0.2), CLASSES),
    "weighted": (nn.Identity(), nn.CrossEntropyLoss(weight=WEIGHTS), CLASSES),
    "ignoring": (nn.Identity(), nn.CrossEntropyLoss(ignore_index=2), CLASSES),
    "ignoring-beyond": (
        nn.Identity(),
        nn.CrossEntropyLoss(ignore_index=-7),
        CLASSES.where(CLASSES > 0, -7),
    ),
    "all": (
        nn.Identity(),
        nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1, label_smoothing=0.1),
        CLASSES,
    ),
    "bytes": (nn.Identity(), nn.CrossEntropyLoss(), CLASSES.to(torch.uint8)),
    "nll": (nn.LogSoftmax(1), nn.NLLLoss(weight=WEIGHTS), CLASSES),
    "nll-moved": (nn.Sequential(nn.Unflatten(1, (C, 1)), nn.Flatten(), nn.LogSoftmax(1)),
                  nn.NLLLoss(), CLASSES),
    "twice-normalised": (nn.LogSoftmax(1), nn.CrossEntropyLoss(), CLASSES),
    "mse": (nn.Identity(), nn.MSELoss(), normal(N, C)),
    "l1": (nn.Identity(), nn.L1Loss(), normal(N, C)),
    "bce": (nn.Identity(), nn.BCEWithLogitsLoss(), normal(N, C).sigmoid()),
    "bce-weighted": (
        nn.Identity(),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        (normal(N, C) > 0).double(),
    ),
    "scalar": (nn.Sequential(nn.Linear(C, 1), nn.Flatten(0)), nn.MSELoss(), normal(N)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_loss(level: str, name: str) -> None:
    end, loss, targets = LOSSES[name]
    net = randomised(nn.Sequential(nn.Linear(4, C), copy.deepcopy(end)))
    assert_agree(objectives(net, loss, (4 * normal(N, 4), targets)))


IMAGE_LOSSES: dict[str, tuple[nn.Module, Tensor]] = {
    "mse": (nn.MSELoss(), normal(N, 3, 4, 5)),
    "l1": (nn.L1Loss(), normal(N, 3, 4, 5)),
    "bce": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 2, 3])[:, None, None]),
        (normal(N, 3, 4, 5) > 0).double(),
    ),
    "bce-columns": (
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        (normal(N, 3, 4, 5) > 0).double(),
    ),
}


@pytest.mark.parametrize("name", IMAGE_LOSSES)
def test_loss_of_images(level: str, name: str) -> None:
    loss, targets = IMAGE_LOSSES[name]
    net = randomised(nn.Conv2d(2, 3, 3, padding=1))
    assert_agree(objectives(net, loss, (normal(N, 2, 4, 5), targets)))


def test_loss_of_tokens() -> None:
    net = randomised(nn.Linear(4, 6))
    assert_agree(objectives(net, nn.MSELoss(), (normal(N, 3, 4), normal(N, 3, 6))))


def test_moments() -> None:
    """The sums over samples themselves: a, a^2, a b, b, b^2, and the predictions."""
    loss = nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1, label_smoothing=0.1)
    native, exact, _ = objectives(mlp(4, C), loss, (normal(N, 4), CLASSES))
    points = [Points(o.center[None]) for o in (native, exact)]
    found = next(native.native_engine.moments(points[0]))
    expected = next(exact._engine.moments(points[1]))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    assert torch.equal(found[1, [0, 3]], expected[1, [0, 3]])


def test_ties_count_for_the_first_class() -> None:
    net = nn.Linear(2, 3)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([0.0, 1, 1])
    data = torch.ones(4, 2), torch.tensor([0, 1, 2, 1])
    native = pl.Objective(net, nn.CrossEntropyLoss(), data, engine="native")
    assert native.evaluate(native.center[None])["accuracy"].item() == 0.5


def test_a_loss_that_is_almost_zero_keeps_its_digits() -> None:
    """log(1 + t) for t below the rounding of 1."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    data = torch.tensor([[20.0], [30.0]]), torch.ones(2, 1)
    native, exact, _ = objectives(net, nn.BCEWithLogitsLoss(), data)
    assert native.loss() == pytest.approx(exact.loss(), rel=1e-5)


# -- what may happen to a model ------------------------------------------------------------------


def test_frozen_parameters_stay() -> None:
    net = randomised(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    assert_agree(objectives(net, nn.CrossEntropyLoss(), (normal(N, 4), labels(N, 3))))


def test_tied_parameters_move_together() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    trio = objectives(randomised(net), nn.CrossEntropyLoss(), (normal(N, 6), labels(N, 3)))
    assert trio.native.space.size == 36 + 6 + 6 + 21
    assert_agree(trio)


def test_statistics_may_change_between_two_evaluations(images: Data) -> None:
    trio = objectives(small_resnet(), nn.CrossEntropyLoss(), images)
    first = trio.native.loss()
    for objective in trio[:2]:  # the third has the model of the first
        norm = objective.model[2].left[1]
        norm.running_mean += 3
        norm.running_var *= 2
    assert abs(trio.native.loss() - first) > 1e-4
    assert_agree(trio)


def test_a_model_may_be_trained_between_two_evaluations(images: Data) -> None:
    native, exact, _ = objectives(small_resnet(), nn.CrossEntropyLoss(), images)
    first, step = native.loss(), 0.05 * normal(exact.space.size, seed=7)
    for objective in (native, exact):
        objective.space.write_(objective.model, objective.center + step.to(objective.dtype))
    assert abs(native.loss() - first) > 1e-3
    assert native.loss() == pytest.approx(exact.loss(), rel=1e-5)


def test_buffers_in_place_of_parameters() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    weight = net[0].weight.detach().clone()
    del net[0].weight
    net[0].register_buffer("weight", weight)
    assert_agree(objectives(net, nn.CrossEntropyLoss(), (normal(N, 4), labels(N, 3))))


@pytest.mark.skipif(not _ops.tiles_supported(), reason="needs a processor with matrix tiles")
def test_products_in_bfloat16(images: Data) -> None:
    native, exact, _ = objectives(small_resnet(), nn.CrossEntropyLoss(), images, precision="bf16")
    assert any("bfloat16" in step for step in native.native_engine.plan.steps)
    vectors = 0.05 * normal(2, exact.space.size)
    found, expected = (along(o, vectors, 0.5 * torch.eye(2).double()) for o in (native, exact))
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=2e-2, atol=0)


def test_nothing_is_warned_of(images: Data) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objectives(small_resnet(), nn.CrossEntropyLoss(), images)
