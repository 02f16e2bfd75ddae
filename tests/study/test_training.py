"""Training: reproducible, recorded, and it learns."""

from dataclasses import replace

import pytest
import torch
import xarray as xr

import pylandscape as pl
from pylandscape.study.config import Recipe
from pylandscape.study.data import load_mnist
from pylandscape.study.model import SmallCNN
from pylandscape.study.training import train

RECIPE = Recipe(1, batch_size=32, epochs=2, learning_rate=0.05, momentum=0.9, snapshots_per_epoch=4)


@pytest.fixture(scope="module")
def digits():
    return load_mnist().first(300, 100)


def test_a_seed_gives_one_network():
    first, again, other = (SmallCNN(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_making_a_network_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    SmallCNN(seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_same_seed_same_run_whatever_else_draws_numbers(digits, tmp_path):
    runs, models = [], []
    for name in ("first", "second"):
        torch.rand(len(name))  # shifts the global generator
        model = SmallCNN(seed=1)
        runs.append(train(model, digits, RECIPE, tmp_path / name, progress=False))
        models.append(model.state_dict())
    xr.testing.assert_identical(*runs)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_run_is_recorded(digits, tmp_path):
    model = SmallCNN(seed=2)
    result = train(model, digits, replace(RECIPE, seed=2), tmp_path, progress=False)
    steps_per_epoch = 10  # 300 digits in batches of 32
    assert result.sizes == {"step": 2 * steps_per_epoch, "epoch": 3}
    assert result["train_loss"][-1] < 0.95 * result["train_loss"][0]
    path = pl.Trajectory(tmp_path)
    assert path.steps == list(range(0, 21, 2))
    last = path.state(-1)
    assert all(torch.equal(last[name], value) for name, value in model.state_dict().items())
    # the log holds the loss of the batch before the step, here that of the untrained network
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:32]
    first = torch.nn.functional.cross_entropy(
        SmallCNN(seed=2)(digits.train[0][order]), digits.train[1][order]
    )
    assert result["loss"][0].item() == pytest.approx(first.item(), rel=1e-5)


def test_training_ends_with_the_epoch_that_reaches_the_loss(digits, tmp_path):
    recipe = replace(RECIPE, epochs=9, until_loss=1.5, snapshots_per_epoch=None)
    result = train(SmallCNN(seed=1), digits, recipe, tmp_path, progress=False)
    losses = result["train_loss"].values
    assert losses[-1] <= 1.5 < losses[-2]
    assert 2 < len(losses) < 10
    assert pl.Trajectory(tmp_path).steps == [0, 10 * (len(losses) - 1)]


def test_weight_decay_shrinks_the_weights(digits, tmp_path):
    norms = []
    for decay in (0.0, 0.1):
        model = SmallCNN(seed=1)
        train(model, digits, replace(RECIPE, weight_decay=decay), tmp_path, progress=False)
        norms.append(model.linear1.weight.norm().item())
    assert norms[1] < 0.9 * norms[0]
