"""Groups of units that can change places: which there are, and that the function stays the same."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from models import initialised, normal, resnet
from random_models import Apply, Combine, architectures, randomised
from torch import nn

import pylandscape as pl
from pylandscape.connectivity.symmetry import groups_of


def permuted_outputs(model, groups, inputs, seed=0):
    """The outputs of the model with all units of all groups in another order, and as it is."""
    generator = torch.Generator().manual_seed(seed)
    own = dict((*model.named_parameters(), *model.named_buffers()))
    state = {name: tensor.detach() for name, tensor in own.items()}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        if torch.equal(order, torch.arange(group.size)):
            order = order.flip(0)
        for axis in group.axes:
            state[axis.tensor] = axis.permute(state[axis.tensor], order)
    assert not groups or any(not torch.equal(state[name], own[name]) for name in own)
    model.eval()
    with torch.no_grad():
        expected = model(inputs.clone())
        return torch.func.functional_call(model, state, (inputs.clone(),)), expected


def check(model, inputs, **sizes):
    """The groups have these sizes, by the names of their layers, and keep the function."""
    model = randomised(model)
    groups = groups_of(model, inputs)
    assert {group.name: group.size for group in groups} == {
        name.removeprefix("_").replace("__", "."): size for name, size in sizes.items()
    }
    permuted, expected = permuted_outputs(model, groups, inputs)
    torch.testing.assert_close(permuted, expected, rtol=1e-9, atol=1e-10)
    return {group.name: group for group in groups}


# -- the groups of known nets ---------------------------------------------------------------------


def test_mlp():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    groups = check(model, normal(5, 4), _0=6, _2=5)
    assert [axis.tensor for axis in groups["2"].axes] == ["2.weight", "2.bias", "4.weight"]


def test_convolutions_before_a_flattening():
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 5, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)]
    groups = check(nn.Sequential(*layers), normal(5, 1, 12, 12), _0=4, _4=5)
    moved = {axis.tensor for axis in groups["0"].axes}
    assert moved == {"0.weight", "0.bias", "4.weight"} | {
        f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    flattened = next(axis for axis in groups["4"].axes if axis.tensor == "7.weight")
    assert flattened.index.shape == (4, 5)  # positions, channels
    torch.testing.assert_close(flattened.index, torch.arange(20).view(5, 4).T)


def test_a_residual_stream_is_one_group():
    groups = check(
        resnet(), normal(3, 3, 8, 8),
        _0=6, _3__conv1=6, _4__conv1=12, _4__conv2=12, _5__conv1=12,
    )  # fmt: skip
    producers = {name: group.producers for name, group in groups.items()}
    assert producers["0"] == ("0.weight", "3.conv2.weight")
    assert set(producers["4.conv2"]) == {
        "4.conv2.weight", "4.shortcut.weight", "5.conv2.weight"
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_keeps_its_groups_apart(groups):
    layers = nn.Conv2d(1, 8, 3), nn.GroupNorm(groups, 8), nn.ReLU(), nn.Flatten()
    sizes = {"_0": 8} if groups in (1, 8) else {"_0": 4, "_0 (2)": 4}
    check(nn.Sequential(*layers, nn.Linear(32, 2)), normal(3, 1, 4, 4), **sizes)


def test_layer_norms():
    layers = nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)
    groups = check(nn.Sequential(*layers), normal(5, 4), _0=6)
    assert {"1.weight", "1.bias"} < {axis.tensor for axis in groups["0"].axes}
    for shape in ((5, 4, 4), (4, 4), (4,)):
        norm = nn.LayerNorm(shape)
        layers = nn.Conv2d(1, 5, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(80, 2)
        groups = check(nn.Sequential(*layers), normal(3, 1, 6, 6), _0=5)
        moved = "1.weight" in {axis.tensor for axis in groups["0"].axes}
        assert moved == (len(shape) == 3)


def test_depthwise_and_grouped_convolutions():
    layers = [nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 3, 1)]
    groups = check(nn.Sequential(*layers, nn.Flatten()), normal(3, 2, 5, 5), _0=6)
    depthwise = next(axis for axis in groups["0"].axes if axis.tensor == "1.weight")
    assert depthwise.index.shape == (2, 6)
    layers = [nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 1)]
    sizes = {"_0": 3, "_0 (2)": 3, "_1": 2, "_1 (2)": 2}
    check(nn.Sequential(*layers, nn.Flatten()), normal(3, 2, 5, 5), **sizes)


def test_concatenations_and_chunks():
    branches = Combine(nn.Linear(4, 3), nn.Linear(4, 5), lambda a, b: torch.cat([a, b], 1))
    groups = check(
        nn.Sequential(branches, nn.ReLU(), nn.Linear(8, 2)), normal(5, 4), _0__left=3, _0__right=5
    )
    last = next(axis for axis in groups["0.right"].axes if axis.tensor == "2.weight")
    assert last.index.tolist() == [[3, 4, 5, 6, 7]]
    gate = Apply(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid())  # ties halves of a layer
    layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), gate, nn.Linear(4, 2)
    check(nn.Sequential(*layers), normal(5, 4), _0=6)
    dense = Combine(nn.Identity(), nn.Sequential(nn.Linear(5, 3), nn.ReLU()), concatenate)
    check(
        nn.Sequential(nn.Linear(4, 5), dense, nn.Linear(8, 2)), normal(5, 4), _0=5, _1__right__0=3
    )


def concatenate(left, right):
    return torch.cat([left, right], 1)


def test_gates_tie_the_units_that_they_meet():
    squeeze = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid()
    )
    excite = Combine(nn.Identity(), squeeze, torch.mul)
    layers = nn.Conv2d(1, 6, 3), excite, nn.Flatten(), nn.Linear(96, 2)
    groups = check(nn.Sequential(*layers), normal(3, 1, 6, 6), _0=6, _1__right__1=2)
    assert groups["0"].producers == ("0.weight", "1.right.3.weight")
    # one map for all channels is none of them
    attend = Combine(nn.Identity(), nn.Conv2d(6, 1, 1), torch.mul)
    layers = nn.Conv2d(1, 6, 3), attend, nn.Flatten(), nn.Linear(96, 2)
    check(nn.Sequential(*layers), normal(3, 1, 6, 6), _0=6)


def test_mixers_keep_their_positions():
    tokens = nn.Sequential(
        Apply(lambda x: x.transpose(1, 2)), nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5),
        Apply(lambda x: x.transpose(1, 2)),
    )  # fmt: skip
    mixed = Combine(nn.Identity(), tokens, torch.add)
    block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
    layers = nn.Linear(4, 6), mixed, Combine(nn.Identity(), block, torch.add), nn.Linear(6, 2)
    check(nn.Sequential(*layers), normal(3, 5, 4), _0=6, _2__right__1=9)


def test_weights_that_are_used_twice_tie_their_units():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.first(x)
            for _ in range(3):
                x = self.inner(x).tanh()
            return self.last(x)

    groups = check(Recurrent(), normal(5, 4), first=6)
    assert [(x.tensor, x.dim) for x in groups["first"].axes if "inner.weight" in x.tensor] == [
        ("inner.weight", 1), ("inner.weight", 0)
    ]  # fmt: skip


def test_weights_that_read_the_input_and_units_too_hold_them_in_place():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.inner(self.inner(x).tanh()).tanh())

    check(Twice(), normal(5, 6))


def test_units_that_cannot_move_stay():
    check(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), normal(5, 4))  # outputs
    mirrored = Apply(lambda x: x - x.flip(1))
    check(nn.Sequential(nn.Linear(4, 6), mirrored, nn.Linear(6, 2)), normal(5, 4))
    products = Combine(nn.Linear(4, 3), nn.Linear(4, 5), lambda a, b: a[:, :, None] * b[:, None])
    check(nn.Sequential(products, nn.Flatten(), nn.Linear(15, 2)), normal(5, 4))
    blended = Apply(lambda x: x.transpose(1, 2))  # a convolution across channels
    layers = nn.Conv1d(1, 6, 3), blended, nn.Conv1d(4, 3, 1), nn.Flatten(), nn.Linear(18, 2)
    check(nn.Sequential(*layers), normal(3, 1, 6), _2=3)


def test_units_of_frozen_parameters_stay():
    model = initialised(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 3)))
    model[3].weight.requires_grad_(False)
    data = normal(6, 4), torch.randint(0, 3, (6,))
    objective = pl.Objective(model, nn.CrossEntropyLoss(), data)
    assert [group.name for group in pl.permutation_groups(objective)] == ["0"]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(architectures())
def test_random_nets_keep_their_function(drawn):
    model, shape = drawn
    inputs = normal(4, *shape)
    groups = groups_of(model, inputs)
    permuted, expected = permuted_outputs(model, groups, inputs)
    scale = float(expected.abs().max())
    torch.testing.assert_close(permuted, expected, rtol=1e-9, atol=1e-10 * max(scale, 1))


# -- bad input ------------------------------------------------------------------------------------


def test_a_model_that_is_not_covered_is_named():
    model = nn.Sequential(nn.Linear(4, 6), Apply(lambda x: x.cumsum(1)), nn.Linear(6, 3)).double()
    objective = pl.Objective(
        model, nn.CrossEntropyLoss(), (normal(6, 4), torch.randint(0, 3, (6,)))
    )
    with pytest.raises(
        ValueError, match=r"permutation_groups: .* aten\.cumsum at .*self\.function"
    ):
        pl.permutation_groups(objective)
    with pytest.raises(ValueError, match=r"align: .* aten\.cumsum at .*self\.function"):
        pl.align(objective, model, model)


def test_a_model_without_hidden_units():
    objective = pl.Objective(
        nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), (normal(6, 4), torch.randint(0, 3, (6,)))
    )
    with pytest.raises(ValueError, match="hidden units that can change places, got Linear"):
        pl.permutation_groups(objective)
