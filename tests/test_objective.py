"""The objective as a function of w: values, errors, metrics; the model is never changed."""

import copy
import gc
import json
import pickle
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
    initialised,
    labels,
    mlp,
    normal,
    own_value,
)
from torch import Tensor, nn

import pylandscape as pl

N = 12
X, Y = normal(N, 4), labels(N, 3)
WEIGHTS = torch.tensor([0.2, 1.0, 2.5], dtype=torch.float64)


def sample_losses(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X), Y, reduction="none").detach()


# -- values --------------------------------------------------------------------------------------


def test_loss_at_a_point_is_that_of_a_model_with_these_parameters() -> None:
    objective = classifier()
    point = normal(objective.space.size, seed=5)
    moved = copy.deepcopy(objective.model)
    objective.space.write_(moved, point)
    assert objective.loss(point) == pytest.approx(F.cross_entropy(moved(X), Y).item(), rel=1e-12)
    assert objective.loss(point.float()) == pytest.approx(objective.loss(point), rel=1e-5)


def test_center_is_a_copy_of_the_parameters_as_they_are_now() -> None:
    objective = classifier()
    objective.center.zero_()
    before = objective.loss()
    with torch.no_grad():
        objective.model[0].bias += 1
    assert torch.equal(objective.center, objective.space.flatten(objective.model))
    assert objective.loss() != before


def test_evaluate_gives_each_points_own_values() -> None:
    objective = classifier(batch_size=5)
    points = objective.center + normal(4, objective.space.size, seed=6)
    values = objective.evaluate(points)
    assert {v.dtype for v in values.values()} == {torch.float64}
    assert values["loss"].tolist() == pytest.approx([objective.loss(p) for p in points])
    assert objective.evaluate(points[:0])["loss"].shape == (0,)


def test_standard_error_is_that_of_a_mean() -> None:
    objective = classifier(batch_size=5)
    values = objective.evaluate(objective.center[None])
    expected = sample_losses(objective.model).std() / N**0.5
    torch.testing.assert_close(values["loss_stderr"][0], expected)


def test_standard_error_of_a_subset_has_the_finite_population_factor() -> None:
    objective = classifier(samples=7, seed=3)
    chosen = torch.cat([inputs for inputs, _ in objective.data.batches(20)])
    losses = sample_losses(objective.model)[[int((row == X).all(1).nonzero()) for row in chosen]]
    values = objective.evaluate(objective.center[None])
    torch.testing.assert_close(values["loss"][0], losses.mean())
    torch.testing.assert_close(values["loss_stderr"][0], losses.std() / 7**0.5 * (1 - 7 / N) ** 0.5)


def test_standard_error_over_all_subsets() -> None:
    """Squared and averaged over all subsets of 2 of 5, it is the variance of their means."""
    x = normal(5, 3)
    model = Shift(normal(3, seed=1))
    pairs = [[i, j] for i in range(5) for j in range(i)]
    means = torch.stack([model(x[pair]).mean() for pair in pairs]).detach()
    squares = []
    for pair in pairs:
        objective = pl.Objective(model, own_value, (x[pair], torch.zeros(2)))
        squares.append(objective.evaluate(objective.center[None])["loss_stderr"][0] ** 2)
    expected = means.var(correction=0)
    torch.testing.assert_close(torch.stack(squares).mean() * (1 - 2 / 5), expected)


def test_standard_error_of_a_weighted_mean() -> None:
    """That of the ratio sum a / sum b, from the residuals a - L b."""
    objective = classifier(loss=nn.CrossEntropyLoss(WEIGHTS), batch_size=5)
    values = objective.evaluate(objective.center[None])
    b = WEIGHTS[Y]
    a = b * sample_losses(objective.model)
    loss = a.sum() / b.sum()
    torch.testing.assert_close(values["loss"][0], loss)
    expected = ((a - loss * b).square().sum() * N / (N - 1)).sqrt() / b.sum()
    torch.testing.assert_close(values["loss_stderr"][0], expected)


def test_one_sample_has_no_standard_error() -> None:
    objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), (X[:1], Y[:1]))
    assert objective.evaluate(objective.center[None])["loss_stderr"].isnan()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_kept(value: float) -> None:
    model = Shift(torch.ones(2, dtype=torch.float64))
    objective = pl.Objective(model, own_value, (X[:, :2].abs(), torch.zeros(N)))
    points = torch.tensor([[1.0, 1.0], [value, 1.0]], dtype=torch.float64)
    found = objective.evaluate(points)["loss"]
    assert found[0].isfinite()
    torch.testing.assert_close(found[1].item(), value, equal_nan=True)


