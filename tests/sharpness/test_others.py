"""`average`, `sam`, `critical`, `profile` and `table`: closed forms on quadratics, bad input."""

import numpy as np
import pytest
import torch
from models import classifier, function_objective, mlp, quadratic
from scipy.optimize import minimize

import pylandscape as pl
from pylandscape.sharpness._profile import maximum_in_ball

CURVATURES = torch.tensor([4.0, 2.5, 1.0, 0.5, 0.0], dtype=torch.float64)
W = torch.tensor([0.3, -1.0, 0.5, 2.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("adaptive", [True, False])
def test_average_is_half_the_trace(adaptive):
    objective = quadratic(CURVATURES, W)
    found = pl.sharpness.average(objective, 0.3, adaptive, draws=2000, seed=1)
    scale = W**2 if adaptive else torch.ones(5)
    exact = 0.3**2 / 2 * float((CURVATURES * scale).sum())
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.05 * exact
    variance = 0.3**4 / 2 * float((CURVATURES**2 * scale**2).sum())  # of a weighted chi-squared
    assert found.stderr == pytest.approx((variance / 2000) ** 0.5, rel=0.15)
    assert len(found.values) == 2000
    few = pl.sharpness.average(objective, 0.3, adaptive, draws=20, seed=1)
    torch.testing.assert_close(few.values, found.values[:20])


def test_sam_is_one_step_along_the_gradient():
    objective = quadratic(CURVATURES, W)
    g = CURVATURES * W
    found = pl.sharpness.sam(objective, 0.2)
    exact = 0.2 * g.norm() + 0.2**2 / 2 * (g @ (CURVATURES * g)) / (g @ g)
    assert found.value == pytest.approx(float(exact), rel=1e-12)
    assert found.gradient_norm == pytest.approx(float(g.norm()))
    assert found.value <= pl.sharpness.ball(objective, 0.2).value
    with pytest.raises(ValueError, match=r"gradient must not be zero.* Use sharpness\.ball"):
        pl.sharpness.sam(objective, at=torch.zeros(5).double())
    with pytest.raises(ValueError, match=r"sharpness\.sam: rho must be a positive number"):
        pl.sharpness.sam(objective, 0)


def test_critical_is_the_curvature_along_the_update():
    objective = quadratic(CURVATURES, W)
    g = CURVATURES * W
    found = pl.sharpness.critical(objective, rtol=1e-6)
    assert found.value == pytest.approx(float(g @ (CURVATURES * g) / (g @ g)), rel=1e-5)
    assert found.learning_rate == pytest.approx(2 / found.value)
    for factor in (1e-5, 1e9):
        scaled = pl.sharpness.critical(objective, factor * g, rtol=1e-6)
        assert scaled.value == pytest.approx(factor * found.value, rel=1e-5)
    other = torch.tensor([1.0, -1, 1, 1, 1]).double()
    along = float(other @ (CURVATURES * other) / (g @ other))
    assert pl.sharpness.critical(objective, other, rtol=1e-6).value == pytest.approx(
        along, rel=1e-5
    )
    assert found.evaluations < 50


@pytest.mark.parametrize("away", [1e-6, 1e-3, 10.0])
def test_critical_is_bracketed_from_steps_too_long_and_too_short(away):
    """The loss along the update falls up to w - W = -away, be that less than the first step."""
    objective = function_objective(lambda w: 3 * ((w - W) ** 2).sum(), W + away)
    found = pl.sharpness.critical(objective, rtol=1e-3)
    assert found.value == pytest.approx(6, rel=1.1e-3)
    assert found.value == 2 / found.learning_rate
    at, g = objective.center, objective.gradient()
    assert objective.loss(at - found.learning_rate * g) > found.loss
    assert objective.loss(at - found.learning_rate * (1 - 1e-3) * g) <= found.loss


def test_critical_of_a_loss_that_only_falls_and_of_one_that_only_rises():
    slope = function_objective(lambda w: -w.sum(), [1.0, 1.0])
    assert pl.sharpness.critical(slope).value == 0
    assert pl.sharpness.critical(slope).learning_rate == np.inf
    with pytest.raises(ValueError, match="update must lower the loss at first"):
        pl.sharpness.critical(slope, torch.ones(2).double())
    with pytest.raises(ValueError, match="update must be finite and not zero"):
        pl.sharpness.critical(slope, torch.zeros(2).double())
    with pytest.raises(ValueError, match=r"update must be a tensor of shape \[2\]"):
        pl.sharpness.critical(slope, torch.zeros(3).double())


@pytest.mark.parametrize("seed", range(6))
def test_the_maximum_of_a_quadratic_in_a_ball(seed):
    random = np.random.default_rng(seed)
    curvatures, slopes = random.normal(size=4), random.normal(size=4) * (seed % 3 > 0)
    curvatures -= 2 * (seed == 4)  # nothing but falling ones
    radius = [0.1, 1.0, 5.0][seed % 3]

    def negative(x):
        v = x * min(1.0, radius / max(np.linalg.norm(x), 1e-12))
        return -(slopes @ v + curvatures @ v**2 / 2)

    starts = random.normal(size=(40, 4)) * radius
    best = max(-minimize(negative, start, method="Nelder-Mead").fun for start in starts)
    assert maximum_in_ball(curvatures, slopes, radius) == pytest.approx(best, rel=1e-3, abs=1e-6)


def test_the_profile_of_a_quadratic_is_its_prediction_and_has_both_limits():
    curvatures = torch.tensor([4.0, 1.0]).double()  # gradient and eigenvector span all
    objective = quadratic(curvatures, torch.tensor([1e-3, 1.0]))
    curve = pl.sharpness.profile(objective, [1e-4, 1e-2, 1.0, 100.0], tol=1e-6)
    np.testing.assert_allclose(curve.rise, curve.quadratic, rtol=1e-3)
    exact = [
        maximum_in_ball(curvatures.numpy(), (curvatures * objective.center).numpy(), float(radius))
        for radius in curve.epsilon
    ]
    np.testing.assert_allclose(curve.quadratic, exact, rtol=1e-6)
    assert float(curve.rise[0] / curve.gradient_limit[0]) == pytest.approx(1, rel=1e-3)
    assert float(curve.rise[-1] / curve.curvature_limit[-1]) == pytest.approx(1, rel=0.02)
    assert curve.attrs["lambda_max"] == pytest.approx(4)
    assert curve.attrs["gradient_norm"] == pytest.approx(float(objective.gradient().norm()))


def test_at_a_stationary_point_the_profile_is_the_parabola():
    curve = pl.sharpness.profile(quadratic(CURVATURES, torch.zeros(5)), [0.1, 1.0], tol=1e-6)
    np.testing.assert_allclose(curve.quadratic, 2 * curve.epsilon**2, rtol=1e-6)
    np.testing.assert_allclose(curve.rise, curve.curvature_limit, rtol=1e-3)
    np.testing.assert_array_equal(curve.gradient_limit, 0)
    for wrong in ([], [0.1, 0.1], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="epsilons must be positive and increasing"):
            pl.sharpness.profile(quadratic(CURVATURES, W), wrong)


def test_the_table_holds_every_measure_with_its_parameters():
    objective = classifier(mlp(), count=30)
    table = pl.sharpness.table(objective, ball={"epsilon": 0.3}, average={"draws": 4})
    expected = {
        "lambda_max": float(pl.eigenpairs(pl.Hessian(objective), k=1, tol=1e-2).values[0]),
        "ball": pl.sharpness.ball(objective, 0.3).value,
        "keskar": pl.sharpness.keskar(objective).value,
        "keskar_subspace": pl.sharpness.keskar(objective, subspace=objective.space.size).value,
        "adaptive_l2": pl.sharpness.adaptive(objective, "l2").value,
        "adaptive_linf": pl.sharpness.adaptive(objective, "linf").value,
        "average": pl.sharpness.average(objective, draws=4).value,
        "sam": pl.sharpness.sam(objective).value,
        "critical": pl.sharpness.critical(objective).value,
    }
    assert table.measure.values.tolist() == list(expected)
    np.testing.assert_array_equal(table.value, list(expected.values()))
    assert table.attrs["loss"] == objective.loss()
    words = dict(zip(table.measure.values, table.parameters.values, strict=True))
    assert words["ball"] == "epsilon = 0.3, steps = 30, restarts = 2, seed = 0"
    assert (table.definition.str.len() > 10).all()
    assert list(table.to_dataframe().columns) == ["value", "definition", "parameters"]
    with pytest.raises(ValueError, match="measures must be some of"):
        pl.sharpness.table(objective, ["bowl"])
    with pytest.raises(ValueError, match="sam must have parameters among"):
        pl.sharpness.table(objective, ["sam"], sam={"epsilon": 1})
