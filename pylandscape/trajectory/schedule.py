"""When snapshots are taken."""

import numbers
from collections.abc import Callable, Iterable

from pylandscape._checks import show

EARLY_BITS = 6  # every="early" takes the steps that are round but for so many leading bits

Schedule = int | str | Callable[[int], bool] | Iterable[int]


def schedule_of(every: Schedule) -> Callable[[int], bool]:
    """Whether a snapshot is due after so many steps."""
    if isinstance(every, str) and every == "epoch":
        return lambda step: False
    if isinstance(every, str) and every == "early":
        return lambda step: step % 2 ** max(0, step.bit_length() - EARLY_BITS) == 0
    if isinstance(every, numbers.Integral) and not isinstance(every, bool) and every > 0:
        return lambda step: step % every == 0
    if callable(every):
        return lambda step: bool(every(step))
    if isinstance(every, Iterable) and not isinstance(every, str):
        steps = {int(step) for step in every}
        return steps.__contains__
    raise ValueError(
        'Recorder: every must be a positive integer, "epoch", "early", a function of the step or a '
        f"collection of steps, got {show(every)}."
    )
