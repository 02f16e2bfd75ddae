"""Curves: closed forms, exact ends, the step of training, checkpoints, planes, bad input."""

import copy
import itertools
import signal

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.connectivity.curve_training import _drawn, _schedule
from pylandscape.study.data import load_mnist


class Ring(nn.Module):
    """L(w) = (|w|^2 - 1)^2 - w_1 / 20: a circular valley around a hill of height 1."""

    def __init__(self, *w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = (self.w.square().sum() - 1) ** 2 - self.w[1] / 20
        return value.expand(len(x))


def ring_objective():
    nothing = torch.zeros(2, 1).double()
    return pl.Objective(Ring(0.4, 0.0), lambda outputs, targets: outputs, (nothing, nothing))


def net(seed, norm=False, dropout=0.0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 2)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(5))
    return nn.Sequential(*layers).to(dtype)


def data(count=24, seed=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator, dtype=dtype)
    return inputs, torch.randint(0, 2, (count,), generator=generator)


def classifier(model, **options):
    return pl.Objective(model, nn.CrossEntropyLoss(), data(), **options)


def some_curve(kind="bezier", bends=1, dtype=torch.float64):
    space = pl.ParameterSpace.from_model(net(0))
    nodes = torch.randn(bends + 2, space.size, generator=torch.Generator().manual_seed(3))
    return pl.Curve(kind, space, nodes.to(dtype))


# -- the curve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bezier", "polychain"])
@pytest.mark.parametrize("bends", [1, 2, 5])
def test_coefficients_share_out_one(kind, bends):
    curve = some_curve(kind, bends)
    t = np.linspace(0, 1, 31)
    shares = curve.coefficients(t)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(31).double(), rtol=1e-14, atol=0)
    line = torch.linspace(0, 1, bends + 2).double()  # nodes on a line give the line
    torch.testing.assert_close(shares @ line, torch.from_numpy(t))


def test_a_bezier_curve_by_de_casteljau():
    curve = some_curve(bends=3)
    for t in (0.2, 0.7):
        points = curve.nodes
        while len(points) > 1:
            points = (1 - t) * points[:-1] + t * points[1:]
        torch.testing.assert_close(curve.point(t), points[0])


def test_a_polychain_goes_straight_from_node_to_node():
    curve = some_curve("polychain", bends=2)
    for k in range(4):
        torch.testing.assert_close(curve.point(k / 3), curve.nodes[k])
    torch.testing.assert_close(curve.point(0.5), (curve.nodes[1] + curve.nodes[2]) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["bezier", "polychain"])
def test_the_ends_are_bit_for_bit_the_given_models(kind, dtype):
    a, b = net(1, dtype=dtype), net(2, dtype=dtype)
    objective = pl.Objective(net(3, dtype=dtype), nn.CrossEntropyLoss(), data(dtype=dtype))
    curve = pl.connect(objective, a, b.state_dict(), kind, bends=2, steps=7, weight_decay=0.1)
    for model, t in ((a, 0.0), (b, 1.0)):
        assert torch.equal(curve.point(t), objective.space.flatten(model))
    along = curve.evaluate(objective, resolution=3, test=objective)
    for model, k in ((a, 0), (b, 2)):
        own = pl.Objective(model, nn.CrossEntropyLoss(), data(dtype=dtype))
        assert float(along.loss[k]) == float(along.test_loss[k]) == own.loss()


def test_its_length_is_that_of_an_arc():
    space = pl.ParameterSpace.from_model(Ring(0.0, 0.0))
    curve = pl.Curve("polychain", space, torch.tensor([[0.0, 0], [3, 4], [3, 5]]).double())
    along = curve.evaluate(ring_objective(), resolution=5)
    np.testing.assert_allclose(along.length, [0, 2.5, 5, 5.5, 6])
    assert along.attrs["length"] == pytest.approx(6)
    assert along.attrs["distance"] == pytest.approx(34**0.5)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bezier", "polychain"])
