"""Interpolation: closed forms of the barrier, exact ends, BatchNorm policies, bad input."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.connectivity._paths import path_dataset


def regression(seed=0, **options):
    """A linear model on data: a quadratic loss in 4 parameters."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    return pl.Objective(model, nn.MSELoss(), (inputs, targets), **options)


class Well(nn.Module):
    """L(w) = (w^2 - 1)^2, with a valley at each of w = 1 and w = -1 and height 1 between them."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.w**2 - 1) ** 2).expand(len(x))


def well_objective():
    nothing = torch.zeros(3, 1).double()
    return pl.Objective(Well(0.4), lambda outputs, targets: outputs, (nothing, nothing))


def norm_net(seed, dtype=torch.float64):
    """A BatchNorm classifier whose running statistics have moved."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)
    for _ in range(5):
        model(torch.randn(16, 3, dtype=dtype) * (1 + seed))
    return model


def digits(seed=7, count=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator, dtype=dtype)
    return inputs, torch.randint(0, 2, (count,), generator=generator)


def classifier(model, **options):
    return pl.Objective(model, nn.CrossEntropyLoss(), digits(), **options)


# -- closed forms ---------------------------------------------------------------------------------


def test_a_quadratic_lies_below_its_chord_by_its_curvature():
    objective = regression()
    a, b = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    curve = pl.interpolate(objective, a, b, resolution=11)
    gap = objective.space.flatten(b) - objective.space.flatten(a)
    curvature = float(gap @ objective.hessian_vector_product(gap))
    t = curve.alpha.values
    np.testing.assert_allclose(t, np.linspace(0, 1, 11))
    np.testing.assert_allclose(curve.loss - curve.chord, -t * (1 - t) * curvature / 2, rtol=1e-9)
    assert curve.attrs["barrier"] == 0
    assert curve.attrs["distance"] == pytest.approx(float(gap.norm()))
    assert curve.attrs["kind"] == "interpolation"


def test_the_barrier_between_two_valleys_is_the_height_of_the_pass():
    curve = pl.interpolate(well_objective(), Well(-1.0), Well(1.0), resolution=21)
    t = curve.alpha.values
    np.testing.assert_allclose(curve.loss, ((2 * t - 1) ** 2 - 1) ** 2, atol=1e-14)
    assert curve.attrs["barrier"] == pytest.approx(1)
    assert curve.attrs["barrier_at"] == 0.5


def test_the_barrier_is_above_the_chord_and_not_above_zero():
    curve = pl.interpolate(well_objective(), Well(-2.0), Well(1.0), resolution=31)
    t = curve.alpha.values
    loss = ((3 * t - 2) ** 2 - 1) ** 2
    height = loss - 9 * (1 - t)
    assert curve.attrs["barrier"] == pytest.approx(height.max())
    assert curve.attrs["barrier_at"] == pytest.approx(t[height.argmax()])


def test_a_loss_that_is_nan_makes_the_barrier_nan():
    curve = pl.interpolate(well_objective(), Well(1e200), Well(1.0), resolution=5)
    assert np.isinf(curve.loss[0])
    assert np.isnan(curve.attrs["barrier"])


# -- ends and buffers -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_the_given_models(dtype):
    objective = pl.Objective(norm_net(3, dtype), nn.CrossEntropyLoss(), digits(dtype=dtype))
    a, b = norm_net(1, dtype), norm_net(2, dtype)
    test = pl.Objective(
        norm_net(4, dtype), nn.CrossEntropyLoss(), digits(seed=8, count=10, dtype=dtype)
    )
    curve = pl.interpolate(objective, a, b, resolution=3, test=test)
    for model, end in ((a, 0), (b, -1)):
        for prefix, where in (("", objective), ("test_", test)):
            own = pl.Objective(model, nn.CrossEntropyLoss(), where.data.first(24))
            values = own.evaluate(own.center[None])
            for name in ("loss", "loss_stderr", "accuracy"):
                expected = float(values[name])
                assert float(curve[prefix + name][end]) == pytest.approx(expected, rel=1e-12), name
    assert curve.attrs["batchnorm"] == "interpolate"


