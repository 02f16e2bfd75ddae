"""The flat vector and its structure: order, ties, filters of every kind of layer."""

import pytest
import torch
from models import initialised, mlp, normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pylandscape import ParameterSpace
from pylandscape.parameters import unwrap


def filter_of_element(space: ParameterSpace) -> Tensor:
    """For every element of the flat vector the number of its filter, read from the table."""
    owner = torch.full((space.size,), -1)
    first = 0
    for offset, outer, rows, inner in space.filter_table.tolist():
        for o in range(outer):
            for r in range(rows):
                start = offset + (o * rows + r) * inner
                owner[start : start + inner] = first + r
        first += rows
    return owner


def test_flatten_follows_the_order_of_the_parameters_and_copies() -> None:
    model = mlp()
    space = ParameterSpace.from_model(model)
    vector = space.flatten(model)
    assert torch.equal(vector, nn.utils.parameters_to_vector(model.parameters()).detach())
    assert [entry.name for entry in space.entries] == [name for name, _ in model.named_parameters()]
    vector.zero_()
    assert not torch.equal(space.flatten(model), vector)


def test_flatten_of_a_single_parameter_copies() -> None:
    model = nn.Linear(2, 3, bias=False)
    ParameterSpace.from_model(model).flatten(model).zero_()
    assert model.weight.count_nonzero() == 6


def test_unflatten_undoes_flatten_and_gives_views() -> None:
    model = mlp()
    space = ParameterSpace.from_model(model)
    vector = space.flatten(model)
    tensors = space.unflatten(vector)
    assert all(torch.equal(tensors[name], p) for name, p in model.named_parameters())
    assert torch.equal(space.flatten(tensors), vector)
    tensors["0.weight"].zero_()
    assert torch.equal(vector[:24], torch.zeros(24, dtype=torch.float64))


def test_write_changes_the_model() -> None:
    model = mlp()
    space = ParameterSpace.from_model(model)
    point = normal(space.size, seed=9)
    space.write_(model, point)
    assert torch.equal(space.flatten(model), point)


def test_flatten_casts() -> None:
    model = mlp()
    vector = ParameterSpace.from_model(model).flatten(model, dtype=torch.float32)
    assert vector.dtype == torch.float32


def test_tied_parameters_appear_once_and_under_either_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    space = ParameterSpace.from_model(model)
    assert [entry.name for entry in space.entries] == ["0.weight"]
    assert space.size == 15


def test_frozen_parameters_are_no_part_of_the_space() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    assert [e.name for e in ParameterSpace.from_model(model).entries] == ["2.weight", "2.bias"]


def test_spaces_are_equal_when_names_and_shapes_agree() -> None:
    assert ParameterSpace.from_model(mlp()) == ParameterSpace.from_model(mlp())
    assert ParameterSpace.from_model(mlp()) != ParameterSpace.from_model(mlp(classes=4))
    assert hash(ParameterSpace.from_model(mlp())) == hash(ParameterSpace.from_model(mlp()))


def test_wrappers_are_looked_through() -> None:
    model = mlp()
    space = ParameterSpace.from_model(model)
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model),
        nn.DataParallel(nn.DataParallel(model)),
    ):
        assert unwrap(wrapped) is model
        assert ParameterSpace.from_model(wrapped) == space
        assert torch.equal(space.flatten(wrapped), space.flatten(model))


