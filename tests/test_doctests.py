"""The examples in the docstrings of the installed package run."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
from types import ModuleType

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


KINDS = [pylandscape.Curve, pylandscape.Recorder, pylandscape.Trajectory]
NEEDS = {"lightning_callback": "lightning", "huggingface_callback": "transformers"}


def examples_of(function: object) -> str:
    """The examples of a docstring that run."""
    found = doctest.DocTestParser().get_examples(inspect.getdoc(function) or "")
    return "\n".join(e.source for e in found if not e.options.get(doctest.SKIP))


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
        library = NEEDS.get(test.name.rpartition(".")[2])
        if library is None or importlib.util.find_spec(library):
            runner.run(test)
    assert runner.failures == 0, f"{runner.failures} of {runner.tries} examples failed"


@pytest.mark.parametrize("package", [pylandscape, pylandscape.plots, pylandscape.sharpness])
def test_every_public_function_has_an_example_that_runs(package: ModuleType) -> None:
    public = {name: getattr(package, name) for name in package.__all__}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    assert functions
    assert [name for name, f in functions.items() if f"{name}(" not in examples_of(f)] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_method_has_a_docstring_and_stands_in_an_example(kind: type) -> None:
    public = [name for name in vars(kind) if not name.startswith("_")]
    members = {name: inspect.getattr_static(kind, name) for name in public}
    methods = {name: m for name, m in members.items() if callable(m) or isinstance(m, classmethod)}
    assert all(inspect.getdoc(getattr(kind, name)) for name in public)
    shown = "\n".join([examples_of(kind), *(examples_of(getattr(kind, m)) for m in methods)])
    assert [name for name in methods if f".{name}(" not in shown] == []
