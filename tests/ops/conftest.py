"""Where the operators are tested: on the CPU at every level, and on every kind of GPU place."""

from collections.abc import Iterator

import pytest
import torch

from pylandscape import _ops


def devices() -> list[str]:
    """A GPU where there are one and the operators for it; of several also the last."""
    if not torch.cuda.is_available() or "obstacle" in _ops.cuda_build():
        return []
    last = torch.cuda.device_count() - 1
    return ["cuda", *([f"cuda:{last}"] if last > 0 else [])]


@pytest.fixture(params=[*(f"cpu-{level}" for level in _ops.isa_levels()), *devices()])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where compiled kernels run; `pylandscape gpu-check` selects `cuda`."""
    name, _, level = request.param.partition("-")
    before = _ops.isa()
    _ops.set_isa(level or before)
    yield name
    _ops.set_isa(before)
