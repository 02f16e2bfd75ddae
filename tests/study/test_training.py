"""Training: reproducible, recorded, and it learns."""

from dataclasses import replace

import pytest
import torch
import xarray as xr

import pylandscape as pl
from pylandscape.study.config import quick_config
from pylandscape.study.data import load_mnist
from pylandscape.study.model import SmallCNN
from pylandscape.study.training import train

CONFIG = replace(quick_config(), epochs=2, batch_size=32, learning_rate=0.05)


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
        runs.append(train(model, digits, CONFIG, 1, tmp_path / name, progress=False))
        models.append(model.state_dict())
    xr.testing.assert_identical(*runs)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_run_is_recorded(digits, tmp_path):
    model = SmallCNN(seed=2)
    result = train(model, digits, CONFIG, 2, tmp_path, progress=False)
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
