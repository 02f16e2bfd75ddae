"""A plane as a surface."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import bowl, plane_of, spiked, with_gaps, words

from pylandscape import plots
from pylandscape.plots._surface import faces_of
from pylandscape.plots._values import Plane, read_plane


def test_surface_draws_in_given_axes():
    figure = plt.figure()
    try:
        ax = figure.add_subplot(projection="3d")
        assert plots.surface(plane_of(bowl), ax) is figure
        assert ax.get_zlabel() == "loss"
    finally:
        plt.close(figure)


def test_faces_beside_a_gap_are_left_out():
    plane: Plane = read_plane(with_gaps(), "loss", "test")
    faces = faces_of(plane.x, plane.y, plane.values)
    known = np.isfinite(plane.values)
    whole = known[:-1, :-1] & known[1:, :-1] & known[1:, 1:] & known[:-1, 1:]
    assert len(faces) == whole.sum() < 400
    labels = [t.get_text() for t in plots.surface(with_gaps()).axes[0].get_legend().get_texts()]
    assert labels == ["centre", "NaN", "infinite", "not evaluated"]


def test_outlying_heights_are_cut_at_the_quantile_and_it_is_said():
    surface = spiked()
    figure = plots.surface(surface)
    quantile = np.quantile(surface["loss"], 0.95)
    assert figure.axes[0].get_zlim()[1] == pytest.approx(quantile)
    assert f"Heights above {quantile:.3g} are cut." in words(figure)
    whole = plots.surface(surface, clip=float("inf"))
    assert whole.axes[0].get_zlim()[1] == pytest.approx(60)
    assert "cut" not in words(whole)
    assert plots.surface(surface, clip=5.0).axes[0].get_zlim()[1] == pytest.approx(5)


def test_a_bowl_is_not_cut():
    figure = plots.surface(plane_of(bowl))
    assert figure.axes[0].get_zlim()[1] == pytest.approx(float(plane_of(bowl)["loss"].max()))


def test_a_wide_range_has_logarithmic_heights():
    figure = plots.surface(plane_of(lambda x, y: 10.0 ** (3 * x)))
    assert figure.axes[0].get_zlim()[1] == pytest.approx(3)
    assert "Logarithmic height." in words(figure)
