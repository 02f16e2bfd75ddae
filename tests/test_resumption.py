"""Runs that are there already: refused, resumed, readable after SIGKILL."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from descent import LEARNING_RATE, Bowl, descend, sgd, steps_of

import pylandscape as pl


def test_a_folder_with_a_run_is_refused_or_overwritten(tmp_path):
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path).attach(model, optimizer) as run:
        descend(model, optimizer, run, 4)
    notes = tmp_path / "snapshots" / "notes.txt"
    notes.write_text("kept")
    with pytest.raises(ValueError, match="resume=True to continue it, overwrite=True"):
        pl.Recorder(tmp_path)
    run = pl.Recorder(tmp_path, every=2, overwrite=True)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]  # deleted at attachment, not before
    with run.attach(model, optimizer):
        descend(model, optimizer, run, 2)
    assert steps_of(tmp_path) == [0, 2]
    assert pl.Trajectory(tmp_path).log.sizes["step"] == 2
    assert notes.read_text() == "kept"


def interrupted_run(tmp_path, steps=8, every=3):
    """A run that stopped after `steps` without the end that detach() writes."""
    model = Bowl()
    optimizer = sgd(model)
    run = pl.Recorder(tmp_path, every).attach(model, optimizer)
    descend(model, optimizer, run, steps)
    return model


def test_resume_goes_on_after_the_last_snapshot_as_if_nothing_had_happened(tmp_path):
    interrupted_run(tmp_path / "cut")
    with open(tmp_path / "cut" / "log.jsonl", "a") as file:
        file.write('{"step": 8, "epo')
    leftover = tmp_path / "cut" / "snapshots" / ".partial-step-000000008.safetensors"
    leftover.write_text("half")
    model = Bowl()
    pl.Trajectory(tmp_path / "cut").load_into(model, -1)
    optimizer = sgd(model)
    run = pl.Recorder(tmp_path / "cut", 3, resume=True)
    with run.attach(model, optimizer):
        assert run.step == 6
        descend(model, optimizer, run, 4)
    whole_model = interrupted_run(tmp_path / "whole", steps=10)
    assert torch.equal(model.w, whole_model.w)
    cut, whole = pl.Trajectory(tmp_path / "cut"), pl.Trajectory(tmp_path / "whole")
    assert cut.steps == [0, 3, 6, 9, 10]
    np.testing.assert_array_equal(cut.log.step, np.arange(10))
    np.testing.assert_array_equal(cut.log.loss, whole.log.loss)
    assert (np.diff(cut.log.time) > 0).all()
    assert not leftover.exists()


def test_resume_at_a_step_of_ones_own(tmp_path):
    interrupted_run(tmp_path, steps=10)
    model = Bowl()
    with torch.no_grad():
        model.w *= (1 - LEARNING_RATE) ** 4
    optimizer = sgd(model)
    with pl.Recorder(tmp_path, 3, resume=True).attach(model, optimizer, step=4) as run:
        descend(model, optimizer, run, 3)
    path = pl.Trajectory(tmp_path)
    assert path.steps == [0, 3, 4, 6, 7]
    np.testing.assert_array_equal(path.log.step, np.arange(7))
    assert torch.equal(path.state(2)["w"], Bowl().w * (1 - LEARNING_RATE) ** 4)


def test_resume_refuses_other_parameters_and_another_model(tmp_path):
    interrupted_run(tmp_path)
    model = Bowl()
    with pytest.raises(ValueError, match=r"values of step-000000006.*others in w"):
        pl.Recorder(tmp_path, resume=True).attach(model, sgd(model))
    model = Bowl(4)
    with pytest.raises(ValueError, match=r"shape \[4\] for 'w'.*shape \[5\]"):
        pl.Recorder(tmp_path, resume=True).attach(model, sgd(model))
    assert pl.Trajectory(tmp_path).log.sizes["step"] == 8


def test_resume_of_nothing_starts_a_run(tmp_path):
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path / "new", resume=True).attach(model, optimizer) as run:
        descend(model, optimizer, run, 1)
    assert steps_of(tmp_path / "new") == [0, 1]


# Starting a process costs more than the run: one imports, and forks the runs that are killed.
KILLING = textwrap.dedent(
    """
    import os, pathlib, random, signal, sys, time
    import torch, pylandscape as pl
    torch.set_num_threads(1)

    def train(directory, compress, say_when, steps=10**9):
        if say_when == "begun":  # so that reading, resuming and the first snapshot are hit too
            os.write(started, b"x")
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        if list(pathlib.Path(directory).glob("snapshots/step-*")):
            pl.Trajectory(directory).load_into(net, -1)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        recorder = pl.Recorder(directory, every=2, compress=compress, resume=True)
        recorder.attach(net, optimizer)
        if say_when == "attached":
            os.write(started, b"x")
        for _ in range(steps):
            optimizer.zero_grad()
            loss = net(torch.ones(8, 20)).square().mean()
            loss.backward()
            recorder.log(loss=loss)
            optimizer.step()
        recorder.detach()

    def check(directory, seen):
        path = pl.Trajectory(directory)
        assert path.steps == list(range(0, 2 * len(path), 2))
        for index in range(seen, len(path)):  # those before have been read
            assert all(torch.isfinite(x).all() for x in path.state(index).values())
        steps = path.log.step.values.tolist()
        assert steps == list(range(len(steps)))
        assert len(steps) >= path.steps[-1]  # the log is never behind the snapshots
        assert len(path) >= seen
        return len(path)

    directory, compress, kills = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
    delays, seen = random.Random(0), 0
    train(directory + "-first", compress, "never", steps=2)  # imports what torch leaves for later
    for attempt in range(kills):
        say_when = "begun" if attempt % 2 else "attached"
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            train(directory, compress, say_when)
        os.read(ready, 1)
        time.sleep(delays.uniform(0.0, 0.04 if say_when == "attached" else 0.015))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen = check(directory, seen)
    train(directory, compress, "never", steps=4)
    assert check(directory, seen) == seen + 2
    assert seen > kills // 2  # the runs made progress
    """
)


@pytest.mark.parametrize("compress", [False, True])
def test_a_run_killed_twenty_times_is_readable_and_goes_on(tmp_path, compress):
    arguments = [sys.executable, "-c", KILLING, str(tmp_path / "run"), str(compress), "20"]
    # not in the source tree, which has no compiled operators unless it is installed editable
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