def test_metrics_are_means_over_the_samples() -> None:
    metrics = {
        "margin": lambda o, t: o.gather(1, t[:, None])[:, 0] - o.mean(1),
        "positive": lambda o, t: o > 0,
    }
    objective = classifier(metrics=metrics, batch_size=5)
    values = objective.evaluate(objective.center[None])
    assert list(values) == ["loss", "loss_stderr", "margin", "positive", "accuracy"]
    outputs = objective.model(X).detach()
    torch.testing.assert_close(values["margin"][0], metrics["margin"](outputs, Y).mean())
    torch.testing.assert_close(values["positive"][0], (outputs > 0).double().mean())


def test_a_metric_may_replace_the_accuracy() -> None:
    objective = classifier(metrics={"accuracy": lambda o, t: torch.full((len(t),), 0.25)})
    assert objective.evaluate(objective.center[None])["accuracy"].item() == 0.25


def test_evaluate_along_is_evaluate_of_the_points() -> None:
    objective = classifier()
    directions = pl.random_directions(objective, 2)
    coordinates = normal(5, 2)
    along = objective.evaluate_along(objective.center, directions, coordinates)
    points = objective.center + coordinates @ directions.vectors.double()
    for name, values in objective.evaluate(points).items():
        torch.testing.assert_close(along[name], values, rtol=1e-5, atol=1e-7)


def test_buffers_of_their_own_at_each_point() -> None:
    model = convnet(norm=True)
    objective = pl.Objective(model, F.cross_entropy, (normal(6, 1, 6, 6), labels(6, 3)))
    directions = pl.Directions.from_vectors(objective, torch.zeros(1, objective.space.size))
    means = [normal(4), normal(4, seed=1)]
    values = objective.evaluate_along(
        objective.center,
        directions,
        torch.tensor([[0.0], [1.0]]),
        buffers=lambda row: {"1.running_mean": means[int(row)]},
    )
    for mean, found in zip(means, values["loss"], strict=True):
        moved = copy.deepcopy(model).eval()
        moved[1].running_mean.copy_(mean)
        inputs, targets = normal(6, 1, 6, 6), labels(6, 3)
        torch.testing.assert_close(found, F.cross_entropy(moved(inputs), targets).detach())


def test_double_precision_on_a_model_in_single_precision() -> None:
    model = convnet(norm=True).float()
    data = (normal(6, 1, 6, 6).float(), labels(6, 3))
    objective = pl.Objective(model, nn.CrossEntropyLoss(WEIGHTS.float()), data, dtype=torch.float64)
    exact = copy.deepcopy(model).double().eval()
    weights = WEIGHTS.float().double()
    expected = F.cross_entropy(exact(data[0].double()), data[1], weights).item()
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
    assert objective.gradient().dtype == torch.float64
    assert model[0].weight.dtype == torch.float32


