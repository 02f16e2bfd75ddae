"""The study, stage by stage; what is done stays done."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch import nn

import pylandscape as pl
from pylandscape import report
from pylandscape._version import __version__
from pylandscape.study.analyses import Study
from pylandscape.study.config import SOLUTIONS, StudyConfig, default_config
from pylandscape.study.data import load_mnist
from pylandscape.study.figures import draw_all
from pylandscape.study.measures import measure
from pylandscape.study.model import SmallCNN
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
    pace = Pace.measure(study)
    say(f"{len(waiting)} stages, about {_duration(pace.seconds(waiting, study))} in all")
    for stage in waiting:
        number = STAGES.index(stage) + 1
        expected = _duration(pace.seconds([stage], study))
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


@dataclass(frozen=True)
class Pace:
    """Seconds per sample that a loss and a gradient take here."""

    loss: float
    gradient: float

    @classmethod
    def measure(cls, study: Study, samples: int = 512) -> "Pace":
        data = study.digits.first(samples, 0).train
        objective = pl.Objective(SmallCNN(), nn.CrossEntropyLoss(), data)
        directions = pl.random_directions(objective, count=1)
        coordinates = torch.zeros(8, 1)

        def losses() -> object:
            return objective.evaluate_along(objective.center, directions, coordinates)

        return cls(
            loss=_fastest(losses) / (objective.samples * len(coordinates)),
            gradient=_fastest(objective.gradient) / objective.samples,
        )

    def seconds(self, stages: Iterable[Stage], study: Study) -> float:
        work = [stage.work(study) for stage in stages]
        return sum(each.losses * self.loss + each.gradients * self.gradient for each in work)


def _fastest(function: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _duration(seconds: float) -> str:
    """A duration as a person would say it.

    Example:
        >>> _duration(3.2), _duration(75), _duration(5400)
        ('5 s', '1 min 20 s', '1 h 30 min')
    """
    if seconds < 3570:
        whole = max(5, 5 * round(seconds / 5)) if seconds < 57.5 else 10 * round(seconds / 10)
        minutes, rest = divmod(whole, 60)
        return " ".join([f"{minutes} min"] * (minutes > 0) + [f"{rest} s"] * (rest > 0))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
