"""Other packages on the study's network: the same products, the same eigenvalues."""

import pytest
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.study.data import load_mnist
from pylandscape.study.model import SmallCNN

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SAMPLES, BATCH = 48, 16
LOSS = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    images, targets = load_mnist().train
    return images[:SAMPLES].clone(), targets[:SAMPLES].clone()


@pytest.fixture(scope="module")
def model(data) -> nn.Module:
    """The study's network after some steps on few digits."""
    model = SmallCNN(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        LOSS(model(data[0]), data[1]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def objective(model, data) -> pl.Objective:
    return pl.Objective(model, LOSS, data)


@pytest.fixture(scope="module")
def lambda_max(objective) -> float:
    return float(pl.eigenpairs(pl.Hessian(objective), k=1, tol=1e-4).values[0])


def _batches(data) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(tensor.split(BATCH) for tensor in data), strict=True))


@pytest.mark.parametrize("kind", ["Hessian", "GGN", "Fisher"])
def test_curvlinops_has_the_same_products(kind, model, data, objective):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")
    names = {"Hessian": "HessianLinearOperator", "GGN": "GGNLinearOperator"}
    names["Fisher"] = "EFLinearOperator"
    theirs = getattr(curvlinops, names[kind])(
        model, LOSS, list(model.parameters()), _batches(data), check_deterministic=False
    )
    v = torch.randn(objective.space.size, generator=torch.Generator().manual_seed(0))
    ours, other = getattr(pl, kind)(objective) @ v, theirs @ v
    assert float((ours - other).norm() / other.norm()) < 1e-4


def test_curvlinops_has_the_same_largest_eigenvalue(model, data, lambda_max):
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")
    eigsh = pytest.importorskip("scipy.sparse.linalg").eigsh
    theirs = curvlinops.HessianLinearOperator(
        model, LOSS, list(model.parameters()), _batches(data), check_deterministic=False
    )
    (value,) = eigsh(theirs.to_scipy(), k=1, which="LA", tol=1e-4, return_eigenvectors=False)
    assert abs(value - lambda_max) < 1e-3 * lambda_max


def test_hessian_eigenthings_has_the_same_products_and_eigenvalue(
    model, data, objective, lambda_max
):
    peer = pytest.importorskip("hessian_eigenthings", reason="hessian-eigenthings is not installed")
    theirs = peer.HessianOperator(model, _batches(data), peer.supervised_loss(LOSS))
    v = torch.randn(objective.space.size, generator=torch.Generator().manual_seed(0))
    ours, other = pl.Hessian(objective) @ v, theirs.matvec(v)
    assert float((ours - other).norm() / other.norm()) < 1e-4
    found = peer.lanczos(theirs, k=1, max_iter=25, which="LA", seed=0)
    assert abs(float(found.eigenvalues[0]) - lambda_max) < 1e-3 * lambda_max
