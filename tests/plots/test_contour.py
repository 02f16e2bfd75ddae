"""Contours of a plane."""

from itertools import combinations

import numpy as np
import pytest
from drawn import bowl, contours, find, plane_of, with_gaps, words
from matplotlib.collections import QuadMesh

from pylandscape import plots
from pylandscape.plots._surface import faces_of
from pylandscape.plots._values import read_plane


@pytest.mark.parametrize("stored", [("alpha", "beta"), ("beta", "alpha")])
def test_alpha_is_horizontal(stored):
    surface = plane_of(lambda x, y: x + 10 * y, 3, 2).transpose(*stored)
    figure = plots.contour(surface)
    _, lines = contours(figure)
    points = 0
    for level, segments in zip(lines.levels, lines.allsegs, strict=True):
        for segment in segments:
            assert segment @ [1, 10] == pytest.approx(level)
            points += len(segment)
    assert points > 10
    plane = read_plane(surface, "loss", "test")
    faces = faces_of(plane.x, plane.y, plane.values)
    assert len(faces) == 2
    assert faces @ [1, 10, -1] == pytest.approx(np.zeros((2, 4)))


def test_gaps_are_hatched_and_nothing_else_is():
    surface = with_gaps()
    figure = plots.contour(surface)
    x, y = surface["alpha"].values, surface["beta"].values
    filled, _ = contours(figure)
    values = surface["loss"].values
    missing = ~surface["evaluated"].values
    kinds = {
        "gap NAN": np.isnan(values) & ~missing,
        "gap INFINITE": np.isinf(values) & ~missing,
        "gap MISSING": missing,
    }
    nudge = 1e-3 * np.array([1 if i < 10 else -1 for i in range(21)])  # off the border of the plane
    points = np.stack(np.meshgrid(x + nudge, y + nudge, indexing="ij"), axis=-1).reshape(-1, 2)
    for gid, cells in kinds.items():
        (patch,) = find(figure, gid)
        assert patch.get_hatch()
        inside = patch.get_path().contains_points(points).reshape(21, 21)
        assert (inside == cells).all()
        for path in filled.get_paths():
            assert not path.contains_points(points[cells.ravel()]).any()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["centre", "NaN", "infinite", "not evaluated"]
    assert "Of 441 points: 1 NaN, 9 infinite, 84 not evaluated." in words(figure)


def test_finite_points_beside_a_gap_show_their_own_value():
    surface = plane_of(lambda x, y: x + 10 * y, 5, 5)
    keep = surface["loss"].values[2, 2]
    surface["loss"][1:4, 1:4] = np.nan
    surface["loss"][2, 2] = keep
    (mesh,) = (
        a for a in plots.contour(surface).axes[0].collections if isinstance(a, QuadMesh)
    )  # fmt: skip
    cells = np.ma.filled(mesh.get_array(), np.nan).T
    assert cells[2, 2] == keep
    assert (np.isnan(cells) == np.isnan(surface["loss"].values)).all()


def test_a_plane_without_gaps_has_no_gap_marks():
    figure = plots.contour(plane_of(bowl))
    assert not figure.findobj(lambda artist: str(artist.get_gid()).startswith("gap"))
    assert " points: " not in words(figure)


@pytest.mark.parametrize(("extent", "aspect"), [((1, 2), 1.0), ((1, 5), "auto")])
def test_equal_units_are_drawn_to_scale_unless_too_thin(extent, aspect):
    assert plots.contour(plane_of(bowl, extent=extent)).axes[0].get_aspect() == aspect


def test_different_units_are_not_drawn_to_scale():
    surface = plane_of(bowl)
    surface["alpha"].attrs["units"] = "1"
    assert plots.contour(surface).axes[0].get_aspect() == "auto"
    assert plots.contour(surface, aspect="equal").axes[0].get_aspect() == 1.0


def test_given_levels_are_used_and_values_beyond_them_shown():
    filled, lines = contours(plots.contour(plane_of(bowl), levels=[0.3, 0.5, 0.9]))
    assert list(lines.levels) == [0.3, 0.5, 0.9]
    assert filled.extend == "both"


def test_another_variable_is_drawn():
    surface = plane_of(bowl).rename(loss="accuracy")
    bar = plots.contour(surface, variable="accuracy").axes[0].child_axes[0]
    assert bar.get_ylabel() == "accuracy"


@pytest.mark.parametrize("bend", [3, 11, 29])
def test_numbers_on_contour_lines_keep_apart(bend):
    surface = plane_of(lambda x, y: x**2 + y**2 + np.sin(bend * x) * np.cos(7 * y), 41, 41)
    figure = plots.contour(surface)
    _, lines = contours(figure)
    texts = lines.labelTexts
    assert texts
    height = texts[0].get_fontsize() * figure.dpi / 72
    places = [figure.axes[0].transData.transform(text.get_position()) for text in texts]
    for a, b in combinations(places, 2):
        assert np.hypot(*(a - b)) > 2 * height


def test_only_the_centre_of_a_plane_that_holds_it_is_marked():
    inside, outside = plane_of(bowl), plane_of(bowl).assign_coords(alpha=np.linspace(1, 2, 21))
    assert find(plots.contour(inside), "centre")[0].get_xydata().tolist() == [[0, 0]]
    assert not find(plots.contour(outside), "centre")
