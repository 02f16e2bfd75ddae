"""The compiled operators: one typed wrapper and one fake kernel each.

This is the only file that names `torch.ops.pylandscape`. The schemas are in `csrc/ops.cpp`, the
kernels in `csrc/cpu/<operator>.cpp`. Arguments are checked here, once, for all devices. None of the
operators is differentiable.

The kernels are for float32 and float64, on CPUs (`pylandscape._C`) and, where `pylandscape._C_cuda`
was built, on CUDA devices. Tensors on other devices, and other dtypes where that makes sense, are
served by plain torch code below.

Shapes: P parameters, D directions, K points, F filters. A filter table is int64 [T, 4] with rows
(offset, outer, rows, inner) that cover [0, P) in order: element (o, r, i) of a row lies at
`offset + (o * rows + r) * inner + i` and belongs to the r-th filter of the row; filters are
numbered through the table.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pylandscape._checks import show

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

__all__ = [
    "LanczosStep",
    "build",
    "cuda_build",
    "evaluate_points",
    "evaluate_points_on_device",
    "fetch_steps",
    "filter_norms",
    "has_kernels",
    "hessian_vector_product",
    "isa",
    "isa_levels",
    "lanczos_step",
    "normal_filter_norms",
    "perturb",
    "perturb_random",
    "random_normal",
    "set_isa",
    "tiles_supported",
]

_BLOCK = 1 << 16  # columns that the plain torch code converts to float64 at once


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


# perturb --------------------------------------------------------------------------------------


def perturb(
    center: Tensor, directions: Tensor, coordinates: Tensor, out: Tensor | None = None
) -> Tensor:
    """Points center + sum_j coordinates[k, j] directions[j] in one pass over memory.

    The sum over j is formed first, so a point differs from exact arithmetic by about one rounding.
    The result is the same bits for every instruction set and number of threads.

    Args:
        center: [P].
        directions: [D, P], D >= 1, of the dtype and on the device of `center`.
        coordinates: [K, D], converted to that dtype.
        out: contiguous [K, P] to write into. Worth having for many calls: memory that is new to the
            process costs more than the arithmetic.

    Returns:
        [K, P], `out` if that was given.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.

    Example:
        >>> w, d = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 10.0]])
        >>> perturb(w, d, torch.tensor([[0.0, 0.0], [2.0, -1.0]])).tolist()
        [[1.0, 2.0], [3.0, -8.0]]
    """
    size = _vector_size("perturb", "center", center)
    if (
        directions.ndim != 2
        or directions.shape[0] < 1
        or directions.shape[1] != size
        or not _alike(directions, center)
    ):
        raise ValueError(
            f"perturb: directions must have shape [D, {size}] with D >= 1, {center.dtype} on "
            f"{center.device} like the center, got {show(directions)} on {directions.device}."
        )
    coordinates = _coordinates(center, coordinates, len(directions))
    points = _points(center, coordinates, out)
    with torch.no_grad():
        if has_kernels(center):
            torch.ops.pylandscape.perturb(
                points, center.contiguous(), directions.contiguous(), coordinates
            )
        else:
            torch.add(center, coordinates @ directions, out=points)
    return points


def perturb_random(
    center: Tensor,
    seeds: Tensor,
    scales: Tensor,
    filter_table: Tensor,
    coordinates: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Points center + sum_j coordinates[k, j] d_j with random directions that are never stored.

    Element p of d_j is scales[j, filter of p] z_p, with z the normal stream of seeds[j]. The result
    is the same bits as that of `perturb` with these directions stored.

    Args:
        center: [P].
        seeds: int64 [D], D >= 1.
        scales: [D, F].
        filter_table: int64 [T, 4].
        coordinates: [K, D].
        out: as for `perturb`.

    Raises:
        ValueError: shapes or dtypes do not fit, or the table does not cover the parameters.

    Example:
        >>> table = torch.tensor([[0, 1, 2, 3]])  # two filters of three elements
        >>> scales = torch.tensor([[1.0, 0.0]])
        >>> seeds, here = torch.tensor([7]), torch.ones(1, 1)
        >>> point = perturb_random(torch.zeros(6), seeds, scales, table, here)[0]
        >>> torch.equal(point[:3], random_normal(7, 6)[:3]), point[3:].tolist()
        (True, [0.0, 0.0, 0.0])
    """
    _vector_size("perturb_random", "center", center)
    seeds = _seeds("perturb_random", seeds)
    filter_table = _table("perturb_random", filter_table)
    if scales.ndim != 2 or len(scales) != len(seeds) or not scales.is_floating_point():
        raise ValueError(
            f"perturb_random: scales must be real of shape [{len(seeds)}, F], got {show(scales)}."
        )
    coordinates = _coordinates(center, coordinates, len(seeds))
    points = _points(center, coordinates, out)
    scales = scales.to("cpu", torch.float64).contiguous()
    with torch.no_grad():
        if has_kernels(center):
            torch.ops.pylandscape.perturb.random(
                points, center.contiguous(), seeds, scales, filter_table, coordinates
            )
        else:
            host = torch.float64 if center.dtype == torch.float64 else torch.float32
            origin = torch.zeros(center.numel(), dtype=host)
            directions = perturb_random(origin, seeds, scales, filter_table, torch.eye(len(seeds)))
            perturb(center, directions.to(center), coordinates, out=points)
    return points


