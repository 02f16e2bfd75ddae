"""`pl.GGN` and `pl.Fisher` against dense Jacobians by torch.func, all in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Attention, convnet, half_square, initialised, labels, mlp, normal
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

import pylandscape as pl

# the oracle's first use of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

N = 9
FEATURES, IMAGES, TOKENS = normal(N, 4), normal(N, 1, 6, 6), labels(N, 7, 5, seed=2)
CLASSES, VALUES = labels(N, 3), normal(N, 3, seed=6)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
CROSS_ENTROPY = nn.CrossEntropyLoss()


def ignoring(targets: Tensor) -> Tensor:
    return targets.masked_fill(torch.arange(targets.numel()).view(targets.shape) % 3 == 1, -100)


class Named(nn.Module):
    """Outputs in a dict, with entries that do not vary, and one that is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.net(x)
        return {"best": logits.argmax(1), "logits": logits, "scale": torch.ones(3), "none": None}


def named_loss(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"] * 2, targets, reduction="none")


class OldStyle(nn.Module):
    """An operator without forward mode."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * slope

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.Cube.apply(self.net[0](x)))


def cubed() -> nn.Module:
    """The same function as `OldStyle` by operators that torch.func knows."""
    model = OldStyle()
    model.forward = lambda x: model.net[2](model.net[0](x) ** 3)
    return model


def dense() -> nn.Module:
    return initialised(nn.Conv2d(1, 3, 3, padding=1))


# model, inputs, loss, targets; a model of the same function for the oracle where it needs one
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Any, Tensor]] = {
    "mlp": (mlp, FEATURES, CROSS_ENTROPY, CLASSES),
    "squared error": (mlp, FEATURES, nn.MSELoss(), VALUES),
    "sum": (mlp, FEATURES, nn.CrossEntropyLoss(reduction="sum"), CLASSES),
    "weighted": (mlp, FEATURES, nn.CrossEntropyLoss(weight=WEIGHTS), CLASSES),
    "ignored": (mlp, FEATURES, CROSS_ENTROPY, ignoring(CLASSES)),
    "scalar callable": (mlp, FEATURES, lambda o, t: F.cross_entropy(o, t), CLASSES),
    "mapped callable": (mlp, FEATURES, lambda o, t: ((o - t) ** 2).sum(1).mean(), VALUES),
    "images of labels": (dense, IMAGES, nn.CrossEntropyLoss(weight=WEIGHTS), ignoring(
        labels(N, 3, 6, 6))),
    "convolution": (convnet, IMAGES, CROSS_ENTROPY, CLASSES),
    "batch norm": (lambda: convnet(norm=True), IMAGES, CROSS_ENTROPY, CLASSES),
    "attention": (lambda: initialised(Attention("layer")), TOKENS, CROSS_ENTROPY, CLASSES),
    "dict": (Named, FEATURES, named_loss, CLASSES),
    "reverse mode": (OldStyle, FEATURES, CROSS_ENTROPY, CLASSES),
}  # fmt: skip
ORACLES = {"reverse mode": cubed}


class Oracle:
    """The samples' terms and weights one by one, and their Jacobians, at a point."""

    def __init__(self, name: str) -> None:
        build, self.inputs, self.loss, self.targets = CASES[name]
        self.objective = pl.Objective(build(), self.loss, (self.inputs, self.targets), batch_size=4)
        self.model = ORACLES.get(name, build)().eval()
        self.at = self.objective.center + 0.3 * normal(self.objective.space.size, seed=11)
        _, weights = self.objective._engine.loss(self.model(self.inputs), self.targets)
        self.weights = torch.ones(N).double() if weights is None else weights

    def logits(self, w: Tensor, i: int) -> Tensor:
        state = self.objective.space.unflatten(w)
        with sdpa_kernel(SDPBackend.MATH):
            outputs = functional_call(self.model, state, (self.inputs[i : i + 1],))
        return outputs["logits"] if isinstance(outputs, dict) else outputs

    def term(self, logits: Tensor, i: int) -> Tensor:
        outputs = {"logits": logits} if self.loss is named_loss else logits
        return self.objective._engine.loss(outputs, self.targets[i : i + 1]).values[0]

    def ggn(self) -> Tensor:
        total = torch.zeros(len(self.at), len(self.at)).double()
        for i in range(N):
            logits = self.logits(self.at, i)
            jacobian = jacrev(self.logits)(self.at, i).reshape(logits.numel(), -1)
            middle = hessian(self.term)(logits, i).reshape(logits.numel(), -1)
            total += jacobian.T @ middle @ jacobian
        return total / self.weights.sum()

    def fisher(self) -> Tensor:
        total = torch.zeros(len(self.at), len(self.at)).double()
        for i in range(N):
            if self.weights[i] > 0:
                slope = jacrev(lambda w, i=i: self.term(self.logits(w, i), i))(self.at)
                total += torch.outer(slope, slope) / self.weights[i]
        return total / self.weights.sum()


@pytest.mark.parametrize("kind", ["GGN", "Fisher"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_matrix(name: str, kind: str) -> None:
    oracle = Oracle(name)
    expected = oracle.ggn() if kind == "GGN" else oracle.fisher()
    state = copy.deepcopy(oracle.objective.model.state_dict())
    matrix = getattr(pl, kind)(oracle.objective, at=oracle.at)
    block = normal(len(oracle.at), 3, seed=8)
    torch.testing.assert_close(matrix @ block, expected @ block)
    assert float(torch.linalg.eigvalsh(expected).min()) > -1e-12  # so the oracle is right
    assert oracle.objective._engine._forward_mode == (name != "reverse mode")
    for key, tensor in oracle.objective.model.state_dict().items():
        assert torch.equal(tensor, state[key])


@pytest.mark.parametrize("name", ["mlp", "weighted", "ignored", "images of labels", "convolution"])
@pytest.mark.parametrize("kind", [pl.GGN, pl.Fisher])
def test_both_modes_agree(name: str, kind: Callable[..., Any]) -> None:
    build, inputs, loss, targets = CASES[name]
    objective = pl.Objective(build(), loss, (inputs, targets), batch_size=5)
    v = normal(objective.space.size)
    forward = kind(objective) @ v
    objective._engine._forward_mode = False
    torch.testing.assert_close(kind(objective) @ v, forward)


@pytest.mark.parametrize("kind", [pl.GGN, pl.Fisher])
@pytest.mark.parametrize("name", ["mlp", "weighted", "ignored", "attention"])
def test_does_not_depend_on_the_batches(name: str, kind: Callable[..., Any]) -> None:
    build, inputs, loss, targets = CASES[name]
    results = []
    for size in (N, 4, 2, 1):
        objective = pl.Objective(build(), loss, (inputs, targets), batch_size=size)
        results.append(kind(objective) @ normal(objective.space.size))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_a_sample_of_weight_two_counts_like_two() -> None:
    chosen = torch.repeat_interleave(torch.arange(N), torch.tensor([1, 2, 3])[CLASSES])
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    one = pl.Objective(mlp(), weighted, (FEATURES, CLASSES))
    two = pl.Objective(mlp(), CROSS_ENTROPY, (FEATURES[chosen], CLASSES[chosen]))
    v = normal(one.space.size)
    for kind in (pl.Hessian, pl.GGN, pl.Fisher):
        torch.testing.assert_close(kind(one) @ v, kind(two) @ v)


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, nn.MSELoss(), half_square])
def test_equals_the_hessian_of_a_linear_model(loss: Any) -> None:
    targets = CLASSES if loss is CROSS_ENTROPY else VALUES
    objective = pl.Objective(initialised(nn.Linear(4, 3)), loss, (FEATURES, targets))
    v = normal(objective.space.size, 2)
    torch.testing.assert_close(pl.GGN(objective) @ v, pl.Hessian(objective) @ v)


def test_equals_the_hessian_of_a_relu_net_in_its_last_layer_only() -> None:
    model = initialised(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    objective = pl.Objective(model, CROSS_ENTROPY, (FEATURES, CLASSES))
    for only, same in (("2.*", True), (None, False)):
        G, H = pl.GGN(objective, only=only), pl.Hessian(objective, only=only)
        v = normal(G.shape[0])
        assert torch.allclose(G @ v, H @ v) == same


def test_the_hessian_is_the_ggn_and_the_residual_part() -> None:
    """H - G = sum_i sum_o (da_i/do) d^2o/dw^2 / N."""
    oracle = Oracle("mlp")
    residual = torch.zeros(len(oracle.at), len(oracle.at)).double()
    for i in range(N):
        slope = jacrev(oracle.term)(oracle.logits(oracle.at, i), i)
        residual += hessian(lambda w, i=i, s=slope: (s * oracle.logits(w, i)).sum())(oracle.at)
    block = normal(len(oracle.at), 2)
    H, G = (kind(oracle.objective, at=oracle.at) @ block for kind in (pl.Hessian, pl.GGN))
    torch.testing.assert_close(H, G + residual / N @ block)


@pytest.mark.parametrize("only", ["2.*", ["0.weight", "2.bias"]])
@pytest.mark.parametrize("kind", ["GGN", "Fisher"])
def test_a_block_is_the_block_of_the_matrix(kind: str, only: Any) -> None:
    oracle = Oracle("mlp")
    whole = oracle.ggn() if kind == "GGN" else oracle.fisher()
    index = torch.cat([torch.arange(e.offset, e.offset + e.size)
                       for e in oracle.objective.space.select(only)])  # fmt: skip
    matrix = getattr(pl, kind)(oracle.objective, at=oracle.at, only=only)
    eye = torch.eye(len(index)).double()
    torch.testing.assert_close(matrix @ eye, whole[index][:, index])


def test_a_loss_linear_in_the_outputs_has_no_ggn() -> None:
    objective = pl.Objective(mlp(), lambda o, t: (o * t).sum(1), (FEATURES, VALUES))
    assert not (pl.GGN(objective) @ normal(objective.space.size)).any()


@pytest.mark.parametrize("forward_mode", [True, False])
def test_unused_parameters_have_zero_rows(forward_mode: bool) -> None:
    model = mlp()
    model.register_parameter("unused", nn.Parameter(torch.ones(2).double()))
    objective = pl.Objective(model, CROSS_ENTROPY, (FEATURES, CLASSES))
    objective._engine._forward_mode = forward_mode
    unused = objective.space.select("unused")[0].slice
    for kind in (pl.GGN, pl.Fisher):
        product = kind(objective) @ normal(objective.space.size)
        assert product.any()
        assert not product[unused].any()


@pytest.mark.parametrize("kind", [pl.GGN, pl.Fisher])
def test_a_loss_that_autograd_cannot_follow(kind: Callable[..., Any]) -> None:
    objective = pl.Objective(mlp(), lambda o, t: ((o.detach() - t) ** 2).sum(1), (FEATURES, VALUES))
    with pytest.raises(ValueError, match="operations that autograd follows"):
        kind(objective) @ normal(objective.space.size)


def test_an_error_of_the_model_is_not_mistaken_for_missing_forward_mode() -> None:
    model = mlp()
    objective = pl.Objective(model, CROSS_ENTROPY, (FEATURES, CLASSES))
    model.forward = lambda x: (_ for _ in ()).throw(RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        pl.GGN(objective) @ normal(objective.space.size)
    assert objective._engine._forward_mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_differences_are_near_the_hessian(dtype: torch.dtype) -> None:
    objective = pl.Objective(mlp(), CROSS_ENTROPY, (FEATURES, CLASSES), dtype=dtype)
    near, exact = (pl.Hessian(objective, finite_differences=f) for f in (True, False))
    assert near.kind == "Hessian by finite differences"
    v = torch.outer(normal(objective.space.size), torch.tensor([1.0, 1e3]).double()).to(dtype)
    error = (near @ v - exact @ v).norm(dim=0) / (exact @ v).norm(dim=0)
    assert error.max() < (1e-2 if dtype == torch.float32 else 1e-6)
    assert error.min() > 0  # so they are differences
    assert not (near @ torch.zeros_like(v[:, 0])).any()
