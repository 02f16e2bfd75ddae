"""The choice of the instruction-set level."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pylandscape import _ops


def run_python(code: str, level: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`code` in a new interpreter with PYLANDSCAPE_ISA set."""
    environment = os.environ | {"PYLANDSCAPE_ISA": level}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )


def test_baseline_always_runs() -> None:
    assert _ops.isa_levels()[0] == "baseline"
    assert _ops.isa() in _ops.isa_levels()


def test_set_isa(level: str) -> None:
    assert _ops.isa() == level


@pytest.mark.parametrize("name", ["", "sse", "AVX2"])
def test_unknown_level_is_refused(name: str) -> None:
    before = _ops.isa()
    with pytest.raises(ValueError, match=rf'^set_isa: level must be .*baseline.*, got "{name}"$'):
        _ops.set_isa(name)
    assert _ops.isa() == before


def test_environment_variable_forces_a_level(tmp_path: Path) -> None:
    done = run_python("from pylandscape import _ops; print(_ops.isa())", "baseline", tmp_path)
    assert done.stdout.strip() == "baseline", done.stderr


def test_unknown_level_in_the_environment_is_an_error_at_import(tmp_path: Path) -> None:
    done = run_python("import pylandscape", "neon", tmp_path)
    assert done.returncode != 0
    assert "PYLANDSCAPE_ISA must be a level that this machine can run" in done.stderr
    assert 'got "neon"' in done.stderr