@torch.library.register_fake("pylandscape::perturb")
def _(points: Tensor, center: Tensor, directions: Tensor, coordinates: Tensor) -> None:
    return None


@torch.library.register_fake("pylandscape::perturb.random")
def _(
    points: Tensor,
    center: Tensor,
    seeds: Tensor,
    scales: Tensor,
    filter_table: Tensor,
    coordinates: Tensor,
) -> None:
    return None


# filter_norms ---------------------------------------------------------------------------------


def filter_norms(vector: Tensor, filter_table: Tensor) -> Tensor:
    """The Euclidean norm of every filter of `vector` [P], float64 [F].

    Summed in float64 in one pass, in an order that depends on the table alone.

    Raises:
        ValueError: the table does not cover the vector.

    Example:
        >>> filter_norms(torch.tensor([3.0, 4.0, 5.0, 12.0]), torch.tensor([[0, 1, 2, 2]])).tolist()
        [5.0, 13.0]
    """
    _vector_size("filter_norms", "vector", vector)
    filter_table = _table("filter_norms", filter_table)
    with torch.no_grad():
        if has_kernels(vector):
            return torch.ops.pylandscape.filter_norms(vector.contiguous(), filter_table)
        norms = [
            torch.linalg.vector_norm(part.view(outer, rows, inner).double(), dim=(0, 2))
            for offset, outer, rows, inner in filter_table.tolist()
            for part in [vector[offset : offset + outer * rows * inner]]
        ]
        return torch.cat(norms) if norms else vector.new_zeros(0, dtype=torch.float64)


def normal_filter_norms(seeds: Tensor | int, filter_table: Tensor) -> Tensor:
    """The norms of the filters of random directions that are never stored.

    Args:
        seeds: int64 [D], or one integer.
        filter_table: int64 [T, 4].

    Returns:
        float64 [D, F], or [F] for one integer: `filter_norms` of `random_normal`, bit for bit.

    Example:
        >>> table = torch.tensor([[0, 1, 3, 100]])
        >>> torch.equal(normal_filter_norms(5, table), filter_norms(random_normal(5, 300), table))
        True
    """
    streams = _seeds("normal_filter_norms", seeds)
    filter_table = _table("normal_filter_norms", filter_table)
    norms = torch.ops.pylandscape.filter_norms.random(streams, filter_table)
    return norms[0] if isinstance(seeds, int) else norms


