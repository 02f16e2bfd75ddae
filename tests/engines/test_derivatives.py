"""Native gradients and curvature products against torch in float64."""

import pickle
from typing import Any

import pytest
import torch
from derivatives import (
    KINDS,
    assert_agree,
    assert_nearer_than_torch,
    assert_threads_change_no_bit,
    natively,
    pair,
    products,
    relative,
)
from hypothesis import HealthCheck, Phase, assume, given, settings
from models import labels, normal
from random_models import ACTIVATIONS, Apply, Combine, Problem, problems
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import _ops
from pylandscape.engines import packing
from pylandscape.engines.derivatives import engine as module
from pylandscape.engines.derivatives.engine import NativeDerivatives
from pylandscape.engines.derivatives.tape import Tape
from pylandscape.engines.program import NotCovered


def conv_net(activation: nn.Module, channels: int = 16) -> nn.Module:
    """A stem, a convolution that runs in the Winograd domain, both kinds of pooling."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 20, 3, padding=1),
        activation,
        nn.AvgPool2d(3, 2, padding=1),
        nn.Flatten(),
        nn.Linear(20 * 6, 33),
        nn.ReLU(),
        nn.Linear(33, 5),
    )


def residual_net() -> nn.Module:
    """Strides, 1x1 convolutions, batch_norm, an addition, a global pooling."""
    torch.manual_seed(2)
    body = nn.Sequential(
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
    )
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, stride=2), nn.BatchNorm2d(32, affine=False))
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Combine(body, shortcut, torch.add),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model


IMAGES = normal(75, 2, 13, 11), labels(75, 5)
IMAGE_NETS = {
    "smooth": lambda: conv_net(nn.Tanh()),
    "kinked": lambda: conv_net(nn.LeakyReLU(0.1), channels=17),
    "residual": residual_net,
}


@pytest.mark.parametrize("name", IMAGE_NETS)
@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_images(level: str, name: str, precision: str) -> None:
    data = IMAGES
    model = IMAGE_NETS[name]()
    if name != "residual":
        data = (IMAGES[0][:, :, :12, :8].contiguous(), IMAGES[1])
    native, exact = pair(model, nn.CrossEntropyLoss(), data, precision)
    assert_agree(native, exact)


@pytest.mark.parametrize("before", [nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d((3, 2), (1, 2)),
        nn.MaxPool2d((2, 3), 2, dilation=(3, 2)),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, padding=1),
    ],
)
def test_windows_of_a_max_pool(level: str, before: nn.Module, pool: nn.Module) -> None:
    """Apart, overlapping, beyond the image; where a relu gave zeros nothing passes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 17, 3), before, pool, nn.Conv2d(17, 5, 2), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(9, 2, 11, 9), labels(9, 3)))
    assert_agree(native, exact, columns=1)


@pytest.mark.parametrize(
    ("size", "tile"), [((4, 4), 4), ((9, 6), 4), ((13, 11), 4), ((2, 2), 2), ((5, 2), 2)]
)
def test_filters_in_the_winograd_domain(level: str, size: tuple[int, int], tile: int) -> None:
    """Whole and overhanging tiles, with and without padding; a first layer has one product."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 33, 3, padding=1), nn.Tanh(), nn.Conv2d(33, 17, 3, padding=2), nn.Tanh(),
        nn.Conv2d(17, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(37, 16, *size), labels(37, 5)))
    assert f"conv gradient Winograd F({tile}x{tile})" in native._tape("hessian").steps
    assert_agree(native, exact)


def test_a_linear_that_reads_the_same_place_has_direct_sums() -> None:
    """The cotangent that a Linear hands back has no room for zeros around it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 25, 4))
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(37, 16, 7, 7), labels(37, 4)))
    steps = native._tape("hessian").steps
    assert "conv 3x3 Winograd F(4x4)" in steps
    assert "conv gradient" in steps
    assert_agree(native, exact)


