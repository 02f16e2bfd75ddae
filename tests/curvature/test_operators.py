"""`pl.Hessian` against dense Hessians by torch.func, all in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import pylandscape as pl

CROSS_ENTROPY = nn.CrossEntropyLoss()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def _convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def _batchnorm() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2.0)
    return model.eval()


def _vectors(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(11, 3), torch.randint(0, outputs, (11,))


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(7, 1, 4, 4), torch.randint(0, 3, (7,))


def _ignoring() -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = _vectors(3)
    targets[::4] = -100
    return inputs, targets


CASES = {
    "mlp, cross-entropy": lambda: (_mlp(), CROSS_ENTROPY, _vectors(3)),
    "mlp, squared error": lambda: (_mlp(), nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 3))),
    "mlp, weighted classes": lambda: (
        _mlp(), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])), _vectors(3)
    ),
    "mlp, ignored targets": lambda: (_mlp(), CROSS_ENTROPY, _ignoring()),
    "convolution, cross-entropy": lambda: (_convolution(), CROSS_ENTROPY, _images()),
    "batchnorm in evaluation": lambda: (_batchnorm(), CROSS_ENTROPY, _vectors(3)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def _objective(case, **options) -> pl.Objective:
    return pl.Objective(*case, **options)


def _dense(case, at: torch.Tensor | None = None) -> torch.Tensor:
    """The Hessian of the loss of the whole data set in one batch, [P, P]."""
    model, loss, (inputs, targets) = case
    space = pl.ParameterSpace.from_model(model)

    def value(w: torch.Tensor) -> torch.Tensor:
        return loss(functional_call(model, space.unflatten(w), inputs), targets)

    return hessian(value)(space.flatten(model) if at is None else at)


def test_equals_the_dense_hessian(case):
    H = pl.Hessian(_objective(case))
    torch.testing.assert_close(H @ torch.eye(H.shape[0]), _dense(case))


def test_equals_the_dense_hessian_elsewhere(case):
    objective = _objective(case)
    at = objective.center + 0.3 * torch.randn(objective.space.size)
    expected = _dense(case, at)
    H = pl.Hessian(objective, at=at)
    at.zero_()  # the operator has its own copy
    torch.testing.assert_close(H @ torch.eye(H.shape[0]), expected)


def test_is_symmetric(case):
    H = pl.Hessian(_objective(case))
    u, v = torch.randn(2, H.shape[0])
    torch.testing.assert_close(u @ (H @ v), v @ (H @ u))


def test_does_not_depend_on_the_batches(case):
    v = torch.randn(_objective(case).space.size)
    whole, *split = (pl.Hessian(_objective(case, batch_size=size)) @ v for size in (100, 4, 2, 1))
    for product in split:
        torch.testing.assert_close(product, whole)


@pytest.mark.parametrize("only", ["2.*", "*.bias", ["0.weight", "2.bias"]])
def test_a_block_equals_the_block_of_the_dense_hessian(only):
    case = CASES["mlp, cross-entropy"]()
    objective = _objective(case)
    H = pl.Hessian(objective, only=only)
    index = torch.cat([torch.arange(e.offset, e.offset + e.size)
                       for e in objective.space.select(only)])  # fmt: skip
    assert H.shape == (len(index), len(index))
    torch.testing.assert_close(H @ torch.eye(len(index)), _dense(case)[index][:, index])
    v = torch.randn(len(index))
    assert torch.equal(H.restrict(H.embed(v)), v)
    assert torch.equal(H.embed(v)[index], v)
    assert H.embed(v).count_nonzero() == len(index)


def test_vectors_and_blocks_agree_and_are_counted():
    H = pl.Hessian(_objective(CASES["mlp, cross-entropy"]()))
    block = torch.randn(H.shape[0], 3)
    columns = torch.stack([H @ v for v in block.T], 1)
    assert H.products == 3
    torch.testing.assert_close(H @ block, columns)
    assert H.products == 6


def test_scipy_sees_the_same_matrix():
    case = CASES["mlp, squared error"]()
    H = pl.Hessian(_objective(case), only="0.*").to_scipy()
    rng = np.random.default_rng(0)
    v, block = rng.normal(size=H.shape[0]), rng.normal(size=(H.shape[0], 2))
    dense = _dense(case)[: H.shape[0], : H.shape[0]].numpy()
    assert H.dtype == np.float64
    np.testing.assert_allclose(H @ v, dense @ v, atol=1e-12)
    np.testing.assert_allclose(H.rmatvec(v), dense.T @ v, atol=1e-12)
    np.testing.assert_allclose(H @ block, dense @ block, atol=1e-12)


def test_the_point_is_fixed_and_the_model_unchanged():
    case = CASES["batchnorm in evaluation"]()
    model = case[0].train()
    H = pl.Hessian(_objective(case))
    v = torch.randn(H.shape[0])
    state = copy.deepcopy(model.state_dict())
    before = H @ v
    assert model.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert torch.equal(H @ v, before)


class TestBadInput:
    def test_vectors(self):
        H = pl.Hessian(_objective(CASES["mlp, cross-entropy"]()))
        n = H.shape[0]
        with pytest.raises(ValueError, match=r"v must have shape \[31\].*another model"):
            H @ torch.randn(n + 1)
        with pytest.raises(ValueError, match="v must have shape"):
            H @ torch.randn(n, 2, 2)
        with pytest.raises(ValueError, match=r"must be torch.float64 on cpu, got torch.float32"):
            H @ torch.randn(n, dtype=torch.float32)
        with pytest.raises(TypeError, match="v must be a tensor"):
            H @ np.zeros(n)

    def test_construction(self):
        objective = _objective(CASES["mlp, cross-entropy"]())
        with pytest.raises(ValueError, match=r"at must be a point of shape \[31\].*architecture"):
            pl.Hessian(objective, at=torch.zeros(30))
        with pytest.raises(ValueError, match="must match at least one parameter name"):
            pl.Hessian(objective, only="conv*")
        with pytest.raises(TypeError, match=r"objective must be a pl.Objective, got Sequential"):
            pl.Hessian(_mlp())


class TestNotFinite:
    """The error names what is not finite: the vector, the point, the loss, or only the Hessian."""

    def test_vector_and_point(self):
        objective = _objective(CASES["mlp, cross-entropy"]())
        nan = torch.full((objective.space.size,), torch.nan)
        with pytest.raises(ValueError, match="entries in v"):
            pl.Hessian(objective) @ nan
        with pytest.raises(ValueError, match="diverged"):
            pl.Hessian(objective, at=nan) @ torch.ones_like(nan)

    def test_loss(self):
        objective = pl.Objective(
            nn.Linear(1, 1), nn.MSELoss(), (torch.tensor([[torch.inf]]), torch.zeros(1, 1))
        )
        with pytest.raises(ValueError, match="a loss of"):
            pl.Hessian(objective) @ torch.ones(2)

    def test_second_derivative_alone(self):
        class Root(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.zeros(1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * self.w.abs() ** 1.5  # slope 0 and infinite curvature at 0

        objective = pl.Objective(Root(), lambda a, b: (a - b).mean(), (torch.ones(2, 1),) * 2)
        with pytest.raises(ValueError, match="second derivative alone"):
            pl.Hessian(objective) @ torch.ones(1)
