"""Perturbed points, and random directions and their norms."""

import torch
from torch import Tensor

from pylandscape._checks import show
from pylandscape._ops.arguments import (
    alike,
    checked_coordinates,
    checked_seeds,
    checked_table,
    room_for_points,
    vector_size,
)
from pylandscape._ops.library import has_kernels


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
    size = vector_size("perturb", "center", center)
    if (
        directions.ndim != 2
        or directions.shape[0] < 1
        or directions.shape[1] != size
        or not alike(directions, center)
    ):
        raise ValueError(
            f"perturb: directions must have shape [D, {size}] with D >= 1, {center.dtype} on "
            f"{center.device} like the center, got {show(directions)} on {directions.device}."
        )
    coordinates = checked_coordinates(center, coordinates, len(directions))
    points = room_for_points(center, coordinates, out)
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
    vector_size("perturb_random", "center", center)
    seeds = checked_seeds("perturb_random", seeds)
    filter_table = checked_table("perturb_random", filter_table)
    if scales.ndim != 2 or len(scales) != len(seeds) or not scales.is_floating_point():
        raise ValueError(
            f"perturb_random: scales must be real of shape [{len(seeds)}, F], got {show(scales)}."
        )
    coordinates = checked_coordinates(center, coordinates, len(seeds))
    points = room_for_points(center, coordinates, out)
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


def filter_norms(vector: Tensor, filter_table: Tensor) -> Tensor:
    """The Euclidean norm of every filter of `vector` [P], float64 [F].

    Summed in float64 in one pass, in an order that depends on the table alone.

    Raises:
        ValueError: the table does not cover the vector.

    Example:
        >>> filter_norms(torch.tensor([3.0, 4.0, 5.0, 12.0]), torch.tensor([[0, 1, 2, 2]])).tolist()
        [5.0, 13.0]
    """
    vector_size("filter_norms", "vector", vector)
    filter_table = checked_table("filter_norms", filter_table)
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
    streams = checked_seeds("normal_filter_norms", seeds)
    filter_table = checked_table("normal_filter_norms", filter_table)
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
    streams = checked_seeds("random_normal", seeds)
    if size < 0:
        raise ValueError(f"random_normal: size must be at least 0, got {size}.")
    if has_kernels(torch.empty(0, device=device)):
        streams = streams.to(device)
    numbers = torch.ops.pylandscape.random_normal(streams, size).to(device)
    return numbers[0] if isinstance(seeds, int) else numbers


@torch.library.register_fake("pylandscape::random_normal")
def _(seeds: Tensor, size: int) -> Tensor:
    return seeds.new_empty(len(seeds), size, dtype=torch.float32)
