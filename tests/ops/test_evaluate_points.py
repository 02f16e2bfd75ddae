"""evaluate_points against naive sums in float64: its sums, its convolutions, its functions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import labels, normal
from random_models import ACTIVATIONS
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops
from pylandscape.engines import native, products
from pylandscape.engines.capture import capture
from pylandscape.engines.native import NativeEngine


def engine_of(model: nn.Module, loss: Any, data: Any, precision: str = "fast") -> NativeEngine:
    objective = pl.Objective(model.float(), loss, data, engine="native", precision=precision)
    return objective.native_engine


def arguments(engine: NativeEngine, center: Tensor, *directions: Tensor) -> list[Tensor]:
    """What the operator takes between the coordinates and the range of samples."""
    plan, packed = engine.plan, engine._pack(center, directions, len(directions))
    constants = plan.constants(engine._state())
    return [packed, engine._inputs, engine._targets, plan.numbers, constants, plan.indices]


def run(args: list[Tensor], coordinates: Tensor, first: int, last: int) -> Tensor:
    sums = torch.zeros(len(coordinates), 7, dtype=torch.float64)
    packed, *rest = args
    _ops.evaluate_points(sums, packed, coordinates.float(), *rest, first, last)
    return sums


def sums_of(
    engine: NativeEngine, center: Tensor, directions: Tensor, at: Tensor, first: int, last: int
) -> Tensor:
    """The same by the engine, which knows the device."""
    sums = torch.zeros(len(at), 7, dtype=torch.float64)
    device = engine._inputs.device
    packed = engine._pack(center.float().to(device), directions.float(), len(directions))
    constants = engine.plan.constants(engine._state())
    engine._add_sums(sums, packed, at.float(), constants, first, last)
    return sums


# -- sums ----------------------------------------------------------------------------------------

N, C = 150, 5
WEIGHTS = torch.tensor([0.5, 1, 2, 1.5, 1], dtype=torch.float64)
INPUTS, TARGETS = normal(N, 4), labels(N, C)


def classifier(device: str = "cpu") -> tuple[NativeEngine, Tensor, Tensor]:
    """An engine, a centre [P] and directions [2, P] for x W^T + b."""
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=3)
    engine = engine_of(nn.Linear(4, C).to(device), loss, (INPUTS, TARGETS))
    return engine, normal(5 * C, seed=1), normal(2, 5 * C, seed=2)


def naive_sums(points: Tensor) -> Tensor:
    """[K, 7]: a, a^2, a b, b, b^2, correct, counted."""
    rows = []
    for point in points.double():
        outputs = INPUTS @ point[: 4 * C].view(C, 4).T + point[4 * C :]
        kept = (TARGETS != 3).double()
        b = WEIGHTS[TARGETS] * kept
        a = -F.log_softmax(outputs, 1)[torch.arange(N), TARGETS] * b
        correct = (outputs.argmax(1) == TARGETS) * kept
        terms = (a, a * a, a * b, b, b * b, correct, kept)
        rows.append(torch.stack([term.sum() for term in terms]))
    return torch.stack(rows)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_sums(device: str, count: int) -> None:
    engine, center, directions = classifier(device)
    coordinates = normal(6, count, seed=3)
    expected = naive_sums(center + coordinates @ directions[:count])
    found = sums_of(engine, center, directions[:count], coordinates, 0, N)
    torch.testing.assert_close(found[:, :5], expected[:, :5], rtol=2e-6, atol=0)
    assert torch.equal(found[:, 5:], expected[:, 5:])


def test_sums_are_added_to(device: str) -> None:
    engine, center, directions = classifier(device)
    along, coordinates = (engine, center, directions), normal(3, 2)
    whole = sums_of(*along, coordinates, 0, N)
    parts = sums_of(*along, coordinates, 0, 47) + sums_of(*along, coordinates, 47, N)
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    assert bool((sums_of(*along, coordinates, 5, 5) == 0).all())
    assert sums_of(*along, torch.zeros(0, 2), 0, N).shape == (0, 7)


def test_threads_change_no_bit(level: str) -> None:
    engine, center, directions = classifier()
    args, coordinates = arguments(engine, center.float(), *directions.float()), normal(9, 2)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(args, coordinates, 0, N))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# -- convolutions --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [16, 64])
def test_rounding_of_convolutions(
    level: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table in docs/architecture.md: rms errors relative to the spread of the outputs."""
    inputs = normal(2, channels, 12, 12).float()
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(normal(*conv.weight.shape) / (9 * channels) ** 0.5)
        exact = F.conv2d(inputs.double(), conv.weight.double(), padding=1)
    errors = {}
    for tile in (0, 2, 4):
        monkeypatch.setattr(products, "WINOGRAD_COST", {tile: 0.0})
        precision = "fast" if tile else "exact"
        engine = engine_of(conv, nn.MSELoss(), (inputs, exact.float()), precision)
        assert (f"F({tile}x{tile})" in engine.plan.steps[1]) == (tile > 0)
        sums = run(arguments(engine, conv.weight.detach().reshape(-1)), torch.zeros(1, 0), 0, 2)
        errors[tile] = float(sums[0, 0] / 2) ** 0.5 / float(exact.std())
    assert 0 < errors[0] < 3e-7 * (channels / 16) ** 0.5
    assert 0 < errors[2] < 1.1 * errors[0]
    assert errors[0] < errors[4] < 7 * errors[0]


