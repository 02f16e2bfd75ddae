"""Sharpness over the radius of the ball, against what the quadratic model of the loss predicts."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.curvature import CurvatureOperator, Hessian, eigenpairs
from pylandscape.objective import Objective
from pylandscape.sharpness._ball import ball
from pylandscape.sharpness._checks import checked_center, dot, norm

Floats = NDArray[np.float64]


def profile(
    objective: Objective,
    epsilons: Sequence[float] | None = None,
    steps: int = 30,
    restarts: int = 2,
    tol: float = 1e-2,
    seed: int = 0,
    at: Tensor | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """S_eps over eps, beside its two limits and the prediction of the quadratic model.

    For small eps the sharpness of the ball is eps ||g||, g the gradient; at a stationary point it
    is lambda_max eps^2 / 2. In between, the quadratic model g.v + v.Hv / 2 has its maximum in the
    ball nearly in the span of g and the leading eigenvector, where it is computed exactly. Where
    the loss leaves that prediction, it is no longer the parabola of its Hessian.

    Args:
        objective: the loss L.
        epsilons: the radii, increasing; nine from 1e-3 to 10 by default.
        steps, restarts, seed: of `ball`, at every radius.
        tol: of the leading eigenvalue, see `eigenpairs`.
        at: the point w [P]; the model's parameters by default.
        progress: show bars; by default on a terminal only.

    Returns:
        A dataset over `epsilon` with `rise` (S_eps, a lower bound of the maximum), `quadratic` (the
        prediction), `gradient_limit` and `curvature_limit`. Attributes: `lambda_max`, its
        `residual`, `gradient_norm`, and how it was made.

    Raises:
        ValueError: an argument is out of range, or as for `ball`.
        TypeError: `objective` is not an Objective.

    Example:
        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> curve = pl.sharpness.profile(objective, [0.1, 1.0])
        >>> bool((abs(curve.rise / curve.quadratic - 1) < 1e-3).all())  # a quadratic is its model
        True
    """
    where = "sharpness.profile"
    center = checked_center(where, objective, at, positive={"tol": tol})
    radii = np.geomspace(1e-3, 10, 9) if epsilons is None else np.asarray(epsilons, dtype=float)
    require(
        radii.ndim == 1
        and len(radii) > 0
        and bool((radii > 0).all() and np.isfinite(radii).all() and (np.diff(radii) > 0).all()),
        f"{where}: epsilons must be positive and increasing, got {show(epsilons)}.",
    )
    hessian = Hessian(objective, at=center)
    pairs = eigenpairs(hessian, k=1, tol=tol, seed=seed, progress=progress)
    gradient = objective.gradient(center)
    found = [
        ball(objective, float(radius), steps, restarts, seed, center, progress) for radius in radii
    ]
    length, largest = norm(gradient), float(pairs.values[0])
    columns = {
        "rise": [each.value for each in found],
        "quadratic": _quadratic(hessian, gradient, pairs.vectors[:, 0], radii),
        "gradient_limit": radii * length,
        "curvature_limit": largest * radii**2 / 2,
    }
    attrs = {
        "kind": "sharpness profile",
        **objective.describe(derivatives=True),
        "lambda_max": largest,
        "residual": float(pairs.residuals[0]),
        "gradient_norm": length,
        "steps": steps,
        "restarts": restarts,
        "seed": seed,
    }
    return xr.Dataset(
        {name: ("epsilon", np.asarray(values)) for name, values in columns.items()},
        coords={"epsilon": radii},
        attrs=attrs,
    )


def _quadratic(
    hessian: CurvatureOperator, gradient: Tensor, leading: Tensor, radii: Floats
) -> Floats:
    """max of g.v + v.Hv / 2 over the balls, v in the span of g and the leading eigenvector."""
    basis = leading.double()[:, None] / norm(leading)
    rest = gradient.double() - basis[:, 0] * dot(basis[:, 0], gradient)
    if norm(rest) > 1e-9 * norm(gradient):
        basis = torch.cat([basis, (rest / norm(rest))[:, None]], 1)
    products = (hessian @ basis.to(leading)).double()
    small = (basis.T @ products).cpu().numpy()
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    slopes = vectors.T @ (basis.T @ gradient.double()).cpu().numpy()
    return np.array([maximum_in_ball(values, slopes, float(radius)) for radius in radii])


def maximum_in_ball(curvatures: Floats, slopes: Floats, radius: float) -> float:
    """max over ||v|| <= radius of sum_i slopes_i v_i + curvatures_i v_i^2 / 2.

    Inside, where all curvatures are negative, at v = -slopes / curvatures; else on the sphere at
    v = slopes / (mu - curvatures) with mu > max(curvatures) such that ||v|| = radius. Where that
    leaves some length (the slope along the largest curvature is zero), the rest goes along it.

    Example:
        >>> import numpy as np
        >>> float(maximum_in_ball(np.array([1.0, 3.0]), np.zeros(2), 2.0))
        6.0
    """
    top = float(curvatures.max())
    if top < 0:
        inside = -slopes / curvatures
        if np.linalg.norm(inside) <= radius:
            return float(slopes @ inside / 2)
    scale = max(abs(curvatures).max(), float(np.linalg.norm(slopes)) / radius, 1e-300)
    low, high = max(top, 0.0), max(top, 0.0) + float(np.linalg.norm(slopes)) / radius
    low += 1e-14 * scale

    def point(mu: float) -> Floats:
        return slopes / (mu - curvatures)

    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(point(middle)) > radius else (low, middle)
    v = point(max(high, low))
    spare = max(radius**2 - float(v @ v), 0.0)
    k = int(np.argmax(curvatures))
    if top > 0:
        v[k] = np.copysign(np.sqrt(v[k] ** 2 + spare), v[k])
    return float(slopes @ v + curvatures @ v**2 / 2)
