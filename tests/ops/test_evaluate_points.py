"""evaluate_points against naive float64 torch on a small network, called as an operator.

The layers it interprets are tested through the engine, in tests/engines/test_native.py.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pylandscape import _ops
from pylandscape.engines.capture import capture
from pylandscape.engines.native import LANES
from pylandscape.engines.plan import LossSpec, Plan, make_plan
from pylandscape.engines.records import LossKind
from pylandscape.parameters import ParameterSpace

SAMPLES, CLASSES = 53, 5


class Case:
    """A convolutional net (or one that starts with a Linear), its plan, and D directions."""

    def __init__(self, convolution: bool = True, directions: int = 2) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        first = nn.Conv2d(2, 20, 3, padding=1) if convolution else nn.Flatten()
        width = 20 * 35 if convolution else 2 * 35
        self.model = nn.Sequential(
            first, nn.Tanh() if convolution else nn.Identity(), nn.Flatten(),
            nn.Linear(width, 33), nn.ReLU(), nn.Linear(33, CLASSES),
        ).eval()  # fmt: skip
        self.inputs = torch.randn(SAMPLES, 2, 5, 7, generator=generator)
        self.targets = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        self.space = ParameterSpace.from_model(self.model)
        self.center = self.space.flatten(self.model)
        self.vectors = 0.1 * torch.randn(directions, self.space.size, generator=generator)
        self.coordinates = torch.randn(4, directions, generator=generator)

    def plan(self) -> Plan:
        program = capture(self.model, self.inputs[:3])
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        spec = LossSpec(LossKind.CROSS_ENTROPY, count_correct=True)
        lanes = LANES[_ops.isa()]
        return make_plan(program, shapes, spec, self.inputs.stride(), SAMPLES, lanes)

    def sums(self, plan: Plan, ranges: list[tuple[int, int]]) -> Tensor:
        packed = torch.zeros(1 + len(self.vectors), plan.packed)
        for row, vector in zip(packed, [self.center, *self.vectors], strict=True):
            plan.pack(self.space.unflatten(vector), row)
        sums = torch.zeros(len(self.coordinates), 7, dtype=torch.float64)
        self.arguments = (
            packed, self.coordinates, self.inputs, self.targets, plan.numbers,
            plan.constants({}), plan.indices,
        )  # fmt: skip
        for first, last in ranges:
            _ops.evaluate_points(sums, *self.arguments, first, last)
        return sums

    def naive(self, first: int = 0, last: int = SAMPLES) -> Tensor:
        rows = []
        inputs, targets = self.inputs[first:last].double(), self.targets[first:last]
        for c in self.coordinates:
            point = self.center.double() + c.double() @ self.vectors.double()
            parameters = self.space.unflatten(point)
            outputs = torch.func.functional_call(self.model, parameters, (inputs,))
            a = F.cross_entropy(outputs, targets, reduction="none")
            n, correct = len(a), (outputs.argmax(1) == targets).sum()
            rows.append(torch.tensor([a.sum(), a @ a, a.sum(), n, n, correct, n]))
        return torch.stack(rows).double()


@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("directions", [1, 2, 3])
def test_sums(level: str, convolution: bool, directions: int) -> None:
    case = Case(convolution, directions)
    found = case.sums(case.plan(), [(0, SAMPLES)])
    torch.testing.assert_close(found, case.naive(), rtol=1e-5, atol=0)


def test_ranges_of_samples_add_up(level: str) -> None:
    case = Case()
    plan = case.plan()
    found = case.sums(plan, [(0, 16), (16, 17), (17, SAMPLES)])
    torch.testing.assert_close(found, case.naive(), rtol=1e-5, atol=0)
    part = case.sums(plan, [(9, 30)])
    torch.testing.assert_close(part, case.naive(9, 30), rtol=1e-5, atol=0)


@pytest.mark.parametrize("convolution", [True, False])
def test_threads_change_no_bit(level: str, convolution: bool) -> None:
    case = Case(convolution)
    plan, results = case.plan(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(case.sums(plan, [(0, SAMPLES)]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nothing_to_do() -> None:
    case = Case()
    plan = case.plan()
    assert torch.equal(case.sums(plan, [(7, 7)]), torch.zeros(4, 7, dtype=torch.float64))
    case.coordinates = torch.zeros(0, 2)
    assert case.sums(plan, [(0, SAMPLES)]).shape == (0, 7)


def test_opcheck() -> None:
    case = Case()
    sums = case.sums(case.plan(), [])
    torch.library.opcheck(
        torch.ops.pylandscape.evaluate_points.default, (sums, *case.arguments, 0, SAMPLES)
    )


def test_a_plan_for_another_level_is_refused() -> None:
    if len(_ops.isa_levels()) == 1:
        pytest.skip("this machine has one instruction-set level")
    case, before = Case(), _ops.isa()
    plan = case.plan()
    _ops.set_isa("baseline" if before != "baseline" else _ops.isa_levels()[1])
    try:
        with pytest.raises(Exception, match="plan must be made for"):
            case.sums(plan, [(0, SAMPLES)])
    finally:
        _ops.set_isa(before)


def test_a_broken_plan_is_refused() -> None:
    case = Case()
    plan = case.plan()
    plan.numbers = plan.numbers[:-3].clone()
    with pytest.raises(Exception, match="plan must"):
        case.sums(plan, [(0, SAMPLES)])
