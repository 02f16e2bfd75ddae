"""Barriers of several pairs and paths."""

import pytest
from drawn import barriers_of, find, legend_of, words

from pylandscape import plots


def test_each_path_has_a_mean_and_its_barrier():
    table = barriers_of()
    figure = plots.barriers(table)
    assert legend_of(figure.axes[0]) == ["straight: 1.43", "aligned: 0.22", "curve: 0.022"]
    (bold,) = find(figure, "aligned: 0.22")
    assert bold.get_ydata() == pytest.approx(table.loss.sel(path="aligned").mean("pair").values)
    assert len(figure.axes[0].get_lines()) == 3 * (1 + 3)
    assert "mean of 3 pairs" in words(figure)
    one = plots.barriers(table.isel(pair=0), test=True)
    assert len(one.axes[0].get_lines()) == 3
    assert one.axes[0].get_ylabel() == "test loss"
    assert "barrier of the test loss." in words(one)
