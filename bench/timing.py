"""Candidates timed side by side."""

import time
from collections.abc import Callable, Mapping

SHORTEST = 2e-3  # seconds; what takes less is repeated within one reading of the clock

Candidate = Callable[[], object]


def interleaved(candidates: Mapping[str, Candidate], repeats: int) -> dict[str, float]:
    """The least seconds per call of each candidate over rounds in which every one has its turn.

    What disturbs a machine then disturbs all, and the minimum is what each can do undisturbed.
    """
    calls, least = {}, {}
    for name, candidate in candidates.items():
        candidate()  # compile, touch memory
        start = time.perf_counter()
        candidate()
        least[name] = time.perf_counter() - start
        calls[name] = max(1, int(SHORTEST / least[name]))
    for _ in range(repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                candidate()
            least[name] = min(least[name], (time.perf_counter() - start) / calls[name])
    return least


def rounded(value: float) -> float:
    return float(f"{value:.4g}")
