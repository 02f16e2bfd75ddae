"""A captured Program computes what the model computes, or names what is in the way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from capturing import Layer, captured, ops
from hypothesis import given, settings
from random_models import ACTIVATIONS, Apply, Combine, architectures, concatenate
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- operators -----------------------------------------------------------------------------------

CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv2d": (nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 2)), (3, 7, 8)),
    "conv2d-groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 6)),
    "conv2d-depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 5, 6)),
    "conv2d-same": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 5, 6)),
    "conv2d-same-even": (nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 5, 6)),
    "conv2d-valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 6)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 9)),
    "conv1d-groups": (nn.Conv1d(4, 4, 1, groups=2, bias=False), (4, 1)),
    "conv1d-same-even": (nn.Conv1d(3, 4, 4, padding="same"), (3, 9)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    model, shape = CONVOLUTIONS[name]
    assert ops(captured(model, *shape)) == ["conv"]


def test_convolution_attributes_are_pairs() -> None:
    attrs = captured(nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), 3, 9).nodes[0].attrs
    expected = {"kernel": (1, 3), "stride": (1, 2), "padding": (0, 2), "dilation": (1, 2)}
    assert attrs == {**expected, "groups": 1}
    attrs = captured(nn.Conv2d(2, 3, (2, 3), padding="same"), 2, 5, 6).nodes[0].attrs
    assert attrs["padding"] == ((0, 1), (1, 1))


def test_zero_padding_goes_into_the_convolution() -> None:
    model = nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(2, 3, 3, padding=1))
    program = captured(model, 2, 5, 6)
    assert ops(program) == ["conv"]
    assert program.nodes[0].attrs["padding"] == ((1, 2), (2, 3))
    padded = Layer(lambda m, x: m.conv(F.pad(x, (1, 1))), conv=nn.Conv2d(2, 3, 3))
    assert captured(padded, 2, 5, 6).nodes[0].attrs["padding"] == (0, 1)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_other_padding_moves_elements(mode: str) -> None:
    program = captured(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), 2, 5, 6)
    assert ops(program) == ["reindex", "conv"]


LINEAR: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "vector": (nn.Linear(5, 3), (5,)),
    "tokens": (nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "matmul": (Layer(lambda m, x: x @ m.w.T, w=nn.Parameter(torch.randn(3, 5))), (4, 5)),
    "mm": (Layer(lambda m, x: torch.mm(x, m.w.t()), w=nn.Parameter(torch.randn(3, 5))), (5,)),
    "addmm": (
        Layer(
            lambda m, x: torch.addmm(m.b, x, m.w.transpose(0, -1)),
            w=nn.Parameter(torch.randn(3, 5)),
            b=nn.Parameter(torch.randn(3)),
        ),
        (5,),
    ),
    "single": (Layer(lambda m, x: x @ m.w.T, w=nn.Parameter(torch.randn(1, 1))), (1,)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str) -> None:
    model, shape = LINEAR[name]
    assert ops(captured(model, *shape)) == ["linear"]


NORMS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "batch-vector": (nn.BatchNorm1d(3, eps=0.1), (3,), "batch_norm"),
    "batch-sequence": (nn.BatchNorm1d(3), (3, 4), "batch_norm"),
    "batch-image": (nn.BatchNorm2d(3, affine=False), (3, 4, 5), "batch_norm"),
    "layer": (nn.LayerNorm(5, eps=0.1), (4, 5), "layer_norm"),
    "layer-image": (nn.LayerNorm([3, 4, 5]), (3, 4, 5), "layer_norm"),
    "layer-plain": (nn.LayerNorm(5, elementwise_affine=False), (5,), "layer_norm"),
    "group": (nn.GroupNorm(2, 4, eps=0.1), (4, 3, 3), "group_norm"),
    "group-vector": (nn.GroupNorm(2, 6, affine=False), (6,), "group_norm"),
    "instance": (nn.InstanceNorm2d(3, affine=True), (3, 4, 5), "group_norm"),
    "instance-running": (nn.InstanceNorm1d(3, track_running_stats=True), (3, 4), "batch_norm"),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str) -> None:
    model, shape, op = NORMS[name]
    assert ops(captured(model, *shape)) == [op]


def test_activations() -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(make() for make in ACTIVATIONS)

        def forward(self, x: Tensor) -> Tensor:
            extra = [F.relu_(x * 1), F.hardtanh_(x * 1), F.elu_(x * 1), F.logsigmoid(x), F.rrelu(x)]
            extra += [x.clamp(-0.3, 0.4), x.clamp(min=0), x.clamp_max(0.2), x.clone().clamp_(max=1)]
            extra += [torch.clip(x, min=-0.5), F.leaky_relu_(x * 1, 0.3), F.softplus(x, 3, 1)]
            return torch.cat([layer(x.clone()) for layer in self.layers] + extra, 1)

    program = captured(All(), 7)
    kinds = {node.attrs["kind"] for node in program.nodes if node.op == "activation"}
    assert kinds == {
        *("relu", "leaky_relu", "hardtanh", "elu", "gelu", "gelu_tanh", "silu", "tanh"),
        *("sigmoid", "softplus", "hardswish", "hardsigmoid"),
    }


POOLS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "max2d": (nn.MaxPool2d((3, 2), (2, 1), 1, (1, 2)), (2, 7, 8), ["max_pool"]),
    "max2d-ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 8, 8), ["max_pool"]),
    "max1d": (nn.MaxPool1d(3, 2, 1), (2, 8), ["max_pool"]),
    "max-indices": (
        Layer(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        (2, 4, 4),
        ["max_pool"],
    ),
    "avg2d": (nn.AvgPool2d((3, 2), (2, 1), (1, 1)), (2, 7, 8), ["avg_pool"]),
    "avg2d-ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 8, 8), ["avg_pool"]),
    "avg2d-inside": (
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        (2, 8, 6),
        ["avg_pool"],
    ),
    "avg2d-divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 4, 4), ["avg_pool"]),
    "avg1d": (nn.AvgPool1d(3, 2, 1, count_include_pad=False), (2, 8), ["avg_pool"]),
    "adaptive2d": (nn.AdaptiveAvgPool2d((3, None)), (2, 7, 5), ["adaptive_avg_pool"]),
    "adaptive1d": (nn.AdaptiveAvgPool1d(3), (2, 7), ["adaptive_avg_pool"]),
    "adaptive-max": (nn.AdaptiveMaxPool2d((2, 3)), (2, 4, 9), ["max_pool"]),
    "mean": (Apply(lambda x: x.mean([2, 3])), (2, 3, 4), ["adaptive_avg_pool", "reindex"]),
    "mean-kept": (Apply(lambda x: x.mean((-1, -2), True)), (2, 3, 4), ["adaptive_avg_pool"]),
    "mean-sequence": (Apply(lambda x: x.mean(2)), (2, 3), ["adaptive_avg_pool", "reindex"]),
    "mean-tokens": (
        Apply(lambda x: x.mean(1)),
        (3, 2),
        ["reindex", "adaptive_avg_pool", "reindex"],
    ),
    "mean-all": (
        Apply(lambda x: x.mean((1, 2, 3))),
        (2, 3, 4),
        ["reindex", "adaptive_avg_pool", "reindex"],
    ),
    "sum": (Apply(lambda x: x.sum((2, 3))), (2, 3, 4), ["adaptive_avg_pool", "scale", "reindex"]),
    "largest": (Apply(lambda x: x.amax((2, 3))), (2, 3, 4), ["max_pool", "reindex"]),
}


@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str) -> None:
    model, shape, expected = POOLS[name]
    assert ops(captured(model, *shape)) == expected


def test_arithmetic() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = 2 - x * 3 + x / 4 - (x + 1.5)
        y = torch.add(y, x, alpha=2) - torch.sub(x, 5, alpha=2) * torch.tensor(1.5)
        y = y * x.mean(2, keepdim=True) + torch.tensor([0.5]) * torch.square(-x) + x**2
        y += x
        y *= 2
        return torch.rsub(y, x, alpha=0.5) + (3 - 1 * x).mul_(1)

    program = captured(Layer(forward), 3, 5)
    assert {"add", "sub", "mul", "scale"} <= set(ops(program))


def test_scale_by_one_makes_no_node() -> None:
    assert ops(captured(Apply(lambda x: ((x * 1 + 0) / 1).tanh()), 3)) == ["activation"]


def test_log_softmax() -> None:
    program = captured(nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), 4)
    assert ops(program) == ["linear", "log_softmax"]
    assert ops(captured(nn.LogSoftmax(1), 3, 2, 2)) == ["log_softmax"]


# -- data movement -------------------------------------------------------------------------------

MOVEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.size(0), -1),
    "view-inferred": lambda x: x.view(-1, 4 * 4 * 6),
    "flatten": lambda x: torch.flatten(x, 1),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "transpose": lambda x: x.transpose(1, -1).reshape(len(x), 6, -1),
    "slices": lambda x: x[:, 1:, ::2, 2],
    "cat": lambda x: torch.cat([x[:, :1], x, x.flip(1)], 1),
    "stack": lambda x: torch.stack([x, x.roll(1, 2)], 1),
    "split": lambda x: torch.cat(list(reversed(x.split([1, 3], 1))), 1),
    "chunk": lambda x: torch.cat(x.chunk(2, 3)[::-1], 3),
    "unbind": lambda x: x.unbind(1)[2],
    "expand": lambda x: x[:, :1].expand_as(x),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(3),
    "repeat": lambda x: x.repeat(1, 2, 1, 1).repeat_interleave(2, 2),
    "shuffle": lambda x: x.view(len(x), 2, 2, 4, 6).transpose(1, 2).reshape(len(x), 4, 4, 6),
    "channel-shuffle": lambda x: torch.channel_shuffle(x, 2),
    "pixel-shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0),
    "pad": lambda x: F.pad(x, (1, 0, 0, 2, 3, 1)),
    "crop-by-pad": lambda x: F.pad(x, (-1, 1)),
    "windows": lambda x: F.unfold(x, 2, padding=1),
    "index": lambda x: x[:, [2, 0, 0]],
    "index-computed": lambda x: x[:, torch.arange(3) + 1],
}


def test_movements() -> None:
    model = Apply(lambda x: torch.cat([move(x).flatten(1) for move in MOVEMENTS.values()], 1))
    assert ops(captured(model, 4, 4, 6)) == ["reindex"]


def test_movements_merge() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([x.relu(), x.tanh(), x.sigmoid()], 1).transpose(1, 2).flip(1)
        return y.transpose(1, 2)[:, 2:4].reshape(len(x), -1)

    program = captured(Layer(forward), 2, 3)
    assert ops(program)[-1] == "reindex"
    assert ops(program).count("reindex") == 1
    assert len(program.nodes[-1].inputs) == 1  # only the tanh is left


def test_movements_that_come_to_nothing() -> None:
    model = Apply(lambda x: x.flip(1).flip(1).transpose(1, 2).mT.relu().unsqueeze(1).squeeze(1))
    assert ops(captured(model, 2, 3)) == ["activation"]


def test_what_is_not_used_is_dropped() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.unused(x).softmax(1)
        left, _ = m.used(x).split([1, 2], 1)
        return F.dropout(left, 0.5, m.training).clone().detach()

    program = captured(Layer(forward, used=nn.Linear(4, 3), unused=nn.Linear(4, 4)), 4)
    assert ops(program) == ["linear", "reindex"]


def test_the_model_may_be_the_identity() -> None:
    program = captured(nn.Sequential(nn.Identity(), nn.Dropout()), 3)
    assert program.nodes == ()
    assert program.input == program.output


# -- names, tables -------------------------------------------------------------------------------


def test_ties_go_by_the_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[2].weight = model[0].weight
    model.append(model[3])
    program = captured(model, 4)
    linear = [node.tensors for node in program.nodes if node.op == "linear"]
    assert linear == [
        {"weight": "0.weight", "bias": "0.bias"},
        {"weight": "0.weight", "bias": "2.bias"},
    ]
    norms = [node.tensors for node in program.nodes if node.op == "batch_norm"]
    assert norms[0] == norms[1]
    assert norms[0]["mean"] == "3.running_mean"


def test_description_and_flops() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU6(), nn.Flatten(), nn.Linear(100, 3)
    )
    program = captured(model, 2, 5, 5)
    assert program.flops == 2 * (4 * 25 * 9 + 3 * 100)
    lines = [" ".join(line.split()) for line in program.describe().splitlines()]
    assert lines == [
        "operator output parameters attributes",
        "input 2x5x5",
        "conv 4x5x5 0: weight, bias kernel 3x3, padding 1x1, groups 2",
        "hardtanh 4x5x5 a 0, b 6",
        "reindex 100 same elements",
        "linear 3 3: weight, bias",
        "0.0024 MFLOP per sample",
    ]


def test_nodes_say_where_they_come_from() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tanh()  # here

    (node,) = captured(Model(), 3).nodes
    assert node.source.startswith("test_capture.py:")
    assert node.source.endswith("(return x.tanh()  # here)")
    (node,) = captured(nn.Sequential(nn.Tanh()), 3).nodes
    assert node.source == "0 (Tanh)"


# -- whole networks ------------------------------------------------------------------------------


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2).view(x.size(0), -1)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


class Residual(nn.Module):
    """With the shortcut A of He et al. (2016): every other pixel, zeros for new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return F.relu_(out).mean([2, 3])


def test_lenet() -> None:
    program = captured(LeNet(), 1, 28, 28)
    stage = ["conv", "activation", "avg_pool"]
    head = ["linear", "activation", "linear", "activation", "linear"]
    assert ops(program) == [*stage, *stage, "reindex", *head]


def test_residual_block() -> None:
    captured(Residual(), 4, 7, 7)


def test_concatenation() -> None:
    left, right = nn.Conv1d(3, 2, 3, padding=1), nn.Conv1d(3, 4, 1)
    model = nn.Sequential(Combine(left, right, concatenate), nn.ReLU(inplace=True), nn.Flatten())
    assert ops(captured(model, 3, 6)) == ["conv", "conv", "reindex", "activation", "reindex"]


@settings(max_examples=20, deadline=None)
@given(architectures())
def test_random_architecture(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    model, shape = case
    captured(model, *shape)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "vgg11_bn", "squeezenet1_0", "densenet121"]
)
def test_torchvision(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=10)
    if name == "vgg11_bn":  # whose matrices of 100 million parameters would test nothing more
        model.classifier = nn.Linear(25088, 10)
    captured(model, 3, 64, 64)
