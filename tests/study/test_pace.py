"""The estimate of the study's duration: its arithmetic, without a clock."""

from dataclasses import replace

import pytest
import xarray as xr

from pylandscape.study import pace as paces
from pylandscape.study.analyses import Study
from pylandscape.study.config import SOLUTIONS, quick_config
from pylandscape.study.data import load_mnist
from pylandscape.study.pace import Pace
from pylandscape.study.stages import STAGES, Stage, Work

PACE = Pace(loss=1e-3, gradient=4e-3, product=1e-2, step={32: 0.1, 600: 0.5})


@pytest.fixture
def study(tmp_path):
    config = replace(quick_config(), train_count=500, test_count=200)
    return Study(config, load_mnist(None, full=False).first(500, 200), tmp_path)


def stage_of(work):
    return Stage("", "", lambda study: xr.Dataset(), lambda study: work)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(), 0.0),
        (Work(losses=2000), 2.0),
        (Work(gradients=2000), 8.0),
        (Work(products=2000), 20.0),
        (Work(steps={32: 10, 600: 3}), 2.5),
        (Work(1000, 1000, 1000, {600: 1}), 15.5),
    ],
)
def test_seconds_are_work_times_pace(study, work, seconds):
    assert PACE.seconds([stage_of(work)], study) == pytest.approx(seconds)
    assert PACE.seconds([stage_of(work)] * 3, study) == pytest.approx(3 * seconds)


def test_training_is_counted_in_steps_of_its_own_batches(study):
    work = {stage.name: stage.work(study) for stage in STAGES}
    a = work["training-a"]
    assert a.steps == {50: 2 * 10}  # 2 epochs of 500 digits in batches of 50
    assert a.losses == 3 * 700  # of all digits, before and after each epoch
    assert (a.gradients, a.products) == (0, 0)
    assert work["solutions"].steps == {25: 2 * 2 * 20, 50: 2 * 2 * 10, 250: 2 * 2 * 2}
    assert work["solutions"].losses == len(SOLUTIONS) * 3 * 700
    assert work["connections"].steps == {50: study.config.curve_steps}
    for name in ("flatness", "curvature", "spectrum", "rescaling"):
        assert not work[name].steps
        assert work[name].products > 0


def test_the_samples_of_flatness_are_its_own(study):
    fewer = replace(study, config=replace(study.config, flatness_samples=50))
    for name in ("flatness", "rescaling"):
        (stage,) = (stage for stage in STAGES if stage.name == name)
        (more, less) = (stage.work(each) for each in (study, fewer))
        assert more.products == pytest.approx(2 * less.products)
        assert more.gradients == pytest.approx(2 * less.gradients)


def test_every_batch_size_is_timed(study, monkeypatch):
    readings = []
    monkeypatch.setattr(paces, "_fastest", lambda function: readings.append(function()) or 1.0)
    pace = Pace.measure(study, STAGES)
    assert set(pace.step) == {25, 50, 250}
    assert len(readings) == 3 + 3
    assert (pace.loss, pace.gradient, pace.product) == (1 / 8 / 500, 1 / 500, 1 / 500)
    assert set(Pace.measure(study, [stage_of(Work(losses=1))]).step) == set()
