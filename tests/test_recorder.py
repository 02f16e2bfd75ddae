"""Recording: what is measured, when snapshots are taken, and that nothing is lost or changed."""

import copy
import os

import numpy as np
import pytest
import torch
from descent import LEARNING_RATE, Bowl, descend, sgd, steps_of
from safetensors import safe_open
from torch import nn

import pylandscape as pl
from pylandscape.parameters import unwrap
from pylandscape.trajectory import folder as run_folder
from pylandscape.trajectory import log, recorder, snapshots
from pylandscape.trajectory.schedule import schedule_of

# -- what is recorded -----------------------------------------------------------------------------


def test_rows_and_snapshots_belong_to_the_parameters_before_the_step(tmp_path):
    model = Bowl()
    norm = model.w.norm().item()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path).attach(model, optimizer) as run:
        descend(model, optimizer, run, 6)
    path = pl.Trajectory(tmp_path)
    shrunk = norm * (1 - LEARNING_RATE) ** np.arange(7)
    np.testing.assert_array_equal(path.log.step, np.arange(6))
    np.testing.assert_allclose(path.log.grad_norm, shrunk[:6], rtol=1e-14)
    np.testing.assert_allclose(path.log.loss, shrunk[:6] ** 2 / 2, rtol=1e-14)
    np.testing.assert_array_equal(path.log.learning_rate, LEARNING_RATE)
    assert (np.diff(path.log.time) > 0).all()
    np.testing.assert_allclose([s["w"].norm() for s in path], shrunk, rtol=1e-14)


def test_gradient_norm_counts_only_parameters_of_the_model(tmp_path):
    model, other = Bowl(), Bowl(3)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=LEARNING_RATE)
    expected = model.w.norm().item()
    with pl.Recorder(tmp_path).attach(model, optimizer):
        (model() + other()).backward()
        optimizer.step()
    assert pl.Trajectory(tmp_path).log.grad_norm.item() == pytest.approx(expected, rel=1e-14)


