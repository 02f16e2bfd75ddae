"""Registers, shared memory and spills of every CUDA kernel, as the compiler reports them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARCHITECTURES = re.search(r"ARCHITECTURES = \(([\d, ]+)\)", (ROOT / "setup.py").read_text())[1]  # type: ignore[index]
KERNELS = {
    name
    for path in ROOT.glob("csrc/cuda/*.cuh")
    for name in re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", path.read_text())
}
BUDGETS = {
    name: (int(registers), int(shared))
    for name, registers, shared in re.findall(
        r"^\| (\w+_kernel|other kernels) \| (\d+) \| (\d+) \|$",
        (ROOT / "docs" / "cuda.md").read_text(),
        re.MULTILINE,
    )
}
REPORT = re.compile(
    r"entry function '\w*?cuda\d+(?P<name>[a-z]\w*?_kernel)\w*' for '(?P<architecture>sm_\d+)'"
    r"(?:\n(?!.*entry function).*)*?"
    r"\n *(?P<stack>\d+) bytes stack frame, (?P<spills>\d+) bytes spill stores.*"
    r"(?:\n(?!.*entry function).*)*?"
    r"\n.*Used (?P<registers>\d+) registers(?:.*?, (?P<shared>\d+) bytes smem)?"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[re.Match[str]]:
    """What ptxas says of every kernel for every architecture."""
    home = os.environ.get("CUDA_HOME")
    nvcc = f"{home}/bin/nvcc" if home else shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES.split(", ")]
    options = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas=-v"]
    folders = [f"-I{ROOT / 'csrc'}"]
    output = tmp_path_factory.mktemp("kernels") / "all_kernels.o"
    source = ROOT / "tests" / "cuda" / "all_kernels.cu"
    command = [nvcc, *options, "--threads=2", *targets, *folders, "-c", source, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(REPORT.finditer(done.stdout + done.stderr))


def test_every_kernel_is_reported(report: list[re.Match[str]]) -> None:
    assert {match["name"] for match in report} == KERNELS
    assert {match["architecture"] for match in report} == {
        f"sm_{a}" for a in ARCHITECTURES.split(", ")
    }


def test_no_kernel_spills(report: list[re.Match[str]]) -> None:
    spilling = [match[0] for match in report if (match["stack"], match["spills"]) != ("0", "0")]
    assert not spilling


def test_every_kernel_keeps_its_budget(report: list[re.Match[str]]) -> None:
    for match in report:
        registers, shared = BUDGETS.get(match["name"], BUDGETS["other kernels"])
        assert int(match["registers"]) <= registers, match[0]
        assert int(match["shared"] or 0) <= shared, match[0]


def test_the_table_names_kernels_that_exist() -> None:
    assert set(BUDGETS) - {"other kernels"} <= KERNELS
