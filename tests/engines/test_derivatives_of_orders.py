"""Native derivatives of broadcasts and of values in several orders of dimensions."""

from collections.abc import Callable

import pytest
import torch
from derivatives import assert_agree, natively, pair
from models import labels, normal
from random_models import Apply, Combine, randomised
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.program import NotCovered

IMAGES = normal(37, 6, 7, 5), labels(37, 5)
OPERATORS = [torch.add, torch.sub, torch.mul]


def classifier(*layers: nn.Module, features: int) -> nn.Module:
    return randomised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 5)))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("small_first", [True, False])
def test_one_pixel_goes_with_all(
    level: str, operator: Callable[..., Tensor], small_first: bool
) -> None:
    """Both operands are trained, so every term of the product rule counts."""
    torch.manual_seed(0)
    sides = [
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(9, 9, 1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(9, 9, 3, padding=1), nn.Tanh()),
    ]
    model = classifier(
        nn.Conv2d(6, 9, 1), nn.Tanh(),
        Combine(*(sides if small_first else sides[::-1]), operator),
        nn.Tanh(), features=9 * 35,
    )  # fmt: skip
    assert_agree(*pair(model, nn.CrossEntropyLoss(), IMAGES))


def test_only_one_operand_of_a_broadcast_is_trained() -> None:
    torch.manual_seed(0)
    for mixed in (0, 1):
        sides: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Identity()]
        sides[mixed] = nn.Sequential(sides[mixed], nn.Conv2d(6, 6, 1), nn.Tanh())
        for operator in OPERATORS:
            model = classifier(Combine(*sides, operator), nn.Tanh(), features=6 * 35)
            assert_agree(*pair(model, nn.CrossEntropyLoss(), IMAGES), columns=1)


class Excitation(nn.Module):
    """Squeeze and excitation, which leaves the vector's dimensions to a view."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, 3), nn.ReLU(), nn.Linear(3, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


def test_squeeze_and_excitation(level: str) -> None:
    torch.manual_seed(0)
    model = classifier(
        nn.Conv2d(6, 17, 3, padding=1), nn.GroupNorm(1, 17), nn.ReLU(), Excitation(17),
        nn.Conv2d(17, 17, 3, padding=1), nn.AdaptiveAvgPool2d(1), features=17,
    )  # fmt: skip
    assert_agree(*pair(model, nn.CrossEntropyLoss(), IMAGES))


class ChannelNorm(nn.Module):
    """A layer_norm over the channels of an image, between two permutations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_channels_last_and_back(level: str) -> None:
    """Each value is read in both orders: by the norm and by the sum around it."""
    torch.manual_seed(0)
    block = Combine(
        nn.Identity(), nn.Sequential(ChannelNorm(9), nn.Conv2d(9, 9, 1), nn.GELU()), torch.add
    )
    model = classifier(nn.Conv2d(6, 9, 3, padding=1), block, nn.Tanh(), features=9 * 35)
    assert_agree(*pair(model, nn.CrossEntropyLoss(), IMAGES))


@pytest.mark.parametrize("follower", [nn.ReLU(), nn.Tanh()])
def test_a_norm_of_rows_before_a_pooling(follower: nn.Module) -> None:
    """The pooling reads the norm's values in another order, and its relu with them."""
    torch.manual_seed(0)
    model = classifier(
        nn.Conv2d(6, 9, 3, padding=1), nn.LayerNorm(5), follower, nn.MaxPool2d(2), features=9 * 6
    )
    assert_agree(*pair(model, nn.CrossEntropyLoss(), IMAGES))


def test_rows_and_channels_of_one_value() -> None:
    """One value in two orders for several readers: what they hand back adds up."""
    torch.manual_seed(0)
    rows = nn.Sequential(nn.LayerNorm(5), nn.Tanh())
    twice = Combine(rows, nn.Sequential(nn.LayerNorm(5), nn.Conv2d(9, 9, 1)), torch.mul)
    model = classifier(
        nn.Conv2d(6, 9, 3, padding=1), nn.Tanh(), Combine(nn.Conv2d(9, 9, 1), twice, torch.sub),
        nn.AdaptiveAvgPool2d(2), features=9 * 4,
    )  # fmt: skip
    assert_agree(*pair(model, nn.CrossEntropyLoss(), IMAGES))


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.BCEWithLogitsLoss(pos_weight=torch.arange(1.0, 6.0))]
)
def test_outputs_that_are_images(loss: nn.Module) -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.LayerNorm(5)))
    targets = (normal(37, 4, 7, 5, seed=2) > 0).double()
    assert_agree(*pair(model, loss, (IMAGES[0], targets)))


def test_what_is_not_covered_says_why() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Apply(lambda x: torch.cat([x, x], 1)), nn.Linear(16, 4))
    objective = pl.Objective(model, nn.CrossEntropyLoss(), (normal(9, 6).float(), labels(9, 4)))
    with pytest.raises(NotCovered, match="repeats elements"):
        natively(objective)


class TokenMixing(nn.Module):
    """A block of an MLP-Mixer on tokens [T, C]: a net over the tokens, one over the channels."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 7), nn.GELU(), nn.Linear(7, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 9), nn.GELU(), nn.Linear(9, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))


def test_tokens_and_channels_in_turn(level: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 10, 2, stride=2), nn.Flatten(2), Apply(lambda x: x.transpose(1, 2)),
        TokenMixing(6, 10), nn.LayerNorm(10), Apply(lambda x: x.mean(1)), nn.Linear(10, 5),
    )  # fmt: skip
    assert_agree(*pair(randomised(model), nn.CrossEntropyLoss(), IMAGES))


class ConvNext(nn.Module):
    """A block of a ConvNeXt: a filter per channel, then a net on the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.net = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 21), nn.GELU(), nn.Linear(21, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_convnext(level: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 10, 2), ConvNext(10), ConvNext(10), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(10), nn.Linear(10, 5),
    )  # fmt: skip
    assert_agree(*pair(randomised(model), nn.CrossEntropyLoss(), IMAGES))