def test_the_points_are_bit_for_bit_the_models_at_the_ends(monkeypatch):
    a, b = norm_net(1, torch.float32), norm_net(2, torch.float32)
    objective = pl.Objective(a, nn.CrossEntropyLoss(), digits(dtype=torch.float32))
    seen = []
    evaluate_along = pl.Objective.evaluate_along

    def watched(self, center, directions, coordinates, **options):
        seen.extend(directions.points(center, coordinates))
        return evaluate_along(self, center, directions, coordinates, **options)

    monkeypatch.setattr(pl.Objective, "evaluate_along", watched)
    pl.interpolate(objective, a, b, resolution=7)
    assert torch.equal(seen[0], objective.space.flatten(a))
    assert torch.equal(seen[-1], objective.space.flatten(b))


def half_way(a, b):
    """The model of mean parameters and mean buffers."""
    middle = copy.deepcopy(a)
    state = {
        name: (x + b.state_dict()[name]) / 2 if x.is_floating_point() else x
        for name, x in a.state_dict().items()
    }
    middle.load_state_dict(state)
    return middle


def test_running_statistics_move_along_the_line():
    a, b = norm_net(1), norm_net(2)
    curve = pl.interpolate(classifier(norm_net(3)), a, b, resolution=3)
    assert float(curve.loss[1]) == pytest.approx(classifier(half_way(a, b)).loss(), rel=1e-12)


def test_frozen_keeps_the_statistics_of_the_objective():
    a, b, center = norm_net(1), norm_net(2), norm_net(3)
    curve = pl.interpolate(classifier(center), a, b, resolution=3, batchnorm="frozen")
    middle = half_way(a, b)
    middle[1].load_state_dict(
        middle[1].state_dict()
        | {n: x for n, x in center[1].state_dict().items() if n.startswith("running")}
    )
    assert float(curve.loss[1]) == pytest.approx(classifier(middle).loss(), rel=1e-12)
    assert curve.attrs["batchnorm"] == "frozen"


def test_recomputed_statistics_of_a_test_set_are_those_of_the_training_set():
    a, b = norm_net(1), norm_net(2)
    train = classifier(norm_net(3), batchnorm="recompute")
    test = pl.Objective(
        norm_net(3), nn.CrossEntropyLoss(), digits(seed=8, count=10), batchnorm="recompute"
    )
    curve = pl.interpolate(train, a, b, resolution=3, test=test)
    middle = half_way(a, b)
    middle[1].reset_running_stats()
    middle[1].momentum = None
    middle.train()
    middle(digits()[0])
    assert float(curve.loss[1]) == pytest.approx(classifier(middle).loss(), rel=1e-10)
    expected = pl.Objective(middle, nn.CrossEntropyLoss(), digits(seed=8, count=10)).loss()
    assert float(curve.test_loss[1]) == pytest.approx(expected, rel=1e-10)
    assert curve.attrs["batchnorm"] == "recompute"


def test_statistics_can_be_recomputed_with_any_objective():
    a, b = norm_net(1), norm_net(2)
    expected = pl.interpolate(classifier(norm_net(3), batchnorm="recompute"), a, b, resolution=3)
    curve = pl.interpolate(classifier(norm_net(3)), a, b, resolution=3, batchnorm="recompute")
    np.testing.assert_array_equal(curve.loss, expected.loss)
    assert curve.attrs["batchnorm"] == "recompute"


