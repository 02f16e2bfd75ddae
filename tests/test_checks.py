"""What arguments and results are checked with."""

import pytest
import torch

from pylandscape._checks import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 7, 499])
@pytest.mark.parametrize("culprit", ["nan", "inf", "-inf"])
def test_all_finite(dtype: torch.dtype, place: int, culprit: str) -> None:
    tensor = torch.full((20, 25), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensor)  # also where sums are not
    tensor.view(-1)[place] = float(culprit)
    assert not all_finite(tensor)
    assert not all_finite(tensor.T)


def test_no_entries_are_finite() -> None:
    assert all_finite(torch.empty(0, 3))
