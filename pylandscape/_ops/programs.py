"""Losses and derivatives of captured models, by their plans."""

import torch
from torch import Tensor


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
        packed: float32 [1 + V, packed + folded], the point and the directions in the kernels'
            order; the folded scales and shifts of batch_norms are written behind.
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