@pytest.mark.parametrize("tile", [2, 4])
def test_from_winograd_is_the_adjoint(tile: int) -> None:
    w, u = normal(7, 5, 3, 3), normal((tile + 2) ** 2, 7, 5, seed=1)
    domain = packing.winograd_filters(w, tile, 5, 4).view(-1, 8, 5)  # one panel of 8 of 4 lanes
    there = domain.view(len(u), 5, 8)[..., :7].mT
    torch.testing.assert_close((there * u).sum(), (w * packing.from_winograd(u, tile)).sum())


TWICE = [make for make in ACTIVATIONS if not isinstance(make(), nn.Hardsigmoid)]


@pytest.mark.parametrize("make", TWICE, ids=lambda make: type(make()).__name__)
def test_activation(level: str, make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 17), make(), nn.Linear(17, 4))
    native, exact = pair(model, nn.CrossEntropyLoss(), (3 * normal(40, 6), labels(40, 4)))
    assert_agree(native, exact)


def test_what_torch_cannot_derive_is_not_verified() -> None:
    model = nn.Sequential(nn.Linear(6, 17), nn.Hardsigmoid(), nn.Linear(17, 4))
    data = normal(40, 6).float(), labels(40, 4)
    with pytest.raises(NotCovered, match="no second derivatives"):
        natively(pl.Objective(model, nn.CrossEntropyLoss(), data))


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.5])
LOSSES: dict[str, tuple[nn.Module, Tensor]] = {
    "cross_entropy": (nn.CrossEntropyLoss(), labels(40, 4)),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2), labels(40, 4)),
    "smoothing": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2), labels(40, 4)),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (normal(40, 4) > 0).double()),
    "mse": (nn.MSELoss(), normal(40, 4)),
    "l1": (nn.L1Loss(), normal(40, 4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(level: str, name: str) -> None:
    loss, targets = LOSSES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    native, exact = pair(model, loss, (normal(40, 6), targets))
    assert_agree(native, exact)


# many hold a layer that has no native derivatives
@settings(
    max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.filter_too_much],
)  # fmt: skip
@given(problems(37))
def test_random_architectures(problem: Problem) -> None:
    try:
        native, exact = pair(*problem)
    except NotCovered as reason:
        if "not that of torch" in str(reason):  # of the two, torch must be the one that is wrong
            with pytest.MonkeyPatch.context() as patch:
                assert_nearer_than_torch(patch, *problem)
        assume(False)
    # kinks that lie within a rounding of float32 give another derivative
    assert_agree(native, exact, columns=1, bound=1e-3)


def test_where_float32_is_not_enough_torch_stays_in_charge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two numbers normalised are 1 and -1, so their mean is rounding, and torch's product too."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.MaxPool2d(2), nn.LayerNorm(2, elementwise_affine=False),
        nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(14, 5),
    )  # fmt: skip
    problem = model, nn.CrossEntropyLoss(), (normal(37, 3, 5, 5), labels(37, 5))
    with pytest.raises(NotCovered, match="not that of torch"):
        pair(*problem)
    assert_nearer_than_torch(monkeypatch, *problem)


# -- what must not matter ------------------------------------------------------------------------


def small() -> NativeDerivatives:
    data = IMAGES[0][:, :, :12, :8].contiguous(), IMAGES[1]
    return pair(conv_net(nn.Tanh()), nn.CrossEntropyLoss(), data)[0]


def test_threads_change_no_bit(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_SAMPLES", 1)  # a chunk per block
    assert_threads_change_no_bit(small())


def test_a_call_has_a_chunk_for_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one chunk takes longer than a call should, between two looks for Ctrl-C."""
    native = small()
    block = native._tape("hessian").block
    monkeypatch.setattr(module, "CHUNK_SAMPLES", block)
    monkeypatch.setattr(module, "SECONDS_PER_CALL", 0.0)
    operator, ranges = _ops.hessian_vector_product, []

    def spied(*arguments: Any) -> None:
        ranges.append(arguments[-2:])
        operator(*arguments)

    monkeypatch.setattr(_ops, "hessian_vector_product", spied)
    samples = native.native.samples
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        ranges.clear()
        products(native, columns=1)
        assert ranges[: -(-samples // (threads * block))] == [
            (first, min(samples, first + threads * block))
            for first in range(0, samples, threads * block)
        ]


@pytest.mark.parametrize(
    "layer",
    [nn.Sequential(nn.BatchNorm2d(16), nn.MaxPool2d(4)), nn.AvgPool2d(4), nn.BatchNorm2d(16)],
)
def test_what_is_formed_again_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Module
) -> None:
    """The cotangents behind a convolution, one per output, from fewer or from others."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 16, 1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1), layer, nn.Flatten(),
        nn.LazyLinear(3),
    )  # fmt: skip
    data = normal(9, 2, 12, 8), labels(9, 3)
    model(data[0].float())

    def kept() -> int:
        return pair(model, nn.CrossEntropyLoss(), data)[0].bytes_per_sample

    with_all = kept()
    monkeypatch.setattr(Tape, "again", lambda _, cotangent: cotangent)
    assert with_all + 4 * 16 * 12 * 8 <= kept()


