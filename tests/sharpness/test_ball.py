"""`pl.sharpness.ball` on quadratics, where the maximum is known, and on a network."""

import copy

import pytest
import torch
from models import function_objective, quadratic
from torch import nn

import pylandscape as pl

CURVATURES = torch.tensor([4.0, 2.5, 1.0, 0.5, 0.0], dtype=torch.float64)


def _maximum(curvatures: torch.Tensor, w: torch.Tensor, epsilon: float) -> float:
    """max of g.v + v'Dv/2 on the ball, D >= 0: v = (mu - D)^-1 g with mu such that ||v|| = eps."""
    g = curvatures * w
    low, high = float(curvatures.max()), float(curvatures.max() + g.norm() / epsilon)
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if (g / (mu - curvatures)).norm() > epsilon else (low, mu)
    v = g / (high - curvatures)
    return float(g @ v + (curvatures * v**2).sum() / 2)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 3.0])
def test_at_a_minimum_it_is_the_largest_curvature(epsilon):
    result = pl.sharpness.ball(quadratic(CURVATURES, torch.zeros(5)), epsilon)
    exact = 4.0 * epsilon**2 / 2
    assert exact * (1 - 1e-3) <= result.value <= exact * (1 + 1e-9)
    assert abs(result.maximizer[0]) > 0.99 * epsilon
    assert result.starts == ("random", "random")  # there is no gradient to start along
    assert all(result.converged)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 3.0])
def test_away_from_a_minimum_it_is_the_constrained_maximum(epsilon):
    w = torch.tensor([0.3, -1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    result = pl.sharpness.ball(quadratic(CURVATURES, w), epsilon)
    exact = _maximum(CURVATURES, w, epsilon)
    assert exact * (1 - 1e-3) <= result.value <= exact * (1 + 1e-9)
    assert result.starts[0] == "gradient"


def test_limit_of_a_small_radius_is_the_gradient_norm():
    objective = quadratic(CURVATURES, [0.3, -1.0, 0.5, 2.0, 1.0])
    epsilon = 1e-6
    slope = float(objective.gradient().norm())
    assert abs(pl.sharpness.ball(objective, epsilon).value / (epsilon * slope) - 1) < 1e-5


def test_directions_that_fall_do_not_attract():
    """A negative curvature twice as large as the positive one would win a power iteration."""
    curvatures = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    result = pl.sharpness.ball(quadratic(curvatures, torch.zeros(3)), 0.5)
    assert abs(result.value / (1.0 * 0.5**2 / 2) - 1) < 1e-3


def test_a_maximum_inside_the_ball_is_found():
    objective = function_objective(lambda w: -((w - 1.0) ** 2).sum(), [0.5, 1.0])
    result = pl.sharpness.ball(objective, 5.0, steps=60)
    assert abs(result.value - 0.25) < 1e-3
    assert float(result.maximizer.norm()) < 1.0


def test_at_a_maximum_nothing_rises():
    result = pl.sharpness.ball(function_objective(lambda w: -(w**2).sum(), [0.0, 0.0]), 0.1)
    assert result.value == 0.0
    assert not result.maximizer.any()
    assert (result.values <= 0).all()


class TestNetwork:
    @pytest.fixture
    def objective(self) -> pl.Objective:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        data = torch.randn(40, 4).double(), torch.randint(0, 3, (40,))
        return pl.Objective(model.double(), nn.CrossEntropyLoss(), data)

    def test_the_value_is_that_of_a_point_of_the_ball(self, objective):
        for epsilon in (0.01, 0.3, 2.0):
            result = pl.sharpness.ball(objective, epsilon)
            assert float(result.maximizer.norm()) <= epsilon
            rise = objective.loss(objective.center + result.maximizer) - objective.loss()
            assert abs(result.value - rise) < 1e-12
            assert result.value == float(result.values.max())

    def test_it_beats_random_points_of_the_sphere(self, objective):
        v = torch.nn.functional.normalize(torch.randn(300, objective.space.size).double())
        losses = objective.evaluate(objective.center + 0.3 * v)["loss"]
        assert pl.sharpness.ball(objective, 0.3).value > float(losses.max()) - objective.loss()

    def test_a_larger_ball_is_not_less_sharp(self, objective):
        values = [pl.sharpness.ball(objective, epsilon).value for epsilon in (0.1, 0.2, 0.4, 0.8)]
        assert values == sorted(values)

    def test_more_restarts_and_steps_never_lower_it(self, objective):
        few = pl.sharpness.ball(objective, 0.3, restarts=1, steps=3)
        many = pl.sharpness.ball(objective, 0.3, restarts=4, steps=20)
        assert (many.values[:2] >= few.values).all()
        assert many.value >= few.value
        assert few.evaluations <= 1 + 2 * (1 + 3)
        assert len(many.values) == len(many.starts) == len(many.converged) == 5

    def test_the_model_is_unchanged_and_seeds_reproduce(self, objective):
        model = objective.model
        state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        first, again, other = (pl.sharpness.ball(objective, 0.3, seed=s) for s in (1, 1, 2))
        assert model.training
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.equal(first.maximizer, again.maximizer)
        assert torch.equal(first.values, again.values)
        assert not torch.equal(first.values, other.values)

    def test_at_another_point(self, objective):
        at = objective.center + 1.0
        result = pl.sharpness.ball(objective, 0.1, at=at)
        assert result.loss == objective.loss(at)
        assert abs(objective.loss(at + result.maximizer) - result.loss - result.value) < 1e-12


def test_a_pole_in_the_ball_is_an_infinite_sharpness():
    objective = function_objective(lambda w: torch.where(w > 1.05, torch.inf, w).sum(), [1.0])
    result = pl.sharpness.ball(objective, 0.1)
    assert result.value == float("inf")
    assert not all(result.converged)


class TestBadInput:
    def test_arguments(self):
        objective = quadratic(CURVATURES, torch.zeros(5))
        for wrong in (0, -0.1, float("nan"), float("inf"), "0.1"):
            with pytest.raises(ValueError, match="epsilon must be a positive number"):
                pl.sharpness.ball(objective, wrong)
        with pytest.raises(ValueError, match="steps must be an int >= 1"):
            pl.sharpness.ball(objective, steps=0)
        with pytest.raises(ValueError, match="restarts must be an int >= 0"):
            pl.sharpness.ball(objective, restarts=-1)
        with pytest.raises(ValueError, match="restarts must be >= 1 where the gradient is zero"):
            pl.sharpness.ball(objective, restarts=0)
        with pytest.raises(ValueError, match=r"at must be a point of shape \[5\]"):
            pl.sharpness.ball(objective, at=torch.zeros(4))
        with pytest.raises(TypeError, match=r"objective must be a pl\.Objective"):
            pl.sharpness.ball(nn.Linear(2, 1))

    def test_losses_that_are_not_finite(self):
        with pytest.raises(ValueError, match=r"must be finite at the centre, got loss nan"):
            pl.sharpness.ball(function_objective(lambda w: w.log().sum(), [-1.0]))
        edge = function_objective(lambda w: torch.where(w == 1, w, torch.nan).sum(), [1.0])
        with pytest.raises(ValueError, match="must be defined in the ball, got NaN at every start"):
            pl.sharpness.ball(edge)
