"""Progress of long work: a bar with rate and time left on a terminal, silence elsewhere."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    total: int | None, desc: str, unit: str = "point", show: bool | None = None
) -> Any:
    """A tqdm bar; use as a context manager and call `update(n)`.

    Args:
        total: number of units of work, or None when it is not known.
        desc: what is being done.
        unit: the name of one unit.
        show: True or False to force; None shows the bar only when stderr is a terminal.
    """
    visible = sys.stderr.isatty() if show is None else show
    return tqdm(
        total=total, desc=desc, unit=unit, disable=not visible, dynamic_ncols=True, smoothing=0.1
    )