def test_what_is_kept_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    native = small()
    first, again = products(native), products(native)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    assert torch.equal(first, again)
    assert torch.equal(first, products(small()))


def test_columns_are_products_of_their_own() -> None:
    native = small()
    point = native.space.flatten(native.reference.module.model)
    vectors = normal(len(point), 11, seed=5).float()  # more than share a pass
    whole = native.hessian_vector_product(point, vectors)
    for j in (0, 7, 8, 10):
        assert torch.equal(native.hessian_vector_product(point, vectors[:, j]), whole[:, j])
    assert native.hessian_vector_product(point, vectors[:, :0]).shape == (len(point), 0)


def test_another_point_forgets_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    native = small()
    point = native.space.flatten(native.reference.module.model)
    v = normal(len(point), seed=6).float()
    moved = point + 0.1 * normal(len(point), seed=7).float()
    there = native.hessian_vector_product(moved, v)
    native.hessian_vector_product(point, v)
    assert torch.equal(native.hessian_vector_product(moved, v), there)
    assert not torch.allclose(there, native.hessian_vector_product(point, v))


def test_frozen_tensors_may_change_between_two_products() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    model[0].requires_grad_(False)
    data = normal(40, 6).float(), labels(40, 4)
    objective = pl.Objective(model, nn.CrossEntropyLoss(), data)
    v = normal(objective.space.size).float()
    before = objective.hessian_vector_product(v)
    with torch.no_grad():
        model[0].weight.mul_(2)
    by_torch = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="torch")
    after = objective.hessian_vector_product(v)
    assert relative(after, by_torch.hessian_vector_product(v).double()) < 1e-5
    assert relative(before, after.double()) > 1e-3


def test_an_objective_with_derivatives_can_be_pickled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    objective = pl.Objective(model, nn.CrossEntropyLoss(), (normal(9, 6).float(), labels(9, 4)))
    gradient = objective.gradient()
    assert torch.equal(pickle.loads(pickle.dumps(objective)).gradient(), gradient)


def test_symmetry() -> None:
    native = small()
    point = native.space.flatten(native.reference.module.model)
    u, v = normal(2, len(point), seed=8).float()
    for kind in KINDS:
        product = getattr(native, f"{kind}_vector_product")
        left, right = u @ product(point, v), v @ product(point, u)
        assert abs(float(left - right)) < 1e-5 * float(u.norm() * product(point, v).norm())


def test_the_objective_uses_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    data = normal(40, 6).float(), labels(40, 4)
    auto = pl.Objective(model, nn.CrossEntropyLoss(), data)
    v = normal(auto.space.size).float()
    expected = natively(auto).hessian_vector_product(auto.center, v)
    assert torch.equal(auto.hessian_vector_product(v), expected)
    assert torch.equal(pl.Hessian(auto) @ v, expected)
    by_torch = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="torch")
    assert relative(by_torch.hessian_vector_product(v), expected.double()) < 1e-5


# -- models without ------------------------------------------------------------------------------


def test_a_detached_branch_is_left_to_torch() -> None:
    torch.manual_seed(0)
    stopped = Apply(lambda x: x.detach())
    model = nn.Sequential(
        nn.Linear(6, 9), Combine(nn.Identity(), stopped, torch.add), nn.Linear(9, 4)
    )
    data = normal(40, 6).float(), labels(40, 4)
    objective = pl.Objective(model, nn.CrossEntropyLoss(), data)
    with pytest.raises(NotCovered):
        natively(objective)
    by_torch = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="torch")
    assert torch.equal(objective.gradient(), by_torch.gradient())


