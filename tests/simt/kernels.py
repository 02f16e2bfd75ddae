"""Builds and loads the CUDA kernels for the host: module `simt_kernels`, with g++ alone.

The build is kept in a temporary folder under a hash of all its sources, so that it happens once
per change.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w"]


@functools.cache
def load() -> ModuleType:
    """The module, built if need be."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    files = [*HERE.glob("*.cpp"), *HERE.glob("*.h"), *CSRC.glob("cuda/*.cuh")]
    files += [*CSRC.glob("common/*"), Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"pylandscape-simt-{os.getuid()}-{digest[:16]}"
    binary = folder / "simt_kernels.so"
    if not binary.exists():
        folder.mkdir(exist_ok=True)
        _build(compiler, folder, binary)
    spec = importlib.util.spec_from_file_location("simt_kernels", binary)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(compiler: str, folder: Path, binary: Path) -> None:
    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [*FLAGS, *(f"-I{path}" for path in includes)]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.{os.getpid()}.o")
        subprocess.run([compiler, *flags, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted(HERE.glob("*.cpp"))))
    unfinished = binary.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-shared", *objects, "-o", str(unfinished)], check=True)
    unfinished.rename(binary)  # another process finds it whole or not at all
