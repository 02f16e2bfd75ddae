"""The compiled operators: one typed wrapper and one fake kernel each.

This folder is the only place that names `torch.ops.pylandscape`. The schemas are in
`csrc/ops.cpp`, the kernels in `csrc/cpu/<operator>.cpp`. Arguments are checked here, once, for all
devices. None of the operators is differentiable.

The kernels are for float32 and float64, on CPUs (`pylandscape._C`) and, where `pylandscape._C_cuda`
was built, on CUDA devices. Tensors on other devices, and other dtypes where that makes sense, are
served by plain torch code beside them.

Shapes: P parameters, D directions, K points, F filters. A filter table is int64 [T, 4] with rows
(offset, outer, rows, inner) that cover [0, P) in order: element (o, r, i) of a row lies at
`offset + (o * rows + r) * inner + i` and belongs to the r-th filter of the row; filters are
numbered through the table.
"""

from pylandscape._ops.directions import (
    filter_norms,
    normal_filter_norms,
    perturb,
    perturb_random,
    random_normal,
)
from pylandscape._ops.lanczos import LanczosStep, fetch_steps, lanczos_step
from pylandscape._ops.library import (
    build,
    cuda_build,
    has_kernels,
    isa,
    isa_levels,
    set_isa,
    tiles_supported,
)
from pylandscape._ops.movement import rearrange
from pylandscape._ops.programs import (
    evaluate_points,
    evaluate_points_on_device,
    hessian_vector_product,
)

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
    "rearrange",
    "set_isa",
    "tiles_supported",
]
