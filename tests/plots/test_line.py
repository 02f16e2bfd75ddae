"""The loss along a line."""

import numpy as np
import pytest
from drawn import curve_of, find, words

from pylandscape import plots


def test_the_band_is_two_standard_errors_wide():
    curve = curve_of(lambda x: 1 + x**2)
    (band,) = find(plots.line(curve), "errors")
    corners = band.get_paths()[0].vertices
    for x, loss, error in zip(curve.alpha, curve.loss, curve.loss_stderr, strict=True):
        ends = corners[np.isclose(corners[:, 0], x), 1]
        assert ends.min() == pytest.approx(float(loss - 2 * error))
        assert ends.max() == pytest.approx(float(loss + 2 * error))


def test_line_marks_the_centre_and_shows_the_accuracy_below():
    curve = curve_of(lambda x: 0.5 + x**2)
    figure = plots.line(curve)
    assert find(figure, "centre")[0].get_xydata().tolist() == [[0.0, 0.5]]
    (accuracy,) = figure.axes[1].get_lines()
    assert accuracy.get_ydata() == pytest.approx(curve["accuracy"].values)
    assert len(plots.line(curve.drop_vars("accuracy")).axes) == 1


def test_stretches_without_a_value_are_hatched():
    curve = curve_of(lambda x: np.where(np.abs(x - 0.5) < 0.11, np.nan, 1 + x**2), 21)
    (span,) = find(plots.line(curve), "gap NAN")
    box = span.get_path().transformed(span.get_patch_transform()).get_extents()
    assert (box.x0, box.x1) == (pytest.approx(0.35), pytest.approx(0.65))  # cells of 0.4, 0.5, 0.6


@pytest.mark.parametrize("lowest", [0.02, 0.0])
def test_a_wide_range_is_logarithmic_from_its_least_positive_value(lowest):
    curve = curve_of(lambda x: np.where(x == 0, lowest, 0.01 + 10 * np.abs(x) ** 5))
    figure = plots.line(curve)
    assert figure.axes[0].get_yscale() == "log"
    assert 0.005 < figure.axes[0].get_ylim()[0] < 0.02
    assert ("1 of value 0" in words(figure)) == (lowest == 0)
    assert plots.line(curve, scale="linear").axes[0].get_yscale() == "linear"
