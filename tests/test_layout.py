"""The architecture, enforced: where things live and which way the arrows point.

Read together with docs/architecture.md. These tests look at the source tree, not at the installed
package.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pylandscape"
SCHEMAS = (ROOT / "csrc" / "ops.cpp").read_text()
OPERATORS = sorted(set(re.findall(r'm\.def\(\s*"(\w+)', SCHEMAS)))
COMPILED = [
    path
    for path in [ROOT / "setup.py", *sorted((ROOT / "csrc").rglob("*"))]
    if path.suffix in {".py", ".cpp", ".h", ".inc", ".cu", ".cuh"}
]

# A module may import from its own rank and from lower ones.
RANKS = [
    {"_C", "_C_cuda", "_version", "_checks", "_files", "progress"},
    {"_ops"},
    {"parameters", "losses", "data"},
    {"engines", "directions"},
    {"objective"},
    {"explain", "surface", "curvature", "sharpness", "trajectory", "connectivity", "plots"},
    {"__init__", "report", "doctor", "gpu_check"},
    {"study", "cli", "__main__"},
]
RANK_OF = {name: rank for rank, names in enumerate(RANKS) for name in names}


def unit(path: Path) -> str:
    """The top-level module or subpackage that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_units(path: Path) -> Iterator[str]:
    """Units of the package that a file imports when it runs, wherever the statement stands."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: list[str] = []
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        package, _, rest = name.partition(".")
        if package == "pylandscape":
            first = rest.split(".")[0]
            yield first if first in RANK_OF else "__init__"


def test_there_are_operators() -> None:
    assert {"perturb", "filter_norms", "random_normal", "lanczos_step"} <= set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "place", ["csrc/cpu/{}.cpp", "csrc/cpu/{}.inc", "tests/ops/test_{}.py", "bench/bench_{}.py"]
)
def test_an_operator_is_found_by_its_name(operator: str, place: str) -> None:
    assert (ROOT / place.format(operator)).is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").glob("cuda/*.cu")), ids=lambda p: p.name)
def test_kernels_for_gpus_stand_apart_from_torch(path: Path) -> None:
    """An operator's .cuh is pointers and kernels, which the host can run; its .cu launches them."""
    assert path.stem in OPERATORS
    assert "torch/" not in path.with_suffix(".cuh").read_text()


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_has_one_wrapper_and_its_fake_kernels(operator: str) -> None:
    wrappers = "".join(path.read_text() for path in (PACKAGE / "_ops").glob("*.py"))
    overloads = re.findall(rf'm\.def\(\s*"({operator}(?:\.\w+)?)\(', SCHEMAS)
    assert re.search(rf"^def {operator}\(", wrappers, re.MULTILINE)
    for overload in overloads:
        assert f'register_fake("pylandscape::{overload}")' in wrappers


def test_only_ops_names_the_operators() -> None:
    naming = {unit(path) for path in python_files() if "ops.pylandscape" in path.read_text()}
    assert naming == {"_ops"}


def test_only_ops_loads_the_binary() -> None:
    loading = [
        str(path.relative_to(PACKAGE))
        for path in python_files()
        if re.search(r"^\s*(from|import) .*\b_C(_cuda)?\b", path.read_text(), re.MULTILINE)
    ]
    assert loading == ["_ops/library.py"]


def test_ops_cpp_holds_schemas_only() -> None:
    code = re.sub(r"//.*", "", SCHEMAS)
    code = re.sub(r'm\.def\((\s*"[^"]*")+\s*\);', "", code)
    remaining = re.sub(r"\s+", " ", code).strip()
    assert remaining == (
        "#include <torch/csrc/stable/library.h> STABLE_TORCH_LIBRARY(pylandscape, m) { }"
    )


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    assert unit(path) in RANK_OF, f"{unit(path)} needs a place in RANKS"
    wrong = [other for other in imported_units(path) if RANK_OF[other] > RANK_OF[unit(path)]]
    assert not wrong


@pytest.mark.parametrize("path", COMPILED, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_the_build_forbids(path: Path) -> None:
    """One binary for every machine and every torch, and the same bits at every level."""
    forbidden = re.compile(
        r"march=|mtune=|ffast-math|Ofast|funsafe-math|target_clones|torch/extension\.h|<ATen/|<c10/"
    )
    assert not forbidden.findall(path.read_text())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "csrc").rglob("*.inc")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_kernels_call_no_standard_library(path: Path) -> None:
    """Inside a target region it could leave AVX-512 code in functions that every machine runs."""
    code = re.sub(r"//.*", "", path.read_text())
    types = r"u?int(8|16|32|64)_t|size_t|ptrdiff_t|is_same_v|conditional_t|enable_if_t"
    assert not re.findall(rf"std::(?!({types})\b)\w+", code)