@torch.library.register_fake("pylandscape::filter_norms")
def _(vector: Tensor, filter_table: Tensor) -> Tensor:
    filters = torch.library.get_ctx().new_dynamic_size()
    return vector.new_empty(filters, dtype=torch.float64)


@torch.library.register_fake("pylandscape::filter_norms.random")
def _(seeds: Tensor, filter_table: Tensor) -> Tensor:
    filters = torch.library.get_ctx().new_dynamic_size()
    return seeds.new_empty(len(seeds), filters, dtype=torch.float64)


# random_normal --------------------------------------------------------------------------------


def random_normal(seeds: Tensor | int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Independent standard normal numbers, the raw random directions.

    Element p of a stream depends on the seed and p alone: Philox4x32-10 with the 64-bit seed as key
    and p // 4 as counter, and the Box-Muller transform of its words in float32 (relative error
    below 5e-7, |z| < 6.764). It is the same bits on every machine, instruction set, device and
    number of threads.

    Args:
        seeds: int64 [D], or one integer that fits int64.
        size: P >= 0.
        device: of the result.

    Returns:
        float32 [D, P], or [P] for one integer.

    Example:
        >>> z = random_normal(0, 100_000)
        >>> abs(float(z.mean())) < 0.01, abs(float(z.std()) - 1) < 0.01
        (True, True)
        >>> torch.equal(z[:10], random_normal(0, 10))
        True
    """
    streams = _seeds("random_normal", seeds)
    if size < 0:
        raise ValueError(f"random_normal: size must be at least 0, got {size}.")
    if has_kernels(torch.empty(0, device=device)):
        streams = streams.to(device)
    numbers = torch.ops.pylandscape.random_normal(streams, size).to(device)
    return numbers[0] if isinstance(seeds, int) else numbers


@torch.library.register_fake("pylandscape::random_normal")
def _(seeds: Tensor, size: int) -> Tensor:
    return seeds.new_empty(len(seeds), size, dtype=torch.float32)


# lanczos_step ---------------------------------------------------------------------------------


class LanczosStep(NamedTuple):
    """What one step of the Lanczos process found, on the device of the basis.

    Attributes:
        coefficients: float64 [j + 1], v_i . H v_j for all rows: column j of V H V^T. The last is
            alpha, the one before the last beta; after a restart, the others are the coupling to the
            kept Ritz vectors.
        beta: float64 [], the norm of what is left of H v_j beyond the basis.
        breakdown: bool [], beta is negligible, or not finite, and row j + 1 was not written.
    """

    coefficients: Tensor
    beta: Tensor
    breakdown: Tensor

    @property
    def alpha(self) -> Tensor:
        """v_j . H v_j, float64 []."""
        return self.coefficients[-1]


def fetch_steps(steps: Sequence[LanczosStep]) -> list[LanczosStep]:
    """The same on the CPU: one wait for the device and one transfer for all of them.

    Example:
        >>> basis = torch.eye(2)
        >>> [step] = fetch_steps([lanczos_step(basis, torch.tensor([3.0, 4.0]), 0)])
        >>> float(step.alpha), float(step.beta), bool(step.breakdown), basis[1].tolist()
        (3.0, 4.0, False, [0.0, 1.0])
    """
    if not steps:
        return []
    parts = [torch.cat((s.coefficients, s.beta[None], s.breakdown[None].double())) for s in steps]
    found = torch.cat(parts).cpu().split([len(part) for part in parts])
    return [LanczosStep(part[:-2], part[-2], part[-1].bool()) for part in found]


def lanczos_step(
    basis: Tensor,
    product: Tensor,
    row: int,
    scale: Tensor | float = 0.0,
    tolerance: float | None = None,
) -> LanczosStep:
    """One step of the Lanczos process with full reorthogonalisation, in place.

    With w = H v_j in `product`, classical Gram-Schmidt done twice,

        h = V w,  w <- w - V^T h,  g = V w,  w <- w - V^T g,

    over all rows v_0 .. v_j of the basis V. It contains the three-term recurrence
    w <- w - alpha v_j - beta v_{j-1}, as h_j = alpha and h_{j-1} is the last beta, and twice is
    enough for orthogonality to rounding. Then v_{j+1} = w / |w| is written into row j + 1. Dot
    products are summed in float64, independently of the number of threads; the basis is read three
    times.

    Args:
        basis: contiguous [M, P], its rows 0 .. j orthonormal. Row j + 1 is overwritten.
        product: H v_j [P], contiguous, float32 or float64. Overwritten with what is left of it, not
            normalised.
        row: j, at most M - 2.
        scale: a lower bound on the norm of H, such as the largest |Ritz value| so far. A tensor,
            float64 [] beside the basis, is raised to |H v_j|: so it follows on a device.
        tolerance: it is a breakdown, an invariant subspace, when
            |w| <= tolerance * max(scale, |H v_j|); ten units of rounding by default. The basis says
            nothing beyond it then, and v_{j+1} would be noise.

    Returns:
        What was found, on the device; on CUDA nothing waits for it, see `fetch_steps`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or `row` is out of range.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, 2.0, 4.0]).double())
        >>> V = torch.zeros(4, 3, dtype=torch.float64)
        >>> V[0] = 3**-0.5
        >>> steps = [lanczos_step(V, H @ V[j], j) for j in range(3)]
        >>> [round(float(step.alpha), 4) for step in steps], bool(steps[2].breakdown)
        ([2.3333, 2.8095, 1.8571], True)
    """
    size = _vector_size("lanczos_step", "product", product)
    if product.dtype not in (torch.float32, torch.float64) or not product.is_contiguous():
        raise ValueError(
            f"lanczos_step: product must be contiguous, float32 or float64, got {show(product)}."
        )
    if (
        basis.ndim != 2
        or basis.shape[1] != size
        or not basis.is_contiguous()
        or not _alike(basis, product)
    ):
        raise ValueError(
            f"lanczos_step: basis must be contiguous of shape [M, {size}], {product.dtype} on "
            f"{product.device} like the product, got {show(basis)} on {basis.device}."
        )
    if not 0 <= row <= len(basis) - 2:
        raise ValueError(
            f"lanczos_step: row must be from 0 to {len(basis) - 2} for a basis of {len(basis)} "
            f"rows, got {row}."
        )
    if not isinstance(scale, Tensor):
        scale = product.new_full((), scale, dtype=torch.float64)
    elif scale.shape != () or scale.dtype != torch.float64 or scale.device != product.device:
        raise ValueError(
            f"lanczos_step: scale must be a number or float64 of shape [] on {product.device}, got "
            f"{show(scale)} on {scale.device}."
        )
    if tolerance is None:
        tolerance = 10 * torch.finfo(product.dtype).eps
    with torch.no_grad():
        step = torch.ops.pylandscape.lanczos_step if has_kernels(product) else _lanczos_step
        return LanczosStep(*step(basis, product, row, scale, float(tolerance)))


def _lanczos_step(
    basis: Tensor, product: Tensor, row: int, scale: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in plain torch, for any device."""
    tiles = [*zip(basis[: row + 1].split(_BLOCK, 1), product.split(_BLOCK), strict=True)]
    norm = torch.linalg.vector_norm(product, dtype=torch.float64)
    coefficients = torch.zeros(row + 1, dtype=torch.float64, device=product.device)
    for _ in range(2):
        dots = sum(
            (rows.double() @ w.double() for rows, w in tiles), torch.zeros_like(coefficients)
        )
        for rows, w in tiles:
            w.copy_(w.double() - dots @ rows.double())
        coefficients += dots
    beta = torch.linalg.vector_norm(product, dtype=torch.float64)
    torch.fmax(scale, norm, out=scale)  # of NaN and a number, the number
    least = (tolerance * scale).clamp(min=torch.finfo(torch.float64).tiny)
    breakdown = ~((beta > least) & torch.isfinite(beta))
    if not breakdown:
        torch.mul(product, 1 / beta, out=basis[row + 1])
    return coefficients, beta, breakdown


