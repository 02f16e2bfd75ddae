"""Native derivatives of convolutions in groups, of Linears on pixels and of nets made of them."""

from typing import Any

import pytest
import torch
import torchvision
from derivatives import assert_agree, assert_threads_change_no_bit, pair
from models import labels, normal
from random_models import Combine
from torch import nn

from pylandscape.engines.derivatives import engine as module


def inverted_residual() -> nn.Module:
    """Of mobilenet_v2: wide inside, where every channel has a filter of its own."""
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv2d(6, 36, 1, bias=False), nn.BatchNorm2d(36), nn.ReLU6(),
        nn.Conv2d(36, 36, 3, padding=1, groups=36, bias=False), nn.BatchNorm2d(36), nn.ReLU6(),
        nn.Conv2d(36, 6, 1, bias=False), nn.BatchNorm2d(6),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ReLU(),
        Combine(nn.Identity(), body, torch.add),
        nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def groups_of_resnext() -> nn.Module:
    """Groups smaller than a vector, one of which is not a power of two, then one per vector."""
    torch.manual_seed(4)
    body = nn.Sequential(
        nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 20, 3, padding=1, groups=5, bias=False), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 12, 1, bias=False), nn.BatchNorm2d(12),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, stride=2, padding=1), nn.ReLU(),
        Combine(nn.Identity(), body, torch.add), nn.ReLU(),
        nn.Conv2d(12, 48, 3, stride=2, groups=3), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5),
    )  # fmt: skip


def tokens() -> nn.Module:
    """A Linear on every token, with a residual, then one on all of them."""
    torch.manual_seed(5)
    body = nn.Sequential(nn.Linear(19, 33), nn.GELU(), nn.Linear(33, 19))
    return nn.Sequential(
        nn.Linear(9, 19), nn.ReLU(), Combine(nn.Identity(), body, torch.add), nn.ReLU(),
        nn.Linear(19, 4, bias=False), nn.Flatten(), nn.Linear(28, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "shape"),
    [(inverted_residual, (2, 13, 11)), (groups_of_resnext, (2, 13, 11)), (tokens, (7, 9))],
)
def test_blocks_of_known_nets(level: str, make: Any, shape: tuple[int, ...]) -> None:
    native, exact = pair(make(), nn.CrossEntropyLoss(), (normal(67, *shape), labels(67, 5)))
    assert_agree(native, exact)


def test_a_linear_along_the_rows_of_an_image(level: str) -> None:
    """Between layers that read channels; the relu's slope is the max_pool's part."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 1), nn.Linear(8, 17), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(5 * 3 * 8, 3),
    )  # fmt: skip
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(9, 2, 7, 8), labels(9, 3)))
    assert_agree(native, exact)


# (channels, filters, groups): groups below, at and beyond a vector of 4, 8 or 16 floats
GROUPED = {
    "depthwise": (20, 20, 20),
    "multiplier": (5, 15, 5),
    "halves": (6, 6, 2),
    "vectors": (16, 32, 2),
    "beyond": (10, 38, 2),
    "two vectors": (6, 72, 2),
    "one each": (9, 3, 3),
}
WINDOWS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strides": {"kernel_size": (2, 3), "stride": (2, 3), "padding": (1, 0)},
    "dilation": {"kernel_size": (3, 2), "dilation": (2, 3), "padding": (2, 1), "stride": (1, 2)},
    "wide": {"kernel_size": (5, 4), "padding": (2, 1)},
}


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("groups", GROUPED)
def test_convolutions_in_groups(level: str, groups: str, windows: str) -> None:
    channels, filters, count = GROUPED[groups]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, channels, 1), nn.Tanh(),
        nn.Conv2d(channels, filters, groups=count, **WINDOWS[windows]), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, 3),
    )  # fmt: skip
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(9, 2, 7, 8), labels(9, 3)))
    labelled = "depthwise" if groups == "depthwise" else "in groups"
    assert any(labelled in step for step in native._tape("hessian").steps)
    assert_agree(native, exact, columns=1)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (5, {"kernel_size": 1, "padding": 2}),
        (5, {"kernel_size": 2, "padding": (3, 2), "stride": (3, 2)}),
        (8, {"kernel_size": (1, 3), "padding": 4, "dilation": (1, 2), "groups": 4}),
        (8, {"kernel_size": 1, "padding": 1, "groups": 8}),
        (16, {"kernel_size": 3, "padding": 4}),
    ],
)
def test_padding_beyond_the_kernel(level: str, channels: int, options: dict[str, Any]) -> None:
    """The cotangents of what only zeros were seen of are left out on the way back."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, channels, 1), nn.Tanh(), nn.Conv2d(channels, 16, **options), nn.Tanh(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 3),
    )  # fmt: skip
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(9, 2, 5, 6), labels(9, 3)))
    assert_agree(native, exact, columns=1)


@pytest.mark.parametrize("make", [inverted_residual, groups_of_resnext])
def test_threads_change_no_bit_in_groups(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setattr(module, "CHUNK_SAMPLES", 1)
    native = pair(make(), nn.CrossEntropyLoss(), (normal(75, 2, 13, 11), labels(75, 5)))[0]
    assert_threads_change_no_bit(native)


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=10)
    data = normal(2, 3, 64, 64), labels(2, 10)
    assert_agree(*pair(model, nn.CrossEntropyLoss(), data), columns=1)
