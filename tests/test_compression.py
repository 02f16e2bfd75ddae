"""Compressed snapshots: their error, their size, and what they survive."""

import copy

import pytest
import torch
from descent import Bowl, sgd
from torch import nn

import pylandscape as pl
from pylandscape.trajectory import deltas


class Drift(nn.Module):
    """Tensors of several types under a walk that the optimizer makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.single = nn.Parameter(torch.randn(40, 30))
        self.wide = nn.Parameter(torch.randn(50).double())
        self.short = nn.Parameter(torch.randn(20).half())
        self.tied = self.single
        self.turned = nn.Parameter(torch.randn(6, 7).T)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("none", torch.empty(0))


def walk(directory, steps, stride=1.0, **options):
    """Records a random walk with growing strides; returns the states as they were."""
    model = Drift()
    optimizer = sgd(model)
    states = [copy.deepcopy(model.state_dict())]
    with pl.Recorder(directory, **options).attach(model, optimizer):
        for step in range(steps):
            for parameter in model.parameters():
                parameter.grad = stride * torch.randn_like(parameter) * (1 + step)
            model.count += 1
            model.mean += 0.1
            optimizer.step()
            states.append(copy.deepcopy(model.state_dict()))
    return model, states


@pytest.mark.parametrize("stride", [1e-8, 1.0])  # the first is below what half precision holds
def test_compressed_snapshots_are_within_the_stated_error_which_is_measured(tmp_path, stride):
    steps = 2 * deltas.WHOLE_EVERY + 5
    _, states = walk(tmp_path, steps, stride, compress=True)
    path = pl.Trajectory(tmp_path)
    assert path.steps == list(range(steps + 1))
    owned = states[0].keys() - {"tied"}
    for t, (wanted, found) in enumerate(zip(states, path, strict=True)):
        assert found.keys() == wanted.keys()
        squares = 0.0
        for name, x in wanted.items():
            error = (found[name].double() - x.double()).abs()
            if name in owned:
                squares += error.square().sum()
            change = (x.double() - path.state(max(t - 1, 0))[name].double()).abs()
            eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
            rounding = eps * x.double().abs()
            assert (error <= 2**-8 * change + rounding).all(), (t, name)
            assert found[name].dtype == x.dtype
        assert float(squares) ** 0.5 == pytest.approx(path.errors[t], rel=1e-6, abs=1e-15)
        exact = t % deltas.WHOLE_EVERY == 0 or t == steps
        assert (path.errors[t] == 0) == exact
        assert torch.equal(found["short"], wanted["short"])
        assert found["count"] == wanted["count"]


def test_the_vectors_of_compressed_snapshots_are_those_of_their_states(tmp_path, monkeypatch):
    model, _ = walk(tmp_path, 6, compress=True)
    path, space = pl.Trajectory(tmp_path), pl.ParameterSpace.from_model(model)
    for index in range(len(path)):
        row = path.vector(index, space)
        assert row.dtype == torch.float64
        assert torch.equal(row, space.flatten(path.state(index), torch.float64))
        piece = torch.empty(1201, dtype=torch.float64)
        path.snapshots[index].read(piece, space, start=25)
        assert torch.equal(piece, row[25:1226])


def test_compressed_snapshots_take_half_the_space(tmp_path):
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(100_000))

    sizes = {}
    for compress in (False, True):
        model = Large()
        optimizer = sgd(model)
        with pl.Recorder(tmp_path / str(compress), compress=compress).attach(model, optimizer):
            for _ in range(deltas.WHOLE_EVERY - 2):
                model.w.grad = torch.randn_like(model.w)
                optimizer.step()
        files = (tmp_path / str(compress) / "snapshots").iterdir()
        sizes[compress] = sorted(file.stat().st_size for file in files)
    assert sizes[True][0] < 0.51 * sizes[False][0]
    assert sum(sizes[True]) < 0.6 * sum(sizes[False])  # two of them are whole


def test_a_compressed_run_goes_on_from_its_own_state_or_from_the_exact_one(tmp_path):
    for source in ("own", "exact"):
        directory = tmp_path / source
        model = Drift()
        optimizer = sgd(model)
        run = pl.Recorder(directory, compress=True).attach(model, optimizer)
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        del run  # without the exact snapshot at the end
        path = pl.Trajectory(directory)
        assert path.errors[-1] > 0
        if source == "own":
            path.load_into(model, -1)
        again = sgd(model)
        with pl.Recorder(directory, compress=True, resume=True).attach(model, again):
            again.step()
        assert pl.Trajectory(directory).steps == list(range(7))
        assert torch.equal(pl.Trajectory(directory).state(-1)["single"], model.single)


def test_a_damaged_base_takes_what_builds_on_it_and_no_more(tmp_path):
    walk(tmp_path, deltas.WHOLE_EVERY + 2, compress=True)
    path = pl.Trajectory(tmp_path)
    path.snapshots[3].file.unlink()
    with pytest.raises(ValueError, match=r"step-000000003.safetensors must be a complete snapshot"):
        pl.Trajectory(tmp_path)
    kept = pl.Trajectory(tmp_path, skip_damaged=True)
    assert kept.steps == [0, 1, 2, 16, 17, 18]
    assert all(len(state) == 8 for state in kept)


def another_tensor(model):
    model.register_buffer("late", torch.ones(2))


def another_shape(model):
    model.mean = torch.ones(3)


def another_type(model):
    model.mean = model.mean.double()


@pytest.mark.parametrize("change", [another_tensor, another_shape, another_type])
def test_a_model_that_changes_makes_a_whole_snapshot(tmp_path, change):
    model = Drift()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path, compress=True).attach(model, optimizer):
        for step in range(4):
            if step == 2:
                change(model)
            optimizer.step()
    path = pl.Trajectory(tmp_path)
    assert [snapshot.depth for snapshot in path.snapshots] == [0, 1, 2, 0, 0]
    for name, tensor in model.state_dict().items():
        found = path.state(3)[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name


def test_divergence_makes_a_whole_snapshot(tmp_path):
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path, compress=True).attach(model, optimizer):
        for bad in (1.0, float("nan"), 1.0, 1.0):
            model.w.grad = torch.full_like(model.w, bad)
            optimizer.step()
            if bad != bad:
                with torch.no_grad():
                    model.w.fill_(1.0)
    path = pl.Trajectory(tmp_path)
    assert [bool(state["w"].isnan().any()) for state in path] == [False, False, True, False, False]
    assert path.snapshots[2].depth == path.snapshots[3].depth == 0
