"""What the native engine leaves to torch and how it says so; Ctrl-C; NaN and inf."""

import copy
import os
import pickle
import signal
import threading
import time
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Attention, convnet, labels, normal, seeded
from random_models import ACTIVATIONS, Combine
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops

N, C = 12, 5
NON_FINITE = [float("nan"), float("inf"), -float("inf")]


def classifier(
    model: nn.Module | None = None, data: Any = None, loss: Any = None, **options: Any
) -> pl.Objective:
    """A classifier of three classes in float32, or the parts that are given."""
    model = convnet() if model is None else model
    data = (normal(N, 1, 6, 6), labels(N, 3)) if data is None else data
    return pl.Objective(model.float(), loss or nn.CrossEntropyLoss(), data, **options)


def many_points(objective: pl.Objective) -> dict[str, Tensor]:
    """As many as the native engine is made for."""
    coordinates = torch.rand(20, 1, generator=seeded(), dtype=torch.float64)
    directions = pl.random_directions(objective, 1, ignore=None)
    return objective.evaluate_along(objective.center, directions, coordinates)


# -- which engine runs ---------------------------------------------------------------------------


def test_auto_is_native_where_there_are_many_points() -> None:
    objective = classifier()
    objective.loss()
    assert objective.engine == "torch"
    many_points(objective)
    assert objective.engine == "native"


def test_auto_falls_back_with_one_warning() -> None:
    objective = classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = many_points(objective)
        again = many_points(objective)
    assert [str(w.message) for w in caught] == [
        "Objective: running on PyTorch, because aten.softmax at 2 (Softmax) has no native kernel."
    ]
    assert objective.engine == "torch"
    exact = pl.Objective(
        objective.model, nn.CrossEntropyLoss(), (normal(N, 1, 6, 6), labels(N, 3)), engine="torch"
    )
    assert torch.equal(found["loss"], many_points(exact)["loss"])
    assert torch.equal(found["loss"], again["loss"])


def test_the_warning_points_at_the_users_line() -> None:
    objective = classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1)))
    with pytest.warns(UserWarning, match="running on PyTorch") as caught:
        pl.line(objective, pl.random_directions(objective, 1), resolution=20)
    assert caught[0].filename == __file__


def test_native_names_what_is_in_the_way_of_a_transformer() -> None:
    class Tokens(Attention):
        def forward(self, x: Tensor) -> Tensor:
            x = x + F.scaled_dot_product_attention(*self.mix(x)[:, None].chunk(3, -1))[:, 0]
            return self.head(x.mean(1))

    line = Tokens.forward.__code__.co_firstlineno + 1
    with pytest.raises(ValueError, match="Objective: engine must be") as caught:
        classifier(Tokens("plain"), (normal(N, 6, 4), labels(N, 3)), engine="native")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        "Objective: engine must be 'auto' or 'torch' here, got 'native', but "
        f"aten.scaled_dot_product_attention at test_native_limits.py:{line} (x = x + "
    )
    assert message.endswith("has no native kernel.")


