"""Build of the compiled operators; everything else about the package is in pyproject.toml.

`pylandscape._C` holds the operators for CPUs. It uses PyTorch's stable ABI and Python's limited
API only, so that one binary serves every torch from 2.10 and every Python from 3.11: the torch that
pip brings into an isolated build need not be the torch that the package runs with.
"""

from pathlib import Path

from setuptools import setup
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


def extension(name: str, folders: list[str]) -> cpp_extension.CppExtension:
    """The extension module `name` from every C++ file in `folders`."""
    headers = [*Path("csrc").glob("**/*.h"), *Path("csrc").glob("**/*.inc")]
    return cpp_extension.CppExtension(
        name,
        sorted(str(path) for folder in folders for path in Path(folder).glob("*.cpp")),
        include_dirs=[str(Path("csrc").resolve())],
        depends=sorted(map(str, headers)),
        extra_compile_args={"cxx": COMPILE_ARGS},
        py_limited_api=True,
    )


setup(
    ext_modules=[extension("pylandscape._C", ["csrc", "csrc/cpu"])],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
