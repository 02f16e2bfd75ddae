"""What `pylandscape gpu-check` does: CUDA operators against the CPU's, speed beside PyTorch's.

The kernels are tested on machines without a GPU by running them on the host. This is the check on
the chip itself: a text to paste into an issue.
"""

import copy
import functools
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.benchmark import Timer

from pylandscape import _ops
from pylandscape._version import __version__
from pylandscape.directions import Directions
from pylandscape.objective import Objective

SIZES = (1, 4, 1023, 4097, 100_003)
TOLERANCE = 1e-5  # of float32 sums in another order
# Of the loss, relative, at points near the centre.
PRECISIONS = {"fast": 1e-5, "tf32": 5e-3, "bf16": 3e-2}
SECONDS = 1.0  # per timing


@dataclass(frozen=True)
class Comparison:
    """One comparison of a device with the CPU: the largest error, and what is allowed."""

    what: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # NaN does not


def obstacle() -> str | None:
    """Why nothing can be checked here, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    missing = _ops.cuda_build().get("obstacle")
    return missing and f"the CUDA operators are missing: {missing}"


def report() -> tuple[str, bool]:
    """The whole check on the current CUDA device as a text, and whether all comparisons passed."""
    device = torch.device("cuda", torch.cuda.current_device())
    found = torch.cuda.get_device_properties(device)
    lines = [
        f"pylandscape {__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}",
        f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB",
        "",
        f"{'compared with the CPU':40} {'error':>9} {'allowed':>9}",
    ]
    comparisons = [*operators(device), *losses(device), *products(device), graph(device)]
    for c in comparisons:
        verdict = "" if c.passed else "  FAILED"
        lines.append(f"{c.what:40} {c.error:9.1e} {c.allowed:9.1e}{verdict}")
    tests, tested = operators_tests(source_tree())
    lines += ["", tests, *_sanitizer(), "", *speed(device)]
    return "\n".join(lines), tested and all(c.passed for c in comparisons)


# -- comparisons -----------------------------------------------------------------------------------


def operators(device: torch.device | str) -> Iterator[Comparison]:
    """Every operator over sizes beside the kernels' tiles; where bits must agree, 0 is allowed.

    Example:
        >>> all(comparison.passed for comparison in operators("cpu"))
        True
    """
    for size in SIZES:
        z = _ops.random_normal(3, size, device)
        yield Comparison(f"random_normal, {size}", _error(z, _ops.random_normal(3, size)), 0)
    for dtype in (torch.float32, torch.float64):
        for size in SIZES:
            name = f"{size}, {str(dtype).removeprefix('torch.')}"
            w, d, c = _normal(size, dtype), _normal(3, size, dtype), _normal(9, 3, dtype)
            points = _ops.perturb(w.to(device), d.to(device), c)
            yield Comparison(f"perturb, {name}", _error(points, _ops.perturb(w, d, c)), 0)
            table = _table(size)
            scales = _normal(3, int(table[:, 2].sum()), torch.float64)
            arguments = torch.tensor([1, -2, 2**40]), scales, table, c
            points = _ops.perturb_random(w.to(device), *arguments)
            error = _error(points, _ops.perturb_random(w, *arguments))
            yield Comparison(f"perturb_random, {name}", error, 0)
            norms = _ops.filter_norms(w.to(device), table)
            yield Comparison(f"filter_norms, {name}", _error(norms, _ops.filter_norms(w, table)), 0)
            if size > 1:
                yield _lanczos(size, min(size - 1, 12), dtype, device)


def _lanczos(size: int, rows: int, dtype: torch.dtype, device: torch.device | str) -> Comparison:
    basis = torch.zeros(rows + 1, size, dtype=dtype)
    basis[:rows] = torch.linalg.qr(_normal(size, rows, torch.float64))[0].T
    product = _normal(size, dtype) / size**0.5
    there, product_there = basis.to(device, copy=True), product.to(device, copy=True)
    step = _ops.lanczos_step(basis, product, rows - 1)
    step_there = _ops.lanczos_step(there, product_there, rows - 1)
    error = _error(step_there.coefficients, step.coefficients)
    error = max(error, _error(product_there, product), _error(step_there.beta, step.beta))
    if not step.breakdown:
        error = max(error, _error(there[rows], basis[rows]) * float(step.beta))
    what = f"lanczos_step, {size} x {rows}, {str(dtype).removeprefix('torch.')}"
    return Comparison(what, error, 20 * torch.finfo(dtype).eps)


def losses(device: torch.device | str) -> Iterator[Comparison]:
    """The native engine on the device at nine points, against PyTorch in float64 on the CPU."""
    for name, (model, data) in cases().items():
        exact = Objective(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), data)
        expected = _nine_points(exact)
        for precision, allowed in PRECISIONS.items():
            there = Objective(
                copy.deepcopy(model).to(device), nn.CrossEntropyLoss(), data,
                engine="native", precision=precision,
            )  # fmt: skip
            error = _error(_nine_points(there) / expected, torch.ones(9))
            yield Comparison(f"loss of {name}, {precision}", error, allowed)


def products(device: torch.device | str, backend: str = "inductor") -> Iterator[Comparison]:
    """Hessian-vector products compiled on the device, against eager ones in float64 on the CPU."""
    for name, (model, data) in cases().items():
        exact = Objective(
            copy.deepcopy(model).double(), nn.CrossEntropyLoss(), data, engine="torch"
        )
        there = compiled(copy.deepcopy(model).to(device), data, backend)
        v = _normal(exact.space.size, torch.float64)
        expected = exact.hessian_vector_product(v)
        there.hessian_vector_product(v)  # compiles
        error = _error(there.hessian_vector_product(v), expected) / float(expected.abs().max())
        how = there._engine.compiled.obstacle or "compiled"
        yield Comparison(f"Hessian product of {name}, {how}", error, 10 * TOLERANCE)


def compiled(model: nn.Module, data: tuple[Tensor, Tensor], backend: str = "inductor") -> Objective:
    """An objective whose first Hessian-vector product is the last that is not compiled."""
    objective = Objective(model, nn.CrossEntropyLoss(), data, engine="torch")
    way = objective._engine.compiled
    way.enabled, way.seconds_before, way.backend = True, 0.0, backend
    return objective


def graph(device: torch.device | str) -> Comparison:
    """The sums of losses by a CUDA graph that was captured once, against those of a launch."""
    model, data = cases()["a CNN"]
    objective = Objective(model.to(device), nn.CrossEntropyLoss(), data, engine="native")
    engine: Any = objective.native_engine
    vectors = 0.02 * _normal(2, objective.space.size, torch.float32)
    packed = engine._pack(objective.center, vectors, 2)
    constants = engine.plan.constants(engine._state())
    sums, launch = engine.prepare(packed, _normal(5, 2, torch.float32), constants, 0, 200)
    launch()  # also loads the kernels, which a capture must not
    expected = sums.clone()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        launch()
    sums.zero_()
    captured.replay()
    return Comparison("evaluate_points in a CUDA graph", _error(sums, expected.cpu()), 0)


def source_tree() -> Path | None:
    """Where the tests of this package lie: beside it, or in the current folder."""
    for folder in (Path(__file__).parent.parent, Path.cwd()):
        if (folder / "tests" / "ops" / "conftest.py").exists():
            return folder
    return None


def operators_tests(folder: Path | None, select: str = "cuda") -> tuple[str, bool]:
    """The last line of the operators' own tests with device=cuda, and whether they passed."""
    if folder is None:
        return "tests/ops: not run, no source tree here; run this in one for more comparisons", True
    if importlib.util.find_spec("pytest") is None:
        return "tests/ops: not run, pytest is not installed: pip install '.[test]'", True
    # -P: the source tree must not hide the installed package, which has the binaries
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-k", select, "tests/ops"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["?"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n".join([f"tests/ops with device={select}: {lines[-1]}", *failed]), not done.returncode