def test_a_step_descends_the_loss_and_the_decay_at_the_point(kind):
    """Against autograd through the curve, two steps with momentum."""
    objective = classifier(net(0))
    a, b = net(1), net(2)
    rate, momentum, decay, seed = 0.3, 0.5, 0.2, 4
    curve = pl.connect(
        objective, a, b, kind, bends=2, steps=5, learning_rate=rate, momentum=momentum,
        weight_decay=decay, batch_size=24, seed=seed,
    )  # fmt: skip
    ends = [objective.space.flatten(model) for model in (a, b)]
    bends = torch.stack([(2 * ends[0] + ends[1]) / 3, (ends[0] + 2 * ends[1]) / 3])
    velocity = torch.zeros_like(bends)
    assert len(set(curve.history.t.values)) == 5
    for k, t in enumerate(curve.history.t.values):
        bends.requires_grad_()
        nodes = torch.cat([ends[0][None], bends, ends[1][None]])
        point = pl.Curve(kind, objective.space, nodes).point(float(t))
        state = objective.space.unflatten(point)
        outputs = torch.func.functional_call(net(0), state, (data()[0],))
        loss = nn.functional.cross_entropy(outputs, data()[1])
        assert float(curve.history.loss[k]) == pytest.approx(loss.item(), rel=1e-12)
        (slope,) = torch.autograd.grad(loss + decay / 2 * point.square().sum(), bends)
        velocity = momentum * velocity + slope
        factor = [1, 1, 1, 1 - 0.1 / 0.4 * 0.99, 1 - 0.3 / 0.4 * 0.99][k]  # the published schedule
        bends = (bends - rate * factor * velocity).detach()
    torch.testing.assert_close(curve.nodes[1:-1], bends, rtol=1e-12, atol=1e-14)


def test_the_learning_rate_falls_in_the_second_half_and_stays_at_a_hundredth():
    factors = [_schedule(progress) for progress in (0.0, 0.5, 0.7, 0.9, 0.95, 1.0)]
    assert factors == pytest.approx([1, 1, (1 + 0.01) / 2, 0.01, 0.01, 0.01])


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("polychain", 1), ("bezier", 3)])
def test_it_goes_around_the_hill_between_two_valleys(kind, bends):
    objective = ring_objective()
    a, b = Ring(-1.0, 0.0), Ring(1.0, 0.0)
    assert pl.interpolate(objective, a, b, resolution=21).attrs["barrier"] == pytest.approx(1)
    curve = pl.connect(objective, a, b, kind, bends, steps=600, learning_rate=0.02, batch_size=1)
    along = curve.evaluate(objective, resolution=41)
    assert along.attrs["barrier"] < (0.45 if kind == "polychain" else 0.12)
    assert along.attrs["length"] > 2.2  # not through the middle
    assert float(curve.point(0.5)[1]) > 0.5  # on the side to which the valley falls


def test_it_connects_two_networks_on_mnist():
    digits = load_mnist().first(2000, 500)
    inputs, targets = digits.train

    def trained(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for index in torch.randint(2000, (300, 128)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimizer.step()
        return model

    a, b = trained(1), trained(2)
    objective = pl.Objective(a, nn.CrossEntropyLoss(), digits.train)
    test = objective.replace(data=digits.test)
    straight = pl.interpolate(objective, a, b, resolution=11)
    curve = pl.connect(objective, a, b, steps=600, learning_rate=0.1)
    along = curve.evaluate(objective, resolution=21, test=test)
    assert straight.attrs["barrier"] > 0.3
    assert along.attrs["barrier"] < 0.05
    assert along.attrs["test_barrier"] < 0.3 * straight.attrs["barrier"]
    assert {"accuracy", "test_accuracy", "test_chord"} <= set(along)
    assert along.attrs["accuracy_drop"] < 0.01


def test_nothing_of_the_users_is_changed():
    model, a, b = (net(seed, norm=True, dropout=0.3) for seed in (0, 1, 2))
    model[0].eval()
    before = [copy.deepcopy(m.state_dict()) for m in (model, a, b)]
    random = torch.get_rng_state()
    objective = classifier(model)
    curve = pl.connect(objective, a, b, steps=5, batch_size=8)
    curve.evaluate(objective, resolution=3)
    for module, old in zip((model, a, b), before, strict=True):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, old[name]), name
    assert model.training
    assert not model[0].training
    assert torch.equal(torch.get_rng_state(), random)


def test_training_has_dropout_and_statistics_of_the_batch():
    objective = classifier(net(0, norm=True, dropout=0.5))
    batch = data()
    with objective.training() as step:
        torch.manual_seed(1)
        loss, gradient = step(objective.center, batch)
    model = copy.deepcopy(objective.model).train()
    torch.manual_seed(1)
    expected = nn.functional.cross_entropy(model(batch[0]), batch[1])
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.cat([p.grad.flatten() for p in model.parameters()]))


