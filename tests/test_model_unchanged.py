"""An objective never changes the model: not by evaluating, by errors or by Ctrl-C."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import (
    classifier,
    initialised,
    labels,
    normal,
)
from torch import Tensor, nn

import pylandscape as pl

N = 12
X, Y = normal(N, 4), labels(N, 3)


def remembered(model: nn.Module) -> dict[str, Any]:
    """Everything of a module that an evaluation could change."""
    state: dict[str, Any] = {"rng": torch.get_rng_state()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state[name] = (id(tensor), tensor.detach().clone(), tensor.requires_grad)
        state[name + ".grad"] = None if tensor.grad is None else tensor.grad.clone()
    for name, module in model.named_modules():
        plain = {
            key: value
            for key, value in module.__dict__.items()
            if isinstance(value, (bool, int, float, Tensor, type(None)))
        }
        state[name + ".__dict__"] = plain, list(module.__dict__), list(module._parameters)
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


class Busy(nn.Module):
    """BatchNorm, dropout, frozen and tied parameters, and a forward that leaves traces."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.drop = nn.Dropout()
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        self.head.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.norm(self.first(x))
        self.new = self.last
        return self.head(self.drop(self.second(self.last.relu())))


def busy() -> nn.Module:
    model = initialised(Busy())
    model.second.eval()
    model(X).sum().backward()
    return model


class Failing:
    """Cross-entropy that raises at the given calls."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.left = error, -1

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error("in the loss")
        return F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("policy", ["frozen", "batch", "recompute"])
def test_the_model_is_not_changed(policy: str) -> None:
    model = busy()
    model.new = None
    before = remembered(model)
    objective = pl.Objective(model, F.cross_entropy, (X, Y), batchnorm=policy, batch_size=5)
    objective.loss()
    objective.gradient()
    objective.hessian_vector_product(objective.center)
    objective.buffers()
    pl.plane(objective, pl.random_directions(objective), resolution=2)
    assert same(remembered(model), before)
    assert not model.second.training
    assert model.training


@pytest.mark.parametrize("policy", ["frozen", "batch", "recompute"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["loss", "gradient", "hessian_vector_product"])
def test_the_model_is_not_changed_by_an_error(
    policy: str, error: type[BaseException], method: str
) -> None:
    model, loss = busy(), Failing(error)
    del model.new
    objective = pl.Objective(model, loss, (X, Y), batchnorm=policy, batch_size=5)
    before = remembered(model)
    loss.left = 2
    arguments = [objective.center] * (method == "hessian_vector_product")
    with pytest.raises(error):
        getattr(objective, method)(*arguments)
    assert loss.left <= 0
    assert same(remembered(model), before)
    loss.left = -1
    assert objective.loss() > 0


def test_swapped_tensors_are_put_back_after_an_interrupt_in_the_swap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if Ctrl-C came while `functional_call` replaces the tensors, and puts none back."""
    objective = classifier()
    before = remembered(objective.model)

    def interrupted(caller: nn.Module, state: dict[str, Tensor], args: Any) -> None:
        caller.model[0]._parameters["weight"] = state["model.0.weight"]
        caller.model[2].weird = 3
        raise KeyboardInterrupt

    monkeypatch.setattr("pylandscape.engines.module.functional_call", interrupted)
    with pytest.raises(pl.Interrupted, match="interrupted after 0 points"):
        objective.loss()
    assert same(remembered(objective.model), before)


def test_an_interrupted_evaluation_keeps_what_was_done() -> None:
    loss = Failing(KeyboardInterrupt)
    objective = classifier(loss=loss, batch_size=5)
    points = objective.center + normal(4, objective.space.size)
    complete = objective.evaluate(points)
    loss.left = 3 * 2 + 2  # three batches a point: in the third point
    with pytest.raises(pl.Interrupted) as caught:
        objective.evaluate(points)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.done == 2
    for name, values in caught.value.values.items():
        assert torch.equal(values[:2], complete[name][:2])
        assert values[2:].isnan().all()
