"""Planes along eigenvectors, and the curvature that random axes show."""

import numpy as np
import pytest
import torch
from models import classifier, normal, own_value
from torch import nn

import pylandscape as pl


class Quadratic(nn.Module):
    """L(w) = sum_j d_j w_j^2 / 2."""

    def __init__(self, curvatures: torch.Tensor, at: torch.Tensor) -> None:
        super().__init__()
        self.curvatures, self.w = curvatures, nn.Parameter(at)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.curvatures * self.w**2).sum().expand(len(x)) / 2


D = torch.tensor([8.0, 3.0, 1.0, 0.5, -2.0], dtype=torch.float64)


@pytest.fixture
def H() -> pl.curvature.CurvatureOperator:
    data = torch.zeros(2, 1).double(), torch.zeros(2).double()
    return pl.Hessian(pl.Objective(Quadratic(D, normal(5)), own_value, data))


def test_a_plane_along_eigenvectors_is_the_parabola_of_their_eigenvalues(H):
    pairs = pl.eigenpairs(H, k=1, which="both", tol=1e-9)
    axes = pl.eigen_directions(H, pairs)
    assert axes.labels == ["eigenvector of 8", "eigenvector of -2"]
    assert axes.attrs["eigenvalues"] == pytest.approx([8, -2])
    surface = pl.plane(H.objective, axes, extent=1.5, resolution=7)
    slopes = H.objective.gradient() @ axes.vectors.T
    a, b = surface.alpha, surface.beta
    expected = H.objective.loss() + slopes[0].item() * a + slopes[1].item() * b + 4 * a**2 - b**2
    np.testing.assert_allclose(surface.loss, expected, atol=1e-9)
    assert surface.attrs["directions"] == "2 eigenvectors of the Hessian"


def test_eigenvectors_of_a_block_are_zero_elsewhere():
    objective = classifier()
    at = objective.center + 0.1
    H = pl.Hessian(objective, at=at, only="2.*")
    axes = pl.eigen_directions(H, pl.eigenpairs(H, k=2, tol=1e-8))
    assert torch.equal(axes.center, at)
    inside = torch.cat([torch.arange(e.offset, e.offset + e.size)
                        for e in objective.space.select("2.*")])  # fmt: skip
    outside = torch.ones(objective.space.size, dtype=torch.bool)
    outside[inside] = False
    assert not axes.vectors[:, outside].any()
    torch.testing.assert_close(axes.vectors.norm(dim=1), torch.ones(2).double())
    v = axes.vectors[0]
    curvature = float(v @ objective.hessian_vector_product(v, at))
    assert curvature == pytest.approx(axes.attrs["eigenvalues"][0])


def test_curvature_along_axes_of_any_length_and_angle(H):
    vectors = normal(3, 5, seed=4) * torch.tensor([[1.0], [100.0], [0.01]])
    vectors[2] += 0.01 * vectors[0]
    axes = pl.Directions.from_vectors(H.objective, vectors)
    pairs = pl.eigenpairs(H, k=1, which="both", tol=1e-9)
    found = pl.axis_curvature(H, axes, pairs, pl.trace(H))
    expected = (vectors**2 @ D) / (vectors**2).sum(1)
    np.testing.assert_allclose(found.curvature, expected)
    Q, _ = torch.linalg.qr(vectors.T)
    inside = torch.linalg.eigvalsh(Q.T @ torch.diag(D) @ Q).flip(0)
    np.testing.assert_allclose(found.principal, inside)
    assert found.axis.values.tolist() == ["direction 1", "direction 2", "direction 3"]
    assert float(found.lambda_max) == pytest.approx(8)
    assert float(found.lambda_min) == pytest.approx(-2)
    assert float(found["mean"]) == pytest.approx(D.mean())
    assert found.attrs["matrix"] == "Hessian"


def test_random_axes_show_the_mean_eigenvalue():
    """In many dimensions the curvature along random directions is tr H / P, not lambda_max."""
    curvatures = torch.zeros(3000).double()
    curvatures[0], curvatures[1:] = 500.0, 1.0
    data = torch.zeros(2, 1).double(), torch.zeros(2).double()
    H = pl.Hessian(pl.Objective(Quadratic(curvatures, torch.zeros(3000).double()), own_value, data))
    axes = pl.random_directions(H.objective, count=8, normalize="none", ignore=None)
    found = pl.axis_curvature(H, axes)
    assert abs(float(found.curvature.mean()) - float(curvatures.mean())) < 0.4
    assert float(found.curvature.max()) < 10
    assert set(found.data_vars) == {"curvature", "principal"}


def test_along_eigenvectors_it_is_the_eigenvalues(H):
    pairs = pl.eigenpairs(H, k=3, tol=1e-10)
    found = pl.axis_curvature(H, pl.eigen_directions(H, pairs))
    np.testing.assert_allclose(found.curvature, pairs.values, atol=1e-9)
    np.testing.assert_allclose(found.principal, pairs.values, atol=1e-9)


def test_bad_input(H):
    pairs = pl.eigenpairs(H, k=1)
    axes = pl.eigen_directions(H, pairs)
    other = pl.Hessian(classifier())
    with pytest.raises(TypeError, match=r"eigen_directions: H must be a pl\.Hessian"):
        pl.eigen_directions(torch.eye(5), pairs)
    with pytest.raises(TypeError, match="pairs must be Eigenpairs, got 3"):
        pl.eigen_directions(H, 3)
    with pytest.raises(ValueError, match="pairs must be of H, got vectors of length 5"):
        pl.eigen_directions(other, pairs)
    with pytest.raises(ValueError, match="axis_curvature: directions must belong to"):
        pl.axis_curvature(other, axes)
    with pytest.raises(ValueError, match="directions must go through the point of H"):
        pl.axis_curvature(pl.Hessian(H.objective, at=H.at + 1), axes)
    with pytest.raises(TypeError, match="trace must be an Estimate"):
        pl.axis_curvature(H, axes, trace=3.0)
    twice = pl.Directions.from_vectors(H.objective, torch.ones(2, 5).double())
    with pytest.raises(ValueError, match="linearly independent, got 2 that are not"):
        pl.axis_curvature(H, twice)
    block = pl.Hessian(other.objective, only="2.*")
    with pytest.raises(ValueError, match="H must be of all parameters, got Hessian"):
        pl.axis_curvature(block, pl.random_directions(other.objective))
