"""Operators are tested at every instruction-set level that the machine has."""

from collections.abc import Iterator

import pytest

from pylandscape import _ops


@pytest.fixture(params=_ops.isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _ops.isa()
    _ops.set_isa(request.param)
    yield request.param
    _ops.set_isa(before)