def test_the_loss_is_one_function_where_attention_is_padded() -> None:
    """Torch's fast path would give other outputs at padded positions than the differentiable."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
            self.net = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.net(x, src_key_padding_mask=mask).flatten(1)

    mask = torch.arange(5)[None] >= torch.tensor([3, 5, 2, 4])[:, None]
    data = ((normal(4, 5, 4), mask), normal(4, 20, seed=1))
    objective = pl.Objective(initialised(Padded()), nn.MSELoss(), data)
    assert objective.loss() == pytest.approx(objective.loss_and_gradient()[0], rel=1e-12)


# -- other data, other policies, training --------------------------------------------------------


def test_replace_keeps_what_is_not_given() -> None:
    metrics = {"first": lambda outputs, targets: outputs[:, 0]}
    data = normal(20, 1, 6, 6), labels(20, 3)
    objective = pl.Objective(
        convnet(norm=True), nn.CrossEntropyLoss(), data, samples=12, seed=3, metrics=metrics
    )
    other = objective.replace(batchnorm="recompute")
    expected = pl.Objective(
        objective.model, nn.CrossEntropyLoss(), data, samples=12, seed=3, metrics=metrics,
        batchnorm="recompute",
    )  # fmt: skip
    points = objective.center[None]
    for name, values in expected.evaluate(points).items():
        assert torch.equal(other.evaluate(points)[name], values), name
    assert other.describe() == expected.describe()
    assert objective.batchnorm == "frozen"
    few = data[0][:5], data[1][:5]
    part = objective.replace(data=few)
    assert part.loss() == pl.Objective(objective.model, nn.CrossEntropyLoss(), few).loss()
    assert (part.samples, part.describe()["population"]) == (5, 5)
    assert objective.samples == 12


def test_replace_chooses_the_engine() -> None:
    objective = pl.Objective(mlp().float(), nn.CrossEntropyLoss(), (X.float(), Y), engine="native")
    assert objective.replace(data=(X[:6].float(), Y[:6])).engine == "native"
    assert objective.replace(engine="torch").engine == "torch"
    assert objective.replace(batchnorm="batch").engine == "torch"


def test_a_step_of_training_weights_its_batch_as_the_loss_does() -> None:
    objective = classifier(loss=nn.CrossEntropyLoss(weight=WEIGHTS))
    with objective.training() as step:
        loss, gradient = step(objective.center, (X[:5], Y[:5]))
    expected = F.cross_entropy(objective.model(X[:5]), Y[:5], WEIGHTS)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, flat_gradient(objective, expected, objective.model))


def test_training_leaves_the_model_as_it_was_after_an_error_too() -> None:
    model = convnet(norm=True).eval()
    model[0].train()
    objective = pl.Objective(model, nn.CrossEntropyLoss(), (normal(8, 1, 6, 6), labels(8, 3)))
    before = copy.deepcopy(model.state_dict())

    def train() -> None:
        with objective.training() as step:
            step(objective.center, objective.data.first(8))
            assert all(module.training for module in model.modules())
            step(objective.center, (normal(8, 2, 6, 6), labels(8, 3)))

    with pytest.raises(RuntimeError):
        train()
    assert [module.training for module in model.modules()][:3] == [False, True, False]
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_no_point_stays_in_memory() -> None:
    objective = classifier()

    def points_alive() -> int:
        gc.collect()
        found = (o for o in gc.get_objects() if type(o) is Tensor)
        return sum(tensor.numel() >= objective.space.size for tensor in found)

    points = objective.center + normal(20, objective.space.size)
    objective.evaluate(points)
    before = points_alive()
    objective.evaluate(points)
    objective.gradient()
    objective.hessian_vector_product(points[0])
    assert points_alive() == before


def test_points_are_not_changed_by_an_embedding_of_a_largest_norm() -> None:
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3))
    objective = pl.Objective(initialised(model), F.cross_entropy, (labels(6, 7, 3), labels(6, 3)))
    point = objective.center * 10
    kept = point.clone()
    objective.loss(point)
    objective.gradient(point)
    assert torch.equal(point, kept)


def test_gradients_where_gradients_are_off() -> None:
    objective = classifier()
    v = normal(objective.space.size)
    gradient, product = objective.gradient(), objective.hessian_vector_product(v)
    with torch.no_grad():
        assert torch.equal(objective.gradient(), gradient)
        assert torch.equal(objective.hessian_vector_product(v), product)


def test_inference_mode_has_no_derivatives() -> None:
    objective = classifier()
    loss = objective.loss()
    with torch.inference_mode():
        assert objective.loss() == loss
        with pytest.raises(ValueError, match=r"^gradient: must be called outside torch.inference"):
            objective.gradient()


def scalar_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def test_a_copy_and_a_pickle_work_alike() -> None:
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy, scalar_loss):
        objective = classifier(loss=loss, metrics={"m": own_value})
        value = objective.evaluate(objective.center[None])
        for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
            assert other.evaluate(other.center[None]) == value
    directions = pl.random_directions(objective)
    again = pickle.loads(pickle.dumps(directions))
    assert torch.equal(again.vectors, directions.vectors)


# -- models of all kinds -------------------------------------------------------------------------


def test_frozen_parameters_stay_where_they_are() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    objective = classifier(model)
    assert objective.space.size == 21
    point = normal(21)
    moved = copy.deepcopy(model)
    objective.space.write_(moved, point)
    assert torch.equal(moved[0].weight, model[0].weight)
    assert objective.loss(point) == pytest.approx(F.cross_entropy(moved(X), Y).item(), rel=1e-12)


def test_wrappers_are_looked_through() -> None:
    plain = classifier()
    compiled_in_place = mlp()
    compiled_in_place.compile(backend=lambda graph, inputs: 1 / 0)  # must not be used
    for model in (nn.DataParallel(mlp()), compiled_in_place):
        objective = classifier(model)
        assert objective.space == plain.space
        assert objective.loss() == plain.loss()
    assert compiled_in_place._compiled_call_impl is not None


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        outputs, state = self.net(x[:, None])
        return outputs[:, 0], state


def test_a_model_with_several_outputs() -> None:
    model = initialised(Tuple())
    loss: Callable[..., Tensor] = lambda o, t: F.cross_entropy(o[0], t)  # noqa: E731
    objective = pl.Objective(model, loss, (X, Y), batch_size=5)
    assert objective.loss() == pytest.approx(loss(model(X), Y).item(), rel=1e-12)


def test_dropout_layers_are_off() -> None:
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    assert classifier(model).loss() == classifier(mlp()).loss()


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.net(x))


def test_dropout_in_evaluation_mode_is_caught() -> None:
    with pytest.raises(ValueError, match=r"model must give the same outputs.*Turn off.*F\.dropout"):
        classifier(Dropping())


def test_attention_model_runs() -> None:
    tokens, classes = labels(6, 7, 5), labels(6, 3)
    model = initialised(Attention("multihead"))
    objective = pl.Objective(model, F.cross_entropy, (tokens, classes), batch_size=4)
    expected = F.cross_entropy(copy.deepcopy(model).eval()(tokens), classes).item()
    assert objective.loss() == pytest.approx(expected, rel=1e-12)


# -- description and errors ----------------------------------------------------------------------


def test_the_description_can_be_written_as_json() -> None:
    model = convnet(norm=True)
    data = normal(6, 1, 6, 6), labels(6, 3)
    objective = pl.Objective(model, F.cross_entropy, data, samples=5, seed=2, batchnorm="batch")
    found = json.loads(json.dumps(objective.describe()))
    expected = {
        "model": "Sequential", "parameters": objective.space.size, "samples": 5, "population": 6,
        "sample_seed": 2, "loss_function": "cross_entropy", "dtype": "float64", "engine": "torch",
        "batchnorm": "batch", "pylandscape": pl.__version__, "torch": torch.__version__,
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert len(found["data"]) == 16
    assert classifier().describe()["batchnorm"] == "none in the model"


def build(**changes: Any) -> pl.Objective:
    arguments: dict[str, Any] = {"model": mlp(), "loss": nn.CrossEntropyLoss(), "data": (X, Y)}
    return pl.Objective(**(arguments | changes))


def mixed() -> nn.Module:
    model = mlp()
    model[0].float()
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "model must be a torch.nn.Module in Python, got 3"),
        ({"model": mlp}, "model must be a torch.nn.Module in Python, got function"),
        (
            {"model": mixed()},
            "dtype must be given for a model of mixed precision, got.*float32.*64",
        ),
        ({"dtype": torch.int64}, "dtype must be a floating-point torch.dtype, got dtype"),
        ({"dtype": "float64"}, "dtype must be a floating-point torch.dtype, got 'float64'"),
        ({"batchnorm": "eval"}, r"batchnorm must be one of \('frozen', .*, got 'eval'"),
        ({"engine": "jax"}, r"engine must be one of \('auto', .*, got 'jax'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a positive integer, got 2.0"),
        ({"metrics": {"loss": own_value}}, "metrics must have names of their own, got 'loss'"),
        ({"metrics": {"alpha": own_value}}, "metrics must have names of their own, got 'alpha'"),
        ({"metrics": {"m": 3}}, "metrics must be callable, got 3"),
        ({"metrics": {"m": lambda o, t: o.mean()}}, r"one value per sample, got.*\[\].* from 'm'"),
        ({"metrics": own_value}, "metrics must be a mapping"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^Objective: .*{message}"):
        build(**changes)


def test_a_model_without_values() -> None:
    with pytest.raises(ValueError, match=r"must hold values, got parameters on the meta device"):
        build(model=mlp().to("meta"))


def test_a_model_without_trainable_parameters() -> None:
    with pytest.raises(ValueError, match=r"at least one parameter that requires a gradient"):
        build(model=mlp().requires_grad_(False))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o.loss(torch.zeros(3)), r"^loss: the point must have shape \[51\], got"),
        (lambda o: o.gradient(torch.zeros(1, 51)), r"^gradient: the point must .* \[1, 51\]"),
        (lambda o: o.evaluate(o.center), r"^evaluate: points must have shape \[K, 51\], got"),
        (lambda o: o.evaluate([[0.0] * 51]), r"^evaluate: points must have shape \[K, 51\], got"),
        (lambda o: o.hessian_vector_product(torch.zeros(3)), r"v must have shape \[51\] or \[51,"),
        (
            lambda o: o.evaluate_along(o.center, pl.random_directions(o), torch.zeros(2, 3)),
            r"^evaluate_along: coordinates must have shape \[K, 2\], got",
        ),
        (
            lambda o: o.evaluate_along(o.center, torch.zeros(2, 51), torch.zeros(2, 2)),
            r"^evaluate_along: directions must be Directions, got a tensor.*random_directions",
        ),
    ],
)
def test_wrong_points(call: Callable[[pl.Objective], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(classifier())
