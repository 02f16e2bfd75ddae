"""Tensors of the host and the device never meet: tried with fake CUDA tensors, without a GPU."""

from collections.abc import Iterator

import pytest
import torch
from models import labels, normal
from simt.host import HostEngine
from simt.test_evaluate_points import residual_net
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)

import pylandscape as pl
from pylandscape import _ops
from pylandscape.curvature._krylov import STEPS_AHEAD, Krylov
from pylandscape.engines.native import _finite_points

pytestmark = pytest.mark.skipif(
    "obstacle" in _ops.cuda_build(), reason="the operators for CUDA are not built"
)


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_device(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cuda")


def test_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostEngine, "_verify", lambda _: 1.0)
    with unset_fake_temporarily():
        data = normal(4, 2, 6, 6).float(), labels(4, 4)
        loss = nn.CrossEntropyLoss(torch.ones(4))
        objective = pl.Objective(residual_net().float(), loss, data, engine="torch")
        engine = HostEngine(objective._engine)
        state = engine._state()
    fake = {name: on_device(tensor) for name, tensor in state.items()}
    monkeypatch.setattr(engine, "_state", lambda *_: fake)
    monkeypatch.setattr(engine, "_inputs", on_device(engine._inputs))
    monkeypatch.setattr(engine, "_targets", on_device(engine._targets))
    packed = engine._pack(on_device(objective.center), [torch.zeros(objective.space.size)], 1)
    assert packed.device.type == "cuda"
    coordinates, sums = torch.zeros(3, 1), torch.zeros(3, 7, dtype=torch.float64)
    assert _finite_points(engine._norms(packed), coordinates).device.type == "cpu"
    engine._add_sums(sums, packed, coordinates, engine.plan.constants(fake), 0, 4)
    assert sums.device.type == "cpu"


def test_the_operators() -> None:
    w, d, c = on_device(torch.zeros(12)), on_device(torch.zeros(2, 12)), torch.zeros(3, 2)
    table, scales = torch.tensor([[0, 2, 2, 3]]), torch.zeros(2, 2)
    assert _ops.perturb(w, d, c).device.type == "cuda"
    assert _ops.perturb_random(w, torch.tensor([1, 2]), scales, table, c).device.type == "cuda"
    assert _ops.random_normal(1, 12, "cuda").device.type == "cuda"


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_results_lie_on_the_device_of_their_arguments(device: str) -> None:
    """Also where that is not the current one; launches take its stream, see csrc/cuda/launch.h."""
    w, d = (torch.empty(shape, device=device) for shape in (12, (2, 12)))
    table, c = torch.tensor([[0, 2, 2, 3]]), torch.zeros(3, 2)
    seeds, scales = torch.tensor([1, 2]), torch.zeros(2, 2)
    step = _ops.lanczos_step(torch.empty(4, 12, device=device), w.clone(), 0)
    found = [
        _ops.perturb(w, d, c), _ops.perturb_random(w, seeds, scales, table, c),
        _ops.random_normal(1, 12, device), step.coefficients, step.beta, step.breakdown,
    ]  # fmt: skip
    assert [str(tensor.device) for tensor in found] == [device] * len(found)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_lanczos_steps_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake tensor has no numbers: whoever asks for one before they are fetched fails."""
    fetched: list[int] = []
    monkeypatch.setattr(_ops, "fetch_steps", lambda steps: fetched.append(len(steps)) or [])
    matrix, rows = on_device(torch.zeros(12, 12)), on_device(torch.zeros(9, 12))
    with pytest.raises(DataDependentOutputException):
        bool(matrix[0, 0] > 0)
    process = Krylov(rows, 0, matrix[0])
    for step in range(STEPS_AHEAD["cuda"]):
        assert process.between_fetches == (step > 0)
        assert not fetched
        process.step(matrix, process.size_of_columns)
    assert fetched == [4]