# -- functions of each element -------------------------------------------------------------------

POSITIVE = torch.cat([torch.logspace(-38, 2, 150), torch.linspace(0, 12, 150)])
NUMBERS = torch.cat([-POSITIVE, torch.zeros(1), POSITIVE])


LIMITS = torch.tensor([float("inf"), -float("inf"), float("nan")])


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures every activation for its first level only: that takes longer than the test."""

    def capture_activation(model: nn.Sequential, *arguments: Any) -> Any:
        key = repr(model)
        if key not in CAPTURED:
            CAPTURED[key] = capture(model, *arguments)
        return CAPTURED[key]

    monkeypatch.setattr(native, "capture", capture_activation)


CAPTURED: dict[str, Any] = {}


def magnitudes(activation: nn.Module, numbers: Tensor) -> Tensor:
    """|f(x)| for each number, by the kernels: the sum of |f(x) - 0| over the one sample x."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), activation)
    data = torch.zeros(len(numbers), 1), torch.zeros(len(numbers), 1)
    engine = engine_of(model, nn.L1Loss(), data)
    packed, _, *rest = arguments(engine, torch.ones(1))
    args = [packed, numbers[:, None].contiguous(), *rest]
    rows = [run(args, torch.zeros(1, 0), i, i + 1) for i in range(len(numbers))]
    return torch.cat(rows)[:, 0]


# Where a plain formula loses all digits, 1 + t before a logarithm or a difference of large numbers:
# the largest relative error between two numbers.
RELATIVE = {
    nn.Tanh: (1e-30, 8.5, 3e-7),
    nn.Sigmoid: (-80.0, 80.0, 2e-7),
    nn.SiLU: (-80.0, -1e-30, 5e-7),
    nn.Softplus: (-80.0, 19.0, 3e-6),  # of which beta x rounds away most
    nn.GELU: (-1.0, 1.0, 5e-7),
}


@pytest.mark.parametrize("make", ACTIVATIONS, ids=lambda make: type(make()).__name__)
def test_activation(level: str, make: Any, captured_once: None) -> None:
    """At inf the limit, or NaN where torch has NaN too; NaN stays NaN."""
    activation = make()
    numbers = torch.cat([NUMBERS, LIMITS])
    with torch.no_grad():
        expected = activation(numbers.double()).abs()
    found = magnitudes(activation, numbers)
    at_limits, expected_there = found[-3:], expected[-3:]
    assert bool(at_limits[2].isnan())
    assert bool((at_limits.isnan() | torch.isclose(at_limits, expected_there, rtol=1e-6)).all())
    found, expected = found[:-3], expected[:-3]
    error = (found - expected).abs()
    assert float((error / (1 + NUMBERS.double().abs())).max()) < 3e-7
    low, high, bound = RELATIVE.get(type(activation), (0.0, 0.0, 0.0))
    kept = (NUMBERS.clamp(low, high) == NUMBERS) & (expected > 1e-36)
    assert bool((error[kept] <= bound * expected[kept]).all())


# -- arguments -----------------------------------------------------------------------------------


def test_bad_arguments(level: str) -> None:
    engine, center, directions = classifier()
    args, at = arguments(engine, center.float(), *directions.float()), torch.zeros(3, 2)
    cases: list[tuple[int, Tensor, str]] = [
        (3, args[3][:20], "plan must be whole"),
        (3, args[3][:-1], "plan must end with its last step"),
        (3, torch.cat([args[3], args[3][:2]]), "plan must end with its last step"),
        (0, args[0][:, :-16].contiguous(), r"packed must have shape \[3, "),
        (0, args[0][:2], r"packed must have shape \[3, "),
    ]
    for place, wrong, message in cases:
        changed = [*args[:place], wrong, *args[place + 1 :]]
        with pytest.raises(ValueError, match=message):
            run(changed, at, 0, N)


def test_a_plan_for_other_vectors() -> None:
    engine, center, _ = classifier()
    args = arguments(engine, center.float())
    args[3] = args[3].clone()
    args[3][0] += 1
    with pytest.raises(ValueError, match="instruction set was changed after planning"):
        run(args, torch.zeros(1, 0), 0, N)


def test_opcheck() -> None:
    engine, center, directions = classifier()
    packed, *rest = arguments(engine, center.float(), *directions.float())
    sums = torch.zeros(3, 7, dtype=torch.float64)
    operands = (sums, packed, torch.zeros(3, 2), *rest, 0, N)
    torch.library.opcheck(torch.ops.pylandscape.evaluate_points.default, operands)
