"""The whole study at its smallest: files, numbers, reproducibility, resuming."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import pylandscape as pl
from pylandscape.study import StudyError, run_study
from pylandscape.study import run as runner
from pylandscape.study.config import quick_config
from pylandscape.study.stages import STAGES

CONFIG = replace(
    quick_config(seed=3),
    train_count=200,
    test_count=100,
    epochs=2,
    plane_samples=60,
    plane_resolution=5,
    slice_resolution=5,
    interpolation_resolution=5,
    eigenvalue_tolerance=0.05,
    solution_epochs=1,
    solution_batches=(20, 40, 100),
    sharpness=("adaptive_l2", "sam"),
    flatness_samples=30,
    trace_error=0.9,
    curve_steps=3,
)


@pytest.fixture(autouse=True)
def _no_data_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("PYLANDSCAPE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty-cache"))


def quietly(out, config=CONFIG, **options):
    return run_study(out, config, progress=False, say=lambda line: None, **options)


def stored(out, stage):
    with xr.open_zarr(out / "results" / f"{stage}.zarr", consolidated=False) as result:
        return result.load()


def numbers(summary):
    return {key: value for key, value in summary.items() if key not in ("seconds", "figures")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, quietly(out)


def test_everything_is_written(finished):
    out, summary = finished
    assert summary["complete"]
    assert not summary["missing"]
    assert {path.name for path in (out / "results").iterdir()} == {
        f"{stage.name}.zarr" for stage in STAGES
    }
    assert len(summary["figures"]) >= 7
    for figure in summary["figures"]:
        for suffix in (".png", ".pdf"):
            assert (out / "figures" / (figure["name"] + suffix)).stat().st_size > 1000
        assert (out / "results" / f"{figure['source']}.zarr").is_dir()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for run in "ab":
        assert len(pl.Trajectory(out / f"run-{run}")) > 2
    assert not list(out.rglob(".partial-*"))


def test_the_page_shows_every_claim_and_figure(finished):
    out, summary = finished
    page = (out / "STUDY.md").read_text()
    assert "not complete" not in page
    for claim in summary["claims"]:
        assert claim["verdict"] != "not measured"
        assert f"| {claim['statement']} | {claim['measured']} | **{claim['verdict']}** |" in page
        assert claim["criterion"] in page
    for figure in summary["figures"]:
        assert f"(figures/{figure['name']}.png)" in page


def test_summary_agrees_with_the_results(finished):
    out, summary = finished
    results = {stage.name: stored(out, stage.name) for stage in STAGES}
    m = summary["measurements"]
    for k, run in enumerate("ab"):
        training = results[f"training-{run}"]
        assert m["train_loss"][k] == training["train_loss"][-1]
        assert m["lambda_max"][k] == results["curvature"]["lambda_max"][k]
        assert m["ball_rise"][k] == results["sharpness"]["rise"][k]
    line = results["interpolation"]
    # the ends of the line are the solutions that training reached
    assert line["loss"][0].item() == pytest.approx(m["train_loss"][0], rel=1e-5)
    assert line["loss"][-1].item() == pytest.approx(m["train_loss"][1], rel=1e-5)
    assert line["test_loss"][0].item() == pytest.approx(m["test_loss"][0], rel=1e-5)
    # a slice has the solution at its centre, and so has the end of the recorded path
    centre = results["slices"]["loss"].sel(alpha=0).values
    np.testing.assert_allclose(centre, m["train_loss"][0], rtol=1e-5)
    assert results["path-a"]["loss"][-1].item() == pytest.approx(
        results["plane"]["loss"].sel(alpha=0, beta=0).item(), rel=1e-5
    )
    assert results["path-a"]["distance"][-1] < 1e-3


def test_the_path_is_inside_its_plane(finished):
    out, _ = finished
    plane, path = stored(out, "path-plane"), stored(out, "path-a")
    for axis in ("alpha", "beta"):
        assert plane[axis].min() < path[axis].min()
        assert plane[axis].max() > path[axis].max()


def test_results_name_the_digits(finished):
    out, summary = finished
    for stage in STAGES:
        assert summary["data"]["fingerprint"] in stored(out, stage.name).attrs["data"]


def test_interrupted_and_resumed_gives_the_same_numbers(finished, tmp_path, monkeypatch):
    """Stopped half-way: a page that says so; then the rest, and the numbers of the whole run."""
    _, expected = finished
    stop_at = [stage.name for stage in STAGES].index("slices")
    run_stage, started = runner._run_stage, []

    def interrupted(study, store, stage):
        if len(started) == stop_at:
            raise KeyboardInterrupt
        started.append(stage.name)
        return run_stage(study, store, stage)

    monkeypatch.setattr(runner, "draw_all", lambda *results: [])  # another test looks at them
    monkeypatch.setattr(runner, "_run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly(tmp_path / "study")
    page = (tmp_path / "study" / "STUDY.md").read_text()
    assert "not complete" in page
    assert "not measured" in page
    assert json.loads((tmp_path / "study" / "summary.json").read_text())["missing"] == [
        stage.title for stage in STAGES[stop_at:]
    ]

    resumed = []

    def counted(study, store, stage):
        resumed.append(stage.name)
        return run_stage(study, store, stage)

    monkeypatch.setattr(runner, "_run_stage", counted)
    summary = quietly(tmp_path / "study", existing="resume")
    assert started + resumed == [stage.name for stage in STAGES]
    assert numbers(summary) == numbers(expected)


def test_a_stage_without_its_recorded_run_is_done_again(finished, tmp_path):
    out, _ = finished
    study = runner.Study(CONFIG, None, tmp_path)
    results = {"training-a": xr.Dataset(), "plane": xr.Dataset()}
    assert set(runner._usable(study, results)) == {"plane"}
    (tmp_path / "run-a").symlink_to(out / "run-a")
    assert set(runner._usable(study, results)) == {"plane", "training-a"}


def test_a_folder_with_a_study_is_refused_unless_told_otherwise(finished):
    out, _ = finished
    before = (out / "summary.json").read_text()
    with pytest.raises(StudyError, match=r"--resume .* --overwrite"):
        quietly(out)
    assert (out / "summary.json").read_text() == before


def test_the_key_depends_on_settings_digits_and_version():
    keys = {
        CONFIG.key("digits", "1"),
        CONFIG.key("digits", "2"),
        CONFIG.key("others", "1"),
        replace(CONFIG, seed=4).key("digits", "1"),
    }
    assert len(keys) == 4
    assert CONFIG.key("digits", "1") == replace(CONFIG).key("digits", "1")


def test_no_two_studies_share_a_run():
    seeds = [seed for study in range(5) for seed in replace(CONFIG, seed=study).seeds.values()]
    assert len(set(seeds)) == 10
