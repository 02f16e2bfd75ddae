"""Settings for all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _restore_threads():
    """A test may change the number of threads; the next one starts as this one did."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
