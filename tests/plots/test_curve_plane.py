"""A curve in its plane."""

import numpy as np
import pytest
from drawn import curve_plane_of, find, words

from pylandscape import plots


def test_the_curve_runs_in_its_plane_between_the_models():
    surface = curve_plane_of(3, off=0.4)
    figure = plots.curve_plane(surface)
    for line in find(figure, "curve"):
        assert line.get_xdata() == pytest.approx(surface.path_alpha.values)
        assert line.get_ydata() == pytest.approx(surface.path_beta.values)
    nodes = np.stack([surface.node_alpha, surface.node_beta], 1)
    for name, node in (("model A", 0), ("model B", -1)):
        assert find(figure, name)[0].get_xydata()[0] == pytest.approx(nodes[node])
    assert len(find(figure, "bends")[0].get_xdata()) == 3
    assert "The curve runs up to 0.1 from this plane." in words(figure)
    assert "from this plane" not in words(plots.curve_plane(curve_plane_of()))
