"""Alignment: hidden permutations come back exactly, the function stays, barriers fall."""

import copy
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from models import normal, resnet
from random_models import randomised
from torch import nn

import pylandscape as pl
from pylandscape.connectivity import alignment
from pylandscape.connectivity.alignment import _Moments
from pylandscape.study.data import load_mnist


def mlp(seed=0, width=12):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 9), nn.LayerNorm(9), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def convnet(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 10, 2), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 3)).double()


def deep(seed=0):
    torch.manual_seed(seed)
    return resnet(10).double()


NETS = {"mlp": (mlp, (5,)), "convnet": (convnet, (3, 8, 8)), "resnet": (deep, (3, 8, 8))}


def objective_of(model, shape, count=40, **options):
    targets = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(1))
    return pl.Objective(model, nn.CrossEntropyLoss(), (normal(count, *shape), targets), **options)


def shuffled(model, objective, seed=5):
    """The same function with the units of every group in a random order, and the orders."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for group in pl.permutation_groups(objective):
        order = torch.randperm(group.size, generator=generator)
        for axis in group.axes:
            state[axis.tensor] = axis.permute(state[axis.tensor], order)
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", NETS)
def test_a_hidden_permutation_is_recovered_exactly(name, method):
    build, shape = NETS[name]
    model = randomised(build())
    objective = objective_of(copy.deepcopy(model), shape)
    other = shuffled(model, objective)
    moved = [n for n, x in model.state_dict().items() if not torch.equal(x, other.state_dict()[n])]
    assert len(moved) > 0.7 * len(model.state_dict())
    aligned = pl.align(objective, model, other, method)
    for key, tensor in aligned.state_dict().items():  # running statistics included
        assert torch.equal(tensor, model.state_dict()[key]), key


@pytest.mark.parametrize("name", NETS)
def test_the_aligned_model_computes_the_same_function(name):
    build, shape = NETS[name]
    a, b = randomised(build(1)), randomised(build(2))
    before = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    objective = objective_of(build(3), shape)
    for method in ("weights", "activations"):
        aligned = pl.align(objective, a, b, method)
        assert not torch.equal(aligned[0].weight, b[0].weight)
        inputs = normal(9, *shape, seed=4)
        torch.testing.assert_close(aligned.eval()(inputs), copy.deepcopy(b).eval()(inputs))
        for model, old in zip((a, b), before, strict=True):
            assert all(torch.equal(old[n], x) for n, x in model.state_dict().items())
            assert model.training


def test_one_layer_is_assigned_as_well_as_can_be():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).double() for _ in "ab")
    objective = objective_of(a, (3,))
    matching = pl.match_units(objective, a, b)
    of_a = objective.space.flatten(a)

    def similarity(order):
        order = list(order)
        tensors = (b[0].weight[order], b[0].bias[order], b[2].weight[:, order], b[2].bias)
        vector = torch.cat([tensor.detach().flatten() for tensor in tensors])
        return float(torch.cosine_similarity(of_a, vector, 0))

    best = max(permutations(range(5)), key=similarity)
    assert matching.orders["0"].tolist() == list(best)
    assert matching.similarity == pytest.approx(similarity(best))
    assert matching.similarity_before == pytest.approx(similarity(range(5)))


def test_the_similarity_never_falls():
    objective = objective_of(deep(3), (3, 8, 8))
    for seed in range(3):
        matching = pl.match_units(objective, deep(1), deep(2), seed=seed)
        assert matching.similarity > matching.similarity_before
        assert matching.seed == seed
        assert matching.sweeps < 30  # it ends where nothing is gained
        for group in matching.groups:
            assert sorted(matching.orders[group.name].tolist()) == list(range(group.size))


def test_models_can_be_given_as_state_dicts_and_vectors():
    objective = objective_of(mlp(3), (5,))
    a, b = mlp(1), mlp(2)
    expected = pl.align(objective, a, b).state_dict()
    for other in (b.state_dict(), objective.space.flatten(b), nn.DataParallel(b)):
        aligned = pl.align(objective, objective.space.flatten(a), other)
        assert all(torch.equal(expected[n], x) for n, x in aligned.state_dict().items())


def test_units_that_respond_alike_are_matched_where_weights_mislead():
    """Two units read inputs that are equal on the data: only their responses tell them apart."""
    a = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    b = copy.deepcopy(a)
    with torch.no_grad():
        a[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        b[0].weight.copy_(torch.tensor([[0.0, 1.0], [-0.1, 0.0]]) + 1e-3)
        a[2].weight.copy_(torch.eye(2))
        b[2].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    inputs = normal(20, 1).expand(20, 2).contiguous()
    data = inputs, torch.randint(0, 2, (20,))
    objective = pl.Objective(a, nn.CrossEntropyLoss(), data)
    assert pl.match_units(objective, a, b, "activations").orders["0"].tolist() == [0, 1]
    assert pl.match_units(objective, a, b, "weights").orders["0"].tolist() == [1, 0]


def test_correlations_do_not_see_the_scale_of_a_unit():
    a, b = normal(12, 3), normal(12, 4) * torch.tensor([1e-3, 1.0, 50.0, 1e4]) + 7
    moments = _Moments()
    for rows in (slice(0, 5), slice(5, 12)):
        moments.add(a[rows], b[rows])
    expected = torch.corrcoef(torch.cat([a, b], 1).T)[:3, 3:]
    torch.testing.assert_close(moments.correlations(), expected, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def trained():
    """Two nets with BatchNorm on digits, and their objective."""
    digits = load_mnist().first(1500, 10)
    inputs, targets = digits.train
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(784, 96), nn.BatchNorm1d(96), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(96, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for index in torch.randint(1500, (150, 128)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimizer.step()
        models.append(model.eval())
    return pl.Objective(models[0], nn.CrossEntropyLoss(), digits.train), *models


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_alignment_lowers_the_barrier(trained, method):
    objective, a, b = trained
    aligned = pl.align(objective, a, b, method)
    barriers = {
        (name, policy): pl.interpolate(objective, a, other, 11, batchnorm=policy).attrs["barrier"]
        for name, other in (("before", b), ("after", aligned))
        for policy in ("interpolate", "recompute")
    }
    assert barriers["after", "interpolate"] < 0.7 * barriers["before", "interpolate"]
    assert barriers["after", "recompute"] < 0.7 * barriers["before", "recompute"]
    # the statistics of an average are not the average of the statistics
    assert barriers["before", "recompute"] < 0.8 * barriers["before", "interpolate"]


def test_a_permutation_that_changes_the_function_is_an_error(monkeypatch):
    def without_the_bias(objective, where):
        groups = pl.permutation_groups(objective, where)
        return [replace(g, axes=tuple(a for a in g.axes if "bias" not in a.tensor)) for g in groups]

    monkeypatch.setattr(alignment, "permutation_groups", without_the_bias)
    objective = objective_of(mlp(3), (5,))
    with pytest.raises(RuntimeError, match="must compute the function of model_b"):
        pl.align(objective, mlp(1), mlp(2))


def test_bad_requests():
    objective = objective_of(mlp(), (5,))
    with pytest.raises(ValueError, match="align: method must be one of"):
        pl.align(objective, mlp(), mlp(), "greedy")
    with pytest.raises(ValueError, match="align: seed must be an integer >= 0"):
        pl.align(objective, mlp(), mlp(), seed=-1)
    with pytest.raises(ValueError, match="align: model_b must have the architecture"):
        pl.align(objective, mlp(), mlp(width=11))


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(normal(6, 5))
        self.last = nn.Linear(6, 3).double()

    def forward(self, x):
        return self.last(nn.functional.linear(x, self.weight).relu())


def test_activations_need_layers_that_are_modules():
    objective = objective_of(ByHand(), (5,))
    with pytest.raises(ValueError, match=r"method must be 'weights' .* for the group 'weight'"):
        pl.align(objective, ByHand(), ByHand(), "activations")
    other = shuffled(objective.model, objective)
    assert torch.equal(pl.align(objective, objective.model, other).weight, objective.model.weight)
