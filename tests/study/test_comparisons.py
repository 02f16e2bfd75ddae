"""A rescaled network computes the same function with another curvature."""

from dataclasses import replace

import pytest
import torch

import pylandscape as pl
from pylandscape.study.analyses import Study
from pylandscape.study.comparisons import connections, rescaled
from pylandscape.study.config import SOLUTIONS, default_config, quick_config
from pylandscape.study.data import load_mnist
from pylandscape.study.model import SmallCNN


def test_rescaling_keeps_function_and_picture_and_changes_the_curvature():
    images, labels = load_mnist().first(40, 0).train
    data = images.double(), labels
    networks = [SmallCNN(3).double(), rescaled(SmallCNN(3).double(), 5.0)]
    torch.testing.assert_close(networks[0](data[0]), networks[1](data[0]), rtol=1e-12, atol=1e-12)
    lines, gradients = [], []
    for network in networks:
        objective = pl.Objective(network, torch.nn.CrossEntropyLoss(), data)
        direction = pl.random_directions(objective, 1, seed=1)
        lines.append(pl.line(objective, direction, extent=4.0, resolution=3).loss.values)
        gradients.append(objective.space.unflatten(objective.gradient()))
    # float32 directions: filters of both networks to their rounding
    assert lines[0] == pytest.approx(lines[1], rel=1e-5)
    assert lines[0][0] != pytest.approx(lines[0][1], rel=1e-2)
    for name, factor in (("conv1.weight", 1 / 5), ("conv2.weight", 5.0)):
        wanted = gradients[0][name] * factor
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-9, atol=1e-12)


def test_connections_are_described_by_what_ran(monkeypatch, tmp_path):
    monkeypatch.setattr(Study, "trained", lambda self, run: SmallCNN(ord(run)))
    config = replace(quick_config(), interpolation_resolution=17, curve_steps=2)
    study = Study(config, load_mnist().first(40, 20), tmp_path, progress=False)
    table = connections(study)
    assert table.attrs["paths"] == ["straight", "aligned", "curve"]
    assert (table.attrs["engine"], table.attrs["samples"]) == ("native", 40)
    ends, test = [study.trained(run) for run in "ab"], study.objective("a", "test")
    other = pl.interpolate(study.objective("a"), *ends, resolution=17, test=test)
    for name in ("barrier", "test_barrier"):
        assert float(table[name][0]) == pytest.approx(other.attrs[name], rel=1e-5)


def test_the_six_recipes_differ_in_batch_size_and_weight_decay_only():
    config = default_config(seed=2)
    recipes = [config.recipe(name) for name in SOLUTIONS]
    assert len({(r.batch_size, r.weight_decay) for r in recipes}) == 6
    assert [r.batch_size for r in recipes[:3]] == sorted(r.batch_size for r in recipes[3:])
    assert all(r.weight_decay > 0 for r in recipes[3:])
    assert {r.seed for r in recipes} == {config.recipe("a").seed} != {config.recipe("b").seed}
    assert {r.until_loss for r in recipes} == {config.solution_loss}
