"""Spectral densities, layers and the curvature of axes."""

import numpy as np
import pytest
from drawn import curvatures_of, find, layers_of, spectrum_of, words

from pylandscape import plots


def test_the_density_has_its_band_and_its_ends():
    found = spectrum_of()
    figure = plots.density(found, scale="linear")
    (line,) = [x for x in figure.axes[0].get_lines() if len(x.get_xdata()) > 2]
    assert line.get_ydata() == pytest.approx(found["density"].values)
    (band,) = find(figure, "errors")
    outline = band.get_paths()[0].vertices
    top = float((found["density"] + 2 * found["density_stderr"]).max())
    assert outline[:, 1].max() == pytest.approx(top)
    for name in ("lambda_max", "lambda_min"):
        assert find(figure, name)[0].get_xdata() == pytest.approx([float(found[name])])
    assert words(figure).startswith("Hessian of the loss (cross-entropy) of SmallCNN")
    assert "2 standard errors over 3 random vectors" in words(figure)


def test_a_log_density_ends_below_the_height_of_one_eigenvalue():
    found = spectrum_of()
    low, high = plots.density(found).axes[0].get_ylim()
    assert low == pytest.approx(0.1 / 60 / (found.attrs["sd"] * (2 * np.pi) ** 0.5))
    assert high > float(found["density"].max())


def test_layers_are_drawn_from_the_first_down_with_their_signs():
    spectra = layers_of()
    ax = plots.layers(spectra).axes[0]
    assert ax.get_yticklabels()[0].get_text() == "block.0.conv1 (1,000)"
    assert ax.yaxis_inverted()
    drawn = {bar.get_label(): bar.lines[0].get_xydata() for bar in ax.containers}
    assert drawn["largest"] == pytest.approx(np.stack([[10, 100, 1e3, 1e4], range(4)], 1))
    assert drawn["\u2212smallest"] == pytest.approx(
        np.array([[1, 2], [2, 3]])
    )  # of the negative ones
    assert drawn["mean"][:, 0] == pytest.approx([2e-3, 5e-4, 2.5e-4])  # without the one of 0


def test_curvatures_of_axes_stand_beside_the_eigenvalues():
    figure = plots.axis_curvature(curvatures_of())
    assert find(figure, "curvature")[0].get_xydata() == pytest.approx(
        np.array([[1e-3, 0], [2e-3, 1]])
    )
    assert find(figure, "span")[0].get_xdata() == pytest.approx([-0.002, 8])
    for name, value in (("lambda_max", 42.0), ("lambda_min", -1.5), ("mean", 4e-4)):
        assert find(figure, name)[0].get_xdata() == [value, value]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][2] == "all in their span"
