"""`keskar` and `adaptive`: closed forms on quadratics (box, ellipsoid), invariance, bad input."""

import copy

import numpy as np
import pytest
import torch
from models import classifier, convnet, function_objective, labels, mlp, normal, quadratic
from torch import nn

import pylandscape as pl
from pylandscape.sharpness._keskar import _Box
from pylandscape.sharpness._profile import maximum_in_ball

CURVATURES = torch.tensor([4.0, 2.5, 1.0, 0.5, 0.0], dtype=torch.float64)
W = torch.tensor([0.3, -1.0, 0.5, 2.0, 0.0], dtype=torch.float64)


def largest_in_box(curvatures, slopes, bounds):
    """max of sum_i slopes_i v_i + curvatures_i v_i^2 / 2 in |v_i| <= bounds_i: one by one."""
    corners = (slopes.abs() * bounds + curvatures * bounds**2 / 2).clamp(min=0)
    inside = torch.where(
        (curvatures < 0) & (slopes.abs() < -curvatures * bounds), -(slopes**2) / curvatures / 2, 0
    )
    return float(torch.where(inside > 0, inside, corners).sum())


def largest_in_ellipsoid(curvatures, slopes, scale, rho):
    """The same in sum (v_i / scale_i)^2 <= rho^2."""
    return maximum_in_ball((curvatures * scale**2).numpy(), (slopes * scale).numpy(), rho)


class TestKeskar:
    @pytest.mark.parametrize("epsilon", [1e-3, 0.1])
    @pytest.mark.parametrize("w", [W, torch.zeros(5).double()])
    def test_in_the_full_space(self, epsilon, w):
        objective = quadratic(CURVATURES, w)
        found = pl.sharpness.keskar(objective, epsilon)
        bounds = epsilon * (w.abs() + 1)
        exact = largest_in_box(CURVATURES, CURVATURES * w, bounds)
        assert found.rise == pytest.approx(exact, rel=1e-6)
        assert found.value == pytest.approx(100 * exact / (1 + objective.loss()), rel=1e-6)
        assert (found.maximizer.abs() <= bounds * (1 + 1e-12)).all()
        reached = objective.loss(objective.center + found.maximizer)
        assert found.rise == pytest.approx(reached - found.loss, abs=1e-12)
        assert found.starts[0] == ("centre" if w.any() else "random")

    def test_one_iteration_reaches_the_corner_of_a_convex_loss(self):
        objective = quadratic(CURVATURES[:4], W[:4])
        found = pl.sharpness.keskar(objective, 0.1, iterations=1, restarts=0)
        slopes = CURVATURES[:4] * W[:4]
        exact = largest_in_box(CURVATURES[:4], slopes, 0.1 * (W[:4].abs() + 1))
        assert found.rise == pytest.approx(exact, rel=1e-9)

    @pytest.mark.parametrize("subspace", [None, 3])
    def test_the_slope_is_that_of_the_loss_in_the_variables_of_the_box(self, subspace):
        objective = quadratic(CURVATURES, W)
        box = _Box(objective, W, 0.1, subspace, 1)
        u = np.random.default_rng(0).uniform(-1, 1, box.dimensions)
        slope = box.slope(objective.gradient(W + box.step(u)))
        for i, shift in enumerate(1e-3 * np.eye(box.dimensions)):
            high, low = (objective.loss(W + box.step(at)) for at in (u + shift, u - shift))
            assert slope[i] == pytest.approx((high - low) / 2e-3, rel=1e-5, abs=1e-9)

    def test_a_maximum_inside_the_box(self):
        curvatures = torch.tensor([-4.0, 1.0, -0.1]).double()
        w = torch.tensor([-0.02, 0.5, -1.0]).double()  # the first is at its top within the box
        found = pl.sharpness.keskar(quadratic(curvatures, w), 0.1)
        exact = largest_in_box(curvatures, curvatures * w, 0.1 * (w.abs() + 1))
        assert found.rise == pytest.approx(exact, rel=1e-4)
        assert float(found.maximizer[0]) == pytest.approx(0.02, abs=1e-3)

    def test_in_a_subspace(self):
        objective = quadratic(CURVATURES, W)
        found = pl.sharpness.keskar(objective, 0.1, subspace=2, seed=3, restarts=3)
        columns = pl.random_directions(objective, 2, 3, "none", None).vectors.double()
        columns = nn.functional.normalize(columns)
        y = torch.linalg.lstsq(columns.T, W).solution
        bounds = 0.1 * (y.abs() + 1)
        corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double() * bounds
        rises = objective.evaluate(W + corners @ columns)["loss"] - objective.loss()
        assert found.rise == pytest.approx(float(rises.max()), rel=1e-5)  # a convex loss
        found_y = torch.linalg.lstsq(columns.T, found.maximizer).solution
        torch.testing.assert_close(found_y @ columns, found.maximizer, rtol=1e-5, atol=1e-8)
        assert (found_y.abs() <= bounds * (1 + 1e-5)).all()

    def test_a_network(self):
        objective = classifier(mlp(), count=30)
        before = copy.deepcopy(objective.model.state_dict())
        few = pl.sharpness.keskar(objective, 0.05, iterations=2, restarts=0)
        many = pl.sharpness.keskar(objective, 0.05, iterations=10, restarts=2, seed=1)
        again = pl.sharpness.keskar(objective, 0.05, iterations=10, restarts=2, seed=1)
        assert 0 < few.rise <= many.rise
        assert torch.equal(many.rises, again.rises)
        assert len(many.rises) == 3
        corners = normal(300, objective.space.size).sign() * 0.05 * (objective.center.abs() + 1)
        losses = objective.evaluate(objective.center + corners)["loss"]
        assert many.rise > float(losses.max()) - objective.loss()
        assert all(torch.equal(before[n], x) for n, x in objective.model.state_dict().items())

    def test_bad_input(self):
        objective = quadratic(CURVATURES, W)
        for name, value in (("epsilon", 0), ("iterations", 0), ("restarts", -1), ("subspace", 6)):
            with pytest.raises(ValueError, match=f"sharpness.keskar: {name} must be"):
                pl.sharpness.keskar(objective, **{name: value})
        with pytest.raises(ValueError, match="restarts must be >= 1 where the gradient is zero"):
            pl.sharpness.keskar(quadratic(CURVATURES, torch.zeros(5)), restarts=0)
        pole = function_objective(lambda w: torch.where(w > 1.05, torch.nan, w).sum(), [1.0])
        with pytest.raises(ValueError, match="must be finite in the box, got nan"):
            pl.sharpness.keskar(pole, 0.1)