def cases() -> dict[str, tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """Small networks that use every part of the products' kernels, with random data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images, labels = torch.randn(200, 3, 17, 15), torch.randint(0, 10, (200,))
        mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(765, 70), nn.Tanh(), nn.Linear(70, 33), nn.GELU(),
            nn.Linear(33, 10),
        )  # fmt: skip
        cnn = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 40, 3), nn.BatchNorm2d(40), nn.SiLU(), nn.AvgPool2d(2),
            nn.Conv2d(40, 70, 2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(70, 10),
        )  # fmt: skip
    return {"an MLP": (mlp, (images, labels)), "a CNN": (cnn.eval(), (images, labels))}


def _nine_points(objective: Objective) -> Tensor:
    vectors = 0.02 * _normal(2, objective.space.size, torch.float64)
    directions = Directions.from_vectors(objective, vectors)
    axis = torch.linspace(-1, 1, 3, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return objective.evaluate_along(objective.center, directions, grid)["loss"]


def _normal(*shape: int | torch.dtype) -> Tensor:
    """Seeded numbers of a shape whose last entry is the dtype."""
    *sizes, dtype = shape
    generator = torch.Generator().manual_seed(sum(map(int, sizes)))  # type: ignore[arg-type]
    return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)  # type: ignore


def _table(size: int) -> Tensor:
    """Filters of which some are longer than a chunk, and a row of several outer runs."""
    first = size // 8 * 4
    return torch.tensor([[0, 2, 2, first // 4], [first, 1, 1, size - first]])


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.double()).abs().max()) if expected.numel() else 0


def _sanitizer() -> list[str]:
    """The comparisons of the operators again, under compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return ["compute-sanitizer is not installed"]
    code = "from pylandscape import gpu_check as g; [*g.operators('cuda'), *g.losses('cuda')]"
    lines = []
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True)
        lines.append(f"compute-sanitizer {tool}: {(done.stdout.strip().splitlines() or ['?'])[-1]}")
    return lines