LAYERS = {
    "linear": (nn.Linear(3, 4), (2, 3)),
    "conv1d": (nn.Conv1d(2, 3, 3), (2, 2, 5)),
    "conv2d": (nn.Conv2d(2, 3, (2, 3)), (2, 2, 4, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 3)),
    "grouped": (nn.Conv2d(4, 6, 2, groups=2), (2, 4, 3, 3)),
    "depthwise": (nn.Conv2d(3, 6, 2, groups=3), (2, 3, 3, 3)),
    "transposed 1d": (nn.ConvTranspose1d(2, 3, 3), (2, 2, 4)),
    "transposed 2d": (nn.ConvTranspose2d(2, 3, 2), (2, 2, 3, 3)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), (2, 2, 2, 2, 2)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 3)),
    "bilinear": (nn.Bilinear(2, 2, 3), None),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_filter_makes_one_output_channel(kind: str) -> None:
    """Changing a filter of the weight changes one channel of the output, each filter another."""
    layer, shape = LAYERS[kind]
    layer = initialised(layer)
    space = ParameterSpace.from_model(layer)
    weight = next(entry for entry in space.entries if entry.name == "weight")
    owner = filter_of_element(space)
    inputs = (normal(*shape),) if shape else (normal(3, 2), normal(3, 2, seed=1))
    center, before = space.flatten(layer), layer(*inputs).detach()

    changed = []
    for number in owner[weight.slice].unique():
        point = torch.where(owner == number, center + 1, center)
        after = torch.func.functional_call(layer, space.unflatten(point), inputs)
        channels = (after - before).abs().transpose(0, 1).flatten(1).amax(1) > 1e-9
        assert channels.sum() == 1
        changed.append(int(channels.nonzero()))
    assert sorted(changed) == list(range(before.shape[1]))


@pytest.mark.parametrize(
    ("model", "filters"),
    [
        (nn.Embedding(5, 3), 5),
        (nn.LayerNorm(4), 2),
        (nn.BatchNorm2d(4), 2),
        (nn.MultiheadAttention(4, 2), 12 + 1 + 4 + 1),
        (parametrizations.weight_norm(nn.Linear(3, 4)), 1 + 4 + 4),
        (nn.PReLU(), 1),
        (nn.LSTM(3, 2), 8 + 8 + 1 + 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_number_of_filters(model: nn.Module, filters: int) -> None:
    space = ParameterSpace.from_model(model)
    owner = filter_of_element(space)
    assert space.filters == filters
    assert torch.equal(owner.unique(), torch.arange(filters))
    assert torch.equal(torch.bincount(owner), space.filter_sizes)


def test_odd_shapes() -> None:
    model = nn.Module()
    model.scalar = nn.Parameter(torch.tensor(2.0))
    model.empty = nn.Parameter(torch.empty(0))
    model.hollow = nn.Parameter(torch.empty(3, 0))
    model.table = nn.Parameter(torch.ones(2, 2))
    space = ParameterSpace.from_model(model)
    assert space.size == 5
    assert {k: v.shape for k, v in space.unflatten(space.flatten(model)).items()} == {
        name: p.shape for name, p in model.named_parameters()
    }


def test_filter_slices_match_the_table() -> None:
    space = ParameterSpace.from_model(
        nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 2, 1))
    )
    owner = filter_of_element(space)
    for entry, where in zip(space.entries, space.filter_slices(), strict=True):
        assert owner[entry.slice].unique().tolist() == list(range(where.start, where.stop))


def test_select_by_pattern() -> None:
    space = ParameterSpace.from_model(mlp())
    assert [e.name for e in space.select("*.weight")] == ["0.weight", "2.weight"]
    assert [e.name for e in space.select(["2.*", "0.bias"])] == ["0.bias", "2.weight", "2.bias"]
    with pytest.raises(ValueError, match=r"must match at least one .*'3\.\*'.*are: 0\.weight"):
        space.select("3.*")


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"at least one parameter that requires a gradient.*ReLU"):
        ParameterSpace.from_model(nn.ReLU())
    with pytest.raises(ValueError, match=r"Linear with none. Unfreeze"):
        ParameterSpace.from_model(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"lazy 'weight'.*Run one batch"):
        ParameterSpace.from_model(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="real parameters, got complex 'weight'"):
        ParameterSpace.from_model(nn.Linear(2, 2, dtype=torch.complex64))
    space = ParameterSpace.from_model(mlp())
    with pytest.raises(ValueError, match=r"must hold '2.weight' of shape \[3, 6\], got shape \[4"):
        space.flatten(mlp(classes=4))
    with pytest.raises(ValueError, match=r"must hold '0.weight'.*got no such name"):
        space.flatten({})
    with pytest.raises(TypeError, match="module or a mapping by name, got a tensor of shape"):
        space.flatten(torch.zeros(3))
    with pytest.raises(ValueError, match=rf"vector must have shape \[{space.size}\], got a tensor"):
        space.unflatten(torch.zeros(3))
