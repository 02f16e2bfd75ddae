"""Timing for the benchmarks: candidates side by side, and a record of the machine they ran on."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from timing import Candidate, interleaved, rounded

from pylandscape import _ops
from pylandscape._version import __version__

RESULTS = Path(__file__).parent / "results"
_recorded: dict[str, dict[str, Any]] = {}  # benchmark file -> test -> figures


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write bench/results/<benchmark>.json")
    parser.addoption("--threads", type=int, help="threads of torch, all cores by default")


def pytest_configure(config: pytest.Config) -> None:
    if threads := config.getoption("--threads"):
        torch.set_num_threads(threads)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": _ops.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": _ops.build()["compiler"],
        "torch": torch.__version__,
        "pylandscape": __version__,
    }


@pytest.fixture
def keep(
    request: pytest.FixtureRequest, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> Callable[[Mapping[str, Any]], None]:
    """A function that prints the figures of a test and keeps them for the record."""

    def run(figures: Mapping[str, Any]) -> None:
        benchmark.extra_info.update(figures)
        _recorded.setdefault(request.path.stem, {})[request.node.name] = dict(figures)
        with capsys.disabled():
            print(f"\n{request.node.name}: {json.dumps(figures)}")

    return run


@pytest.fixture
def compare(
    keep: Callable[[Mapping[str, Any]], None], benchmark: Any
) -> Callable[..., dict[str, float]]:
    """A function that times candidates against each other, prints a line and keeps the figures.

    The first candidate is ours; those whose names start with "torch" do the same work. Call it
    after the results have been compared. `figures(seconds)` may add figures of its own.
    """

    def run(
        candidates: Mapping[str, Candidate],
        repeats: int = 15,
        figures: Callable[[dict[str, float]], dict[str, float]] = lambda seconds: {},
    ) -> dict[str, float]:
        seconds = interleaved(candidates, repeats)
        ours = next(iter(candidates))
        peers = {name: seconds[name] for name in candidates if name.startswith("torch")}
        best = min(peers, key=peers.__getitem__)
        found = {
            "milliseconds": {name: rounded(1e3 * s) for name, s in seconds.items()},
            "best_torch": best,
            "times_faster": rounded(peers[best] / seconds[ours]),
        } | {name: rounded(value) for name, value in figures(seconds).items()}
        keep(found)
        benchmark.pedantic(candidates[ours], rounds=repeats, iterations=1)
        return seconds

    return run


@pytest.fixture(scope="session", autouse=True)
def _record(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.config.getoption("--record"):
        RESULTS.mkdir(exist_ok=True)
        for stem, results in _recorded.items():
            text = json.dumps({"machine": machine(), "results": results}, indent=1)
            (RESULTS / f"{stem}.json").write_text(text + "\n")
