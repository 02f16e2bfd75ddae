"""The binaries with the operators: loading them, and what they say of themselves."""

import importlib.util
from typing import Any

import torch
from torch import Tensor

try:
    from pylandscape import _C
except ImportError as error:
    raise ImportError(
        f"pylandscape: the compiled operators (pylandscape._C) cannot be loaded: {error}. "
        "Build them with `pip install .` in the source tree, or `pip install --no-build-isolation "
        "-e .` for development. If that is done, Python has found the source tree instead of the "
        "installed package: run it from another folder."
    ) from error

_C_cuda: Any = None
_cuda_obstacle = "this torch is built without CUDA"
if torch.version.cuda is not None:
    try:
        from pylandscape import _C_cuda
    except ImportError as error:
        _cuda_obstacle = str(error)
        if importlib.util.find_spec("pylandscape._C_cuda") is None:
            _cuda_obstacle = (
                f"they were not built. Install again where an nvcc of CUDA {torch.version.cuda} is "
                "found, with PYLANDSCAPE_CUDA=1, which says what is missing"
            )

_C.isa()  # a PYLANDSCAPE_ISA that this machine cannot run is an error now, not at the first use


def isa() -> str:
    """The instruction-set level in use: `baseline`, `avx2` or `avx512`.

    Example:
        >>> isa() in isa_levels()
        True
    """
    return _C.isa()


def isa_levels() -> tuple[str, ...]:
    """The levels that this machine can run, slowest first."""
    return _C.isa_levels()


def set_isa(level: str) -> None:
    """Uses `level` from now on, for tests; users set `PYLANDSCAPE_ISA` before the import.

    Raises:
        ValueError: the level is unknown or this machine cannot run it.
    """
    _C.set_isa(level)


def tiles_supported() -> bool:
    """Whether the processor's bfloat16 matrix tiles (AMX) may be used at the level in use."""
    return _C.tiles_supported()


def build() -> dict[str, str]:
    """How the binary was built and where it lies, for `pylandscape doctor`.

    Keys: `path`, `compiler`, `isa_levels`, and the hexadecimal versions `torch_target` and
    `python_target`.
    """
    return {"path": str(_C.__file__)} | _C.build()


def cuda_build() -> dict[str, str]:
    """How the operators for CUDA were built and where they lie: `path`, `cuda`, `architectures`.

    Where there are none it has the single key `obstacle`, the reason.
    """
    if _C_cuda is None:
        return {"obstacle": _cuda_obstacle}
    return {"path": str(_C_cuda.__file__)} | _C_cuda.build()


def has_kernels(tensor: Tensor) -> bool:
    """Whether compiled kernels serve the device and dtype of `tensor`.

    Example:
        >>> has_kernels(torch.zeros(1)), has_kernels(torch.zeros(1, dtype=torch.bfloat16))
        (True, False)
    """
    device = tensor.device.type
    compiled = device == "cpu" or (device == "cuda" and _C_cuda is not None)
    return compiled and tensor.dtype in (torch.float32, torch.float64)
