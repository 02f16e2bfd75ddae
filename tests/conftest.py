"""Settings for all tests."""

import signal
from collections.abc import Iterator

import pytest
import torch

from pylandscape import _ops

# A shell starts background jobs with Ctrl-C ignored, and Python then leaves it so.
if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restore_threads():
    """A test may change the number of threads; the next one starts as this one did."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=_ops.isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compiled kernels are tested at every instruction-set level that the machine has."""
    before = _ops.isa()
    _ops.set_isa(request.param)
    yield request.param
    _ops.set_isa(before)