@torch.library.register_fake("pylandscape::lanczos_step")
def _(
    basis: Tensor, product: Tensor, step: int, scale: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    coefficients = product.new_empty(step + 1, dtype=torch.float64)
    return coefficients, coefficients.new_empty(()), coefficients.new_empty((), dtype=torch.bool)


# evaluate_points ------------------------------------------------------------------------------


def evaluate_points(
    sums: Tensor,
    packed: Tensor,
    coordinates: Tensor,
    inputs: Tensor,
    targets: Tensor,
    plan: Tensor,
    constants: Tensor,
    indices: Tensor,
    first: int,
    last: int,
) -> None:
    """Adds to `sums` [K, 7] the loss sums of samples [first, last) at K points.

    The arguments come from `engines/native.py`, which makes them fit.

    Args:
        sums: float64 [K, 7]: a, a^2, a b, b, b^2 of the loss terms, correct, counted.
        packed: float32 [1 + D, packed], the centre and the directions in the kernels' order.
        coordinates: float32 [K, D].
        inputs: float32, samples first.
        targets: int64 classes or float32 targets, samples first.
        plan, constants, indices: of the plan, see `engines/plan.py`.
        first, last: the range of samples.
    """
    torch.ops.pylandscape.evaluate_points(
        sums, packed, coordinates, inputs, targets, plan, constants, indices, first, last
    )


@torch.library.register_fake("pylandscape::evaluate_points")
def _(
    sums: Tensor,
    packed: Tensor,
    coordinates: Tensor,
    inputs: Tensor,
    targets: Tensor,
    plan: Tensor,
    constants: Tensor,
    indices: Tensor,
    first: int,
    last: int,
) -> None:
    return None


def evaluate_points_on_device(
    sums: Tensor,
    workspace: Tensor,
    partial: Tensor,
    packed: Tensor,
    coordinates: Tensor,
    inputs: Tensor,
    targets: Tensor,
    plan: Tensor,
    constants: Tensor,
    indices: Tensor,
    seeds: Tensor,
    scales: Tensor,
    origins: Tensor,
    first: int,
    last: int,
    points_at_once: int,
    samples_at_once: int,
    math: int,
) -> None:
    """As `evaluate_points`, on a CUDA device; neither allocates nor waits.

    The arguments come from `engines/cuda.py`, which makes them fit; all but `plan` and `origins`
    lie on the device.

    Args:
        workspace: float32, room for the activations of a launch, see `CudaPlan.workspace`.
        partial: float64, room for the sums of the loss's blocks.
        packed: as there, or the centre alone, float32 [1, packed], with generated directions.
        seeds: int64 [D] of generated directions, or empty.
        scales: float32 [D, filters] of these.
        origins: int64 [T, 5], see `CudaPlan.origins`.
        points_at_once, samples_at_once: of a launch.
        math: 0 float32, 1 TF32, 2 bfloat16.
    """
    torch.ops.pylandscape.evaluate_points.device(
        sums, workspace, partial, packed, coordinates, inputs, targets, plan, constants, indices,
        seeds, scales, origins, first, last, points_at_once, samples_at_once, math,
    )  # fmt: skip


@torch.library.register_fake("pylandscape::evaluate_points.device")
def _(
    sums: Tensor,
    workspace: Tensor,
    partial: Tensor,
    packed: Tensor,
    coordinates: Tensor,
    inputs: Tensor,
    targets: Tensor,
    plan: Tensor,
    constants: Tensor,
    indices: Tensor,
    seeds: Tensor,
    scales: Tensor,
    origins: Tensor,
    first: int,
    last: int,
    points_at_once: int,
    samples_at_once: int,
    math: int,
) -> None:
    return None


# hessian_vector_product -----------------------------------------------------------------------


def hessian_vector_product(
    products: Tensor,
    sums: Tensor,
    packed: Tensor,
    inputs: Tensor,
    targets: Tensor,
    point_plan: Tensor,
    direction_plan: Tensor,
    constants: Tensor,
    indices: Tensor,
    kept: Tensor,
    kept_size: int,
    filled: bool,
    chunk: int,
    first: int,
    last: int,
) -> None:
    """Adds to `products` the sums of derivatives of samples [first, last) along V directions.

    The arguments come from `engines/derivatives/engine.py`, which makes them fit.

    Args:
        products: float64 [max(V, 1), G], derivatives in the order of the kernels.
        sums: float64 [7], the sums of the loss, as in `evaluate_points`; added to unless `filled`.
        packed: float32 [1 + V, packed], the point and the directions in the kernels' order.
        inputs, targets: as in `evaluate_points`.
        point_plan, direction_plan, constants, indices: see `engines/derivatives/plan.py`.
        kept: float32 [blocks, kept_size], what is kept of the point for later calls, or empty.
        kept_size: floats that are kept per block.
        filled: `kept` holds the values of an earlier call at the same point.
        chunk: blocks that are summed in float32.
        first, last: the range of samples; `first` is a multiple of a chunk.
    """
    torch.ops.pylandscape.hessian_vector_product(
        products, sums, packed, inputs, targets, point_plan, direction_plan, constants, indices,
        kept, kept_size, filled, chunk, first, last,
    )  # fmt: skip


@torch.library.register_fake("pylandscape::hessian_vector_product")
def _(
    products: Tensor,
    sums: Tensor,
    packed: Tensor,
    inputs: Tensor,
    targets: Tensor,
    point_plan: Tensor,
    direction_plan: Tensor,
    constants: Tensor,
    indices: Tensor,
    kept: Tensor,
    kept_size: int,
    filled: bool,
    chunk: int,
    first: int,
    last: int,
) -> None:
    return None


# Arguments ------------------------------------------------------------------------------------


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device


def _vector_size(function: str, name: str, vector: Tensor) -> int:
    if vector.ndim != 1 or not vector.is_floating_point():
        raise ValueError(f"{function}: {name} must be a real vector [P], got {show(vector)}.")
    return vector.numel()


def _coordinates(center: Tensor, coordinates: Tensor, count: int) -> Tensor:
    if coordinates.ndim != 2 or coordinates.shape[1] != count:
        raise ValueError(
            f"perturb: coordinates must have shape [K, {count}], a column per direction, got "
            f"{show(coordinates)}."
        )
    return coordinates.to(center.device, center.dtype).contiguous()


def _points(center: Tensor, coordinates: Tensor, out: Tensor | None) -> Tensor:
    shape = (len(coordinates), center.numel())
    if out is None:
        return center.new_empty(shape)
    if out.shape != shape or not out.is_contiguous() or not _alike(out, center):
        raise ValueError(
            f"perturb: out must be contiguous of shape {list(shape)}, {center.dtype} on "
            f"{center.device} like the center, got {show(out)} on {out.device}."
        )
    return out


def _seeds(function: str, seeds: Tensor | int) -> Tensor:
    streams = torch.tensor([seeds]) if isinstance(seeds, int) else seeds.cpu()
    if streams.ndim != 1 or streams.dtype != torch.int64:
        raise ValueError(f"{function}: seeds must be int64 of shape [D], got {show(streams)}.")
    return streams.contiguous()


def _table(function: str, filter_table: Tensor) -> Tensor:
    table = filter_table
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype != torch.int64:
        raise ValueError(
            f"{function}: filter_table must be int64 of shape [T, 4], got {show(table)}."
        )
    return table.cpu().contiguous()
