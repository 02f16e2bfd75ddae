"""Build of the compiled operators; everything else about the package is in pyproject.toml.

`pylandscape._C` holds the operators for CPUs, `pylandscape._C_cuda` those for GPUs. Both use
PyTorch's stable ABI and Python's limited API only, so that one binary serves every torch from 2.10
and every Python from 3.11: the torch that pip brings into an isolated build need not be the torch
that the package runs with.

PYLANDSCAPE_CUDA says whether the second is built: `auto` (default) where torch has CUDA and an nvcc
of the same major version is there, `1` always, `0` never. No GPU is needed to build.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

TORCH_TARGET = "0x020a000000000000"  # 2.10, the first with torch::stable::parallel_for
cpp_extension.min_supported_cpython = "0x030b0000"  # BuildExtension's Py_LIMITED_API

# No contraction to fused multiply-adds: results are the same bits on every instruction set.
COMPILE_ARGS = [
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
    "-O3",
    "-g0",  # Python's own flags ask for debugging symbols: most of the size of the binary
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors cross only functions that are inlined or local
]

# A100, H100, B200; the last also as PTX, which the driver compiles for what comes later.
ARCHITECTURES = (80, 90, 100)
NVCC_ARGS = [
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
    "-DUSE_CUDA",  # declares the stream in the stable ABI
    "-O3",
    "-fmad=false",
    "--threads=2",  # one architecture beside another: evaluate_points.cu takes longest
    *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
    f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}",
    "-Xcompiler=-fvisibility=hidden",
    "-diag-suppress=1675",  # GCC's unroll pragma, in what both compilers read; nvcc unrolls anyway
    "-Wno-deprecated-gpu-targets",
]

# Such as address,undefined: instruments the operators for .ci/sanitize. Not for use.
SANITIZE = os.environ.get("PYLANDSCAPE_SANITIZE", "")
SANITIZE_ARGS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
if SANITIZE:
    COMPILE_ARGS += [*SANITIZE_ARGS, "-fno-omit-frame-pointer", "-g1", "-O1"]


def extension(name: str, folders: list[str], **options: list[str]) -> Extension:
    """The extension module `name` from every C++ and CUDA file in `folders`."""
    headers = [path for kind in ("h", "inc", "cuh") for path in Path("csrc").glob(f"**/*.{kind}")]
    found = (path for kind in ("cpp", "cu") for f in folders for path in Path(f).glob(f"*.{kind}"))
    defines = options.pop("defines", [])
    return cpp_extension.CppExtension(
        name,
        sorted(map(str, found)),
        include_dirs=[str(Path("csrc").resolve()), *options.pop("includes", [])],
        depends=sorted(map(str, headers)),
        extra_compile_args={"cxx": [*COMPILE_ARGS, *defines], "nvcc": NVCC_ARGS},
        extra_link_args=SANITIZE_ARGS,
        py_limited_api=True,
        **options,
    )


def cuda_home() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, or where the nvcc on the PATH says that it is.

    That nvcc may be a script elsewhere, so its folder tells nothing.
    """
    if home := os.environ.get("CUDA_HOME"):
        return Path(home)
    if shutil.which("nvcc") is None:
        return None
    command = ["nvcc", "--dryrun", "-x", "cu", os.devnull]
    top = re.search(
        r"^#\$ TOP=(.*)$", subprocess.run(command, capture_output=True, text=True).stderr, re.M
    )
    return Path(top[1]).resolve() if top else None


def nvcc_version(home: Path | None) -> str | None:
    """As in `13.0`; None where there is no nvcc that runs."""
    if home is None or not (home / "bin" / "nvcc").exists():
        return None
    text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+\.\d+)", text.stdout)
    return found[1] if found else None


def cuda_extensions() -> list[Extension]:
    """The module for GPUs where PYLANDSCAPE_CUDA asks for it, or nothing."""
    choice = os.environ.get("PYLANDSCAPE_CUDA", "auto")
    if choice not in ("auto", "1", "0"):
        raise SystemExit(f"setup.py: PYLANDSCAPE_CUDA must be auto, 1 or 0, got {choice!r}.")
    if choice == "0":
        return []
    home, wanted = cuda_home(), torch.version.cuda
    found = nvcc_version(home)
    if wanted is None or found is None or found.split(".")[0] != wanted.split(".")[0]:
        if choice == "1":
            raise SystemExit(
                f"setup.py: PYLANDSCAPE_CUDA=1 needs a torch with CUDA and an nvcc of the same "
                f"major version, got CUDA {wanted or 'none'} and nvcc {found or 'none'} in "
                f"{home or 'no place'}. Set CUDA_HOME to the toolkit, or PYLANDSCAPE_CUDA=0."
            )
        return []
    assert home is not None
    cpp_extension.CUDA_HOME = str(home)  # it looks beside the nvcc on the PATH
    target = home / "targets" / "x86_64-linux"
    libraries = next(d for d in (home / "lib64", target / "lib", home / "lib") if d.exists())
    # What the toolkit lacks comes with torch: nvidia/cu13/include.
    packaged = Path(torch.__file__).parent.parent / "nvidia" / f"cu{wanted.split('.')[0]}"
    names = ", ".join(f"sm_{a}" for a in ARCHITECTURES)
    return [
        extension(
            "pylandscape._C_cuda",
            ["csrc/cuda"],
            includes=[str(home / "include"), str(packaged / "include")],
            library_dirs=[str(libraries)],
            # A static runtime, so that importing needs neither the toolkit nor a driver.
            libraries=["torch_cuda", "cudart_static", "rt", "dl", "pthread"],
            defines=[
                f'-DPYLANDSCAPE_CUDA_VERSION="{found}"',
                f'-DPYLANDSCAPE_CUDA_ARCHITECTURES="{names}"',
            ],
        )
    ]


setup(
    ext_modules=[extension("pylandscape._C", ["csrc", "csrc/cpu"]), *cuda_extensions()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
