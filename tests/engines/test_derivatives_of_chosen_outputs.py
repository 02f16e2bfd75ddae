"""Native derivatives of layers of whose outputs only some have any."""

from typing import Any

import pytest
import torch
from derivatives import assert_agree, assert_threads_change_no_bit, pair, products, relative
from models import labels, normal
from torch import nn

from pylandscape.engines.derivatives import chosen
from pylandscape.engines.derivatives import engine as module
from pylandscape.engines.derivatives import products as convolutions
from pylandscape.engines.derivatives.engine import NativeDerivatives, zeros
from pylandscape.engines.native import LANES

SUMS, BACK, GRADIENT = (
    f"{what} chosen outputs" for what in ("sums of", "back from", "gradient of")
)
LOSS = nn.CrossEntropyLoss()


def steps(native: NativeDerivatives) -> list[str]:
    return native._tape("hessian").steps


def pooled_net(channels: int, filters: int, conv: dict[str, Any], *behind: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, channels, 1), nn.Tanh(), nn.Conv2d(channels, filters, **conv), *behind,
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * filters, 3),
    )  # fmt: skip


CONVOLUTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "3x3": (16, {"kernel_size": 3, "padding": 1}),
    "3x3, padded channels": (19, {"kernel_size": 3, "padding": 1}),
    "3x3, wide": (48, {"kernel_size": 3}),
    "1x1": (33, {"kernel_size": 1}),
    "5x4": (16, {"kernel_size": (5, 4), "padding": (2, 1)}),
    "strides": (16, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 2)}),
    "dilated rows": (17, {"kernel_size": 3, "dilation": (2, 1), "padding": (3, 1), "bias": False}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_in_front_of_a_max_pool(level: str, name: str) -> None:
    channels, conv = CONVOLUTIONS[name]
    model = pooled_net(channels, 21, conv, nn.ReLU(), nn.MaxPool2d(2))
    native, exact = pair(model, LOSS, (normal(37, 2, 12, 14), labels(37, 3)))
    assert {SUMS, BACK, GRADIENT} <= set(steps(native))
    assert_agree(native, exact)


@pytest.mark.parametrize("before", [nn.ReLU(), nn.Identity()])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d((2, 3), (3, 2), padding=(1, 0)),
        nn.MaxPool2d(2, 3, dilation=(3, 2)),
        nn.MaxPool2d((13, 11)),
    ],
)
def test_windows(level: str, before: nn.Module, pool: nn.Module) -> None:
    """Apart, overlapping, cut at the border, in which some or all outputs may be zero."""
    model = pooled_net(16, 7, {"kernel_size": 3, "padding": 1}, before, pool)
    native, exact = pair(model, LOSS, (normal(9, 2, 16, 12), labels(9, 3)))
    assert ("13" in str(pool)) != (SUMS in steps(native))  # more places than lists are made of
    assert_agree(native, exact, columns=1)


def test_bands_change_little(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of windows by one, two, all at once."""
    model = pooled_net(16, 20, {"kernel_size": 3, "padding": 1}, nn.ReLU(), nn.MaxPool2d(2))
    data, found, bands = (normal(9, 2, 14, 10), labels(9, 3)), [], set()
    for near in (1e-9, 0.3, 100.0):
        monkeypatch.setattr(chosen, "NEAR_BYTES", near)
        native, exact = pair(model, LOSS, data)
        bands.add(native._tape("hessian").kept)  # with a number for each band and channel
        assert_agree(native, exact, columns=1)
        found.append(products(native, columns=1))
    assert len(bands) == 3
    assert max(relative(a, found[0].double()) for a in found) < 1e-6


def test_two_in_a_row(level: str) -> None:
    """The pooled values are read with a border, which those of the next pooling have not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 18), nn.ReLU(), nn.Linear(18, 5),
    )  # fmt: skip
    native, exact = pair(model, LOSS, (normal(70, 2, 16, 16), labels(70, 5)))
    assert steps(native).count(GRADIENT) == 4
    assert_agree(native, exact)


