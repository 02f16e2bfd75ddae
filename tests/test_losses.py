"""The terms of a loss: their weighted mean is the loss itself, in batches of any size."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import classifier, convnet, flat_gradient, initialised, labels, mlp, normal
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.losses import accuracy_metric

N, CLASSES = 13, 3
WEIGHTS = torch.tensor([0.2, 1.0, 2.5], dtype=torch.float64)


def with_ignored(targets: Tensor) -> Tensor:
    """Every third target left out, at places that differ from batch to batch."""
    ignored = torch.arange(targets.numel()).reshape(targets.shape) % 3 == 1
    return targets.masked_fill(ignored, -100)


def soft(*shape: int) -> Tensor:
    return normal(*shape, seed=5).softmax(1)


def dense(classes: int = CLASSES) -> nn.Module:
    return initialised(nn.Conv2d(2, classes, 3, padding=1))


class Focal(nn.Module):
    """A user's module with a buffer and no `reduction`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gamma", torch.tensor(2.0))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log = F.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
        return -((1 - log.exp()) ** self.gamma * log).mean()


class OwnReduction(nn.Module):
    """A user's module with a `reduction` that it does not follow."""

    reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="sum") / len(targets)


class Named(nn.Module):
    """A model with a dict as output, one entry of it without a sample axis."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.net(x), "extra": torch.zeros(2), "nothing": None}


VECTOR, GRID = normal(N, 4), normal(N, 2, 3, 3)
CLASS, DENSE = labels(N, CLASSES), labels(N, CLASSES, 3, 3)

# model, inputs, targets, loss; the loss itself, as a mean over the samples
MEANS: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor, Any]] = {
    "cross-entropy": (mlp, VECTOR, CLASS, nn.CrossEntropyLoss()),
    "class weights": (mlp, VECTOR, CLASS, nn.CrossEntropyLoss(WEIGHTS)),
    "weights in float32": (mlp, VECTOR, CLASS, nn.CrossEntropyLoss(WEIGHTS.float())),
    "ignore_index": (mlp, VECTOR, with_ignored(CLASS), nn.CrossEntropyLoss()),
    "another ignore_index": (mlp, VECTOR, CLASS, nn.CrossEntropyLoss(ignore_index=1)),
    "smoothing": (mlp, VECTOR, CLASS, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "all at once": (
        mlp, VECTOR, with_ignored(CLASS), nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1)),
    "soft targets": (mlp, VECTOR, soft(N, CLASSES), nn.CrossEntropyLoss()),
    "weighted soft targets": (mlp, VECTOR, soft(N, CLASSES), nn.CrossEntropyLoss(WEIGHTS)),
    "dense": (dense, GRID, DENSE, nn.CrossEntropyLoss()),
    "dense, weighted, ignored": (dense, GRID, with_ignored(DENSE), nn.CrossEntropyLoss(WEIGHTS)),
    "dense soft targets": (dense, GRID, soft(N, CLASSES, 3, 3), nn.CrossEntropyLoss()),
    "nll": (lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), VECTOR, CLASS, nn.NLLLoss(WEIGHTS)),
    "mse": (mlp, VECTOR, normal(N, CLASSES, seed=2), nn.MSELoss()),
    "huber": (mlp, VECTOR, normal(N, CLASSES, seed=2), nn.HuberLoss()),
    "binary": (
        mlp, VECTOR, soft(N, CLASSES), nn.BCEWithLogitsLoss(pos_weight=WEIGHTS)),
    "kl": (
        lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), VECTOR, soft(N, CLASSES),
        nn.KLDivLoss(reduction="batchmean")),
    "function": (mlp, VECTOR, CLASS, F.cross_entropy),
    "function, ignored": (mlp, VECTOR, with_ignored(CLASS), F.cross_entropy),
    "partial": (
        mlp, VECTOR, with_ignored(CLASS),
        functools.partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.2)),
    "partial nll": (
        lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), VECTOR, CLASS,
        functools.partial(F.nll_loss, weight=WEIGHTS)),
    "mse function": (mlp, VECTOR, normal(N, CLASSES, seed=2), F.mse_loss),
    "lambda": (mlp, VECTOR, CLASS, lambda o, t: F.cross_entropy(o, t)),
    "lambda on a dict": (Named, VECTOR, CLASS, lambda o, t: F.cross_entropy(o["logits"], t)),
    "user's module": (mlp, VECTOR, CLASS, Focal()),
    "user's reduction": (mlp, VECTOR, CLASS, OwnReduction()),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANS)
def test_the_objective_is_the_loss_of_all_samples(case: str) -> None:
    """L and its gradient equal the user's own loss on everything at once, for any batch size."""
    build, inputs, targets, loss = MEANS[case]
    model = build().double()
    own = loss.double() if isinstance(loss, nn.Module) else loss
    expected = own(model(inputs), targets)
    for batch_size in (N, 7, 3, 1):
        objective = pl.Objective(model, loss, (inputs, targets), batch_size=batch_size)
        assert objective.loss() == pytest.approx(expected.item(), rel=1e-12)
        value, gradient = objective.loss_and_gradient()
        assert value == pytest.approx(expected.item(), rel=1e-12)
        again = loss(model(inputs), targets)
        torch.testing.assert_close(gradient, flat_gradient(objective, again, model))