# -- speed -----------------------------------------------------------------------------------------


def speed(device: torch.device | str, points: int = 64, samples: int = 2000) -> list[str]:
    """A table of milliseconds per point: the native engine, and PyTorch in several ways.

    Losses are compared before anything is timed.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 10),
    ).to(device)  # fmt: skip
    data = torch.randn(samples, 1, 28, 28), torch.randint(0, 10, (samples,))
    objective = Objective(model, nn.CrossEntropyLoss(), data, engine="torch")
    vectors = 0.01 * torch.randn(2, objective.space.size)
    directions = Directions.from_vectors(objective, vectors)
    grid = torch.rand(points, 2, dtype=torch.float64)
    ways: dict[str, Callable[[], Tensor]] = {}
    for precision in PRECISIONS:
        try:
            native = Objective(
                model, nn.CrossEntropyLoss(), data, engine="native", precision=precision
            )
        except ValueError:  # a precision that this device does not have
            continue
        ways[f"native, {precision}"] = functools.partial(
            lambda o: o.evaluate_along(o.center, directions, grid)["loss"], native
        )
    inputs, targets = (tensor.to(device) for tensor in data)
    rows = directions.points(objective.center, grid.float())
    ways |= _torch_ways(model, objective, inputs, targets, rows)
    expected = next(iter(ways.values()))().cpu().double()
    lines = [f"{'milliseconds per point, a small CNN':40} {'ms':>9} {'error':>9}"]
    for name, evaluate in ways.items():
        try:
            error = _error(evaluate().cpu().double() / expected, torch.ones(points))
            lines.append(f"{name:40} {1e3 * _seconds(evaluate) / points:9.3f} {error:9.1e}")
        except Exception as failure:  # one way that does not work must not hide the others
            lines.append(f"{name:40} {type(failure).__name__}: {str(failure).splitlines()[0][:60]}")
    v, eager = torch.randn(objective.space.size), objective.replace()
    eager._engine.compiled.enabled = False
    lines += ["", f"{'milliseconds per Hessian-vector product':40} {'ms':>9}"]
    for name, way in {"eager": eager, "torch.compile": compiled(model, data)}.items():
        way.hessian_vector_product(v)
        seconds = _seconds(functools.partial(_waited, way.hessian_vector_product, v))
        lines.append(f"{name:40} {1e3 * seconds:9.3f} {way._engine.compiled.obstacle}".rstrip())
    return lines


def _waited(function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
    return function(argument).cpu()


def _torch_ways(
    model: nn.Module, objective: Objective, inputs: Tensor, targets: Tensor, rows: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Losses at all rows by PyTorch: eager, other formats, compiled, batched, captured, in TF32."""

    def loss(row: Tensor, inputs: Tensor = inputs) -> Tensor:
        outputs = functional_call(model, objective.space.unflatten(row), (inputs,))
        return nn.functional.cross_entropy(outputs, targets)

    channels_last = inputs.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(loss, dynamic=False)
    captured = torch.compile(loss, dynamic=False, mode="reduce-overhead")
    batched = torch.vmap(loss, chunk_size=8)

    def each(function: Callable[..., Tensor], *arguments: Tensor) -> Callable[[], Tensor]:
        # cloned, as a captured graph writes its result into the same memory every time
        return lambda: torch.stack([function(row, *arguments).clone() for row in rows])

    ways: dict[str, Callable[[], Tensor]] = {
        "PyTorch": each(loss),
        "PyTorch, channels-last": each(loss, channels_last),
        "PyTorch, vmap": lambda: batched(rows),
        "PyTorch, torch.compile": each(compiled),
        "PyTorch, torch.compile, CUDA graphs": each(captured),
    }
    in_tf32 = {
        f"{name}, TF32": functools.partial(_with_tf32, way)
        for name, way in ways.items()
        if "compile" not in name
    }
    no_grad = torch.no_grad()
    return {name: no_grad(way) for name, way in (ways | in_tf32).items()}


def _with_tf32(evaluate: Callable[[], Tensor]) -> Tensor:
    before = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        return evaluate()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = before


def _seconds(evaluate: Callable[[], Tensor]) -> float:
    """The least time of one call, warm."""
    timer = Timer("evaluate()", globals={"evaluate": evaluate})
    return min(timer.blocked_autorange(min_run_time=SECONDS).times)
