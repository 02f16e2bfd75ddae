"""The examples in the docstrings of the installed package run."""

import doctest
import importlib
import pkgutil

import pytest

import pylandscape

MODULES = [
    "pylandscape",
    *(
        module.name
        for module in pkgutil.walk_packages(pylandscape.__path__, "pylandscape.")
        if not module.name.endswith(("._C", ".__main__"))
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples failed"