def test_seeds_reproduce_and_batches_are_shuffled():
    objective = classifier(net(0))
    a, b = net(1), net(2)
    runs = [pl.connect(objective, a, b, steps=9, batch_size=5, seed=s) for s in (1, 1, 2)]
    assert torch.equal(runs[0].nodes, runs[1].nodes)
    assert not torch.equal(runs[0].nodes, runs[2].nodes)
    assert runs[0].attrs["seed"] == 1
    assert runs[0].evaluate(objective, resolution=2).attrs["seed"] == 1


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own():
    inputs = torch.arange(12.0, dtype=torch.float64)[:, None].expand(12, 3)
    objective = pl.Objective(net(0), nn.CrossEntropyLoss(), (inputs, data(12)[1]))

    def drawn(count, seed=1, skip=0):
        batches = itertools.islice(_drawn(objective, 4, seed, skip), count)
        return torch.cat([inputs[:, 0] for inputs, _ in batches]).tolist()

    epochs = [drawn(3, skip=3 * epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(12)) for order in epochs)
    assert all(other != epochs[0] for other in (*epochs[1:], drawn(3, seed=2), list(range(12))))
    for skip in range(7):  # as a training that goes on skips them
        assert drawn(4, skip=skip) == drawn(skip + 4)[4 * skip :]


def test_a_loader_gives_the_batches():
    a, b = net(1), net(2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=24)
    given = pl.connect(classifier(net(0)), a, b, steps=4, loader=loader)
    drawn = pl.connect(classifier(net(0)), a, b, steps=4, batch_size=24)
    torch.testing.assert_close(given.nodes, drawn.nodes)


# -- BatchNorm ------------------------------------------------------------------------------------


def test_statistics_are_recomputed_at_every_point():
    a, b = net(1, norm=True), net(2, norm=True)
    objective = classifier(net(0, norm=True))
    test = objective.replace(data=data(10, seed=8))
    curve = pl.connect(objective, a, b, steps=3, batch_size=8)
    along = curve.evaluate(objective, resolution=3, test=test)
    middle = net(0, norm=True)
    objective.space.write_(middle, curve.point(0.5))
    middle[1].reset_running_stats()
    middle[1].momentum = None
    middle.train()
    middle(data()[0])
    assert float(along.loss[1]) == pytest.approx(classifier(middle).loss(), rel=1e-10)
    expected = pl.Objective(middle, nn.CrossEntropyLoss(), data(10, seed=8)).loss()
    assert float(along.test_loss[1]) == pytest.approx(expected, rel=1e-10)
    assert along.attrs["batchnorm"] == "recompute"
    assert objective.batchnorm == "frozen"
    surface = curve.plane(objective, resolution=3, margin=0.0)
    at_a = surface.loss.sel(alpha=0, beta=0, method="nearest")
    assert float(at_a) == pytest.approx(float(along.loss[0]), rel=1e-10)
    assert float(at_a) != pytest.approx(classifier(a).loss(), rel=1e-3)
    assert surface.attrs["batchnorm"] == "recompute"


# -- the plane ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bends", [1, 3])
def test_the_plane_holds_the_ends_and_the_middle(bends):
    objective = classifier(net(0))
    curve = some_curve(bends=bends)
    surface = curve.plane(objective, resolution=5)
    path = np.stack([surface.path_alpha, surface.path_beta], 1)
    ends = float((curve.nodes[-1] - curve.nodes[0]).norm())
    np.testing.assert_allclose(path[[0, -1]], [[0, 0], [ends, 0]], atol=1e-12)
    np.testing.assert_allclose(surface.path_distance[[0, 50, 100]], 0, atol=1e-6)
    assert float(surface.path_distance.max() > 1e-3) == (bends > 1)
    off = float((curve.point(0.25) - curve.nodes[0]).norm()) ** 2
    in_plane = float((path[25] ** 2).sum() + surface.path_distance[25] ** 2)
    assert in_plane == pytest.approx(off)
    for name in ("alpha", "beta"):  # the curve and some room lie inside
        axis, way = surface[name], surface[f"path_{name}"]
        assert float(axis[0]) < float(way.min())
        assert float(axis[-1]) > float(way.max())


def test_the_plane_shows_the_loss_at_its_points():
    objective = ring_objective()
    nodes = torch.tensor([[-1.0, 0], [0.3, 2], [1, 0]]).double()
    curve = pl.Curve("bezier", objective.space, nodes)
    surface = curve.plane(objective, resolution=7, margin=0.5)
    x, y = surface.alpha.values[:, None] - 1, surface.beta.values
    np.testing.assert_allclose(surface.loss, (x**2 + y**2 - 1) ** 2 - y / 20, atol=1e-12)
    np.testing.assert_allclose(surface.node_alpha, [0, 1.3, 2], atol=1e-12)
    np.testing.assert_allclose(surface.node_beta, [0, 2, 0], atol=1e-12)


# -- checkpoints and Ctrl-C -----------------------------------------------------------------------


class Pressed(nn.Module):
    """Somebody presses Ctrl-C during the n-th call."""

    def __init__(self, n):
        super().__init__()
        self.calls, self.n = [], n

    def forward(self, x):
        self.calls.append(1)
        if len(self.calls) == self.n:
            signal.raise_signal(signal.SIGINT)
        return x


