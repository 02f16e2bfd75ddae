"""Directions: normalisation per filter, seeds, generated ones equal to stored ones."""

from typing import Any

import numpy as np
import pytest
import torch
from models import Attention, classifier, convnet, initialised, labels, mlp, normal
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pylandscape as pl
from pylandscape import _ops
from pylandscape.directions import NORMALIZATIONS


class Everything(nn.Module):
    """A layer of every kind, side by side; only the parameters matter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(3, 4),
                nn.Conv1d(2, 3, 3),
                nn.Conv2d(2, 3, (2, 3)),
                nn.Conv3d(2, 3, 2),
                nn.Conv2d(4, 6, 2, groups=2),
                nn.Conv2d(3, 6, 2, groups=3),
                nn.ConvTranspose1d(2, 3, 3),
                nn.ConvTranspose2d(4, 6, 2, groups=2),
                nn.Embedding(5, 3),
                nn.LayerNorm(4),
                nn.BatchNorm2d(3),
                nn.MultiheadAttention(4, 2),
                parametrizations.weight_norm(nn.Linear(3, 4)),
            ]
        )
        self.tied = nn.Linear(3, 5)
        self.tied.weight = self.layers[8].weight
        self.hollow = nn.Parameter(torch.empty(2, 0))
        self.scalar = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scalar


def everything(dtype: torch.dtype = torch.float64) -> pl.Objective:
    model = initialised(Everything(), dtype=dtype)
    return pl.Objective(model, nn.MSELoss(), (normal(4, 2), normal(4, 2)))


def filter_norms(objective: pl.Objective, vector: Tensor) -> dict[str, Tensor]:
    """Norms per parameter, from the tensors themselves: transposed convolutions by hand."""
    groups = {
        f"layers.{i}.weight": layer.groups
        for i, layer in enumerate(getattr(objective.model, "layers", ()))
        if isinstance(layer, nn.modules.conv._ConvTransposeNd)
    }
    norms = {}
    for name, tensor in objective.space.unflatten(vector.double()).items():
        if tensor.ndim <= 1:
            norms[name] = tensor.norm()[None]
        elif name in groups:
            parts = tensor.chunk(groups[name], 0)
            norms[name] = torch.cat([part.transpose(0, 1).flatten(1).norm(dim=1) for part in parts])
        else:
            norms[name] = tensor.flatten(1).norm(dim=1)
    return norms


def raw(objective: pl.Objective, seed: int = 0) -> Tensor:
    """The direction as drawn."""
    return pl.random_directions(objective, 1, seed, "none", None).vectors[0].double()


@pytest.mark.parametrize("ignore", ["biasbn", None])
def test_every_filter_has_the_norm_of_its_weights(ignore: str | None) -> None:
    objective = everything()
    directions = pl.random_directions(objective, 2, ignore=ignore)
    points = directions.points(torch.zeros(objective.space.size).double(), torch.eye(2).double())
    expected = filter_norms(objective, objective.center)
    for vector in points:
        for name, norms in filter_norms(objective, vector).items():
            left_out = ignore == "biasbn" and len(objective.space.unflatten(vector)[name].shape) < 2
            torch.testing.assert_close(
                norms, torch.zeros_like(norms) if left_out else expected[name], rtol=1e-7, atol=0
            )


def test_layer_rule() -> None:
    objective = everything()
    vector = pl.random_directions(objective, 1, normalize="layer", ignore=None).vectors[0].double()
    for entry in objective.space.entries:
        d, w, z = (x[entry.slice] for x in (vector, objective.center, raw(objective)))
        expected = z * w.norm() / z.norm().clamp(min=1e-30)
        torch.testing.assert_close(d, expected, rtol=1e-6, atol=1e-9)


def test_weight_rule() -> None:
    objective = everything()
    vector = pl.random_directions(objective, 1, normalize="weight", ignore=None).vectors[0]
    torch.testing.assert_close(vector, raw(objective) * objective.center, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ignore", ["biasbn", None])
def test_model_rule(ignore: str | None) -> None:
    objective = everything()
    d = pl.random_directions(objective, 1, normalize="model", ignore=ignore).vectors[0].double()
    assert d.norm().item() == pytest.approx(objective.center.norm().item(), rel=1e-6)
    kept = d != 0
    ratio = d[kept] / raw(objective)[kept]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-5, atol=0)


def test_none_is_standard_normal() -> None:
    model = nn.Linear(200, 100)
    objective = pl.Objective(model, nn.MSELoss(), (torch.zeros(2, 200), torch.zeros(2, 100)))
    z = raw(objective)
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.03
    assert abs(torch.corrcoef(torch.stack([z[:-1], z[1:]]))[0, 1]) < 0.03


def test_li2018_copies_vectors_of_the_center() -> None:
    objective = everything()
    d = pl.random_directions(objective, 2, normalize="li2018").vectors
    plain = pl.random_directions(objective, 2).vectors.double()
    for entry in objective.space.entries:
        expected = objective.center[None] if entry.is_vector else plain
        torch.testing.assert_close(
            d[:, entry.slice], expected[:, entry.slice].expand(2, -1), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("normalize", ["filter", "layer", "weight", "model", "none"])
def test_biasbn_leaves_vectors_at_zero(normalize: str) -> None:
    objective = classifier(nn.Sequential(mlp(), nn.LayerNorm(3), nn.PReLU()).double())
    d = objective.space.unflatten(
        pl.random_directions(objective, 1, normalize=normalize).vectors[0]
    )
    varied = {name for name, tensor in d.items() if tensor.count_nonzero()}
    assert varied == {"0.0.weight", "0.2.weight"}


@pytest.mark.parametrize("normalize", ["filter", "layer", "model", "li2018"])
def test_normalisation_does_not_depend_on_the_scale_of_the_draw(
    normalize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = everything()

    def built(scale: float) -> Tensor:
        """As if the raw direction were `scale` times as long."""
        norms, points = _ops.normal_filter_norms, _ops.perturb_random
        with monkeypatch.context() as patch:
            patch.setattr(_ops, "normal_filter_norms", lambda *a: scale * norms(*a))
            patch.setattr(
                _ops,
                "perturb_random",
                lambda center, seeds, scales, *rest: points(center, seeds, scale * scales, *rest),
            )
            directions = pl.random_directions(objective, 2, normalize=normalize, ignore=None)
            return directions.points(objective.center, torch.eye(2).double())

    torch.testing.assert_close(built(1000.0), built(1.0), rtol=1e-7, atol=1e-8)


def rescaled(model: nn.Sequential, factor: float) -> nn.Sequential:
    """The same function: the first layer times `factor`, the last divided by it."""
    first, last = model[0], model[-1]
    with torch.no_grad():
        first.weight *= factor
        first.bias *= factor
        last.weight /= factor
    return model


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_rescaling_a_relu_layer_leaves_the_surface_unchanged(kind: str) -> None:
    surfaces = []
    for factor in (1.0, 7.0):
        if kind == "linear":
            model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
            data = normal(9, 4), labels(9, 3)
        else:
            model = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
            )
            data = normal(9, 1, 6, 6), labels(9, 3)
        model = rescaled(initialised(model), factor)
        objective = pl.Objective(model, nn.CrossEntropyLoss(), data)
        surfaces.append(pl.plane(objective, pl.random_directions(objective), resolution=5).loss)
    np.testing.assert_allclose(surfaces[1], surfaces[0], rtol=1e-6)
    assert surfaces[0].std() > 1e-3


def test_without_normalisation_rescaling_changes_the_surface() -> None:
    """So the test above can fail."""
    losses = []
    for factor in (1.0, 7.0):
        model = initialised(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
        objective = classifier(rescaled(model, factor))
        directions = pl.random_directions(objective, 1, normalize="none")
        losses.append(pl.line(objective, directions, resolution=3).loss)
    assert abs(losses[1] - losses[0]).max() > 1e-2


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_seed_gives_one_set_of_directions(normalize: str) -> None:
    objective = everything()
    two = pl.random_directions(objective, 2, 5, normalize).vectors
    assert torch.equal(pl.random_directions(objective, 2, 5, normalize).vectors, two)
    assert torch.equal(pl.random_directions(objective, 4, 5, normalize).vectors[:2], two)
    other = pl.random_directions(objective, 2, 6, normalize).vectors
    for a in (two[1], *other):
        assert not torch.allclose(a, two[0])


def test_directions_of_one_set_and_of_neighbouring_seeds_are_nearly_orthogonal() -> None:
    model = nn.Linear(400, 50)
    objective = pl.Objective(model, nn.MSELoss(), (torch.zeros(2, 400), torch.zeros(2, 50)))
    rows = [pl.random_directions(objective, 3, seed).vectors for seed in (0, 1, 2)]
    d = nn.functional.normalize(torch.cat(rows))
    assert (d @ d.T - torch.eye(9)).abs().max() < 0.05


def test_directions_do_not_depend_on_the_number_of_threads() -> None:
    objective = everything()
    torch.set_num_threads(1)
    one = pl.random_directions(objective).vectors
    torch.set_num_threads(2)
    assert torch.equal(pl.random_directions(objective).vectors, one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalize", ["filter", "layer", "model", "none"])
def test_generated_directions_equal_stored_ones(normalize: str, dtype: torch.dtype) -> None:
    objective = everything(dtype)
    generated = pl.random_directions(objective, 3, 1, normalize, None)
    assert generated.is_generated
    stored = pl.Directions.from_vectors(objective, generated.vectors)
    assert not stored.is_generated
    center, coordinates = objective.center, normal(4, 3)
    points = generated.points(center, coordinates)
    assert points.dtype == dtype
    torch.testing.assert_close(points, stored.points(center, coordinates), rtol=1e-6, atol=1e-6)
    naive = center.double() + coordinates @ generated.vectors.double()
    torch.testing.assert_close(points.double(), naive, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(points[0], center)


@pytest.mark.parametrize("normalize", ["filter", "weight"])
def test_parts(normalize: str) -> None:
    objective = everything()
    d = pl.random_directions(objective, 3, normalize=normalize)
    vectors = d.vectors
    assert len(d) == 3
    assert torch.equal(d[0].vectors, vectors[:1])
    assert torch.equal(d[-1].vectors, vectors[2:])
    assert torch.equal(d[np.int64(1)].vectors, vectors[1:2])
    assert torch.equal(d[1:].vectors, vectors[1:])
    points = d[0:2].points(objective.center, torch.eye(2))
    torch.testing.assert_close(points, objective.center + vectors[:2], rtol=1e-6, atol=1e-6)
    assert torch.equal(d.vector(1), vectors[1])
    assert [len(part) for part in d] == [1, 1, 1]
    assert d[1:].labels == ["direction 2", "direction 3"]
    assert d[1].attrs == d.attrs
    with pytest.raises(IndexError):
        d[3]


def test_points_are_streamed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = classifier()
    d, coordinates = pl.random_directions(objective, 2), normal(7, 2)
    whole = d.points(objective.center, coordinates)
    monkeypatch.setattr("pylandscape.directions.CHUNK_BYTES", 3 * 8 * objective.space.size)
    streamed = list(d.stream(objective.center, coordinates))
    assert torch.equal(torch.stack(streamed), whole)


def test_use_in_another_precision_keeps_the_vectors() -> None:
    objective = classifier(mlp().float())
    vectors = normal(2, objective.space.size)
    d = pl.Directions.from_vectors(objective, vectors)
    pl.plane(objective, d, resolution=2)
    assert torch.equal(d.vectors, vectors)


def test_directions_towards_models() -> None:
    objective = classifier()
    others = [initialised(mlp(), seed=seed) for seed in (5, 6)]
    flat = objective.space.flatten(others[1])
    d = pl.difference_directions(objective, others[0], flat)
    surface = pl.plane(objective, d, extent=((0, 1), (0, 1)), resolution=2)
    corner = [objective.loss(objective.space.flatten(model)) for model in others]
    assert surface.loss.values[0, 0] == pytest.approx(objective.loss())
    assert surface.loss.values[1, 0] == pytest.approx(corner[0])
    assert surface.loss.values[0, 1] == pytest.approx(corner[1])
    assert d.labels == ["towards model 1", "towards model 2"]


def test_directions_of_a_convolutional_net_and_of_attention_move_the_loss() -> None:
    tokens = labels(4, 7, 5)
    for model, inputs in ((convnet(norm=True), normal(4, 1, 6, 6)), (Attention("layer"), tokens)):
        objective = pl.Objective(initialised(model), nn.CrossEntropyLoss(), (inputs, labels(4, 3)))
        curve = pl.line(objective, pl.random_directions(objective, 1), resolution=3)
        assert curve.loss.values[1] == pytest.approx(objective.loss())
        assert curve.loss.std() > 1e-4


P = 51


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be a positive integer, got 0"),
        ({"count": 1.5}, "count must be a positive integer, got 1.5"),
        ({"normalize": "Filter"}, r"normalize must be one of \('filter', .*, got 'Filter'"),
        ({"ignore": "bias"}, "ignore must be 'biasbn' or None, got 'bias'"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"seed": None}, "seed must be an integer >= 0, got None"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^random_directions: {message}"):
        pl.random_directions(classifier(), **options)


def test_nothing_left_to_vary() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    objective = classifier(model)
    with pytest.raises(ValueError, match=r"ignore must leave something to vary.*Use ignore=None"):
        pl.random_directions(objective)
    assert pl.random_directions(objective, ignore=None).vectors.count_nonzero() == 2 * 9


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (torch.zeros(2, 3), {}, r"vectors must be a tensor of shape \[D, 51\], got a tensor"),
        (torch.zeros(1, 2, P), {}, r"vectors must be a tensor of shape \[D, 51\]"),
        (torch.zeros(0, P), {}, r"vectors must be a tensor of shape \[D, 51\]"),
        (np.zeros((1, P)), {}, r"vectors must be a tensor of shape \[D, 51\], got ndarray"),
        (torch.full((1, P), torch.nan), {}, "vectors must be finite, got NaN or inf"),
        (torch.ones(2, P), {"labels": ["a"]}, "labels must be 2 in number, got"),
        (torch.ones(2, P), {"center": torch.ones(3)}, r"center must have shape \[51\], got"),
    ],
)
def test_wrong_vectors(vectors: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^Directions.from_vectors: {message}"):
        pl.Directions.from_vectors(classifier(), vectors, **options)


def test_wrong_models() -> None:
    objective = classifier()
    with pytest.raises(ValueError, match=r"models must hold at least one, got none"):
        pl.difference_directions(objective)
    with pytest.raises(ValueError, match=r"must hold '2.weight' of shape \[3, 6\], got shape"):
        pl.difference_directions(objective, mlp(classes=4))
    with pytest.raises(ValueError, match=r"vector must have shape \[51\], got a tensor"):
        pl.difference_directions(objective, torch.zeros(5))
