"""The torch engine: gradients, Hessian-vector products, BatchNorm policies against plain torch."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import (
    Attention,
    Shift,
    classifier,
    convnet,
    flat_gradient,
    half_square,
    initialised,
    labels,
    mlp,
    normal,
    own_value,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import pylandscape as pl

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning",
    "ignore:Full backward hook is firing:UserWarning",  # in the oracle
)

TOKENS = labels(6, 7, 5, seed=2)
IMAGES = normal(6, 1, 6, 6)
FEATURES = normal(6, 4)
CLASSES = labels(6, 3)


def dense_hessian(objective: pl.Objective, inputs: Tensor, at: Tensor) -> Tensor:
    """By two reverse passes over the mean loss of all samples at once, [P, P]."""
    model = copy.deepcopy(objective.model).eval()

    def mean_loss(vector: Tensor) -> Tensor:
        state = objective.space.unflatten(vector)
        outputs = torch.func.functional_call(model, state, (inputs,))
        return F.cross_entropy(outputs, CLASSES)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(mean_loss, at)


class Cube(torch.autograd.Function):
    """An operator of the old style: forward mode and functorch both refuse it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


class OldStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Cube.apply(self.net[0](x))[:, :4])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](checkpoint(self.net[:2], x, use_reentrant=False))


class Distances(nn.Module):
    """`torch.cdist` has a second derivative but no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centers)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.net = kind(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, None].expand(-1, 3, -1))[0][:, -1]


class Hooked(nn.Module):
    """Backward hooks that change a user's gradients are no part of L; forward hooks are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.net[0].register_full_backward_hook(lambda module, inputs, outputs: (inputs[0],))
        self.net[1].register_forward_hook(lambda module, args, outputs: outputs * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 7))
    model[3].weight = model[0].weight
    return nn.Sequential(model, nn.Flatten(), nn.Linear(35, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, FEATURES),
    "convolution": (convnet, IMAGES),
    "batch norm": (lambda: convnet(norm=True), IMAGES),
    "encoder layer": (lambda: Attention("layer"), TOKENS),
    "multi-head attention": (lambda: Attention("multihead"), TOKENS),
    "scaled dot product": (lambda: Attention("function"), TOKENS),
    "tied": (tied, TOKENS),
    "lstm": (lambda: Recurrent(nn.LSTM), FEATURES),
    "gru": (lambda: Recurrent(nn.GRU), FEATURES),
    "old-style function": (OldStyle, FEATURES),
    "checkpointing": (Checkpointed, FEATURES),
    "cdist": (Distances, FEATURES),
    "hooks": (Hooked, FEATURES),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), FEATURES),
    "old weight norm": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3))), FEATURES),
}  # fmt: skip


def build(net: str) -> tuple[pl.Objective, Tensor, Tensor]:
    """An objective, its inputs, and a point away from the model's own parameters."""
    model, inputs = NETS[net]
    objective = pl.Objective(
        initialised(model()), nn.CrossEntropyLoss(), (inputs, CLASSES), batch_size=4
    )
    return objective, inputs, objective.center + 0.3 * normal(objective.space.size, seed=11)


# torch itself goes wrong here: checkpointing runs the module's own parameters again in a backward
# pass outside `functional_call`, and the fused weight norm has a wrong second derivative
WRONG_IN_TORCH = ("checkpointing", "weight norm", "old weight norm")


@pytest.mark.parametrize("net", [net for net in NETS if net not in WRONG_IN_TORCH])
def test_hessian_vector_product_is_the_dense_hessian_times_v(net: str) -> None:
    objective, inputs, point = build(net)
    v = normal(objective.space.size, 2, seed=12)
    expected = dense_hessian(objective, inputs, point) @ v
    assert expected.norm() > 1e-6
    found = objective.hessian_vector_product(v, at=point)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(objective.hessian_vector_product(v[:, 0], at=point), found[:, 0])


@pytest.mark.parametrize("net", NETS)
def test_hessian_vector_product_is_the_slope_of_the_gradient(net: str) -> None:
    objective, _, point = build(net)
    v = normal(objective.space.size, seed=12)
    ahead, behind = (objective.gradient(point + step * v) for step in (1e-5, -1e-5))
    expected = (ahead - behind) / 2e-5
    found = objective.hessian_vector_product(v, at=point)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("net", NETS)