@pytest.mark.parametrize("case", ["all at once", "dense, weighted, ignored", "lambda", "mse"])
def test_the_hessian_does_not_depend_on_the_batches(case: str) -> None:
    build, inputs, targets, loss = MEANS[case]
    model = build().double()
    whole = pl.Objective(model, loss, (inputs, targets), batch_size=N)
    v = normal(whole.space.size, seed=8)
    expected = whole.hessian_vector_product(v)
    assert expected.norm() > 1e-6
    for batch_size in (5, 3):  # 3 and 5 batches, the last one smaller
        parts = pl.Objective(model, loss, (inputs, targets), batch_size=batch_size)
        torch.testing.assert_close(parts.hessian_vector_product(v), expected)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="none"),
        functools.partial(F.cross_entropy, reduction="sum"),
        functools.partial(F.cross_entropy, reduction="none"),
        lambda o, t: F.cross_entropy(o, t, reduction="sum"),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
    ],
    ids=["module sum", "module none", "partial sum", "partial none", "sum", "per sample"],
)
def test_a_sum_or_a_value_per_sample_becomes_the_mean(loss: Any) -> None:
    objective = classifier(loss=loss, count=N, batch_size=5)
    inputs, targets = normal(N, 4), labels(N, 3)
    mean = F.cross_entropy(objective.model(inputs), targets).item()
    assert objective.loss() == pytest.approx(mean, rel=1e-12)


def test_values_of_several_outputs_per_sample_are_averaged() -> None:
    model, targets = mlp(), normal(N, CLASSES, seed=2)
    objective = pl.Objective(model, lambda o, t: (o - t) ** 2, (VECTOR, targets), batch_size=4)
    assert objective.loss() == pytest.approx(F.mse_loss(model(VECTOR), targets).item(), rel=1e-12)


def info_nce(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction=reduction)


