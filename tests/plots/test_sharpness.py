"""Sharpness over the radius."""

import numpy as np
import pytest
from drawn import legend_of, profile_of, words

from pylandscape import plots


def test_the_found_rise_stands_beside_the_quadratic_model():
    profile = profile_of()
    profile["rise"][0] = 0.0
    figure = plots.sharpness(profile)
    ax = figure.axes[0]
    assert legend_of(ax) == ["found", "quadratic model", "λ ε² / 2", "ε ||g||"]
    assert not ax.get_lines()[-1].get_clip_on()  # whole marks at both ends
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert lines["found"][1:] == pytest.approx(profile.rise.values[1:])
    assert np.isnan(lines["found"][0])
    assert lines["quadratic model"] == pytest.approx(profile.quadratic.values)
    assert "λ = 2, gradient norm ||g|| = 0.02." in words(figure)
    assert "No finite rise above 0 at 1 of 9 radii." in words(figure)
