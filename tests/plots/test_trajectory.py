"""The path of training in its plane."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import bowl, find, path_of, plane_of, words
from matplotlib.collections import LineCollection

from pylandscape import plots


def test_the_path_runs_in_the_order_of_its_steps():
    path = path_of()
    shuffled = path.isel(snapshot=np.random.default_rng(0).permutation(30))
    figure = plots.trajectory(plane_of(bowl), shuffled)
    (line,) = find(figure, "path")
    assert isinstance(line, LineCollection)
    starts = np.array([segment[0] for segment in line.get_segments()])
    assert starts[:, 0] == pytest.approx(path["alpha"].values[:-1])
    assert starts[:, 1] == pytest.approx(path["beta"].values[:-1])
    assert find(figure, "start")[0].get_xydata()[0] == pytest.approx([0.8, 0.6])
    assert find(figure, "end")[0].get_xydata()[0] == pytest.approx([0, 0])
    (distance,) = find(figure, "distance")
    ends = np.array([segment[1] for segment in distance.get_segments()])
    assert ends == pytest.approx(np.stack([path["step"], path["distance"]], axis=1)[1:])


def test_the_axes_name_the_explained_variance():
    figure = plots.trajectory(plane_of(bowl), path_of())
    assert figure.axes[0].get_xlabel() == "α: principal component 1 (81.2%)"
    assert figure.axes[0].get_ylabel() == "β: principal component 2 (12.3%)"
    assert "93.5% of the variance of 30 snapshots" in words(figure)


def test_a_path_that_leaves_the_plane_is_shown_whole():
    path = path_of().assign(alpha=lambda p: 3 * p.alpha)
    figure = plots.trajectory(plane_of(bowl), path)
    low, high = figure.axes[0].get_xlim()
    assert low == -1
    assert high > 2.4


def test_snapshots_that_are_not_finite_are_counted():
    path = path_of()
    path["alpha"][3:5] = np.nan
    figure = plots.trajectory(plane_of(bowl), path)
    assert "2 snapshots have no finite coordinates." in words(figure)
    assert len(find(figure, "path")[0].get_segments()) == 27


def test_the_caption_says_how_far_the_plane_can_be_trusted():
    path = path_of()
    path.attrs["loss_gap"] = float(abs(path.loss - path.plane_loss).max())
    text = words(plots.trajectory(plane_of(bowl), path))
    off = float(path.distance.max())
    assert f"lie up to {off:.3g} off the plane and up to 1 from its origin" in text
    assert "differs from theirs by up to 0.1 (at step 0)" in text


@pytest.mark.parametrize("turns", [0.4, 1.0, 1.6])
def test_numbers_on_contour_lines_keep_off_the_path(turns):
    t = np.linspace(1, 0, 30)
    path = path_of().assign(
        alpha=("snapshot", 0.9 * t * np.cos(2 * np.pi * turns * t)),
        beta=("snapshot", 0.9 * t * np.sin(2 * np.pi * turns * t)),
    )
    figure = plots.trajectory(plane_of(bowl, 41, 41), path)
    ax = figure.axes[0]
    texts = [text for text in ax.texts if text.get_gid() is None]
    assert len(texts) > 2
    between = np.linspace(0, 29, 2000)
    drawn = [np.interp(between, np.arange(30), path[name]) for name in ("alpha", "beta")]
    pixels = ax.transData.transform(np.stack(drawn, 1))
    height = texts[0].get_fontsize() * figure.dpi / 72
    for text in texts:
        place = ax.transData.transform(text.get_position())
        assert np.hypot(*(pixels - place).T).min() > 1.5 * height


def test_a_trajectory_in_three_given_axes_has_all_its_panels():
    axes = plt.Figure().subplots(3, 1)
    plots.trajectory(plane_of(bowl), path_of(), list(axes))
    assert [len(ax.get_lines()) > 0 for ax in axes] == [True, True, True]
    assert axes[2].get_ylabel() == "loss"