@pytest.mark.parametrize(
    "loss",
    [
        info_nce,
        functools.partial(info_nce, reduction="none"),
        lambda o, t: o.var(0).sum(),
        lambda o, t: F.cross_entropy(o - o.mean(0), t),
        lambda o, t: F.cross_entropy(o, t) + 1 / len(t),
        lambda o, t: F.cross_entropy(o, t).sqrt(),
        lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS),
    ],
    ids=["contrastive", "contrastive values", "variance", "centred", "size", "root", "weighted"],
)
@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
def test_a_loss_that_couples_samples_is_rejected(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"^Objective: loss must be a mean or a sum over samples"):
        classifier(loss=loss)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (3, TypeError, "loss must be callable, got 3"),
        (lambda o, t: 1.0, TypeError, "loss must return a real tensor, got 1.0"),
        (lambda o, t: t.sum(), TypeError, "loss must return a real tensor, got a tensor of shape"),
        (lambda o, t: o[:2].mean(1), ValueError, "a scalar or one value per sample, got a tensor"),
        (lambda o: o.mean(), ValueError, r"accept \(outputs, targets\).*shape \[8, 3\] and"),
        (nn.MSELoss(), ValueError, "loss must "),
        (lambda o, t: torch.tensor(o.mean().item()), ValueError, "cannot be evaluated on single"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_wrong_losses(loss: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^Objective: .*{message}"):
        classifier(loss=loss)


def test_the_users_loss_module_is_not_changed() -> None:
    loss = nn.CrossEntropyLoss(WEIGHTS.float())
    objective = classifier(loss=loss)
    objective.loss()
    assert loss.reduction == "mean"
    assert loss.weight.dtype == torch.float32


def test_names() -> None:
    names = {
        "CrossEntropyLoss": nn.CrossEntropyLoss(),
        "cross_entropy": functools.partial(F.cross_entropy, reduction="sum"),
        "Focal": Focal(),
        "<lambda>": lambda o, t: F.cross_entropy(o, t),
    }
    for name, loss in names.items():
        assert classifier(loss=loss).describe()["loss_function"] == name


def accuracy(objective: pl.Objective) -> float:
    return objective.evaluate(objective.center[None])["accuracy"].item()


def test_accuracy_of_classes() -> None:
    objective = classifier(count=N, batch_size=4)
    right = objective.model(normal(N, 4)).argmax(1) == labels(N, 3)
    assert accuracy(objective) == pytest.approx(right.double().mean().item())
    assert 0 < accuracy(objective) < 1


def test_accuracy_leaves_ignored_targets_out() -> None:
    model, targets = dense(), with_ignored(DENSE)
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy):
        objective = pl.Objective(model, loss, (GRID, targets), batch_size=5)
        right = (model(GRID).argmax(1) == targets)[targets != -100]
        assert accuracy(objective) == pytest.approx(right.double().mean().item())


def test_accuracy_of_binary_logits() -> None:
    targets = labels(N, 2).double()[:, None]
    objective = pl.Objective(mlp(classes=1), nn.BCEWithLogitsLoss(), (VECTOR, targets))
    right = (objective.model(VECTOR) > 0) == (targets > 0.5)
    assert accuracy(objective) == pytest.approx(right.double().mean().item())


def test_no_accuracy_without_classes() -> None:
    outputs = normal(4, 3)
    assert accuracy_metric(nn.MSELoss(), outputs, normal(4, 3)) is None
    assert accuracy_metric(nn.MSELoss(), normal(4, 1), torch.arange(4)) is None
    assert accuracy_metric(nn.CrossEntropyLoss(), outputs, soft(4, 3)) is None
    assert accuracy_metric(F.cross_entropy, {"logits": outputs}, torch.arange(4)) is None


def test_a_loss_of_half_precision_is_accepted() -> None:
    for seed in range(8):  # rounding is above the tolerance of float32 for most of them
        data = normal(32, 4, seed=seed), labels(32, 3)
        exact = pl.Objective(mlp(), F.cross_entropy, data).loss()
        for dtype in (torch.bfloat16, torch.float16):
            objective = pl.Objective(mlp().to(dtype), F.cross_entropy, data)
            assert objective.loss() == pytest.approx(exact, rel=0.05)


def test_convolution_and_loss_on_one_channel() -> None:
    model, data = convnet(), (normal(5, 1, 6, 6), labels(5, 3))
    objective = pl.Objective(model, F.cross_entropy, data, batch_size=2)
    assert objective.loss() == pytest.approx(F.cross_entropy(model(data[0]), data[1]).item())