CHOICES: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": torch.float64},
    "metrics": {"metrics": {"margin": lambda outputs, targets: outputs.amax(1)}},
    "accuracy": {"metrics": {"accuracy": lambda outputs, targets: outputs.amax(1)}},
    "batchnorm": {"model": convnet(norm=True), "batchnorm": "recompute"},
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_a_user_chose_runs_on_torch_in_silence(name: str) -> None:
    objective = classifier(**CHOICES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = many_points(objective)
    assert objective.engine == "torch"
    if name == "accuracy":
        assert not torch.allclose(found["accuracy"] * N, (found["accuracy"] * N).round())
    with pytest.raises(ValueError, match=r"got 'native', but .* (native kernel|float32)"):
        classifier(**CHOICES[name], engine="native")


BAD_DATA = normal(N, 1, 6, 6)
BAD_DATA[7, 0, 2, 3] = float("inf")
CLASSES = labels(N, 3)

NOT_COVERED: dict[str, tuple[dict[str, Any], str]] = {
    "sum": ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "the loss CrossEntropyLoss"),
    "none": ({"loss": nn.CrossEntropyLoss(reduction="none")}, "the loss CrossEntropyLoss"),
    "function": ({"loss": lambda outputs, targets: outputs.square().mean(1)}, "the loss <lambda>"),
    "margin": ({"loss": nn.MultiMarginLoss()}, "the loss MultiMarginLoss"),
    "probabilities": (
        {"data": (normal(N, 1, 6, 6), normal(N, 3).softmax(1))},
        "other than class indices",
    ),
    "nll": ({"loss": nn.NLLLoss()}, "only right after log_softmax"),
    "elementwise-weight": (
        {
            "loss": nn.BCEWithLogitsLoss(weight=torch.ones(3)),
            "data": (normal(N, 1, 6, 6), torch.ones(N, 3)),
        },
        "the loss BCEWithLogitsLoss",
    ),
    "infinite-input": ({"data": (BAD_DATA, CLASSES)}, "the inputs hold NaN or inf"),
    "two-inputs": (
        {
            "model": nn.Bilinear(2, 2, 3),
            "data": ((torch.ones(N, 2), torch.ones(N, 2)), CLASSES),
        },
        "one tensor of inputs",
    ),
    "four-dimensions": (
        {"model": nn.Linear(2, 2), "loss": nn.MSELoss(), "data": (torch.ones(N, 2, 2, 2, 2),) * 2},
        "4 dimensions",
    ),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_not_covered(name: str) -> None:
    options, reason = NOT_COVERED[name]
    with pytest.raises(ValueError, match=f"got 'native', but .*{reason}"):
        classifier(**options, engine="native")
    objective = classifier(**options)
    with pytest.warns(UserWarning, match=f"running on PyTorch, because .*{reason}"):
        found = many_points(objective)
    exact = classifier(**options, engine="torch")
    torch.testing.assert_close(found["loss"], many_points(exact)["loss"], equal_nan=True)


def test_targets_beyond_the_classes() -> None:
    """Found before a kernel reads at that place; torch says what it thinks of them."""
    inputs = normal(40, 1, 6, 6)
    targets = labels(40, 3)
    targets[38] = 3
    with pytest.raises(ValueError, match="the target 3 is none of the 3 classes"):
        classifier(data=(inputs, targets), engine="native")
    objective = classifier(data=(inputs, targets))
    with pytest.warns(UserWarning, match="none of the 3"), pytest.raises(IndexError):
        many_points(objective)


def test_a_change_of_the_instruction_set_is_an_error() -> None:
    levels = _ops.isa_levels()
    if len(levels) == 1:
        pytest.skip("this machine has one level")
    objective = classifier(engine="native")
    before = _ops.isa()
    try:
        _ops.set_isa(next(level for level in levels if level != before))
        with pytest.raises(ValueError, match="instruction set was changed after planning"):
            objective.loss()
    finally:
        _ops.set_isa(before)
    assert objective.loss() > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_objectives_can_be_copied_and_pickled(copied: Any) -> None:
    objective = classifier(engine="native")
    other = copied(objective)
    assert other.engine == "native"
    assert other.loss() == objective.loss()


# -- NaN and inf ---------------------------------------------------------------------------------


def saturating(activation: nn.Module) -> nn.Module:
    """What can turn NaN or inf into a finite number: maxima, bounds, comparisons, norms."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        copy.deepcopy(activation),
        nn.MaxPool2d(2),
        Combine(nn.Identity(), nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), torch.add),
        nn.GroupNorm(2, 6),
        copy.deepcopy(activation),
        nn.MaxPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(24, C),
        copy.deepcopy(activation),
    ).eval()


@pytest.mark.parametrize("make", ACTIVATIONS, ids=lambda make: type(make()).__name__)
def test_parameters_that_are_not_finite(level: str, make: Any) -> None:
    model, data = saturating(make()), (normal(N, 3, 8, 8).float(), labels(N, C))
    native, plain = (
        pl.Objective(model, nn.CrossEntropyLoss(), data, engine=e) for e in ("native", "torch")
    )
    places = torch.randint(0, native.space.size, (4,), generator=seeded())
    points = native.center.repeat(3 * len(places), 1)
    for row, (place, value) in zip(
        points, ((p, v) for p in places for v in NON_FINITE), strict=True
    ):
        row[place] = value
    found, expected = native.evaluate(points), plain.evaluate(points)
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-4, atol=1e-6, equal_nan=True
        )


@pytest.mark.parametrize("scale", [1e25, 1e38])
def test_overflow(level: str, scale: float) -> None:
    """Somewhere on the way sums leave float32, on some lines earlier than on others."""
    model, data = saturating(nn.ReLU()), (normal(N, 3, 8, 8).float(), labels(N, C))
    native, plain = (
        pl.Objective(
            model,
            nn.CrossEntropyLoss(),
            data,
            engine=e,
            **({"precision": "exact"} if e == "native" else {}),
        )
        for e in ("native", "torch")
    )
    directions = pl.Directions.from_vectors(native, torch.ones(native.space.size))
    coordinates = scale * torch.tensor([[0.0], [0.1], [1.0], [3.0], [1e3]], dtype=torch.float64)
    found, expected = (
        o.evaluate_along(o.center, directions, coordinates)["loss"] for o in (native, plain)
    )
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True)


def test_a_center_that_is_not_finite() -> None:
    objective = classifier(engine="native")
    center = objective.center
    center[3] = float("nan")
    directions = pl.random_directions(objective, 1)
    values = objective.evaluate_along(center, directions, torch.zeros(3, 1).double())
    assert bool(values["loss"].isnan().all())


def test_logits_of_ignored_samples_may_be_anything() -> None:
    """They have no weight, in torch as here."""
    data = torch.ones(2, 1), torch.tensor([0, -100])
    model = nn.Linear(1, 3)
    objective = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="native")
    one = pl.Objective(model, nn.CrossEntropyLoss(), (data[0][:1], data[1][:1]), engine="native")
    assert objective.loss() == one.loss()


# -- Ctrl-C --------------------------------------------------------------------------------------


class Pooled(nn.Sequential):
    """Much to do for few products, so that no count of operations tells its time."""

    def __init__(self) -> None:
        super().__init__(
            nn.AvgPool2d(4, 1), nn.Tanh(), nn.AvgPool2d(5, 1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(2, 3),
        )  # fmt: skip


def test_ctrl_c_leaves_a_partial_surface() -> None:
    data = normal(300, 2, 48, 48), labels(300, 3)
    objective = classifier(Pooled(), data, engine="native")
    directions = pl.random_directions(objective)
    pressed: list[float] = []

    def press() -> None:
        time.sleep(0.7)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(pl.Interrupted) as caught:
        pl.plane(objective, directions, resolution=301)
    waited = time.monotonic() - pressed[0]
    thread.join()
    assert waited < 1
    surface = caught.value.surface
    done = int(surface.evaluated.sum())
    assert 0 < done == caught.value.done < 301 * 301
    flat = surface.loss.values.reshape(-1)
    assert not torch.tensor(flat[:done]).isnan().any()
    assert torch.tensor(flat[done:]).isnan().all()
    assert surface.attrs["engine"] == "native"


def test_ctrl_c_while_the_engine_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again the next time."""
    objective = classifier()

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pylandscape.engines.native.capture", interrupted)
        with pytest.raises(pl.Interrupted) as caught:
            many_points(objective)
    assert caught.value.done == 0
    many_points(objective)
    assert objective.engine == "native"