def test_an_interrupted_training_goes_on_to_the_same_curve(tmp_path):
    a, b = net(1, dropout=0.3), net(2, dropout=0.3)
    arguments = {"steps": 13, "batch_size": 5, "seed": 3, "weight_decay": 0.01}
    expected = pl.connect(classifier(net(0, dropout=0.3)), a, b, **arguments)

    pressed = Pressed(1 << 30)
    objective = classifier(nn.Sequential(*net(0, dropout=0.3), pressed))
    pressed.calls.clear()
    pressed.n = 6
    file = tmp_path / "curve.safetensors"
    with pytest.raises(pl.Interrupted, match="after 6 steps") as caught:
        pl.connect(objective, a, b, checkpoint=file, **arguments)
    assert caught.value.result.history.sizes["step"] == 6
    np.testing.assert_array_equal(caught.value.result.history.loss, expected.history.loss[:6])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = pl.connect(objective, a, b, checkpoint=file, **arguments)
    assert torch.equal(resumed.nodes, expected.nodes)
    np.testing.assert_array_equal(resumed.history.loss, expected.history.loss)
    again = pl.connect(objective, a, b, checkpoint=file, **arguments)  # nothing is left to do
    assert torch.equal(again.nodes, expected.nodes)
    with pytest.raises(ValueError, match=r"same arguments, got weight_decay = 0\.01 .* where 0 is"):
        pl.connect(objective, a, b, checkpoint=file, **{**arguments, "weight_decay": 0})
    with pytest.raises(ValueError, match="given models, got another end point"):
        pl.connect(objective, a, net(5), checkpoint=file, **arguments)


def test_curves_are_saved_and_loaded(tmp_path):
    objective = classifier(net(0))
    curve = pl.connect(objective, net(1), net(2), "polychain", bends=2, steps=3)
    curve.save(tmp_path / "curve")
    loaded = pl.Curve.load(tmp_path / "curve", objective)
    assert torch.equal(loaded.nodes, curve.nodes)
    assert (loaded.kind, loaded.attrs) == (curve.kind, curve.attrs)
    np.testing.assert_array_equal(loaded.history.t, curve.history.t)
    with pytest.raises(ValueError, match="must be the file of a curve"):
        pl.Curve.load(tmp_path / "missing", objective)
    with pytest.raises(ValueError, match="objective's model with 2 parameters, got 32"):
        pl.Curve.load(tmp_path / "curve", ring_objective())


# -- bad input ------------------------------------------------------------------------------------


def test_bad_requests():
    objective = classifier(net(0))
    a, b = net(1), net(2)
    with pytest.raises(ValueError, match="curve must be one of"):
        pl.connect(objective, a, b, "spline")
    for name, value in (("bends", 0), ("steps", 0), ("batch_size", 1.5), ("seed", -1)):
        with pytest.raises(ValueError, match=f"connect: {name} must be an integer"):
            pl.connect(objective, a, b, **{name: value})
    for name in ("learning_rate", "momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"connect: {name} must be"):
            pl.connect(objective, a, b, **{name: -0.1})
    with pytest.raises(ValueError, match="momentum must be below 1"):
        pl.connect(objective, a, b, momentum=1)
    normed = [net(seed, norm=True) for seed in (0, 1, 2)]
    with pytest.raises(ValueError, match="batch_size must be 2 or more for a model with BatchN"):
        pl.connect(classifier(normed[0]), *normed[1:], batch_size=1)
    with pytest.raises(ValueError, match="model_b must have the architecture"):
        pl.connect(objective, a, nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"stay finite, got (inf|nan) at step \d+"):
        pl.connect(ring_objective(), Ring(-1.0, 0.0), Ring(1.0, 0.0), learning_rate=1e30)


def test_bad_requests_of_a_curve():
    objective, curve = classifier(net(0)), some_curve()
    with pytest.raises(ValueError, match="t must be from 0 to 1"):
        curve.point(1.5)
    with pytest.raises(ValueError, match="resolution must be an integer >= 2"):
        curve.evaluate(objective, resolution=1)
    with pytest.raises(ValueError, match="objective must be one of the curve's architecture"):
        curve.evaluate(ring_objective())
    with pytest.raises(ValueError, match="test must be an objective of the same architecture"):
        curve.evaluate(objective, test=ring_objective())
    straight = pl.Curve("bezier", curve.space, torch.arange(3.0)[:, None].expand(3, 32))
    with pytest.raises(ValueError, match="must have left the straight line"):
        straight.plane(objective)
    with pytest.raises(ValueError, match=r"nodes must have shape \[bends \+ 2, 32\]"):
        pl.Curve("bezier", curve.space, torch.zeros(2, 32))