class TestAdaptive:
    @pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0])
    def test_the_box_of_a_quadratic(self, rho):
        found = pl.sharpness.adaptive(quadratic(CURVATURES, W), "linf", rho)
        exact = largest_in_box(CURVATURES, CURVATURES * W, rho * W.abs())
        assert found.value == pytest.approx(exact, rel=1e-9)
        assert (found.maximizer.abs() <= rho * W.abs() * (1 + 1e-12)).all()

    @pytest.mark.parametrize("factor", [1e-7, 1e7])
    def test_the_steps_do_not_depend_on_the_size_of_the_loss(self, factor):
        for name, steps in (("linf", 20), ("l2", 60)):
            values = [
                pl.sharpness.adaptive(quadratic(curvatures, W), name, 0.1, steps=steps).value
                for curvatures in (CURVATURES, factor * CURVATURES)
            ]
            assert values[1] == pytest.approx(factor * values[0], rel=1e-6)

    def test_parameters_that_are_zero_take_no_share_of_the_ellipsoid(self):
        w = torch.zeros(50).double()
        w[0] = 2.0  # at a minimum, so that the start is a random point
        objective = function_objective(lambda v: ((v - w) ** 2).sum(), w)
        found = pl.sharpness.adaptive(objective, "l2", 0.1, steps=1)
        assert found.value == pytest.approx((0.1 * 2.0) ** 2, rel=1e-9)

    @pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0])
    def test_the_ellipsoid_of_a_quadratic(self, rho):
        found = pl.sharpness.adaptive(quadratic(CURVATURES, W), "l2", rho, steps=60)
        exact = largest_in_ellipsoid(CURVATURES, CURVATURES * W, W.abs(), rho)
        assert exact * (1 - 1e-3) <= found.value <= exact * (1 + 1e-9)
        scaled = found.maximizer[:4] / W[:4]
        assert float(scaled.norm()) <= rho * (1 + 1e-12)
        assert float(found.maximizer[4]) == 0.0  # a parameter that is zero stays so

    def test_at_a_minimum_it_is_the_largest_scaled_curvature(self):
        """A minimum away from zero: max over the ellipsoid is rho^2 max(D_i w_i^2) / 2."""
        objective = function_objective(lambda w: (CURVATURES * (w - W) ** 2).sum() / 2, W)
        found = pl.sharpness.adaptive(objective, "l2", 0.1, steps=80, restarts=2)
        exact = 0.1**2 * float((CURVATURES * W**2).max()) / 2
        assert exact * (1 - 1e-2) <= found.value <= exact * (1 + 1e-9)
        box = pl.sharpness.adaptive(objective, "linf", 0.1)
        assert box.value == pytest.approx(0.1**2 * float(CURVATURES @ W**2) / 2, rel=1e-9)

    def test_small_sets_see_the_gradient(self):
        objective = quadratic(CURVATURES, W)
        scaled = objective.gradient() * W.abs()
        for name, dual in (("linf", scaled.abs().sum()), ("l2", scaled.norm())):
            found = pl.sharpness.adaptive(objective, name, 1e-6)
            assert found.value == pytest.approx(1e-6 * float(dual), rel=1e-4)

    def test_auto_pgd_comes_back_from_steps_that_are_too_long(self):
        """The best point is well inside: the loss has a narrow ridge at v = 0.02."""
        objective = function_objective(lambda w: -((w - 1.02) ** 2).sum() * 50, [1.0])
        found = pl.sharpness.adaptive(objective, "linf", 1.0, steps=60, restarts=0)
        assert found.value == pytest.approx(50 * 0.02**2, rel=1e-2)

    @pytest.mark.parametrize("name", ["linf", "l2"])
    def test_rescaled_layers_have_the_same_sharpness(self, name):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        other = copy.deepcopy(model)
        with torch.no_grad():
            for tensor, factor in zip(other.parameters(), (7, 7, 1 / 7, 1), strict=True):
                tensor.mul_(factor)
        values, balls = [], []
        for net in (model, other):
            objective = classifier(net, count=30)
            values.append(pl.sharpness.adaptive(objective, name, restarts=0).value)
            balls.append(pl.sharpness.ball(objective, 0.1).value)
        assert values[1] == pytest.approx(values[0], rel=1e-6)
        assert abs(balls[1] / balls[0] - 1) > 0.1

    def test_m_sharpness_is_the_mean_over_groups(self):
        data = normal(10, 4), labels(10, 3)
        objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), data)
        found = pl.sharpness.adaptive(objective, "linf", 0.01, m=4, restarts=0)
        values = []
        for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
            part = pl.Objective(mlp(), nn.CrossEntropyLoss(), (data[0][rows], data[1][rows]))
            values.append(pl.sharpness.adaptive(part, "linf", 0.01, restarts=0).value)
        np.testing.assert_allclose(found.values, values, rtol=1e-12)
        assert found.value == pytest.approx(np.average(values, weights=[4, 4, 2]))
        assert found.maximizer is None
        whole = pl.sharpness.adaptive(objective, "linf", 0.01, restarts=0)
        assert found.value > whole.value  # each group may rise in its own way
        assert pl.sharpness.adaptive(objective, "linf", 0.01, m=10, restarts=0).value == whole.value
        assert found.loss == pytest.approx(objective.loss())

    def test_the_model_is_unchanged_and_seeds_reproduce(self):
        model = convnet(norm=True)
        data = normal(8, 1, 6, 6), labels(8, 3)
        objective = pl.Objective(model, nn.CrossEntropyLoss(), data)
        before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        first, again = (pl.sharpness.adaptive(objective, "l2", m=3, seed=1) for _ in range(2))
        assert torch.equal(first.values, again.values)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
        assert model.training

    def test_a_pole_is_an_infinite_sharpness(self):
        pole = function_objective(lambda w: torch.where(w > 1.05, torch.inf, w).sum(), [1.0])
        assert pl.sharpness.adaptive(pole, "linf", 0.1).value == np.inf

    def test_bad_input(self):
        objective = quadratic(CURVATURES, W)
        with pytest.raises(ValueError, match=r"sharpness\.adaptive: norm must be one of"):
            pl.sharpness.adaptive(objective, "l1")
        for name, value in (("rho", -1), ("m", 0), ("steps", 0), ("restarts", -1), ("seed", -1)):
            with pytest.raises(ValueError, match=f"sharpness.adaptive: {name} must be"):
                pl.sharpness.adaptive(objective, **{name: value})
