"""Slices: closed forms, the order of the grid, what a dataset says of itself, wrong arguments."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from models import Shift, classifier, half_square, labels, mlp, normal, own_value
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.surface import axis_names


def directions_of(objective: pl.Objective, *rows: list[float]) -> pl.Directions:
    return pl.Directions.from_vectors(objective, torch.tensor(rows, dtype=torch.float64))


def linear(*slope: float) -> pl.Objective:
    """L(w) = slope . w, at w = 0."""
    x = torch.tensor([slope], dtype=torch.float64)
    return pl.Objective(Shift(torch.zeros(len(slope)).double()), own_value, (x, torch.zeros(1)))


def test_grid_order() -> None:
    """value(alpha = i, beta = j) of f = x + 10 y on a 3 x 2 grid."""
    objective = linear(1, 10)
    surface = pl.plane(
        objective,
        directions_of(objective, [1, 0], [0, 1]),
        extent=((0, 2), (0, 1)),
        resolution=(3, 2),
    )
    assert surface.loss.dims == ("alpha", "beta")
    np.testing.assert_array_equal(surface.alpha, [0, 1, 2])
    np.testing.assert_array_equal(surface.beta, [0, 1])
    np.testing.assert_allclose(surface.loss, [[0, 10], [1, 11], [2, 12]], atol=1e-12)
    assert float(surface.loss.sel(alpha=2, beta=1)) == pytest.approx(12)


def test_grid_order_of_four_dimensions() -> None:
    objective = linear(1, 10, 100, 1000)
    directions = pl.Directions.from_vectors(objective, torch.eye(4).double())
    surface = pl.grid(objective, directions, extent=[(0, 1)] * 4, resolution=(2, 3, 2, 4))
    assert surface.loss.dims == ("alpha", "beta", "gamma", "delta")
    expected = surface.alpha + 10 * surface.beta + 100 * surface.gamma + 1000 * surface.delta
    np.testing.assert_allclose(surface.loss, expected, atol=1e-9)


@pytest.mark.parametrize("resolution", [2, 5, 8])
def test_a_slice_of_a_parabola_is_a_parabola(resolution: int) -> None:
    x, y = normal(9, 4), normal(9, seed=1)
    objective = pl.Objective(Shift(normal(4, seed=2)), half_square, (x, y), batch_size=4)
    d = pl.Directions.from_vectors(objective, normal(2, 4, seed=3))
    hessian = x.T @ x / 9
    value, gradient = objective.loss(), objective.gradient()
    surface = pl.plane(objective, d, extent=((-2, 1), (0.5, 3)), resolution=(resolution, 3))
    for i, alpha in enumerate(surface.alpha.values):
        for j, beta in enumerate(surface.beta.values):
            step = alpha * d.vectors[0] + beta * d.vectors[1]
            expected = value + gradient @ step + step @ hessian @ step / 2
            assert surface.loss.values[i, j] == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("extent", [1.0, 0.7, 3.7, 1e-3])
@pytest.mark.parametrize("resolution", [3, 101, 399])
def test_the_center_is_on_an_odd_symmetric_grid(extent: float, resolution: int) -> None:
    objective = linear(1, 10)
    curve = pl.line(objective, directions_of(objective, [1, 1]), extent, resolution)
    assert float(curve.loss.sel(alpha=0)) == 0
    np.testing.assert_array_equal(curve.alpha, -curve.alpha[::-1])
    assert curve.alpha.values[-1] == extent


@pytest.mark.parametrize("normalize", ["filter", "weight"])
def test_the_value_at_the_center_is_the_loss(normalize: str) -> None:
    objective = classifier()
    directions = pl.random_directions(objective, 3, normalize=normalize)
    curve = pl.line(objective, directions[0], resolution=3)
    surface = pl.plane(objective, directions[:2], resolution=(3, 5))
    cube = pl.grid(objective, directions, resolution=3)
    for found in (curve, surface, cube):
        at = found.sel(dict.fromkeys(found.dims, 0))
        assert float(at.loss) == pytest.approx(objective.loss(), rel=1e-12)
    assert float(at.accuracy) == objective.evaluate(objective.center[None])["accuracy"]
    np.testing.assert_allclose(surface.loss.sel(beta=0), curve.loss, rtol=1e-12)
    np.testing.assert_allclose(cube.loss[:, :, 1], surface.loss[:, ::2], rtol=1e-12)


def test_extents() -> None:
    objective = linear(1, 10)
    d = directions_of(objective, [1, 0], [0, 1])

    def ends(extent: Any) -> list[float]:
        surface = pl.plane(objective, d, extent=extent, resolution=2)
        return [*surface.alpha.values.tolist(), *surface.beta.values.tolist()]

    assert ends(2) == [-2, 2, -2, 2]
    assert ends((0.5, 3)) == [0.5, 3, 0.5, 3]
    assert ends(((0, 1), (2, 3))) == [0, 1, 2, 3]
    assert ends([1, (2, 3)]) == [-1, 1, 2, 3]
    assert ends(np.float32(1)) == [-1, 1, -1, 1]
    assert pl.line(objective, d[0], (-0.5, 1.5), np.int64(3)).alpha.values.tolist() == [
        -0.5,
        0.5,
        1.5,
    ]


def test_center() -> None:
    objective = linear(1, 10)
    own = torch.tensor([3.0, 4.0])
    d = pl.Directions.from_vectors(objective, torch.eye(2), center=own)
    of_directions = pl.line(objective, d[0], resolution=3)
    given = pl.line(objective, d[0], resolution=3, center=torch.tensor([0.0, 1.0]))
    free = pl.line(objective, directions_of(objective, [1, 0]), resolution=3)
    found = [(c.loss.values[1], c.attrs["center"]) for c in (of_directions, given, free)]
    assert found == [
        (pytest.approx(43), "that of the directions"),
        (pytest.approx(10), "given"),
        (pytest.approx(0), "the model's parameters"),
    ]


def test_axis_names() -> None:
    assert axis_names(6) == ("alpha", "beta", "gamma", "delta", "axis4", "axis5")


def test_variables_and_attributes() -> None:
    metrics = {"margin": lambda o, t: o.amax(1)}
    objective = classifier(metrics=metrics, samples=10, seed=4)
    surface = pl.plane(objective, pl.random_directions(objective, seed=7), resolution=2)
    assert set(surface) == {"loss", "loss_stderr", "accuracy", "margin"}
    assert {surface[name].dtype for name in surface} == {np.dtype("float64")}
    assert set(surface.coords) == {"alpha", "beta"}
    attrs = json.loads(json.dumps(surface.attrs))
    expected = objective.describe() | {
        "kind": "plane", "normalize": "filter", "ignore": "biasbn", "seed": 7, "sample_seed": 4,
        "axis_labels": ["direction 1", "direction 2"],
    }  # fmt: skip
    assert attrs.items() >= expected.items()


def test_standard_error_and_accuracy_at_each_point() -> None:
    objective = classifier()
    directions = pl.random_directions(objective, 1)
    curve = pl.line(objective, directions, resolution=4)
    for i, alpha in enumerate(curve.alpha.values):
        point = directions.points(objective.center, torch.tensor([[alpha]]))
        for name, value in objective.evaluate(point).items():
            assert curve[name].values[i] == pytest.approx(value.item(), rel=1e-12)


def test_values_that_are_not_finite_are_kept() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.log(outputs)  # -inf at 0, NaN below

    objective = pl.Objective(
        Shift(torch.ones(1).double()), loss, (torch.ones(2, 1), torch.zeros(2))
    )
    curve = pl.line(objective, directions_of(objective, [1]), extent=(-2, 0), resolution=3)
    np.testing.assert_array_equal(curve.loss, [np.nan, -np.inf, 0])
    assert np.isnan(curve.loss_stderr.values[:2]).all()


def interrupted_after(points: int, batches: int) -> tuple[pl.Objective, dict[str, int]]:
    left = {"calls": -1}

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        left["calls"] -= 1
        if left["calls"] == 0:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets, reduction="none")

    objective = classifier(loss=loss, batch_size=12 // batches)
    left["calls"] = points * batches + 2
    return objective, left


@pytest.mark.parametrize("resolution", [(3, 2), (2, 3)])
def test_an_interrupted_plane_keeps_what_was_evaluated(resolution: tuple[int, int]) -> None:
    objective, left = interrupted_after(points=4, batches=2)
    directions = pl.random_directions(objective)
    with pytest.raises(pl.Interrupted, match="interrupted after 4 points") as caught:
        pl.plane(objective, directions, resolution=resolution)
    partial = caught.value.surface
    assert isinstance(partial, xr.Dataset)
    assert partial.evaluated.dtype == bool
    assert partial.evaluated.values.ravel().tolist() == [True] * 4 + [False] * 2
    left["calls"] = -1
    complete = pl.plane(objective, directions, resolution=resolution)
    for name in complete:
        xr.testing.assert_equal(partial[name], complete[name].where(partial.evaluated))
    assert partial.attrs == complete.attrs


def test_an_interrupted_line() -> None:
    objective, _ = interrupted_after(points=0, batches=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        pl.line(objective, pl.random_directions(objective, 1), resolution=3)
    assert not caught.value.surface.evaluated.any()
    assert caught.value.surface.loss.isnull().all()


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    objective = linear(1, 10)
    d = directions_of(objective, [1, 0])
    pl.line(objective, d, resolution=3)
    assert capsys.readouterr().err == ""
    pl.line(objective, d, resolution=3, progress=True)
    assert "line 3: 100%" in capsys.readouterr().err


def test_the_same_numbers_twice_and_for_any_split() -> None:
    data = normal(12, 4), labels(12, 3)
    surfaces = []
    for batch_size in (12, 12, 4, 5):
        objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), data, batch_size=batch_size)
        surfaces.append(pl.plane(objective, pl.random_directions(objective), resolution=3))
    xr.testing.assert_identical(surfaces[0], surfaces[1])
    for other in surfaces[2:]:
        xr.testing.assert_allclose(surfaces[0], other, rtol=1e-12)


@pytest.mark.parametrize(
    "resolution", [1, 0, 2.0, 5.5, None, "ab", (3,), (3, 2, 2), (3, 1), (3, 2.0)]
)
def test_wrong_resolution(resolution: Any) -> None:
    objective = linear(1, 10)
    d = directions_of(objective, [1, 0], [0, 1])
    with pytest.raises(
        ValueError, match=r"^plane: resolution must be an integer >= 2 or 2 of them"
    ):
        pl.plane(objective, d, resolution=resolution)


@pytest.mark.parametrize(
    "extent",
    [0, -1.0, (1, -1), (1, 1), ((0, 1), (1, 0)), (0, 1, 2), ((0, 1),), float("nan"), float("inf"),
     None, "ab", ("a", "b"), (None, 1), ((0, 1, 2), (0, 1))],
)  # fmt: skip
def test_wrong_extent(extent: Any) -> None:
    objective = linear(1, 10)
    d = directions_of(objective, [1, 0], [0, 1])
    with pytest.raises(ValueError, match=r"^plane: extent must be a positive number, a range"):
        pl.plane(objective, d, extent=extent, resolution=2)


def test_other_wrong_arguments_come_before_any_work() -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets, reduction="none")

    objective, other = classifier(loss=loss), classifier(mlp(classes=4))
    d = pl.random_directions(objective, 3)
    before = calls
    with pytest.raises(ValueError, match=r"^line: directions must be 1 in number, got 3. Take"):
        pl.line(objective, d)
    with pytest.raises(ValueError, match=r"^plane: directions must be 2 in number, got 1"):
        pl.plane(objective, d[0])
    with pytest.raises(ValueError, match=r"^grid: directions must be 1 in number, got 0"):
        pl.grid(objective, d[5:])
    with pytest.raises(ValueError, match=r"^line: directions must belong to the objective's model"):
        pl.line(objective, pl.random_directions(other, 1))
    with pytest.raises(TypeError, match=r"^plane: directions must be Directions, got a tensor"):
        pl.plane(objective, torch.zeros(2, 51))
    with pytest.raises(ValueError, match=r"^line: center must have shape \[51\], got a tensor"):
        pl.line(objective, d[0], center=torch.zeros(3))
    with pytest.raises(TypeError, match=r"^line: objective must be an Objective, got Sequential"):
        pl.line(objective.model, d[0])
    assert calls == before
