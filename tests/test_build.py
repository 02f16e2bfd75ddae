"""The binary: what it needs, what it holds, and what happens without it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

import pylandscape
from pylandscape import _ops, doctor

BINARY = Path(_ops.build()["path"])


def tool(name: str, *arguments: str) -> str:
    """The output of a tool of binutils."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [name, *arguments, str(BINARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def functions() -> Iterator[tuple[str, str]]:
    """Name and disassembly of every function in the binary."""
    text = tool("objdump", "--disassemble", "--demangle", "--no-show-raw-insn")
    for part in re.split(r"\n(?=[0-9a-f]+ <)", text):
        if match := re.match(r"[0-9a-f]+ <(.*)>:\n", part):
            yield match[1], part[match.end() :]


def test_one_binary_for_every_python_and_torch() -> None:
    assert BINARY.name == "_C.abi3.so"
    build = _ops.build()
    assert build["torch_target"] == "0x020a000000000000"
    assert build["python_target"] == "0x030b0000"
    undefined = tool("nm", "--dynamic", "--undefined-only", "--demangle")
    assert "aoti_torch" in undefined
    assert not re.findall(r"\b(?:at|c10|torch)::\w+", undefined)


@pytest.mark.skipif("avx512" not in _ops.build()["isa_levels"], reason="an x86-64 binary only")
def test_each_level_keeps_to_its_instructions() -> None:
    """A wide register outside its level would kill the process on a machine without it."""
    wide = dict.fromkeys(("baseline", "avx2", "avx512"), 0)
    for name, code in functions():
        level = next((part for part in ("avx512", "avx2") if f"::{part}::" in name), "baseline")
        registers = set(re.findall(r"%([xyz]mm)", code))
        wide[level] += ("zmm" in registers) + ("ymm" in registers)
        if level != "avx512":
            assert "zmm" not in registers, name
        if level == "baseline":
            assert "ymm" not in registers, name
    assert wide["avx512"] > 0
    assert wide["avx2"] > 0


def run_without(folder: Path, binary: str, code: str) -> "subprocess.CompletedProcess[str]":
    """Runs `code` in `folder` beside a copy of the package that lacks files of that name."""
    source, ignore = Path(pylandscape.__file__).parent, shutil.ignore_patterns(binary)
    shutil.copytree(source, folder / "pylandscape", ignore=ignore)
    # an editable installation has a finder of its own that would look elsewhere
    finders = (
        "import sys; from importlib.machinery import *;"
        "sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder];"
    )
    command = [sys.executable, "-c", finders + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_without_the_binary_the_import_says_how_to_build_it(tmp_path: Path) -> None:
    done = run_without(tmp_path, "*.so", "import pylandscape")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: pylandscape: the compiled operators")
    assert "cannot be loaded" in last
    assert "pip install ." in last


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_without_the_operators_for_cuda_all_else_works(tmp_path: Path) -> None:
    """As PYLANDSCAPE_CUDA=0 leaves it."""
    code = (
        "import pylandscape, torch; from pylandscape import _ops;"
        "print(pylandscape.__file__, _ops.random_normal(0, 2).shape);"
        "print(_ops.cuda_build()['obstacle'])"
    )
    done = run_without(tmp_path, "_C_cuda*", code)
    where, obstacle = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert obstacle.startswith("they were not built. Install again where an nvcc of CUDA")


def test_the_version_is_that_of_the_distribution() -> None:
    assert metadata.version("pylandscape") == pylandscape.__version__


def test_doctor_tells_what_was_built() -> None:
    text = doctor.report()
    for fact in (pylandscape.__version__, str(BINARY), "torch from 2.10", "Python from 3.11"):
        assert fact in text
    assert re.search(rf"in use +{_ops.isa()},", text)
    assert re.search(r"^  zarr +\d", text, re.MULTILINE)
    assert "CUDA" in text


def test_the_cuda_operators_are_there_where_they_can_be() -> None:
    """Importing them takes no GPU and no driver; torch says what is missing where one is used."""
    build = _ops.cuda_build()
    if torch.version.cuda is None or shutil.which("nvcc") is None:
        pytest.skip(build.get("obstacle", "built elsewhere"))
    assert build["cuda"].split(".")[0] == torch.version.cuda.split(".")[0]
    assert "sm_90" in build["architectures"]
    assert build["path"] in doctor.report()
    undefined = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", build["path"]],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert not re.findall(r"\b(?:at|c10|torch)::\w+", undefined)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"(?i)driver|GPU|device"):
            _ops.random_normal(0, 4, device="cuda")


def test_doctor_says_who_chose_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYLANDSCAPE_ISA", raising=False)
    assert "the highest that this machine runs" in doctor.report()
    monkeypatch.setenv("PYLANDSCAPE_ISA", "baseline")
    assert "set by PYLANDSCAPE_ISA" in doctor.report()
