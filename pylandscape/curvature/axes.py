"""Axes of a plane and the curvature: eigenvectors as axes, and what random axes show of H."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from pylandscape._checks import require, show
from pylandscape.curvature.lanczos import Eigenpairs
from pylandscape.curvature.operators import CurvatureOperator
from pylandscape.curvature.trace import Estimate
from pylandscape.directions import Directions


def eigen_directions(H: CurvatureOperator, pairs: Eigenpairs) -> Directions:
    """Eigenvectors as directions for lines and planes through the point of H.

    Along a unit eigenvector v the loss is L(w) + a g.v + lambda a^2 / 2 + O(a^3): the plane of the
    eigenvectors of lambda_max and lambda_min shows the steepest and the most negative curvature
    that there is.

    Args:
        H: the matrix that the pairs are of.
        pairs: what `eigenpairs(H)` found.

    Returns:
        One direction of unit length for each pair, zero for parameters that H leaves out, with the
        point of H as `center` and the eigenvalue in the label.

    Raises:
        TypeError: `H` is not a curvature operator, or `pairs` are not Eigenpairs.
        ValueError: the pairs are of a matrix of another size.

    Example:
        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(4, 3)
        >>> data = torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> objective = pl.Objective(model, torch.nn.CrossEntropyLoss(), data)
        >>> H = pl.Hessian(objective)
        >>> axes = pl.eigen_directions(H, pl.eigenpairs(H, k=2))
        >>> surface = pl.plane(objective, axes, extent=2.0, resolution=5)
        >>> torch.allclose(axes.vectors @ axes.vectors.T, torch.eye(2), atol=1e-5)
        True
    """
    where = "eigen_directions"
    _check_operator(H, where)
    _check_pairs(pairs, H, where)
    values = pairs.values.tolist()
    return Directions.from_vectors(
        H.objective.space,
        H.embed(pairs.vectors).T.contiguous(),
        center=H.at,
        labels=[f"eigenvector of {value:.3g}" for value in values],
        attrs={
            "directions": f"{len(values)} eigenvectors of the {H.kind}",
            "eigenvalues": values,
            "residuals": pairs.residuals.tolist(),
            "seed": pairs.seed,
        },
    )


def axis_curvature(
    H: CurvatureOperator,
    directions: Directions,
    pairs: Eigenpairs | None = None,
    trace: Estimate | None = None,
) -> xr.Dataset:
    """The curvature that a slice along some directions shows, against that which there is.

    Along a direction d it is the Rayleigh quotient d'Hd / d'd, of expected value tr H / n where d
    is random and isotropic: the average of all eigenvalues, whatever the largest are (Boettcher and
    Wheeler 2022). Filter normalisation changes the weights of that average, not its nature. In the
    plane of several directions, the principal curvatures are the eigenvalues of Q'HQ, Q an
    orthonormal basis.

    Args:
        H: the matrix, of all parameters.
        directions: the axes of a line, plane or grid.
        pairs: from `eigenpairs(H, which="both")`, to compare with.
        trace: from `trace(H)`, to compare with.

    Returns:
        A dataset over `axis` (the labels of the directions) with `curvature` along each, and
        `principal`, the curvatures in their span, descending. Where given, `lambda_max`,
        `lambda_min`, each with `_residual`, and `mean`, tr H / n, with `mean_stderr`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: directions in another space or through another point than that of H, or H is
            restricted to some parameters, or the directions are linearly dependent.

    Example:
        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(4, 3)
        >>> data = torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> H = pl.Hessian(pl.Objective(model, torch.nn.CrossEntropyLoss(), data))
        >>> pairs = pl.eigenpairs(H, k=1, which="both")
        >>> random = pl.random_directions(H.objective, count=2)
        >>> found = pl.axis_curvature(H, random, pairs, pl.trace(H))
        >>> bool((found.curvature < found.lambda_max).all())
        True
    """
    where = "axis_curvature"
    _check_operator(H, where)
    H.objective.check_directions(directions, where)
    require(
        H.shape[0] == H.objective.space.size,
        f"{where}: H must be of all parameters, got {H}. Make it without only.",
    )
    center = directions.center
    require(
        center is None or torch.allclose(center.to(H.at), H.at),
        f"{where}: directions must go through the point of H, got another center. "
        "Make H with at=directions.center.",
    )
    rows = directions.vectors.to(H.device, H.dtype)
    images = (H @ rows.T).T.double()
    lengths = torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True)
    units, images = rows.double() / lengths, images / lengths
    triangle = torch.linalg.qr(units.T)[1]
    require(
        bool(triangle.diag().abs().min() > 1e-9),
        f"{where}: directions must be linearly independent, got {len(directions)} that are not. "
        "Leave one out.",
    )
    inner = units @ images.T
    # units' = Q R, so that Q'HQ = R^-T inner R^-1
    half = torch.linalg.solve_triangular(triangle.T, inner, upper=False)
    core = torch.linalg.solve_triangular(triangle.T, half.T, upper=False)
    variables: dict[str, Any] = {
        "curvature": ("axis", inner.diag().cpu().numpy()),
        "principal": ("axis", torch.linalg.eigvalsh((core + core.T) / 2).flip(0).cpu().numpy()),
    }
    if pairs is not None:
        _check_pairs(pairs, H, where)
        for name, which in (("lambda_max", torch.argmax), ("lambda_min", torch.argmin)):
            index = which(pairs.values)
            variables[name] = pairs.values[index].item()
            variables[f"{name}_residual"] = pairs.residuals[index].item()
    if trace is not None:
        require(
            isinstance(trace, Estimate) and np.ndim(trace.value) == 0,
            f"{where}: trace must be an Estimate, got {show(trace)}. Make it with pl.trace.",
            TypeError,
        )
        n = H.shape[0]
        variables |= {"mean": trace.value / n, "mean_stderr": trace.stderr / n}
    return xr.Dataset(
        variables,
        coords={"axis": np.array(directions.labels, dtype=object)},  # Zarr knows no other strings
        attrs={"kind": "curvature along axes"} | H.describe() | directions.attrs,
    )


def _check_operator(H: Any, where: str) -> None:
    require(
        isinstance(H, CurvatureOperator),
        f"{where}: H must be a pl.Hessian, pl.GGN or pl.Fisher, got {show(H)}.",
        TypeError,
    )


def _check_pairs(pairs: Any, H: CurvatureOperator, where: str) -> None:
    require(
        isinstance(pairs, Eigenpairs),
        f"{where}: pairs must be Eigenpairs, got {show(pairs)}. Make them with pl.eigenpairs(H).",
        TypeError,
    )
    require(
        pairs.vectors.shape[0] == H.shape[0],
        f"{where}: pairs must be of H, got vectors of length {pairs.vectors.shape[0]} for {H}.",
    )
