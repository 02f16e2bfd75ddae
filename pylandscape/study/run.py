"""The study, stage by stage; what is done stays done."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from pylandscape import report
from pylandscape._version import __version__
from pylandscape.study.analyses import Study
from pylandscape.study.config import SOLUTIONS, StudyConfig, default_config
from pylandscape.study.data import load_mnist
from pylandscape.study.figures import draw_all
from pylandscape.study.measures import measure
from pylandscape.study.pace import Pace, duration
from pylandscape.study.stages import STAGES, Stage
from pylandscape.study.store import Store, StudyError
from pylandscape.study.summary import summarise

Existing = Literal["refuse", "overwrite", "resume"]
Say = Callable[[str], None]


def run_study(
    out: str | Path,
    config: StudyConfig | None = None,
    *,
    data: str | Path | None = None,
    existing: Existing = "refuse",
    progress: bool | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Train two networks on MNIST, run every analysis of the paper, and write the report.

    Args:
        out: the folder for everything the study writes; made where it is missing.
        config: all settings; `default_config()` by default.
        data: a folder that `torchvision.datasets.MNIST` reads; see `load_mnist`.
        existing: what to do where `out` holds a study: `"refuse"`, `"overwrite"` it, or
            `"resume"`: skip the stages that are done with the same settings, digits and version
            of pylandscape.
        progress: show bars; None shows them on a terminal only.
        say: receives a line per stage; prints to stderr by default.

    Returns:
        The content of `summary.json`.

    Raises:
        StudyError: `out` cannot be written to, or holds a study and `existing` is "refuse".
        FileNotFoundError: there is no MNIST where it was asked for.
        KeyboardInterrupt: after Ctrl-C; the finished stages and a report on them are in `out`.
    """
    config = config or default_config()
    say = say or _print_to_stderr
    digits = load_mnist(data, full=config.full).first(config.train_count, config.test_count)
    store = Store(out, config.key(digits.fingerprint, __version__))
    if existing == "refuse" and Store.holds_study(out):
        raise StudyError(
            f"the output folder '{out}' must not hold a study already. "
            "Add --resume to go on with it or --overwrite to start anew."
        )
    store.open()
    if existing == "overwrite":
        store.clear()
    study = Study(config, digits, store.folder, progress)
    loaded = {stage.name: store.load(stage.name) for stage in STAGES}
    stored = {name: result for name, result in loaded.items() if result is not None}
    results = _usable(study, stored)
    try:
        _run_stages(study, store, results, say)
    finally:
        summary = _write_report(study, results)
    return summary


def _usable(study: Study, results: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The stored results, but for those of a training run whose recording is gone."""
    recorded = {"solutions": SOLUTIONS} | {f"training-{run}": (run,) for run in "ab"}
    gone = {
        name
        for name, runs in recorded.items()
        if not all(study.run_folder(run).is_dir() for run in runs)
    }
    return {name: result for name, result in results.items() if name not in gone}


def _run_stages(study: Study, store: Store, results: dict[str, xr.Dataset], say: Say) -> None:
    waiting = [stage for stage in STAGES if stage.name not in results]
    say(f"data: {study.digits.describe()} (fingerprint {study.digits.fingerprint})")
    if results:
        say(f"resuming: {len(results)} of {len(STAGES)} stages are done")
    if not waiting:
        return
    pace = Pace.measure(study, waiting)
    say(f"{len(waiting)} stages, about {duration(pace.seconds(waiting, study))} in all")
    for stage in waiting:
        number = STAGES.index(stage) + 1
        expected = duration(pace.seconds([stage], study))
        say(f"[{number}/{len(STAGES)}] {stage.title} (about {expected})")
        results[stage.name] = _run_stage(study, store, stage)


def _run_stage(study: Study, store: Store, stage: Stage) -> xr.Dataset:
    # A training stage overwrites the recorded run that its old result describes.
    store.discard(stage.name)
    start = time.perf_counter()
    result = stage.run(study)
    result.attrs["data"] = f"{study.digits.source}, {study.digits.fingerprint}"
    return store.save(stage.name, result, time.perf_counter() - start)


def _write_report(study: Study, results: dict[str, xr.Dataset]) -> dict[str, Any]:
    measurements = measure(results)
    figures = draw_all(study.folder / "figures", results, measurements)
    summary = summarise(study, results, measurements, figures)
    report.write(study.folder, summary)
    return summary


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
