"""How the cost of native evaluation grows with points, samples and threads; preparation; memory."""

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from digits import mnist
from networks import mlp, small
from timing import interleaved, rounded
from torch import nn

import pylandscape as pl

Keep = Callable[[Mapping[str, Any]], None]


def evaluation(build: Callable[[], nn.Module], samples: int, points: int) -> Callable[[], object]:
    torch.manual_seed(0)
    goal = pl.Objective(build(), nn.CrossEntropyLoss(), mnist(samples), engine="native")
    directions, center = pl.random_directions(goal, count=2, seed=0), goal.center
    coordinates = torch.rand(points, 2, dtype=torch.float64) * 2 - 1
    return lambda: goal.evaluate_along(center, directions, coordinates)


@pytest.mark.parametrize("points", [25, 100, 400, 2500, 10000])
def test_points(keep: Keep, benchmark: Any, points: int) -> None:
    run = evaluation(mlp, 1024, points)
    seconds = interleaved({"run": run}, repeats=3)["run"]
    keep({"points": points, "us_per_point": rounded(1e6 * seconds / points)})
    benchmark.pedantic(run, rounds=1)


@pytest.mark.parametrize("samples", [64, 256, 1024, 4096])
def test_samples(keep: Keep, benchmark: Any, samples: int) -> None:
    run = evaluation(small, samples, 25)
    seconds = interleaved({"run": run}, repeats=3)["run"]
    per_sample = rounded(1e6 * seconds / samples / 25)
    keep({"samples": samples, "us_per_sample_and_point": per_sample})
    benchmark.pedantic(run, rounds=1)


def test_threads(keep: Keep, benchmark: Any) -> None:
    run, usual = evaluation(small, 1024, 25), torch.get_num_threads()

    def with_threads(count: int) -> Callable[[], object]:
        def timed() -> None:
            torch.set_num_threads(count)
            run()

        return timed

    try:
        seconds = interleaved({"one": with_threads(1), "two": with_threads(2)}, repeats=5)
    finally:
        torch.set_num_threads(usual)
    keep({"two_threads_times_faster": rounded(seconds["one"] / seconds["two"])})
    benchmark.pedantic(run, rounds=1)


def test_preparation_and_memory(keep: Keep, benchmark: Any) -> None:
    """Seconds to capture and plan, and what a plane of 400 points adds to the peak of memory."""
    data = mnist(2048)
    start = time.perf_counter()
    goal = pl.Objective(small(), nn.CrossEntropyLoss(), data, engine="native")
    prepared = time.perf_counter() - start
    before = peak_megabytes()
    run = evaluation(small, 2048, 400)
    run()
    keep(
        {
            "seconds_to_prepare": rounded(prepared),
            "megabytes_added": rounded(peak_megabytes() - before),
            "megabytes_of_packed_parameters": rounded(3 * 4e-6 * goal.native_engine.plan.packed),
            "megabytes_of_arena_per_thread": rounded(1e-6 * goal.native_engine.plan.arena_bytes),
            "megabytes_of_data": rounded(1e-6 * data[0].nbytes),
        }
    )
    benchmark.pedantic(run, rounds=1)


def peak_megabytes() -> float:
    return 1.024e-3 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
