"""The loss between two models, and its barrier."""

import numpy as np
import pytest
import xarray as xr
from drawn import find, hill, words

from pylandscape import plots
from pylandscape.plots._interpolation import barrier_height
from pylandscape.plots._values import read_curve


def test_interpolation_writes_the_barrier():
    result = hill(101)
    alpha, loss = result["alpha"].values, result["loss"].values
    excess = loss - ((1 - alpha) * loss[0] + alpha * loss[-1])
    figure = plots.interpolation(result)
    assert figure.axes[0].texts[-1].get_text() == f"barrier {excess.max():.3g}"
    arrow = find(figure, "barrier")[0]
    assert arrow.xy == pytest.approx((alpha[excess.argmax()], loss[excess.argmax()]))
    assert arrow.xy[1] - arrow.xyann[1] == pytest.approx(excess.max())
    assert "Barrier (train): 0.444." in words(figure)
    chord = find(figure, "chord")[0].get_ydata()
    assert chord == pytest.approx(np.linspace(loss[0], loss[-1], 101))


def test_interpolation_draws_the_test_set_too():
    result = hill()
    result = result.assign(test_loss=result.loss + 1, test_accuracy=result.accuracy / 2)
    figure = plots.interpolation(result)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["train", "test", "chord"]
    assert [len(ax.get_lines()) for ax in figure.axes] == [4, 2]


@pytest.mark.parametrize(
    ("middle", "height", "said"),
    [(-1.0, 0.0, "none"), (np.inf, np.inf, "infinite"), (np.nan, np.nan, "not known")],
)
def test_a_barrier_that_is_no_number_is_said_and_not_drawn(middle, height, said):
    result = xr.Dataset({"loss": ("alpha", [0.0, middle, 1.0])}, {"alpha": [0.0, 0.5, 1.0]})
    found = barrier_height(read_curve(result, "loss", "test", "result"))
    assert found == pytest.approx(height, nan_ok=True)
    figure = plots.interpolation(result)
    assert not find(figure, "barrier")
    assert f"Barrier (train): {said}." in words(figure)
