"""What is read off the results, on surfaces whose geometry is known."""

import numpy as np
import pytest
import xarray as xr

from pylandscape.study import measures


def surface(function, resolution=21, extent=1.0):
    axis = np.linspace(-extent, extent, resolution)
    loss = function(axis[:, None], axis[None, :])
    return xr.Dataset({"loss": (("alpha", "beta"), loss)}, {"alpha": axis, "beta": axis})


def bowl(a, b):
    return 3 * (a**2 + b**2)


def test_rays_start_at_the_centre_reach_the_edge_and_are_straight():
    slope = surface(lambda a, b: 2 * a + 5 * b)
    found = list(measures.rays(slope))
    assert len(found) == 16
    for radius, loss in found:
        assert radius[0] == 0
        assert radius[-1] >= 1 - 1e-12
        np.testing.assert_allclose(loss, loss[-1] * radius / radius[-1], atol=1e-12)


def test_a_bowl_is_monotone_and_convex():
    assert measures.monotone_share(surface(bowl)) == 1
    assert measures.convex_share(surface(bowl)) == 1


def test_a_ripple_is_neither():
    ripple = surface(lambda a, b: bowl(a, b) + np.cos(12 * a) + np.cos(12 * b))
    assert measures.monotone_share(ripple) < 0.5
    assert measures.convex_share(ripple) < 0.7


def test_a_ridge_beyond_half_the_extent_does_not_count_against_convexity():
    def ridge(a, b):
        r = np.hypot(a, b)
        return np.where(r < 0.75, r**2, 0.75**2 - (r - 0.75))

    assert measures.convex_share(surface(ridge)) == 1
    assert measures.monotone_share(surface(ridge)) == 0


def test_valley_radius_of_a_bowl():
    # 3 r^2 = 0.12 at r = 0.2, where the grid has points on the axes
    found = measures.valley_radius(surface(bowl, resolution=201), rise=0.12)
    assert found == pytest.approx(0.2, abs=2e-4)


def test_valley_radius_is_the_length_of_rays_that_never_rise():
    flat = surface(lambda a, b: 0 * a * b)
    assert measures.valley_radius(flat) == pytest.approx(
        np.median([radius[-1] for radius, _ in measures.rays(flat)])
    )


def test_valley_ends_before_values_that_are_not_finite():
    walls = surface(lambda a, b: np.where(np.hypot(a, b) > 0.45, np.inf, 0 * a * b))
    assert 0.2 < measures.valley_radius(walls) <= 0.45


def test_fall_of_a_noisy_decay():
    assert measures.fall(np.array([8.0, 12.0] * 5 + [1.0] * 80 + [0.5, 1.5] * 5)) == pytest.approx(
        0.1
    )


def test_only_finished_stages_are_measured():
    assert measures.measure({}) == {}
    assert set(measures.measure({"plane": surface(bowl)})) == {
        "monotone_share",
        "convex_share",
        "valley_radius",
    }


def test_rank_correlations_are_with_test_error_and_test_loss():
    solutions = xr.Dataset(
        {
            "test_accuracy": ("solution", [0.99, 0.98, 0.97, 0.96]),
            "test_loss": ("solution", [0.4, 0.3, 0.2, 0.1]),
        },
        attrs={"test_samples": 100},
    )
    flatness = xr.Dataset(
        {
            "lambda_max": ("solution", [1.0, 2.0, 30.0, 4000.0]),
            "lambda_max_residual": ("solution", [1.0, 0.0, 0.0, 1.0]),
            "trace": ("solution", [5.0, 5.0, 5.0, 5.0]),
        }
    )
    found = measures.measure({"solutions": solutions, "flatness": flatness})
    assert found["rank_lambda_max"] == [1, -1]
    assert np.isnan(found["rank_trace"]).all()
    assert "rank_lambda_max_residual" not in found
    assert found["solution_lambda_max_residual"] == [1, 0, 0, 1]
    assert found["test_error_stderr"] == pytest.approx([(0.96 * 0.04 / 100) ** 0.5])


def test_the_paths_are_read_by_name():
    names = ("barrier", "test_barrier", "accuracy_drop", "test_accuracy_drop", "length")
    table = xr.Dataset(
        {name: ("path", [10.0 + k, 20.0 + k]) for k, name in enumerate(names)},
        attrs={"paths": ["straight", "curve"]},
    )
    found = measures.measure({"connections": table})
    assert found == {
        "straight_path": [10, 11, 12, 13, 14],
        "curve_path": [20, 21, 22, 23, 24],
    }
