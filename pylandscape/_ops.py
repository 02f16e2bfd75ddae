"""The compiled operators: one typed wrapper and one fake kernel each.

This is the only file that names `torch.ops.pylandscape`. The schemas are in `csrc/ops.cpp`, the
kernels in `csrc/cpu/<operator>.cpp`.
"""

import torch  # noqa: F401  the extension resolves its symbols in torch's libraries

try:
    from pylandscape import _C
except ImportError as error:
    raise ImportError(
        f"pylandscape: the compiled operators (pylandscape._C) cannot be loaded: {error}. "
        "Build them with `pip install .` in the source tree, or `pip install --no-build-isolation "
        "-e .` for development. If that is done, Python has found the source tree instead of the "
        "installed package: run it from another folder."
    ) from error

_C.isa()  # a PYLANDSCAPE_ISA that this machine cannot run is an error now, not at the first use

__all__ = ["isa", "isa_levels", "set_isa"]


def isa() -> str:
    """The instruction-set level in use: `baseline`, `avx2` or `avx512`.

    >>> isa() in isa_levels()
    True
    """
    return _C.isa()


def isa_levels() -> tuple[str, ...]:
    """The levels that this machine can run, slowest first."""
    return _C.isa_levels()


def set_isa(level: str) -> None:
    """Use `level` from now on, for tests; users set `PYLANDSCAPE_ISA` before the import.

    Raises:
        ValueError: If the level is unknown or this machine cannot run it.
    """
    _C.set_isa(level)
