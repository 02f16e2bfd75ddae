"""The check for machines with a GPU: its code runs here with the CPU in the GPU's place."""

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


def test_nan_is_a_failure() -> None:
    assert not Comparison("", float("nan"), 1.0).passed
    assert Comparison("", 0.0, 0.0).passed


def test_speed_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SECONDS", 1e-3)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    lines = gpu_check.speed("cpu", points=2, samples=16)
    names = [line[:40].strip() for line in lines[1:]]
    assert {"native, fast", "PyTorch, vmap", "PyTorch, channels-last, TF32"} <= set(names)
    assert all(float(line[50:]) < 1e-3 for line in lines[1:] if "bf16" not in line)