def test_gradient_is_that_of_torch(net: str) -> None:
    objective, inputs, point = build(net)
    model = NETS[net][0]().double().eval()
    model.load_state_dict(objective.model.state_dict())
    objective.space.write_(model, point)
    for module in model.modules():
        module._backward_hooks.clear()
    with sdpa_kernel(SDPBackend.MATH):
        value = F.cross_entropy(model(inputs), CLASSES)
        expected = flat_gradient(objective, value, model)
    loss, gradient = objective.loss_and_gradient(point)
    assert loss == pytest.approx(value.item(), rel=1e-12)
    assert objective.loss(point) == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(gradient, objective.gradient())


def test_reverse_mode_where_forward_mode_is_missing() -> None:
    forward = {}
    for net in ("mlp", "encoder layer", "hooks", "old-style function", "cdist", "checkpointing"):
        objective, _, point = build(net)
        objective.hessian_vector_product(point, at=point)
        forward[net] = objective._engine._forward_mode
    assert forward == {
        "mlp": True, "encoder layer": True, "hooks": True,
        "old-style function": False, "cdist": False, "checkpointing": False,
    }  # fmt: skip


def test_both_modes_agree() -> None:
    objective, _, point = build("convolution")
    v = normal(objective.space.size, seed=3)
    forward = objective.hessian_vector_product(v, at=point)
    objective._engine._forward_mode = False
    torch.testing.assert_close(objective.hessian_vector_product(v, at=point), forward)


def test_an_operator_without_second_derivative() -> None:
    model = initialised(nn.Sequential(nn.EmbeddingBag(7, 4, mode="mean"), nn.Linear(4, 3)))
    objective = pl.Objective(model, nn.CrossEntropyLoss(), (TOKENS, CLASSES))
    assert objective.gradient().norm() > 0
    with pytest.raises(NotImplementedError, match=r"^hessian_vector_product: .*twice diff.*embed"):
        objective.hessian_vector_product(objective.center)


def test_an_error_of_the_model_is_not_mistaken_for_missing_forward_mode() -> None:
    broken = False

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if broken:
            raise RuntimeError("forward of the loss failed")
        return F.cross_entropy(outputs, targets, reduction="none")

    objective = classifier(loss=loss)
    broken = True
    with pytest.raises(RuntimeError, match="forward of the loss failed"):
        objective.hessian_vector_product(objective.center)
    assert objective._engine._forward_mode


