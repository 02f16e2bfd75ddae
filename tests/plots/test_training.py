"""Histories of training."""

import numpy as np
import pytest
from drawn import find, log_of, words

from pylandscape import plots
from pylandscape.plots._training import running_mean


@pytest.mark.parametrize("window", [1, 2, 5, 50])
def test_running_mean_against_its_definition(window):
    values = np.random.default_rng(0).normal(size=30)
    values[[4, 5, 17]] = np.nan
    before, after = window // 2, (window - 1) // 2
    expected = [
        np.nanmean(values[max(0, i - before) : i + after + 1]) if np.isfinite(v) else np.nan
        for i, v in enumerate(values)
    ]
    assert running_mean(values, window) == pytest.approx(np.array(expected), nan_ok=True)


def test_training_draws_values_and_mean_and_a_changing_rate():
    log = log_of()
    figure = plots.training(log)
    (raw,), (mean,) = find(figure, "values"), find(figure, "mean")
    assert raw.get_ydata() == pytest.approx(log["loss"].values)
    assert mean.get_ydata() == pytest.approx(running_mean(log["loss"].values, 10))
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "learning\nrate"]
    constant = log.assign(learning_rate=("step", np.full(300, 0.1)))
    assert len(plots.training(constant).axes) == 1


def test_rows_without_a_loss_are_left_out_and_divergence_is_hatched():
    log = log_of()
    every_tenth = log.where(log["step"] % 10 == 0).assign_coords(step=log["step"])
    figure = plots.training(every_tenth)
    assert not find(figure, "gap NAN")
    assert "No finite value at 269 of 300 steps." in words(figure)  # the last row has none
    diverged = log.where(log["step"] < 200)
    (span,) = find(plots.training(diverged), "gap NAN")
    assert span.get_x() == pytest.approx(199.5)


def test_gradient_norm_shows_the_norm_before_clipping_where_known():
    log = log_of()
    clipped = log.assign(grad_norm_unclipped=2 * log.grad_norm)
    for given, count in ((log, 0), (clipped, 1)):
        lines = find(plots.gradient_norm(given), "unclipped")
        assert len(lines) == count
    assert lines[0].get_ydata() == pytest.approx(
        running_mean(2 * log.grad_norm.values, 300 // 30), nan_ok=True
    )
    figure = plots.gradient_norm(clipped)
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "before clipping"


def test_gradient_norm_draws_its_own_variable():
    log = log_of(30)
    (line,) = plots.gradient_norm(log).axes[0].get_lines()
    assert line.get_ydata() == pytest.approx(log["grad_norm"].values)