@pytest.mark.parametrize(
    ("channels", "conv"),
    [
        (1, {"kernel_size": 3, "padding": 1}),
        (1, {"kernel_size": 5, "bias": False}),
        (3, {"kernel_size": (3, 7), "stride": (2, 1), "padding": (0, 3)}),
        (2, {"kernel_size": 2, "dilation": (3, 1)}),
        (1, {"kernel_size": 4, "stride": (1, 2), "padding": 2}),
    ],
)
@pytest.mark.parametrize("before", [nn.ReLU(), nn.Identity()])
@pytest.mark.parametrize("filters", [5, 37])
def test_a_first_convolution(
    level: str, channels: int, conv: dict[str, Any], before: nn.Module, filters: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, filters, **conv), before, nn.MaxPool2d(2), nn.Conv2d(filters, 5, 1),
        nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    native, exact = pair(model, LOSS, (normal(9, channels, 13, 18), labels(9, 3)))
    height, width = (n // 2 for n in model[0](torch.zeros(1, channels, 13, 18)).shape[2:])
    whole = tuple(model[:3](torch.zeros(1, channels, 13, 18)).shape[2:]) == (height, width)
    is_narrow = 4 * channels * model[0].stride[1] <= LANES[level]
    assert ("conv gradient pooled" in steps(native)) == (whole and is_narrow)
    assert_agree(native, exact, columns=1)


def test_a_later_convolution_without_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the filters do not stay in the cache: only a first one keeps nothing for others."""
    monkeypatch.setattr(convolutions, "pool_behind", lambda *_: None)
    model = pooled_net(16, 5, {"kernel_size": 5, "padding": 2}, nn.ReLU(), nn.MaxPool2d(2))
    native, exact = pair(model, LOSS, (normal(9, 2, 12, 8), labels(9, 3)))
    assert SUMS not in steps(native)
    assert_agree(native, exact)


@pytest.mark.parametrize(("features", "samples"), [(1, 3), (5, 70), (33, 3), (96, 70), (210, 37)])
def test_a_linear_in_front_of_a_relu(level: str, features: int, samples: int) -> None:
    """Panels whole and in part, blocks that are not full."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, features), nn.Tanh(), nn.Linear(features, 19), nn.ReLU(),
        nn.Linear(19, 17, bias=False), nn.ReLU(), nn.Linear(17, 4),
    )  # fmt: skip
    native, exact = pair(model, LOSS, (normal(samples, 6), labels(samples, 4)))
    assert steps(native).count(GRADIENT) == 2
    assert_agree(native, exact)


@pytest.mark.parametrize("frozen", ["3.weight", "3.bias", "3.", "0.", "7.weight", "7.bias", "7."])
def test_frozen_parameters(level: str, frozen: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 18, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3),
    )  # fmt: skip
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(not name.startswith(frozen))
    native, exact = pair(model, LOSS, (normal(37, 1, 8, 8), labels(37, 3)))
    assert_agree(native, exact)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_SAMPLES", 1)
    model = pooled_net(16, 20, {"kernel_size": 3}, nn.ReLU(), nn.MaxPool2d(2))
    model[-1] = nn.Sequential(nn.Linear(80, 9), nn.ReLU(), nn.Linear(9, 3))
    native, _ = pair(model, LOSS, (normal(75, 2, 12, 10), labels(75, 3)))
    assert_threads_change_no_bit(native)


def test_of_a_direction_only_what_is_read_is_packed() -> None:
    model = pooled_net(16, 20, {"kernel_size": 3}, nn.ReLU(), nn.MaxPool2d(2))
    model.insert(1, nn.BatchNorm2d(16))
    native, _ = pair(model, LOSS, (normal(9, 2, 12, 10), labels(9, 3)))
    tape, expected = native._tape("hessian"), products(native, columns=1)
    assert len(tape._direction_packs) < len(tape._packs)
    native._packed["hessian"][1:] = float("nan")
    assert torch.equal(products(native, columns=1), expected)


def test_memory_starts_with_a_cache_line() -> None:
    for shape in ((3, 5), (7,), (0, 4), (1000, 1000)):
        found = zeros(*shape)
        assert found.shape == shape
        assert found.data_ptr() % 64 == 0 or found.numel() == 0
        assert not found.any()