def test_the_hessian_of_a_parabola() -> None:
    x, y = normal(9, 5), normal(9, seed=1)
    objective = pl.Objective(Shift(normal(5, seed=2)), half_square, (x, y), batch_size=4)
    hessian = objective.hessian_vector_product(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(hessian, x.T @ x / 9)
    expected = x.T @ (x @ objective.center - y) / 9
    torch.testing.assert_close(objective.gradient(), expected)


@pytest.mark.parametrize("forward_mode", [True, False])
def test_a_loss_linear_in_the_parameters_has_no_curvature(forward_mode: bool) -> None:
    objective = pl.Objective(Shift(normal(5)), own_value, (normal(9, 5), torch.zeros(9)))
    objective._engine._forward_mode = forward_mode
    assert torch.equal(objective.hessian_vector_product(normal(5)), torch.zeros(5).double())
    torch.testing.assert_close(objective.gradient(), normal(9, 5).mean(0))


@pytest.mark.parametrize("forward_mode", [True, False])
def test_unused_parameters_have_zero_rows(forward_mode: bool) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = mlp(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    objective = classifier(Partly().double())
    objective._engine._forward_mode = forward_mode
    product = objective.hessian_vector_product(normal(objective.space.size))
    for vector in (objective.gradient(), product):
        parts = objective.space.unflatten(vector)
        assert parts["used.0.weight"].count_nonzero() == 24
        assert parts["unused.weight"].count_nonzero() == 0


@pytest.mark.parametrize("forward_mode", [True, False])
def test_a_loss_that_autograd_cannot_follow(forward_mode: bool) -> None:
    objective = classifier(loss=lambda o, t: F.cross_entropy(o.detach(), t, reduction="none"))
    objective._engine._forward_mode = forward_mode
    assert objective.loss() > 0
    for call in (objective.gradient, lambda: objective.hessian_vector_product(objective.center)):
        with pytest.raises(ValueError, match=r"by operations that autograd follows.*detach\(\)"):
            call()


def test_a_batch_may_have_a_constant_loss() -> None:
    """Where no sample of a batch counts, as with masks."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        kept = targets != 1
        terms = F.cross_entropy(outputs, targets, reduction="none")
        return torch.where(kept, terms, 0) if kept.any() else torch.zeros(len(kept)).double()

    v = normal(51)
    one, whole = (classifier(loss=loss, batch_size=size) for size in (1, 12))
    torch.testing.assert_close(one.gradient(), whole.gradient())
    torch.testing.assert_close(one.hessian_vector_product(v), whole.hessian_vector_product(v))


def test_products_are_symmetric() -> None:
    objective, _, point = build("encoder layer")
    u, v = normal(2, objective.space.size, seed=5)
    product = functools.partial(objective.hessian_vector_product, at=point)
    torch.testing.assert_close(u @ product(v), v @ product(u))


@pytest.mark.parametrize("policy", ["frozen", "batch", "recompute"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_gives_the_same_in_single_precision(channels: int, policy: str) -> None:
    images, classes = normal(10, channels, 6, 6), labels(10, 3)
    model = convnet(norm=True, channels=channels)
    exact, fast = (
        pl.Objective(m, F.cross_entropy, (images, classes), batchnorm=policy, batch_size=4)
        for m in (model, copy.deepcopy(model).float())
    )
    assert fast._engine.module.channels_last
    assert not exact._engine.module.channels_last
    assert fast.data.first(2)[0].is_contiguous(memory_format=torch.channels_last)
    v = normal(exact.space.size, seed=6)
    assert fast.loss() == pytest.approx(exact.loss(), rel=1e-5)
    for found, expected in (
        (fast.gradient(), exact.gradient()),
        (fast.hessian_vector_product(v), exact.hessian_vector_product(v)),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


class Viewing(nn.Module):
    """A forward that holds only for contiguous activations."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(1, 3, 3), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolution(x).view(len(x), -1))


def test_a_model_that_views_its_activations_stays_in_the_default_layout() -> None:
    model = initialised(Viewing(), dtype=torch.float32)
    images = IMAGES.float()
    objective = pl.Objective(model, F.cross_entropy, (images, CLASSES), batch_size=4)
    assert not objective._engine.module.channels_last
    assert objective.loss() == pytest.approx(F.cross_entropy(model(images), CLASSES).item())


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"), [(1, 1, 2), (3, (0, 3), 1), ((1, 3), 2, 2)]
)
def test_convolutions_whose_border_sees_only_padding(
    kernel: Any, padding: Any, dilation: int
) -> None:
    """oneDNN reads beyond its memory there, if it is given channels-last."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(17, 3))
    conv = nn.Conv2d(17, 17, kernel, padding=padding, dilation=dilation, stride=(1, 2))
    model = initialised(nn.Sequential(conv, nn.ReLU(), head))
    data = (normal(33, 17, 4, 5), labels(33, 3))
    exact, fast = (
        pl.Objective(m, F.cross_entropy, data, engine="torch")
        for m in (model, copy.deepcopy(model).float())
    )
    assert not fast._engine.module.channels_last
    assert fast.loss() == pytest.approx(exact.loss(), rel=1e-5)


# -- BatchNorm ---------------------------------------------------------------------------------


def trained_convnet() -> nn.Module:
    """Running statistics and affine parameters that are no defaults."""
    model = convnet(norm=True)
    with torch.no_grad():
        model[1].running_mean.copy_(normal(4))
        model[1].running_var.copy_(normal(4).abs() + 0.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frozen_statistics_are_the_models_own(dtype: torch.dtype) -> None:
    model = trained_convnet().to(dtype)
    objective = pl.Objective(model, F.cross_entropy, (IMAGES, CLASSES), batch_size=4)
    expected = F.cross_entropy(copy.deepcopy(model).eval()(IMAGES.to(dtype)), CLASSES)
    assert objective.loss() == pytest.approx(expected.item(), rel=1e-6)


def test_batch_statistics_are_those_of_each_batch() -> None:
    model = trained_convnet()
    trained = copy.deepcopy(model).train()
    for size in (6, 4, 2):
        parts = zip(IMAGES.split(size), CLASSES.split(size), strict=True)
        total = sum(F.cross_entropy(trained(x), y, reduction="sum").item() for x, y in parts)
        objective = pl.Objective(
            model, F.cross_entropy, (IMAGES, CLASSES), batchnorm="batch", batch_size=size
        )
        assert objective.loss() == pytest.approx(total / 6, rel=1e-12)


def test_batch_statistics_are_differentiated() -> None:
    model = trained_convnet()
    objective = pl.Objective(model, F.cross_entropy, (IMAGES, CLASSES), batchnorm="batch")
    trained = copy.deepcopy(model).train()
    value = F.cross_entropy(trained(IMAGES), CLASSES)
    torch.testing.assert_close(objective.gradient(), flat_gradient(objective, value, trained))
    v = normal(objective.space.size)
    step = 1e-5
    ahead, behind = (objective.gradient(objective.center + s * v) for s in (step, -step))
    torch.testing.assert_close(
        objective.hessian_vector_product(v), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7
    )


def test_recomputed_statistics_are_averages_over_the_samples() -> None:
    model = initialised(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
    model[0].running_mean.fill_(torch.nan)  # as after a diverged run: the old values do not count
    inputs, classes = normal(10, 4), labels(10, 3)
    objective = pl.Objective(
        model, F.cross_entropy, (inputs, classes), batchnorm="recompute", batch_size=4
    )
    parts = inputs.split(4)
    mean = inputs.mean(0)
    var = sum(len(x) * x.var(0) for x in parts) / 10
    found = objective.buffers()
    torch.testing.assert_close(found["0.running_mean"], mean)
    torch.testing.assert_close(found["0.running_var"], var)
    evaluated = copy.deepcopy(model).eval()
    evaluated[0].running_mean.copy_(mean)
    evaluated[0].running_var.copy_(var)
    value = F.cross_entropy(evaluated(inputs), classes)
    assert objective.loss() == pytest.approx(value.item(), rel=1e-12)
    torch.testing.assert_close(objective.gradient(), flat_gradient(objective, value, evaluated))


def test_recomputed_statistics_follow_the_point() -> None:
    """As `torch.optim.swa_utils.update_bn` does at every point, for batches of one size."""
    model = trained_convnet()
    objective = pl.Objective(
        model, F.cross_entropy, (IMAGES, CLASSES), batchnorm="recompute", batch_size=3
    )
    point = objective.center + normal(objective.space.size, seed=7)
    moved = copy.deepcopy(model)
    objective.space.write_(moved, point)
    torch.optim.swa_utils.update_bn(IMAGES.split(3), moved)
    expected = F.cross_entropy(moved.eval()(IMAGES), CLASSES).item()
    assert objective.loss(point) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("policy", ["batch", "recompute"])
def test_no_batch_of_a_single_sample(policy: str) -> None:
    model = initialised(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
    data = normal(1025, 4), labels(1025, 3)
    objective = pl.Objective(model, F.cross_entropy, data, batchnorm=policy)
    assert objective.loss() > 0
    images = normal(5, 1, 6, 6), labels(5, 3)
    alone = pl.Objective(
        convnet(norm=True), F.cross_entropy, images, batchnorm=policy, batch_size=4
    )
    assert alone.loss() > 0  # one image has a variance
    with pytest.raises(ValueError, match=r"batch_size must not leave .* got 8 for 1025 samples"):
        pl.Objective(model, F.cross_entropy, data, batchnorm=policy, batch_size=8)


def test_a_norm_without_running_statistics_uses_those_of_the_batch() -> None:
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    model = initialised(nn.Sequential(layer, nn.Linear(4, 3)))
    data = normal(9, 4), labels(9, 3)
    objective = pl.Objective(model, F.cross_entropy, data)
    assert objective.describe()["batchnorm"] == "batch"
    assert objective.loss() == pytest.approx(F.cross_entropy(model(data[0]), data[1]).item())
    with pytest.raises(ValueError, match=r"batch_size must not leave"):
        pl.Objective(model, F.cross_entropy, data, batch_size=4)


def test_no_warnings_reach_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for net in ("convolution", "encoder layer", "hooks"):
            objective, _, point = build(net)
            objective.hessian_vector_product(point)
            objective.gradient()