def test_gradient_norm_is_after_clipping_and_covers_sparse_gradients(tmp_path):
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = sgd(table)
    with pl.Recorder(tmp_path / "sparse").attach(table, optimizer):
        table(torch.tensor([2, 2, 7])).sum().backward()
        optimizer.step()
    norm = pl.Trajectory(tmp_path / "sparse").log.grad_norm.item()
    assert norm == pytest.approx((3 * (2**2 + 1**2)) ** 0.5)

    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path / "clipped").attach(model, optimizer) as run:
        model().backward()
        run.log(grad_norm_unclipped=nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
    rows = pl.Trajectory(tmp_path / "clipped").log
    assert rows.grad_norm.item() == pytest.approx(0.5, rel=1e-5)
    assert rows.grad_norm_unclipped.item() == pytest.approx(55**0.5)


def test_gradient_norm_is_without_the_factor_of_a_scaler(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = sgd(model, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with pl.Recorder(tmp_path).attach(model, optimizer):
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        scaler.step(optimizer)
    assert pl.Trajectory(tmp_path).log.grad_norm.item() == pytest.approx(2.0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips(tmp_path, fused):
    model = nn.Linear(3, 1)
    optimizer = sgd(model, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with pl.Recorder(tmp_path).attach(model, optimizer) as run:
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale(factor * model(torch.ones(1, 3)).sum()).backward()
            run.log(loss=factor)
            scaler.step(optimizer)
            scaler.update()
    path = pl.Trajectory(tmp_path)
    norms, losses = path.log.grad_norm.values.tolist(), path.log.loss.values.tolist()
    if fused:
        assert not np.isfinite(norms.pop(1))
        assert losses.pop(1) == np.inf
        assert torch.equal(path.state(1)["weight"], path.state(2)["weight"])
    assert norms == pytest.approx([2.0, 4.0])
    assert losses == [1.0, 2.0]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_gives_loss_and_gradient_norm_of_its_first_evaluation(tmp_path, kind, by_name):
    model = Bowl()
    optimizer = kind(model.parameters(), lr=LEARNING_RATE)

    def closure():
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    with pl.Recorder(tmp_path).attach(model, optimizer):
        for _ in range(3):
            optimizer.step(**{"closure": closure}) if by_name else optimizer.step(closure)
    path = pl.Trajectory(tmp_path)
    norms = [state["w"].norm().item() for state in path][:3]
    np.testing.assert_allclose(path.log.grad_norm, norms, rtol=1e-14)
    np.testing.assert_allclose(path.log.loss, np.square(norms) / 2, rtol=1e-14)


def test_learning_rates_follow_the_scheduler_and_the_groups(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(
        [{"params": model.weight}, {"params": model.bias, "lr": torch.tensor(0.5)}], lr=1.0
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with pl.Recorder(tmp_path).attach(model, optimizer):
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            schedule.step()
    rows = pl.Trajectory(tmp_path).log
    np.testing.assert_allclose(rows.learning_rate, [1, 0.5, 0.25])
    np.testing.assert_allclose(rows.learning_rate_1, [0.5, 0.25, 0.125])


def test_further_scalars_and_odd_losses_are_kept(tmp_path):
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path).attach(model, optimizer) as run:
        for step, loss in enumerate([float("nan"), float("inf"), None]):
            if loss is not None:
                run.log(loss=torch.tensor([loss]))
            if step == 1:
                run.log(accuracy=np.float32(0.25))
            model().backward()
            optimizer.step()
    rows = pl.Trajectory(tmp_path).log
    np.testing.assert_array_equal(rows.loss, [np.nan, np.inf, np.nan])
    np.testing.assert_array_equal(rows.accuracy, [np.nan, 0.25, np.nan])


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 3, 6, 7]),
        (np.int64(5), [0, 5, 7]),
        ("epoch", [0, 2, 4, 6, 7]),
        (lambda step: step < 3, [0, 1, 2, 7]),
        (np.array([4, 5]), [0, 4, 5, 7]),
        ("early", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_snapshots_come_as_every_says_and_at_both_ends(tmp_path, every, expected):
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path, every).attach(model, optimizer) as run:
        for _ in range(3):
            descend(model, optimizer, run, 2)
            run.end_epoch()
        descend(model, optimizer, run, 1)
    path = pl.Trajectory(tmp_path)
    assert path.steps == expected
    np.testing.assert_array_equal(path.log.epoch, [0, 0, 1, 1, 2, 2, 3])


def test_the_early_schedule_is_dense_first_and_even_between_powers_of_two():
    due = schedule_of("early")
    taken = [step for step in range(1, 1 << 12) if due(step)]
    assert taken[:64] == list(range(1, 65))
    for power in range(6, 12):
        octave = [step for step in taken if 2**power <= step < 2 ** (power + 1)]
        assert octave == list(range(2**power, 2 ** (power + 1), 2 ** (power - 5)))


class Tied(nn.Module):
    """Weights tied by name and by memory, tensors that are not contiguous, scalars, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.twin = nn.Linear(4, 6, bias=False)
        self.twin.weight.data = self.embedding.weight.data
        self.conv = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(3, 5).T)
        self.part = nn.Parameter(torch.randn(4, 4)[1:3])
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("empty", torch.empty(0))
        window = torch.randn(6)
        self.register_buffer("window", window)
        self.register_buffer("early", window[:4])  # it begins where the whole begins
        self.register_buffer("late", window[2:])
        self.register_buffer("scratch", torch.randn(7), persistent=False)


def test_state_is_that_of_state_dict_with_ties_stored_once(tmp_path):
    model = Tied()
    with pl.Recorder(tmp_path).attach(model, sgd(model)):
        pass
    path = pl.Trajectory(tmp_path)
    state, expected = path.state(0), model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype
    with safe_open(path.snapshots[0].file, "pt") as stored:
        assert set(stored.keys()) == expected.keys() - {"head.weight", "twin.weight"}
    other = Tied()
    path.load_into(other, 0)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def wrapped_in_data_parallel(model):
    return nn.DataParallel(model)


def compiled(model):
    return torch.compile(model)


def compiled_inside(model):
    model[0] = torch.compile(model[0])
    return model


def both(model):
    return torch.compile(nn.DataParallel(model))


@pytest.mark.parametrize("wrap", [wrapped_in_data_parallel, compiled, compiled_inside, both])
def test_names_have_no_prefix_of_a_wrapper(tmp_path, wrap):
    plain = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    expected = copy.deepcopy(plain).state_dict()
    model = wrap(plain)
    with pl.Recorder(tmp_path).attach(model, sgd(model)):
        pass
    path = pl.Trajectory(tmp_path)
    assert path.state(0).keys() == expected.keys()
    model = unwrap(model)  # as an Objective does; inner wrappers remain in the names
    space = pl.ParameterSpace.from_model(model)
    plain_space = pl.ParameterSpace.from_model(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert torch.equal(path.vector(0, space), path.vector(0, plain_space))
    with torch.no_grad():
        model.get_parameter(space.entries[0].name).zero_()
    path.load_into(model, 0)
    assert torch.equal(space.flatten(model), path.vector(0, space))


def test_names_have_no_prefix_of_distributed_data_parallel(tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        model = nn.parallel.DistributedDataParallel(plain)
        optimizer = sgd(model)
        with pl.Recorder(tmp_path).attach(model, optimizer):
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
    finally:
        distributed.destroy_process_group()
    path = pl.Trajectory(tmp_path)
    assert path.state(0).keys() == plain.state_dict().keys()
    assert torch.equal(path.state(1)["0.weight"], plain[0].weight)
    assert path.log.grad_norm.item() == pytest.approx(
        nn.utils.get_total_norm([p.grad for p in plain.parameters()]).item()
    )


# -- nothing is changed ---------------------------------------------------------------------------


def train_a_little(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    run = None if folder is None else pl.Recorder(folder).attach(model, optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 4)).square().mean()
        loss.backward()
        if run is not None:
            run.log(loss=loss)
        optimizer.step()
    if run is not None:
        run.detach()
    return [*model.state_dict().values(), *(p.grad for p in model.parameters())]


def test_training_is_bit_for_bit_the_same_with_a_recorder(tmp_path):
    for with_recorder, without in zip(train_a_little(tmp_path), train_a_little(None), strict=True):
        assert torch.equal(with_recorder, without)


def test_detach_removes_the_hooks_and_ends_the_recording(tmp_path):
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path).attach(model, optimizer) as run:
        descend(model, optimizer, run, 2)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert steps_of(tmp_path) == [0, 1, 2]
    with pytest.raises(ValueError, match="must be attached"):
        run.log(loss=1.0)
    run.detach()  # a second time does nothing


def test_an_exception_between_steps_keeps_the_last_parameters(tmp_path):
    model = Bowl()
    optimizer = sgd(model)

    def train():
        with pl.Recorder(tmp_path, every=100).attach(model, optimizer) as run:
            descend(model, optimizer, run, 3)
            run.log(loss=1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert steps_of(tmp_path) == [0, 3]


def test_a_step_that_fails_half_way_leaves_no_snapshot(tmp_path):
    model = Bowl()
    optimizer = sgd(model)

    def closure():
        raise ZeroDivisionError

    def train():
        with pl.Recorder(tmp_path, every=100).attach(model, optimizer) as run:
            descend(model, optimizer, run, 3)
            optimizer.step(closure)

    with pytest.raises(ZeroDivisionError):
        train()
    assert steps_of(tmp_path) == [0]
    assert pl.Trajectory(tmp_path).log.sizes["step"] == 3


def test_a_snapshot_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    model = Bowl()
    optimizer = sgd(model)
    run = pl.Recorder(tmp_path).attach(model, optimizer)
    descend(model, optimizer, run, 1)

    def half(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(snapshots, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        descend(model, optimizer, run, 1)
    assert steps_of(tmp_path) == [0, 1]
    assert len(list((tmp_path / "snapshots").iterdir())) == 2


def test_values_logged_after_the_last_step_are_warned_about(tmp_path):
    model = Bowl()
    run = pl.Recorder(tmp_path).attach(model, sgd(model))
    run.log(loss=1.0)
    with pytest.warns(UserWarning, match="before optimizer.step"):
        run.detach()


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_is_writer", lambda: False)
    model = Bowl()
    optimizer = sgd(model)
    with pl.Recorder(tmp_path).attach(model, optimizer) as run:
        descend(model, optimizer, run, 2)
        run.end_epoch()
        run.snapshot()
    assert not any(tmp_path.iterdir())


def test_a_snapshot_waits_until_the_log_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync

    def noted(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        rows = len(list(log.read_rows(tmp_path / "log.jsonl")))
        written = len(list((tmp_path / "snapshots").glob("step-*")))
        synced.append((name.partition("step-")[0], rows, written))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    model = Bowl()
    optimizer = sgd(model)
    run = pl.Recorder(tmp_path, 2).attach(model, optimizer)
    descend(model, optimizer, run, 2)
    # the log first, then the file under another name, then the folder that has its name
    assert synced[-3:] == [("log.jsonl", 2, 1), (".partial-", 2, 1), ("snapshots", 2, 2)]


def test_rows_that_wait_are_written_before_a_snapshot(tmp_path):
    writer = log.LogWriter(tmp_path / "log")
    writer.append({"step": 0, "epoch": 0, "loss": torch.tensor(1.0)})
    assert not list(log.read_rows(tmp_path / "log"))
    writer.sync()
    assert [row["loss"] for row in log.read_rows(tmp_path / "log")] == [1.0]
    writer.close()


def test_rows_with_tensors_wait_for_each_other(tmp_path):
    # Tensors stay in a row only when they are on an accelerator; any tensor shows the waiting.
    writer = log.LogWriter(tmp_path / "log")
    for step in range(log.HELD_ROWS + 3):
        writer.append({"step": step, "epoch": 0, "loss": torch.tensor(float(step))})
    assert len(list(log.read_rows(tmp_path / "log"))) == log.HELD_ROWS
    writer.close()
    rows = list(log.read_rows(tmp_path / "log"))
    assert [row["loss"] for row in rows] == list(range(log.HELD_ROWS + 3))


# -- bad input ------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, file / "run"):
        with pytest.raises(ValueError, match="Recorder: directory must be a folder that can be"):
            pl.Recorder(directory)


@pytest.mark.parametrize("every", [0, -1, 1.5, "batch", True, None])
def test_every_must_be_a_schedule(tmp_path, every):
    with pytest.raises(ValueError, match="Recorder: every must be a positive integer"):
        pl.Recorder(tmp_path, every)


def test_attach_and_log_say_what_is_wrong(tmp_path):
    model = Bowl()
    optimizer = sgd(model)
    run = pl.Recorder(tmp_path)
    with pytest.raises(ValueError, match=r"Recorder.log: the recorder must be attached"):
        run.log(loss=1.0)
    with pytest.raises(ValueError, match="none in common"):
        run.attach(Bowl(), optimizer)
    with pytest.raises(TypeError, match="optimizer a torch"):
        run.attach(model, model)
    with pytest.raises(ValueError, match="needs Recorder"):
        run.attach(model, optimizer, step=3)
    run.attach(model, optimizer)
    with pytest.raises(ValueError, match="must be attached once"):
        run.attach(model, optimizer)
    with pytest.raises(ValueError, match=r"got \['grad_norm'\]"):
        run.log(grad_norm=1.0)
    for value in (torch.ones(2), "high", None):
        with pytest.raises(ValueError, match="accuracy must be a number"):
            run.log(accuracy=value)
    run.detach()
    with pytest.raises(ValueError, match="must not both be True"):
        pl.Recorder(tmp_path, resume=True, overwrite=True)


def test_snapshot_files_are_in_the_order_of_steps(tmp_path):
    (tmp_path / "snapshots").mkdir()
    for step in (10, 1_000_000_000, 999_999_999, 9):
        run_folder.snapshot_file(tmp_path, step).touch()
    found = [run_folder.snapshot_step(file) for file in run_folder.snapshot_files(tmp_path)]
    assert found == [9, 10, 999_999_999, 1_000_000_000]
