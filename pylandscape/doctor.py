"""What was built and why: the text of `pylandscape doctor`."""

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

import torch

from pylandscape import _ops
from pylandscape._version import __version__


def report() -> str:
    """The state of this installation in words: versions, the binary, instruction sets, CUDA.

    Example:
        >>> _ops.isa() in report()
        True
    """
    build = _ops.build()
    sections = {
        f"pylandscape {__version__}": {
            "installed in": str(Path(__file__).parent),
            "python": f"{platform.python_version()} on {platform.platform()}",
            "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        },
        "compiled operators for the CPU": {
            "binary": build["path"],
            "compiler": build["compiler"],
            "runs with": f"torch from {_hex_version(build['torch_target'])} (stable ABI), Python "
            f"from {_hex_version(build['python_target'])} (limited API)",
            "instruction sets": f"compiled: {build['isa_levels']}; this machine runs: "
            + ", ".join(_ops.isa_levels()),
            "in use": f"{_ops.isa()}, {_choice()}",
        },
        "compiled operators for CUDA": {
            **_cuda_binary(),
            "torch": f"built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "without CUDA",
            "nvcc": shutil.which("nvcc") or "not on the PATH",
            "devices": str(torch.cuda.device_count()),
        },
        "dependencies": _dependencies(),
    }
    lines = []
    for title, rows in sections.items():
        width = max(map(len, rows))
        lines += [title, *(f"  {name:{width}}  {text}" for name, text in rows.items()), ""]
    return "\n".join(lines).rstrip()


def _cuda_binary() -> dict[str, str]:
    """The module for GPUs, or why there is none."""
    build = _ops.cuda_build()
    if "obstacle" in build:
        why = f"none: {build['obstacle']}. Tensors on a GPU use plain torch"
        return {"binary": why, "to build": "PYLANDSCAPE_CUDA=1 pip install . (needs nvcc)"}
    architectures = f"{build['architectures']}, and what the driver compiles for later ones"
    return {"binary": build["path"], "nvcc of": build["cuda"], "compiled for": architectures}


def _hex_version(text: str) -> str:
    """The "2.10" of 0x020a000000000000."""
    digits = text.removeprefix("0x")
    return f"{int(digits[:2], 16)}.{int(digits[2:4], 16)}"


def _choice() -> str:
    """Why the instruction set in use is in use."""
    if "PYLANDSCAPE_ISA" in os.environ:
        return "set by PYLANDSCAPE_ISA"
    return "the highest that this machine runs (PYLANDSCAPE_ISA forces another)"


def _dependencies() -> dict[str, str]:
    """The installed version of every package that this one requires."""
    required = [r for r in metadata.requires("pylandscape") or [] if "extra ==" not in r]
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in required]
    return {name: metadata.version(name) for name in names}