@pytest.mark.parametrize(("wrong", "accepted"), [({3}, True), ({0, 1, 2, 3}, False)])
def test_a_sample_on_the_other_side_of_a_kink_is_no_wrong_plan(
    monkeypatch: pytest.MonkeyPatch, wrong: set[int], accepted: bool
) -> None:
    native = small().native
    first = native._inputs[: max(wrong) + 1].clone()
    derivatives_of = native.reference.derivatives_of

    def other_at_some(batch: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        gradient, product = derivatives_of(batch, *arguments)
        kinked = any(torch.equal(x, first[i]) for x in batch[0] for i in wrong)
        return gradient, product + float(kinked)

    monkeypatch.setattr(native.reference, "derivatives_of", other_at_some)
    if accepted:
        NativeDerivatives(native)
        return
    with pytest.raises(NotCovered, match="the native hessian is not that of torch"):
        NativeDerivatives(native)


def without_derivatives() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Apply(lambda x: torch.cat([x, x], 1)), nn.Linear(16, 4))


def test_layers_without_derivatives_are_named() -> None:
    objective = pl.Objective(
        without_derivatives(), nn.CrossEntropyLoss(), (normal(9, 6).float(), labels(9, 4))
    )
    with pytest.raises(NotCovered, match="repeats elements"):
        natively(objective)
    assert "through PyTorch, because reindex" in str(pl.explain(objective))
    objective.gradient()


def test_results_name_the_engine_that_made_them() -> None:
    losses = pl.Objective(
        without_derivatives(),
        nn.CrossEntropyLoss(), (normal(9, 6).float(), labels(9, 4)), engine="native",
    )  # fmt: skip
    assert losses.describe()["engine"] == "native"
    assert losses.describe(derivatives=True)["engine"] == "torch"
    assert pl.Hessian(losses).describe()["engine"] == "torch"
    derivatives = pl.Objective(
        nn.Linear(6, 4), nn.CrossEntropyLoss(), (normal(9, 6).float(), labels(9, 4))
    )
    assert derivatives.describe()["engine"] == "torch"  # of a few points
    assert derivatives.describe(derivatives=True)["engine"] == "native"


def test_an_engine_on_a_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    native = small().native
    monkeypatch.setattr(type(native), "device", "cuda")
    with pytest.raises(NotCovered, match="GPU"):
        NativeDerivatives(native)


def test_infinite_parameters_are_left_to_torch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    data = normal(40, 6).float(), labels(40, 4)
    auto = pl.Objective(model, nn.CrossEntropyLoss(), data)
    by_torch = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="torch")
    point = auto.center
    point[3] = torch.inf
    left, right = auto.gradient(point), by_torch.gradient(point)
    torch.testing.assert_close(left, right, equal_nan=True)


def test_frozen_and_tied_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(7, 7), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    model = Tied()
    model.last.bias.requires_grad_(False)
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(40, 7), labels(40, 4)))
    assert_agree(native, exact)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 4))
    model[2].requires_grad_(False)
    native, exact = pair(model, nn.CrossEntropyLoss(), (normal(40, 6), labels(40, 4)))
    assert_agree(native, exact)


@pytest.mark.parametrize("size", [1, 8])
def test_filters_that_two_kernels_use(size: int) -> None:
    """Derivatives that are only moved are added to those that are transformed, in either order."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.conv(nn.functional.adaptive_avg_pool2d(x, size)))
            x = torch.tanh(self.conv(nn.functional.adaptive_avg_pool2d(x, 9 - size)))
            return self.last(x.mean((2, 3)))

    torch.manual_seed(0)
    native, exact = pair(Twice(), nn.CrossEntropyLoss(), (normal(20, 16, 8, 8), labels(20, 3)))
    steps = set(native._tape("hessian").steps)
    assert {"conv gradient", "conv gradient Winograd F(4x4)"} <= steps
    assert_agree(native, exact)