class Masked(nn.Module):
    """A mask with infinities and a counter: buffers that have no mean."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")], dtype=torch.float64))
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x * self.scale + self.mask).exp() + self.shift).sum(1, keepdim=True)


def test_buffers_without_a_mean_are_kept():
    inputs = torch.zeros(4, 2).double()
    objective = pl.Objective(Masked(0), nn.MSELoss(), (inputs, torch.zeros(4, 1).double()))
    curve = pl.interpolate(objective, Masked(0), Masked(3), resolution=5)
    np.testing.assert_allclose(curve.loss, [1, 1, 1, 49, 49])


def test_a_model_can_be_given_as_module_state_dict_or_vector():
    objective = regression()
    a, b = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    expected = pl.interpolate(objective, a, b, resolution=4)
    wrapped = {f"module.{name}": tensor for name, tensor in b.state_dict().items()}
    for other in (nn.DataParallel(b), b.state_dict(), wrapped, objective.space.flatten(b)):
        curve = pl.interpolate(objective, a, other, resolution=4)
        np.testing.assert_array_equal(curve.loss, expected.loss)


def test_no_model_is_changed():
    models = [norm_net(seed) for seed in (1, 2, 3)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    pl.interpolate(classifier(models[2]), models[0], models[1], resolution=3)
    for model, old in zip(models, before, strict=True):
        assert model.training
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, old[name])


def test_accuracy_drop_is_measured_from_the_chord():
    inputs = torch.tensor([[1.0], [2.0], [-1.0], [-3.0]]).double()
    labels = torch.tensor([0, 0, 1, 1])
    right = nn.Linear(1, 2).double()
    with torch.no_grad():
        right.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        right.bias.zero_()
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong.weight.neg_()
    objective = pl.Objective(right, nn.CrossEntropyLoss(), (inputs, labels))
    curve = pl.interpolate(objective, right, wrong, resolution=5)
    np.testing.assert_allclose(curve.accuracy[[0, 1, 3, 4]], [1, 1, 0, 0])
    assert curve.attrs["accuracy_drop"] == pytest.approx(0.25)


@pytest.mark.parametrize(("middle", "drop"), [(0.1, 0.5), (0.9, 0.0)])
def test_an_accuracy_above_its_chord_is_no_drop(middle, drop):
    values = {"accuracy": torch.tensor([0.8, middle, 0.4], dtype=torch.float64)}
    path = path_dataset(np.linspace(0, 1, 3), values, {})
    assert path.attrs["accuracy_drop"] == pytest.approx(drop)


def test_an_interruption_keeps_what_was_evaluated():
    calls = []

    def stop(outputs, targets):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return outputs[:, 0]

    objective = regression(metrics={"stop": stop})
    a, b = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    calls.clear()
    with pytest.raises(pl.Interrupted) as caught:
        pl.interpolate(objective, a, b, resolution=9)
    partial = caught.value.surface
    np.testing.assert_array_equal(partial.evaluated, [True] * 3 + [False] * 6)
    np.testing.assert_array_equal(np.isfinite(partial.loss), partial.evaluated)


# -- bad input ------------------------------------------------------------------------------------


def test_bad_requests():
    objective = regression()
    a = nn.Linear(3, 1).double()
    vector = torch.zeros(5, dtype=torch.float64)
    for resolution in (1, 2.5):
        with pytest.raises(ValueError, match="interpolate: resolution must be an integer >= 2"):
            pl.interpolate(objective, a, a, resolution=resolution)
    with pytest.raises(ValueError, match=r"model_b must have the architecture .* shape \[1, 2\]"):
        pl.interpolate(objective, a, nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"model_a must have the architecture .* no such name"):
        pl.interpolate(objective, {"bias": torch.zeros(1)}, a)
    with pytest.raises(ValueError, match=r"model_a must have shape \[4\] as a flat vector"):
        pl.interpolate(objective, vector, a)
    with pytest.raises(TypeError, match="model_b must be a module, a state dict or a flat vector"):
        pl.interpolate(objective, a, "b.pt")
    with pytest.raises(ValueError, match=r"batchnorm must be one of \('interpolate', 'froz"):
        pl.interpolate(objective, a, a, batchnorm="batch")
    with pytest.raises(ValueError, match="test must be an objective of the same architecture"):
        pl.interpolate(objective, a, a, test=classifier(norm_net(1)))


def test_frozen_parameters_must_agree():
    a, b = norm_net(1), norm_net(2)
    center = copy.deepcopy(a)
    center[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model_b must agree .* other values of '0.weight'"):
        pl.interpolate(classifier(center), a, b)
