"""Measures of several solutions against each other."""

import numpy as np
import pytest
from drawn import measures_of, words
from matplotlib.collections import LineCollection

from pylandscape import plots


def test_correlation_says_the_rank_correlation_and_draws_the_errors():
    table = measures_of()
    figure = plots.correlation(table, "lambda_max", "error")
    assert "Rank correlation of 6 solutions: 1.00." in words(figure)
    texts = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["0", "1", "2", "3", "4", "5"]
    assert figure.axes[0].get_xscale() == "log"
    bars = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    ends = np.array([bar.get_segments()[0][:, 0] for bar in bars])
    assert ends == pytest.approx(np.outer(table.lambda_max.values, [0.9, 1.1]))
    falling = table.assign(error=-table.error)
    assert "-1.00" in words(plots.correlation(falling, "lambda_max", "error"))
    assert "not defined" in words(plots.correlation(table, "lambda_max", "flat"))
