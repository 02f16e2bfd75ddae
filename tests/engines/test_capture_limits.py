"""What capture does not cover is named, and the model and the process stay as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capturing import B, Layer, assert_unchanged, captured, ops, snapshot
from random_models import Apply
from torch import Tensor, nn

from pylandscape.engines.capture import capture
from pylandscape.engines.program import NotCovered


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- what is not covered -------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


def _branch(m: Any, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def _count(m: Any, x: Tensor) -> Tensor:
    m.calls.add_(1)
    return x * 2


W = nn.Parameter(torch.randn(5, 5))
NOT_COVERED: dict[str, tuple[nn.Module, tuple[int, ...], str, str]] = {
    "softmax": (nn.Softmax(1), (5,), "aten.softmax", "has no native kernel"),
    "transposed": (
        nn.ConvTranspose2d(5, 2, 3),
        (5, 4, 4),
        "aten.conv_transpose2d",
        "has no native kernel",
    ),
    "conv3d": (nn.Conv3d(1, 2, 1), (1, 2, 2, 2), "aten.conv3d", "has no native kernel"),
    "lstm": (
        Layer(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(5, 4, batch_first=True)),
        (3, 5),
        "aten.lstm",
        "has no native kernel",
    ),
    "scale": (Layer(lambda m, x: x * m.w, w=W), (5, 5), "aten.mul", "uses 'w'"),
    "position": (Layer(lambda m, x: m.w + x, w=W), (5, 5), "aten.add", "uses 'w'"),
    "untransposed": (Layer(lambda m, x: x @ m.w, w=W), (5,), "aten.matmul", "uses 'w' as"),
    "reshaped": (
        Layer(lambda m, x: F.linear(x, m.w.view(-1, 5)[1:]), w=W),
        (5,),
        "aten.slice",
        "uses 'w'",
    ),
    "product": (Apply(lambda x: x @ x.mT), (5, 5), "aten.matmul", "two activations"),
    "quotient": (Apply(lambda x: x / x.sum(1, True)), (5,), "aten.div", "divides"),
    "cube": (Apply(lambda x: x**3), (5,), "aten.pow", "squares only"),
    "padding": (Apply(lambda x: F.pad(x, (1, 1), value=2.0)), (5,), "aten.pad", "other than zero"),
    "dropout": (Apply(F.dropout), (5,), "aten.native_dropout", "draws random numbers"),
    "random": (Apply(lambda x: x + torch.rand(5)), (5,), "aten.rand", "draws random numbers"),
    "constant-weight": (
        Apply(lambda x: F.linear(x, torch.ones(2, 5, dtype=x.dtype))),
        (5,),
        "aten.linear",
        "takes a weight that is not a parameter",
    ),
    "statistics": (
        nn.BatchNorm1d(5, track_running_stats=False),
        (5,),
        "aten._native_batch_norm_legit",
        "statistics of a batch",
    ),
    "uneven": (nn.AdaptiveMaxPool1d(3), (2, 7), "aten.adaptive_max_pool1d", "one size"),
    "indices": (
        Layer(lambda m, x: F.max_pool1d(x, 2, return_indices=True)[1] * x[..., :2]),
        (2, 4),
        "aten.max_pool1d_with_indices",
        "more than its values",
    ),
    "dtype": (Apply(lambda x: x.to(torch.bfloat16)), (5,), "aten._to_copy", "dtype"),
    "constant": (Apply(lambda x: x + torch.tensor([1.0] * 5)), (5,), "aten.add", "a constant"),
    "moved": (Apply(lambda x: x.transpose(0, 1)), (5,), "aten.transpose", "batch"),
    "moved-to-same-size": (Apply(lambda x: x.transpose(0, 1)), (3,), "aten.transpose", "batch"),
    "mixed-mean": (Apply(lambda x: x - x.mean(0)), (5,), "aten.mean", "batch"),
    "mixed-all": (Apply(lambda x: x - x.mean()), (5,), "aten.mean", "batch"),
    "mixed-sum": (Apply(lambda x: x + x.flip(0)), (5,), "aten.flip", "batch"),
    "mixed-ranks": (Apply(lambda x: x[:, 0] + x), (3,), "aten.add", "batch"),
    "mixed-norm": (Apply(lambda x: F.layer_norm(x, (3, 5))), (5,), "aten.layer_norm", "batch"),
    "unbatched": (Apply(lambda x: F.max_pool2d(x, 2)), (4, 4), "aten.max_pool2d", "batch"),
    "log_softmax-early": (
        Apply(lambda x: F.log_softmax(x, 1) * 2),
        (5,),
        "aten.log_softmax",
        "as the last operator only",
    ),
    "log_softmax-axis": (
        Apply(lambda x: F.log_softmax(x, 2)),
        (5, 4),
        "aten.log_softmax",
        "classes",
    ),
    "complex": (Apply(lambda x: x * torch.tensor(1j)), (5,), "aten.mul", "a constant"),
    "control-flow": (
        Apply(lambda x: torch.cond(torch.tensor(True), torch.sin, torch.cos, (x,))),
        (5,),
        "cond",
        "has no native kernel",
    ),
    "batch-size": (Apply(lambda x: x / len(x)), (5,), "", "size of the batch"),
    "fixed-batch": (Apply(lambda x: x.view(3, 5)), (5,), "the model", "fails"),
    "data-dependent": (Layer(_branch), (5,), "torch.export", "fails: Could not guard"),
    "two-outputs": (Apply(lambda x: (x, x)), (5,), "", "other than one tensor"),
    "no-output": (Apply(lambda x: None), (5,), "", "other than one tensor"),
    "unrelated-output": (Apply(lambda x: torch.tensor(1.0)), (5,), "", "does not depend"),
    "weight-norm": (
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)),
        (5,),
        "aten._weight_norm",
        "parametrizations.weight.original",
    ),
    "spectral-norm": (
        nn.utils.parametrizations.spectral_norm(nn.Linear(5, 2)),
        (5,),
        "aten",
        "weight",
    ),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_not_covered(name: str) -> None:
    model, shape, operator, reason = NOT_COVERED[name]
    model = model.double()
    before = snapshot(model)
    with pytest.raises(NotCovered) as caught:
        capture(model, torch.randn(B, *shape, dtype=torch.float64))
    assert_unchanged(model, before)
    assert caught.value.operator.startswith(operator)
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)


def test_changing_buffers_is_not_covered() -> None:
    model = Layer(_count)
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(NotCovered, match="changes calls in evaluation mode"):
        capture(model, torch.randn(B, 3))
    assert model.calls == 0


@pytest.mark.parametrize("inputs", [torch.zeros(4, 3, dtype=torch.int64), [torch.zeros(4, 3)]])
def test_inputs_other_than_one_floating_tensor_are_not_covered(inputs: Any) -> None:
    with pytest.raises(NotCovered, match="floating-point tensor"):
        capture(nn.Identity(), inputs)


def test_attention_in_one_line() -> None:
    with pytest.raises(NotCovered) as caught:
        capture(nn.Sequential(Attention()), torch.randn(B, 5, 8))
    place = f"{Path(__file__).name}:{Attention.forward.__code__.co_firstlineno + 2}"
    code = "return F.scaled_dot_product_attention(q, k, v)"
    assert str(caught.value) == (
        f"aten.scaled_dot_product_attention at {place} ({code}) has no native kernel"
    )


def test_transformer_in_one_line() -> None:
    with pytest.raises(NotCovered, match="has no native kernel") as caught:
        capture(nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.randn(B, 5, 8))
    assert "self_attn (MultiheadAttention)" in caught.value.source


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_not_covered() -> None:
    with pytest.raises(NotCovered, match="TorchScript"):
        capture(
            nn.Sequential(torch.jit.trace(nn.Linear(3, 2), torch.randn(B, 3))), torch.randn(B, 3)
        )


def test_generated_code_is_no_source() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)))
    with pytest.raises(NotCovered) as caught:
        capture(traced, torch.randn(B, 3))
    assert caught.value.source == "1 (Softmax)"


def test_failure_of_the_model_names_its_line() -> None:
    with pytest.raises(NotCovered) as caught:
        capture(NOT_COVERED["data-dependent"][0], torch.randn(B, 5, dtype=torch.float64))
    assert caught.value.source.endswith("(return x if x.sum() > 0 else -x)")


# -- the model and the process stay as they are ---------------------------------------------------


def test_mixed_training_flags_come_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    model.train()
    model[1].eval()
    captured(model, 3)
    assert [module.training for module in model] == [True, False, True]


def test_attributes_set_by_the_forward_come_back() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.last = x.tanh()
        return m.last

    model = Layer(forward)
    model.last = None
    captured_before = dict(model.__dict__)
    capture(model, torch.randn(B, 3))
    assert model.__dict__ == captured_before


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    with pytest.raises(NotCovered):
        capture(NOT_COVERED["data-dependent"][0], torch.randn(B, 5, dtype=torch.float64))
    capture(nn.Conv2d(2, 3, 2, padding="same"), torch.randn(B, 2, 5, 5))
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


@pytest.mark.parametrize("samples", [1, 2, 3, 9])
def test_any_number_of_samples_will_do(samples: int) -> None:
    program = capture(nn.Linear(4, 2), torch.randn(samples, 4))
    assert [value.shape for value in program.values] == [(4,), (2,)]


def test_inputs_are_not_written_to() -> None:
    inputs = torch.randn(B, 3)
    before = inputs.clone()
    program = capture(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), inputs)
    assert torch.equal(inputs, before)
    assert ops(program) == ["activation", "linear"]


def test_half_precision_models() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()).bfloat16()
    assert ops(capture(model, torch.randn(B, 2, 6))) == ["conv", "activation"]
