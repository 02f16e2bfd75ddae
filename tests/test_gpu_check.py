"""The check for machines with a GPU: its code runs here with the CPU in the GPU's place."""

import re
from pathlib import Path

import pytest
import torch

from pylandscape import cli, gpu_check
from pylandscape.gpu_check import Comparison


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run pylandscape gpu-check")
def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu-check"]) == 0
    printed = capsys.readouterr().out
    assert printed == ("pylandscape gpu-check: nothing was checked, torch finds no CUDA device.\n")


def test_every_operator_is_compared() -> None:
    comparisons = list(gpu_check.operators("cpu"))
    assert all(comparison.passed for comparison in comparisons)
    compared = {comparison.what.split(",")[0] for comparison in comparisons}
    assert compared >= {"random_normal", "perturb", "perturb_random", "filter_norms"}


def test_losses_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PRECISIONS", {"exact": 1e-5})
    comparisons = list(gpu_check.losses("cpu"))
    assert [c.what for c in comparisons] == ["loss of an MLP, exact", "loss of a CNN, exact"]
    assert all(0 < c.error <= c.allowed for c in comparisons)


def test_products_are_compared() -> None:
    comparisons = list(gpu_check.products("cpu", "aot_eager"))
    names = [f"Hessian product of {name}, compiled" for name in ("an MLP", "a CNN")]
    assert [c.what for c in comparisons] == names
    assert all(0 < c.error <= c.allowed for c in comparisons)


def test_nan_is_a_failure() -> None:
    assert not Comparison("", float("nan"), 1.0).passed
    assert Comparison("", 0.0, 0.0).passed


def test_the_operators_own_tests_are_run() -> None:
    """Here on the CPU; where nothing is selected, or there are no tests, it says so."""
    tree = gpu_check.source_tree()
    assert tree is not None
    line, passed = gpu_check.operators_tests(tree, "cpu-baseline and no_filters")
    assert re.fullmatch(r"tests/ops with device=cpu.*: 1 passed, \d+ deselected in .*", line)
    assert passed
    line, passed = gpu_check.operators_tests(tree, "no_such_test")
    assert "deselected" in line
    assert not passed
    line, passed = gpu_check.operators_tests(None)
    assert line.startswith("tests/ops: not run, no source tree here")
    assert passed


def test_a_failure_of_an_operators_test_is_named(tmp_path: Path) -> None:
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    (tmp_path / "tests" / "ops" / "test_a.py").write_text("def test_cuda(): assert False")
    text, passed = gpu_check.operators_tests(tmp_path)
    assert not passed
    assert "1 failed" in text.splitlines()[0]
    assert text.splitlines()[1].startswith("FAILED tests/ops/test_a.py::test_cuda")


def test_speed_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SECONDS", 1e-3)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    lines = gpu_check.speed("cpu", points=2, samples=16)
    products = lines.index("")
    assert [line.split()[0] for line in lines[products + 2 :]] == ["eager", "torch.compile"]
    lines = lines[:products]
    names = [line[:40].strip() for line in lines[1:]]
    assert {"native, fast", "PyTorch, vmap", "PyTorch, channels-last, TF32"} <= set(names)
    assert all(float(line[50:]) < 1e-3 for line in lines[1:] if "bf16" not in line)
