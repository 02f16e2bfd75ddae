"""Native derivatives of normalisation against torch in float64."""

from collections.abc import Callable

import pytest
import torch
from derivatives import assert_agree, assert_threads_change_no_bit, pair
from models import labels, normal
from random_models import Apply, randomised
from torch import nn

from pylandscape.engines.derivatives import engine as module

Make = Callable[[], nn.Module]


def image_net(norm: nn.Module, size: tuple[int, int], *after: nn.Module) -> nn.Module:
    """A norm between two convolutions: its tangent and its cotangent vary from pixel to pixel."""
    torch.manual_seed(1)
    channels = 12
    model = nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        norm,
        *after,
        nn.Conv2d(channels, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5 * (size[0] - 2) * (size[1] - 2), 5),
    )
    return randomised(model)


SIZE = (7, 5)
NORMS: dict[str, Make] = {
    "one group": lambda: nn.GroupNorm(1, 12),
    "three groups": lambda: nn.GroupNorm(3, 12),
    "pairs": lambda: nn.GroupNorm(6, 12),
    "each channel": lambda: nn.GroupNorm(12, 12),
    "plain": lambda: nn.GroupNorm(4, 12, affine=False),
    "elements": lambda: nn.LayerNorm([12, *SIZE]),
    "plain elements": lambda: nn.LayerNorm([12, *SIZE], elementwise_affine=False),
    "without bias": lambda: nn.LayerNorm([12, *SIZE], bias=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_images(level: str, name: str) -> None:
    model = image_net(NORMS[name](), SIZE)
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(37, 2, *SIZE), labels(37, 5)))
    assert_agree(native, exact)


@pytest.mark.parametrize("features", [1, 5, 8, 16, 17, 33])
@pytest.mark.parametrize("affine", [True, False])
def test_vectors(level: str, features: int, affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, features), nn.LayerNorm(features, elementwise_affine=affine), nn.Tanh(),
        nn.Linear(features, 7), nn.GroupNorm(7 if features == 1 else 1, 7), nn.Linear(7, 4),
    )  # fmt: skip
    native, exact = pair(randomised(model), nn.CrossEntropyLoss(), (normal(40, 6), labels(40, 4)))
    assert_agree(native, exact)


@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 12), lambda: nn.LayerNorm([12, *SIZE])])
def test_a_relu_behind_a_norm(level: str, norm: Make) -> None:
    model = image_net(norm(), SIZE, nn.ReLU())
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(37, 2, *SIZE), labels(37, 5)))
    assert_agree(native, exact)


def test_a_first_layer_has_no_cotangent_to_hand_back() -> None:
    model = nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 4))
    native, exact = pair(randomised(model), nn.CrossEntropyLoss(), (normal(40, 9), labels(40, 4)))
    assert_agree(native, exact)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 12), lambda: nn.LayerNorm([12, *SIZE])])
def test_frozen_weights(frozen: str, norm: Make) -> None:
    model = image_net(norm(), SIZE)
    for name, tensor in model[1].named_parameters():
        tensor.requires_grad_(frozen not in (name, "both"))
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(37, 2, *SIZE), labels(37, 5)))
    assert_agree(native, exact)


def test_only_the_norm_is_trained() -> None:
    model = image_net(nn.GroupNorm(3, 12), SIZE)
    for layer in (model[0], model[2], model[5]):
        layer.requires_grad_(False)
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(37, 2, *SIZE), labels(37, 5)))
    assert_agree(native, exact)


class OnlyBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(normal(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, (9,), bias=self.bias)


@pytest.mark.parametrize("before", [nn.Identity(), nn.Linear(9, 9)])
def test_a_bias_without_a_weight(before: nn.Module) -> None:
    model = nn.Sequential(before, OnlyBias(), nn.Tanh(), nn.Linear(9, 4))
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(40, 9), labels(40, 4)))
    assert_agree(native, exact)


def test_a_mean_far_from_zero_costs_no_digits(level: str) -> None:
    """Sums start from an element of their group."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 17), Apply(lambda x: x + 300.0), nn.LayerNorm(17), nn.Tanh(), nn.Linear(17, 4)
    )
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(40, 6), labels(40, 4)))
    assert_agree(native, exact, bound=1e-3)


def test_what_a_norm_makes_zero_is_exactly_zero(level: str) -> None:
    """One value less its mean is zero whatever comes before, and so are all derivatives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1), nn.LayerNorm(1), nn.Linear(1, 4))
    native, exact = pair(randomised(model), nn.CrossEntropyLoss(), (normal(40, 6), labels(40, 4)))
    gradient = native.loss_and_gradient(exact.center.float())[1]
    assert not gradient[:8].any()  # of the first layer, and of the norm's weight
    assert gradient[8:].any()


def test_several_blocks_and_sub_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images too large for a cache beside vectors: more than one section, for 1 to 3 threads."""
    monkeypatch.setattr(module, "CHUNK_SAMPLES", 1)
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 48, 3, padding=1), nn.GroupNorm(4, 48), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(48, 20, 3), nn.LayerNorm([20, 18, 14]), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(20), nn.Linear(20, 5),
    )  # fmt: skip
    data = normal(75, 2, 40, 32), labels(75, 5)
    native, exact = pair(randomised(model), nn.CrossEntropyLoss(), data)
    tape = native._tape("hessian")
    assert tape.block < 75
    assert_agree(native, exact, columns=1)
    assert_threads_change_no_bit(native)
