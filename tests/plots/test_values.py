"""Levels of contours and the numbers on them."""

import numpy as np
import pytest

from pylandscape.plots._values import contour_levels, number_texts


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.2, 1.0, 1.9], False),
        ([-3.0, 500.0], False),
        ([2.30250, 2.30252], False),
        ([1e-3, 1.0, 1e5], True),
        ([0.02, 2.3, 9.9], True),
        ([0.009999999999999998, 1.0, 2.0], True),
        ([0.0, 1e-30, 1.0, 2.0], True),
        ([2.3, 2.3, 2.3], False),
        ([0.0, 0.0], False),
        ([1.0, np.nan, np.inf, 4.0], False),
    ],
)
def test_levels_increase_and_cover_the_values(values, log, count):
    values = np.array(values)
    finite = values[np.isfinite(values)]
    levels = contour_levels(values, count)
    assert (np.diff(levels) > 0).all()
    assert levels[0] <= finite.min()
    assert levels[-1] >= finite.max()
    assert 2 <= len(levels) <= count + 4
    steps = np.diff(levels)
    assert (steps.max() > 1.5 * steps.min()) == log


def test_levels_of_a_wide_range_are_round_numbers():
    levels = contour_levels(np.array([0.03, 40.0]), 10)
    assert levels == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])


@pytest.mark.parametrize(
    "values",
    [
        [2.30250, 2.30251, 2.30252],
        [1e-6, 1e-3, 1.0, 1e5],
        [-0.2, 0.0, 0.2],
        [1e6, 2e6],
        [1.01, 1.02, 1.1],
    ],
)
def test_numbers_tell_neighbours_apart(values):
    texts = number_texts(values)
    for value, text in zip(values, texts, strict=True):
        plain = text.replace("\N{MINUS SIGN}", "-").strip("$").replace("{\\cdot}10^", "e")
        plain = plain.replace("10^", "1e").replace("{", "").replace("}", "")
        assert float(plain) == pytest.approx(value, rel=1e-12)
