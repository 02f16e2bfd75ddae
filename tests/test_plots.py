"""Figures: what is drawn where, what a reader is told, and that nothing overlaps or leaks."""

import gc
import io
import subprocess
import sys
import weakref
from itertools import combinations, pairwise
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text
from PIL import Image

import pylandscape as pl
from pylandscape import plots
from pylandscape.plots import _animation
from pylandscape.plots._interpolation import barrier_height
from pylandscape.plots._surface import faces_of
from pylandscape.plots._training import running_mean
from pylandscape.plots._trajectory import draw_scene, finish_scene
from pylandscape.plots._values import Plane, contour_levels, number_texts, read_curve, read_plane

ATTRS = {
    "model": "SmallCNN",
    "parameters": 61706,
    "samples": 2000,
    "population": 60000,
    "loss_function": "cross-entropy",
    "data": "MNIST",
    "dtype": "float32",
    "engine": "torch",
    "batchnorm": "frozen",
    "directions": "random, filter-normalised",
    "normalize": "filter",
    "ignore": "biasbn",
    "seed": 7,
}


def plane_of(function, nx=21, ny=21, extent=(1.0, 1.0), **attrs):
    x, y = (np.linspace(-e, e, n) for e, n in zip(extent, (nx, ny), strict=True))
    values = function(x[:, None], y[None, :]) + np.zeros((nx, ny))
    return xr.Dataset({"loss": (("alpha", "beta"), values)}, {"alpha": x, "beta": y}, ATTRS | attrs)


def bowl(x, y):
    return 0.2 + x**2 + 0.5 * y**2 + 0.05 * np.sin(9 * x)


def with_gaps():
    """NaN at (2, 3), infinite in a corner, the last columns not evaluated."""
    surface = plane_of(bowl)
    surface["loss"][2, 3] = np.nan
    surface["loss"][:3, 18:] = np.inf
    evaluated = np.ones((21, 21), dtype=bool)
    evaluated[17:] = False
    return surface.assign(evaluated=(("alpha", "beta"), evaluated))


def curve_of(function, n=41, low=-1.0, accuracy=True, **attrs):
    x = np.linspace(low, 1.0, n)
    loss = function(x)
    names = {"loss": loss, "loss_stderr": 0.02 * np.abs(loss) + 0.01}
    if accuracy:
        names["accuracy"] = np.exp(-np.abs(loss))
    return xr.Dataset(
        {name: ("alpha", value) for name, value in names.items()}, {"alpha": x}, ATTRS | attrs
    )


def hill(n=21):
    return curve_of(lambda t: 0.1 + 3 * t * (1 - t) ** 2, n, low=0.0)


def log_of(n=300):
    step = np.arange(n)
    names = {"loss": 2.3 * 0.98**step + 0.1, "grad_norm": 5.0 / (1 + step)}
    names["learning_rate"] = np.where(step < n // 2, 0.1, 0.01)
    return xr.Dataset({k: ("step", v) for k, v in names.items()}, {"step": step}, ATTRS)


def path_of(n=30):
    t = np.linspace(0, 1, n)
    names = {"alpha": 0.8 * (1 - t), "beta": 0.6 * (1 - t) ** 2, "distance": 0.2 * t * (1 - t)}
    names |= {"displacement": 1 - t, "loss": 2 * 0.1**t, "plane_loss": 2.1 * 0.1**t}
    return xr.Dataset(
        {k: ("snapshot", v) for k, v in names.items()},
        {"step": ("snapshot", 10 * np.arange(n))},
        ATTRS | {"explained_variance": [0.812, 0.123]},
    )


def measures_of(n=6):
    values = np.array([3.0, 1.0, 40.0, 7.0, 190.0, 12.0])[:n]
    names = {"lambda_max": values, "lambda_max_residual": 0.1 * values}
    names |= {"error": 0.01 * np.sqrt(values), "flat": np.ones(n)}
    return xr.Dataset({k: ("solution", v) for k, v in names.items()}, attrs=ATTRS)


def pairs_of(values=(-0.5, 42.0, 7.0), converged=True):
    values = torch.tensor(values, dtype=torch.float64)
    residuals = torch.linspace(0.1, 0.3, len(values), dtype=torch.float64)
    return SimpleNamespace(values=values, residuals=residuals, converged=converged, attrs=ATTRS)


def spectrum_of(matrix=None, **options):
    n = 60
    values = torch.cat([torch.linspace(-0.1, 1, n - 2), torch.tensor([4.0, 9.0])])
    matrix = torch.diag(values.double()) if matrix is None else matrix
    found = pl.spectral_density(matrix, probes=3, steps=20, **options)
    return found.assign_attrs(ATTRS | {"matrix": "Hessian", "size": n})


def layers_of(count=4):
    n = np.arange(1.0, count + 1)
    names = {"lambda_max": 10.0**n, "lambda_max_residual": 1.0 + 0 * n, "lambda_min": 2 - n}
    names |= {"lambda_min_residual": 0.1 * n, "trace": 3 - n, "trace_stderr": 0.5 * n}
    names |= {"parameters": (1000 * n).astype(int)}
    layer = [f"block.{k}.conv1" for k in range(count)]
    return xr.Dataset({k: ("layer", v) for k, v in names.items()}, {"layer": layer}, ATTRS)


def curvatures_of(count=2, mean=4e-4):
    names = {
        "curvature": 1e-3 * np.arange(1.0, count + 1),
        "principal": np.linspace(8, -0.002, count),
    }
    numbers = {"lambda_max": 42.0, "lambda_min": -1.5, "mean": mean, "mean_stderr": 1e-4}
    variables = {k: ("axis", v) for k, v in names.items()} | numbers
    return xr.Dataset(variables, {"axis": [f"direction {k + 1}" for k in range(count)]}, ATTRS)


def eigenvalue_path_of():
    step = np.array([0, 10, 100, 1000])
    names = {"lambda_max": [1.0, 30.0, 9.0, 4.0], "lambda_max_residual": [0.5, 0.1, 0.1, 0.1]}
    return xr.Dataset({k: ("step", v) for k, v in names.items()}, {"step": step}, ATTRS)


def barriers_of(pairs=3):
    t, height = np.linspace(0, 1, 21), np.array([1.3, 0.2, 0.02])
    share = 1 + 0.1 * np.arange(pairs)
    loss = 0.01 + 4 * share[:, None, None] * height[:, None] * t * (1 - t)
    names = {"loss": loss, "accuracy": 1 / (1 + loss), "test_loss": 0.3 + loss}
    columns = {k: (("pair", "path", "alpha"), v) for k, v in names.items()}
    for name in ("barrier", "test_barrier"):
        columns[name] = (("pair", "path"), share[:, None] * height)
    return xr.Dataset(columns, {"path": ["straight", "aligned", "curve"], "alpha": t}, ATTRS)


def curve_plane_of(bends=1, off=0.0):
    t, nodes = np.linspace(0, 1, 31), np.linspace(-0.6, 0.6, bends + 2)
    path = {"alpha": 1.2 * t - 0.6, "beta": 2 * t * (1 - t), "distance": off * t * (1 - t)}
    columns = {f"path_{k}": ("t", v) for k, v in path.items()}
    columns |= {"node_alpha": ("node", nodes), "node_beta": ("node", 0.8 * np.cos(2.6 * nodes))}
    return plane_of(bowl).assign(columns)


def profile_of(n=9):
    x = np.geomspace(1e-3, 10, n)
    names = {"gradient_limit": 0.02 * x, "curvature_limit": x**2}
    names |= {"quadratic": 0.02 * x + x**2, "rise": 0.02 * x + x**2 + x**3}
    attrs = ATTRS | {"lambda_max": 2.0, "gradient_norm": 0.02}
    return xr.Dataset({k: ("epsilon", v) for k, v in names.items()}, {"epsilon": x}, attrs)


def spiked():
    """A bowl with a few values that would flatten it, on a linear scale."""
    surface = plane_of(lambda x, y: 1 + x**2 + y**2, 31, 31)
    surface["loss"][0, :3] = 60.0
    return surface


LONG = {"data": "a/path/without/spaces/" * 6 + "cost_in_$", "directions": "of many words " * 20}
FIGURES = {
    "line": lambda: plots.line(curve_of(lambda x: 0.1 + x**2)),
    "line, wide": lambda: plots.line(curve_of(lambda x: 1e-3 * np.exp(18 * x**2))),
    "line, gaps": lambda: plots.line(curve_of(lambda x: np.where(x > 0.5, np.nan, x**2 + 1))),
    "contour": lambda: plots.contour(plane_of(bowl)),
    "contour, gaps": lambda: plots.contour(with_gaps()),
    "contour, wide": lambda: plots.contour(
        plane_of(lambda x, y: 1e-3 * 1e8 ** ((x**2 + y**2) / 2))
    ),
    "contour, narrow": lambda: plots.contour(plane_of(lambda x, y: 2.3025 + 1e-5 * (x + y))),
    "contour, flat": lambda: plots.contour(plane_of(lambda x, y: 2.302585)),
    "contour, high": lambda: plots.contour(plane_of(bowl, 21, 41, (0.5, 1.0))),
    "contour, low": lambda: plots.contour(plane_of(bowl, 41, 21, (2.0, 0.5))),
    "contour, 3 x 3": lambda: plots.contour(plane_of(bowl, 3, 3)),
    "contour, no number": lambda: plots.contour(plane_of(lambda x, y: np.nan)),
    "contour, long caption": lambda: plots.contour(plane_of(bowl, **LONG)),
    "surface": lambda: plots.surface(plane_of(bowl)),
    "surface, gaps": lambda: plots.surface(with_gaps()),
    "surface, cut": lambda: plots.surface(spiked()),
    "surface, no number": lambda: plots.surface(plane_of(lambda x, y: np.nan)),
    "surface, long caption": lambda: plots.surface(plane_of(bowl, **LONG)),
    "trajectory": lambda: plots.trajectory(plane_of(bowl), path_of()),
    "trajectory, low": lambda: plots.trajectory(plane_of(bowl, 41, 9, (2.0, 0.4)), path_of()),
    "trajectory, flat": lambda: plots.trajectory(plane_of(bowl, 41, 9, (2.0, 0.85)), path_of()),
    "interpolation": lambda: plots.interpolation(hill()),
    "barriers": lambda: plots.barriers(barriers_of()),
    "barriers, log": lambda: plots.barriers(barriers_of(1), test=True, scale="log"),
    "curve_plane": lambda: plots.curve_plane(curve_plane_of()),
    "curve_plane, bends": lambda: plots.curve_plane(curve_plane_of(3, off=0.4)),
    "sharpness": lambda: plots.sharpness(profile_of()),
    "sharpness, bare": lambda: plots.sharpness(profile_of(2)[["rise"]]),
    "training": lambda: plots.training(log_of()),
    "gradient_norm": lambda: plots.gradient_norm(log_of()),
    "gradient_norm, clipped": lambda: plots.gradient_norm(
        log_of().assign(grad_norm_unclipped=lambda log: 3 * log.grad_norm)
    ),
    "correlation": lambda: plots.correlation(measures_of(), "lambda_max", "error"),
    "correlation, named": lambda: plots.correlation(
        measures_of(),
        "lambda_max",
        "error",
        names=[f"a solution, {k}" for k in range(6)],
        labels=("the largest eigenvalue", "test error"),
    ),
    "eigenvalues": lambda: plots.eigenvalues(pairs_of()),
    "eigenvalues, many": lambda: plots.eigenvalues(pairs_of([0.123 * n - 0.7 for n in range(12)])),
    "density": lambda: plots.density(spectrum_of()),
    "density, linear": lambda: plots.density(spectrum_of(), scale="linear"),
    "density, magnitude": lambda: plots.density(spectrum_of(), magnitude=True),
    "density, of zero": lambda: plots.density(spectrum_of(torch.zeros(60, 60))),
    "eigenvalue_path": lambda: plots.eigenvalue_path(eigenvalue_path_of()),
    "axis_curvature": lambda: plots.axis_curvature(curvatures_of()),
    "axis_curvature, one": lambda: plots.axis_curvature(curvatures_of(1, mean=-0.3)),
    "layers": lambda: plots.layers(layers_of()),
    "layers, many": lambda: plots.layers(layers_of(24)),
    "eigenvalues, unconverged": lambda: plots.eigenvalues(pairs_of(converged=False)),
}
every_figure = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())


def written(figure):
    """The texts of a figure, caption and tick labels included, with their boxes in pixels."""
    figure.draw_without_rendering()
    undrawn = set()  # labels of ticks beyond the limits, which exist all the same
    for ax in figure.findobj(Axes):
        for axis in ax._axis_map.values():
            drawn = axis._update_ticks()
            ticks = [tick for tick in axis.majorTicks + axis.minorTicks if tick not in drawn]
            undrawn.update(label for tick in ticks for label in (tick.label1, tick.label2))
    figure.draw_without_rendering()  # asking for the ticks has moved those of a cube
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in texts if t not in undrawn]


def caption_of(figure):
    return figure.findobj(lambda artist: artist.get_gid() == "caption")[0].get_text()


def words(figure):
    return caption_of(figure).replace("\n", " ").replace("\u00a0", " ")


def find(figure, gid):
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def contours(figure):
    """The filled contours and the lines of a figure."""
    sets = [a for a in figure.axes[0].collections if isinstance(a, QuadContourSet)]
    return next(a for a in sets if a.filled), next(a for a in sets if not a.filled)


# -- layout and housekeeping ---------------------------------------------------------------------


@every_figure
def test_texts_lie_inside_the_page_and_apart(make):
    figure = make()
    page = figure.bbox
    texts = written(figure)
    assert len(texts) > 5
    for text, box in texts:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text!r} leaves the page: {box}"
    for (first, a), (second, b) in combinations(texts, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width < 1.5 or height < 1.5, f"{first!r} overlaps {second!r}"


@pytest.mark.parametrize("name", [name for name in FIGURES if "," not in name])
def test_figures_are_of_column_width_and_unknown_to_pyplot(name):
    before = plt.get_fignums()
    figure = FIGURES[name]()
    assert figure.get_figwidth() == pytest.approx(3.35)
    assert plt.get_fignums() == before
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", ["line", "contour, gaps", "surface", "trajectory", "eigenvalues"])
def test_the_users_settings_neither_change_nor_matter(name):
    def pixels():
        stream = io.BytesIO()
        FIGURES[name]().savefig(stream, format="rgba", dpi=60)
        return np.frombuffer(stream.getvalue(), dtype=np.uint8)

    plain = pixels()
    odd = {"font.size": 23, "axes.grid": True, "lines.linewidth": 9, "xtick.color": "red"}
    with matplotlib.rc_context(odd):
        settings = dict(matplotlib.rcParams)
        drawn = pixels()
        with pytest.raises(TypeError):
            plots.line(3)
        assert dict(matplotlib.rcParams) == settings
    # The solver of the layout is deterministic to rounding only, which may show in a few pixels.
    assert drawn.shape == plain.shape
    assert (drawn != plain).mean() < 1e-4


def test_save_writes_both_files(tmp_path):
    figure = plots.line(curve_of(np.square))
    png, pdf = plots.save(figure, tmp_path / "new" / "slice_0.5")
    assert (png.name, pdf.name) == ("slice_0.5.png", "slice_0.5.pdf")
    image = plt.imread(png)
    assert image.shape[1] == round(3.35 * 200)
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in pdf.read_bytes()


def test_they_come_with_the_package(tmp_path):
    code = "import pylandscape as pl; print(pl.plots.contour.__name__)"
    command = [sys.executable, "-c", code]  # away from the source tree, which may hold no binary
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert outcome.stdout.strip() == "contour", outcome.stderr


def test_notebooks_get_an_image():
    assert plots.line(curve_of(np.square))._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "count"),
    [
        (lambda ax: plots.line(curve_of(np.square), ax), 1),
        (lambda ax: plots.line(curve_of(np.square), ax), 2),
        (lambda ax: plots.contour(plane_of(bowl), ax), 1),
        (lambda ax: plots.trajectory(plane_of(bowl), path_of(), ax), 2),
        (lambda ax: plots.interpolation(hill(), ax), 2),
        (lambda ax: plots.barriers(barriers_of(), ax), 2),
        (lambda ax: plots.curve_plane(curve_plane_of(), ax), 1),
        (lambda ax: plots.sharpness(profile_of(), ax), 1),
        (lambda ax: plots.training(log_of(), ax), 1),
        (lambda ax: plots.gradient_norm(log_of(), ax), 1),
        (lambda ax: plots.eigenvalues(pairs_of(), ax), 1),
    ],
)
def test_given_axes_are_drawn_in_and_left_their_place(draw, count):
    figure, axes = plt.subplots(1, 2, figsize=(7, 3))
    try:
        box = axes[0].get_position(original=True).bounds
        assert draw(axes[0] if count == 1 else axes) is figure
        assert axes[0].has_data()
        assert axes[1].has_data() == (count == 2)
        assert axes[0].get_position(original=True).bounds == box
        assert tuple(figure.get_size_inches()) == (7, 3)
        assert not find(figure, "caption")
    finally:
        plt.close(figure)


def test_surface_draws_in_given_axes():
    figure = plt.figure()
    try:
        ax = figure.add_subplot(projection="3d")
        assert plots.surface(plane_of(bowl), ax) is figure
        assert ax.get_zlabel() == "loss"
    finally:
        plt.close(figure)


# -- captions ------------------------------------------------------------------------------------


def test_caption_says_how_the_result_was_made():
    text = plots.caption(plane_of(bowl))
    for part in ("SmallCNN", "P = 61,706", "N = 2,000 of 60,000", "cross-entropy", "MNIST",
                 "filter-normalised", "biasbn ignored", "seed 7", "BatchNorm frozen",
                 "engine torch", "float32"):  # fmt: skip
        assert part in text
    assert text.count(". ") == 1
    assert text in words(plots.contour(plane_of(bowl)))


def test_caption_leaves_out_what_is_not_known():
    assert plots.caption(xr.Dataset()) == ""
    assert plots.caption(xr.Dataset(attrs={"seed": 0})) == "Seed 0."
    fingerprint = plots.caption(xr.Dataset(attrs={"data": "0123456789abcdef"}))
    assert "01234567" in fingerprint
    assert "89abcdef" not in fingerprint


def test_caption_can_be_left_out():
    assert not find(plots.contour(plane_of(bowl), caption=False), "caption")


def test_a_long_caption_keeps_all_its_characters():
    surface = plane_of(bowl, **LONG)
    drawn = "".join(caption_of(plots.contour(surface)).split())
    assert drawn == "".join(plots.caption(surface).split())


# -- levels and numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.2, 1.0, 1.9], False),
        ([-3.0, 500.0], False),
        ([2.30250, 2.30252], False),
        ([1e-3, 1.0, 1e5], True),
        ([0.02, 2.3, 9.9], True),
        ([0.009999999999999998, 1.0, 2.0], True),
        ([0.0, 1e-30, 1.0, 2.0], True),
        ([2.3, 2.3, 2.3], False),
        ([0.0, 0.0], False),
        ([1.0, np.nan, np.inf, 4.0], False),
    ],
)
def test_levels_increase_and_cover_the_values(values, log, count):
    values = np.array(values)
    finite = values[np.isfinite(values)]
    levels = contour_levels(values, count)
    assert (np.diff(levels) > 0).all()
    assert levels[0] <= finite.min()
    assert levels[-1] >= finite.max()
    assert 2 <= len(levels) <= count + 4
    steps = np.diff(levels)
    assert (steps.max() > 1.5 * steps.min()) == log


def test_levels_of_a_wide_range_are_round_numbers():
    levels = contour_levels(np.array([0.03, 40.0]), 10)
    assert levels == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])


@pytest.mark.parametrize(
    "values",
    [
        [2.30250, 2.30251, 2.30252],
        [1e-6, 1e-3, 1.0, 1e5],
        [-0.2, 0.0, 0.2],
        [1e6, 2e6],
        [1.01, 1.02, 1.1],
    ],
)
def test_numbers_tell_neighbours_apart(values):
    texts = number_texts(values)
    for value, text in zip(values, texts, strict=True):
        plain = text.replace("\N{MINUS SIGN}", "-").strip("$").replace("{\\cdot}10^", "e")
        plain = plain.replace("10^", "1e").replace("{", "").replace("}", "")
        assert float(plain) == pytest.approx(value, rel=1e-12)


# -- planes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [("alpha", "beta"), ("beta", "alpha")])
def test_alpha_is_horizontal(stored):
    surface = plane_of(lambda x, y: x + 10 * y, 3, 2).transpose(*stored)
    figure = plots.contour(surface)
    _, lines = contours(figure)
    points = 0
    for level, segments in zip(lines.levels, lines.allsegs, strict=True):
        for segment in segments:
            assert segment @ [1, 10] == pytest.approx(level)
            points += len(segment)
    assert points > 10
    plane = read_plane(surface, "loss", "test")
    faces = faces_of(plane.x, plane.y, plane.values)
    assert len(faces) == 2
    assert faces @ [1, 10, -1] == pytest.approx(np.zeros((2, 4)))


def test_gaps_are_hatched_and_nothing_else_is():
    surface = with_gaps()
    figure = plots.contour(surface)
    x, y = surface["alpha"].values, surface["beta"].values
    filled, _ = contours(figure)
    values = surface["loss"].values
    missing = ~surface["evaluated"].values
    kinds = {
        "gap NAN": np.isnan(values) & ~missing,
        "gap INFINITE": np.isinf(values) & ~missing,
        "gap MISSING": missing,
    }
    nudge = 1e-3 * np.array([1 if i < 10 else -1 for i in range(21)])  # off the border of the plane
    points = np.stack(np.meshgrid(x + nudge, y + nudge, indexing="ij"), axis=-1).reshape(-1, 2)
    for gid, cells in kinds.items():
        (patch,) = find(figure, gid)
        assert patch.get_hatch()
        inside = patch.get_path().contains_points(points).reshape(21, 21)
        assert (inside == cells).all()
        for path in filled.get_paths():
            assert not path.contains_points(points[cells.ravel()]).any()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["centre", "NaN", "infinite", "not evaluated"]
    assert "Of 441 points: 1 NaN, 9 infinite, 84 not evaluated." in words(figure)


def test_finite_points_beside_a_gap_show_their_own_value():
    surface = plane_of(lambda x, y: x + 10 * y, 5, 5)
    keep = surface["loss"].values[2, 2]
    surface["loss"][1:4, 1:4] = np.nan
    surface["loss"][2, 2] = keep
    (mesh,) = (
        a for a in plots.contour(surface).axes[0].collections if isinstance(a, QuadMesh)
    )  # fmt: skip
    cells = np.ma.filled(mesh.get_array(), np.nan).T
    assert cells[2, 2] == keep
    assert (np.isnan(cells) == np.isnan(surface["loss"].values)).all()


def test_a_plane_without_gaps_has_no_gap_marks():
    figure = plots.contour(plane_of(bowl))
    assert not figure.findobj(lambda artist: str(artist.get_gid()).startswith("gap"))
    assert " points: " not in words(figure)


@pytest.mark.parametrize(("extent", "aspect"), [((1, 2), 1.0), ((1, 5), "auto")])
def test_equal_units_are_drawn_to_scale_unless_too_thin(extent, aspect):
    assert plots.contour(plane_of(bowl, extent=extent)).axes[0].get_aspect() == aspect


def test_different_units_are_not_drawn_to_scale():
    surface = plane_of(bowl)
    surface["alpha"].attrs["units"] = "1"
    assert plots.contour(surface).axes[0].get_aspect() == "auto"
    assert plots.contour(surface, aspect="equal").axes[0].get_aspect() == 1.0


def test_given_levels_are_used_and_values_beyond_them_shown():
    filled, lines = contours(plots.contour(plane_of(bowl), levels=[0.3, 0.5, 0.9]))
    assert list(lines.levels) == [0.3, 0.5, 0.9]
    assert filled.extend == "both"


def test_another_variable_is_drawn():
    surface = plane_of(bowl).rename(loss="accuracy")
    bar = plots.contour(surface, variable="accuracy").axes[0].child_axes[0]
    assert bar.get_ylabel() == "accuracy"


@pytest.mark.parametrize("bend", [3, 11, 29])
def test_numbers_on_contour_lines_keep_apart(bend):
    surface = plane_of(lambda x, y: x**2 + y**2 + np.sin(bend * x) * np.cos(7 * y), 41, 41)
    figure = plots.contour(surface)
    _, lines = contours(figure)
    texts = lines.labelTexts
    assert texts
    height = texts[0].get_fontsize() * figure.dpi / 72
    places = [figure.axes[0].transData.transform(text.get_position()) for text in texts]
    for a, b in combinations(places, 2):
        assert np.hypot(*(a - b)) > 2 * height


def test_only_the_centre_of_a_plane_that_holds_it_is_marked():
    inside, outside = plane_of(bowl), plane_of(bowl).assign_coords(alpha=np.linspace(1, 2, 21))
    assert find(plots.contour(inside), "centre")[0].get_xydata().tolist() == [[0, 0]]
    assert not find(plots.contour(outside), "centre")


# -- surfaces ------------------------------------------------------------------------------------


def test_faces_beside_a_gap_are_left_out():
    plane: Plane = read_plane(with_gaps(), "loss", "test")
    faces = faces_of(plane.x, plane.y, plane.values)
    known = np.isfinite(plane.values)
    whole = known[:-1, :-1] & known[1:, :-1] & known[1:, 1:] & known[:-1, 1:]
    assert len(faces) == whole.sum() < 400
    labels = [t.get_text() for t in plots.surface(with_gaps()).axes[0].get_legend().get_texts()]
    assert labels == ["centre", "NaN", "infinite", "not evaluated"]


def test_outlying_heights_are_cut_at_the_quantile_and_it_is_said():
    surface = spiked()
    figure = plots.surface(surface)
    quantile = np.quantile(surface["loss"], 0.95)
    assert figure.axes[0].get_zlim()[1] == pytest.approx(quantile)
    assert f"Heights above {quantile:.3g} are cut." in words(figure)
    whole = plots.surface(surface, clip=float("inf"))
    assert whole.axes[0].get_zlim()[1] == pytest.approx(60)
    assert "cut" not in words(whole)
    assert plots.surface(surface, clip=5.0).axes[0].get_zlim()[1] == pytest.approx(5)


def test_a_bowl_is_not_cut():
    figure = plots.surface(plane_of(bowl))
    assert figure.axes[0].get_zlim()[1] == pytest.approx(float(plane_of(bowl)["loss"].max()))


def test_a_wide_range_has_logarithmic_heights():
    figure = plots.surface(plane_of(lambda x, y: 10.0 ** (3 * x)))
    assert figure.axes[0].get_zlim()[1] == pytest.approx(3)
    assert "Logarithmic height." in words(figure)


# -- curves --------------------------------------------------------------------------------------


def test_the_band_is_two_standard_errors_wide():
    curve = curve_of(lambda x: 1 + x**2)
    (band,) = find(plots.line(curve), "errors")
    corners = band.get_paths()[0].vertices
    for x, loss, error in zip(curve.alpha, curve.loss, curve.loss_stderr, strict=True):
        ends = corners[np.isclose(corners[:, 0], x), 1]
        assert ends.min() == pytest.approx(float(loss - 2 * error))
        assert ends.max() == pytest.approx(float(loss + 2 * error))


def test_line_marks_the_centre_and_shows_the_accuracy_below():
    curve = curve_of(lambda x: 0.5 + x**2)
    figure = plots.line(curve)
    assert find(figure, "centre")[0].get_xydata().tolist() == [[0.0, 0.5]]
    (accuracy,) = figure.axes[1].get_lines()
    assert accuracy.get_ydata() == pytest.approx(curve["accuracy"].values)
    assert len(plots.line(curve.drop_vars("accuracy")).axes) == 1


def test_stretches_without_a_value_are_hatched():
    curve = curve_of(lambda x: np.where(np.abs(x - 0.5) < 0.11, np.nan, 1 + x**2), 21)
    (span,) = find(plots.line(curve), "gap NAN")
    box = span.get_path().transformed(span.get_patch_transform()).get_extents()
    assert (box.x0, box.x1) == (pytest.approx(0.35), pytest.approx(0.65))  # cells of 0.4, 0.5, 0.6


@pytest.mark.parametrize("lowest", [0.02, 0.0])
def test_a_wide_range_is_logarithmic_from_its_least_positive_value(lowest):
    curve = curve_of(lambda x: np.where(x == 0, lowest, 0.01 + 10 * np.abs(x) ** 5))
    figure = plots.line(curve)
    assert figure.axes[0].get_yscale() == "log"
    assert 0.005 < figure.axes[0].get_ylim()[0] < 0.02
    assert ("1 of value 0" in words(figure)) == (lowest == 0)
    assert plots.line(curve, scale="linear").axes[0].get_yscale() == "linear"


def test_interpolation_writes_the_barrier():
    result = hill(101)
    alpha, loss = result["alpha"].values, result["loss"].values
    excess = loss - ((1 - alpha) * loss[0] + alpha * loss[-1])
    figure = plots.interpolation(result)
    assert figure.axes[0].texts[-1].get_text() == f"barrier {excess.max():.3g}"
    arrow = find(figure, "barrier")[0]
    assert arrow.xy == pytest.approx((alpha[excess.argmax()], loss[excess.argmax()]))
    assert arrow.xy[1] - arrow.xyann[1] == pytest.approx(excess.max())
    assert "Barrier (train): 0.444." in words(figure)
    chord = find(figure, "chord")[0].get_ydata()
    assert chord == pytest.approx(np.linspace(loss[0], loss[-1], 101))


def test_interpolation_draws_the_test_set_too():
    result = hill()
    result = result.assign(test_loss=result.loss + 1, test_accuracy=result.accuracy / 2)
    figure = plots.interpolation(result)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["train", "test", "chord"]
    assert [len(ax.get_lines()) for ax in figure.axes] == [4, 2]


@pytest.mark.parametrize(
    ("middle", "height", "said"),
    [(-1.0, 0.0, "none"), (np.inf, np.inf, "infinite"), (np.nan, np.nan, "not known")],
)
def test_a_barrier_that_is_no_number_is_said_and_not_drawn(middle, height, said):
    result = xr.Dataset({"loss": ("alpha", [0.0, middle, 1.0])}, {"alpha": [0.0, 0.5, 1.0]})
    found = barrier_height(read_curve(result, "loss", "test", "result"))
    assert found == pytest.approx(height, nan_ok=True)
    figure = plots.interpolation(result)
    assert not find(figure, "barrier")
    assert f"Barrier (train): {said}." in words(figure)


# -- histories -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5, 50])
def test_running_mean_against_its_definition(window):
    values = np.random.default_rng(0).normal(size=30)
    values[[4, 5, 17]] = np.nan
    before, after = window // 2, (window - 1) // 2
    expected = [
        np.nanmean(values[max(0, i - before) : i + after + 1]) if np.isfinite(v) else np.nan
        for i, v in enumerate(values)
    ]
    assert running_mean(values, window) == pytest.approx(np.array(expected), nan_ok=True)


def test_training_draws_values_and_mean_and_a_changing_rate():
    log = log_of()
    figure = plots.training(log)
    (raw,), (mean,) = find(figure, "values"), find(figure, "mean")
    assert raw.get_ydata() == pytest.approx(log["loss"].values)
    assert mean.get_ydata() == pytest.approx(running_mean(log["loss"].values, 10))
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "learning\nrate"]
    constant = log.assign(learning_rate=("step", np.full(300, 0.1)))
    assert len(plots.training(constant).axes) == 1


def test_rows_without_a_loss_are_left_out_and_divergence_is_hatched():
    log = log_of()
    every_tenth = log.where(log["step"] % 10 == 0).assign_coords(step=log["step"])
    figure = plots.training(every_tenth)
    assert not find(figure, "gap NAN")
    assert "No finite value at 269 of 300 steps." in words(figure)  # the last row has none
    diverged = log.where(log["step"] < 200)
    (span,) = find(plots.training(diverged), "gap NAN")
    assert span.get_x() == pytest.approx(199.5)


def test_gradient_norm_shows_the_norm_before_clipping_where_known():
    log = log_of()
    clipped = log.assign(grad_norm_unclipped=2 * log.grad_norm)
    for given, count in ((log, 0), (clipped, 1)):
        lines = find(plots.gradient_norm(given), "unclipped")
        assert len(lines) == count
    assert lines[0].get_ydata() == pytest.approx(
        running_mean(2 * log.grad_norm.values, 300 // 30), nan_ok=True
    )
    figure = plots.gradient_norm(clipped)
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "before clipping"


def test_gradient_norm_draws_its_own_variable():
    log = log_of(30)
    (line,) = plots.gradient_norm(log).axes[0].get_lines()
    assert line.get_ydata() == pytest.approx(log["grad_norm"].values)


def test_eigenvalues_fall_and_carry_their_residuals():
    ax = plots.eigenvalues(pairs_of()).axes[0]
    bars = [container for container in ax.containers if container.has_yerr]
    heads = np.concatenate([bar.lines[0].get_xydata() for bar in bars])
    assert heads.tolist() == [[1, 42.0], [2, 7.0], [3, -0.5]]
    segments = np.concatenate([bar.lines[2][0].get_segments() for bar in bars])
    assert np.ptp(segments[:, :, 1], axis=1) == pytest.approx([0.4, 0.6, 0.2])
    labels = plots.eigenvalues(pairs_of(converged=False)).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in labels] == ["not converged"]


def test_the_density_has_its_band_and_its_ends():
    found = spectrum_of()
    figure = plots.density(found, scale="linear")
    (line,) = [x for x in figure.axes[0].get_lines() if len(x.get_xdata()) > 2]
    assert line.get_ydata() == pytest.approx(found["density"].values)
    (band,) = find(figure, "errors")
    outline = band.get_paths()[0].vertices
    top = float((found["density"] + 2 * found["density_stderr"]).max())
    assert outline[:, 1].max() == pytest.approx(top)
    for name in ("lambda_max", "lambda_min"):
        assert find(figure, name)[0].get_xdata() == pytest.approx([float(found[name])])
    assert words(figure).startswith("Hessian of the loss (cross-entropy) of SmallCNN")
    assert "2 standard errors over 3 random vectors" in words(figure)


def test_a_log_density_ends_below_the_height_of_one_eigenvalue():
    found = spectrum_of()
    low, high = plots.density(found).axes[0].get_ylim()
    assert low == pytest.approx(0.1 / 60 / (found.attrs["sd"] * (2 * np.pi) ** 0.5))
    assert high > float(found["density"].max())


def test_layers_are_drawn_from_the_first_down_with_their_signs():
    spectra = layers_of()
    ax = plots.layers(spectra).axes[0]
    assert ax.get_yticklabels()[0].get_text() == "block.0.conv1 (1,000)"
    assert ax.yaxis_inverted()
    drawn = {bar.get_label(): bar.lines[0].get_xydata() for bar in ax.containers}
    assert drawn["largest"] == pytest.approx(np.stack([[10, 100, 1e3, 1e4], range(4)], 1))
    assert drawn["\u2212smallest"] == pytest.approx(
        np.array([[1, 2], [2, 3]])
    )  # of the negative ones
    assert drawn["mean"][:, 0] == pytest.approx([2e-3, 5e-4, 2.5e-4])  # without the one of 0


def test_curvatures_of_axes_stand_beside_the_eigenvalues():
    figure = plots.axis_curvature(curvatures_of())
    assert find(figure, "curvature")[0].get_xydata() == pytest.approx(
        np.array([[1e-3, 0], [2e-3, 1]])
    )
    assert find(figure, "span")[0].get_xdata() == pytest.approx([-0.002, 8])
    for name, value in (("lambda_max", 42.0), ("lambda_min", -1.5), ("mean", 4e-4)):
        assert find(figure, name)[0].get_xdata() == [value, value]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][2] == "all in their span"


# -- between solutions, and sharpness ------------------------------------------------------------


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_each_path_has_a_mean_and_its_barrier():
    table = barriers_of()
    figure = plots.barriers(table)
    assert legend_of(figure.axes[0]) == ["straight: 1.43", "aligned: 0.22", "curve: 0.022"]
    (bold,) = find(figure, "aligned: 0.22")
    assert bold.get_ydata() == pytest.approx(table.loss.sel(path="aligned").mean("pair").values)
    assert len(figure.axes[0].get_lines()) == 3 * (1 + 3)
    assert "mean of 3 pairs" in words(figure)
    one = plots.barriers(table.isel(pair=0), test=True)
    assert len(one.axes[0].get_lines()) == 3
    assert one.axes[0].get_ylabel() == "test loss"
    assert "barrier of the test loss." in words(one)


def test_the_curve_runs_in_its_plane_between_the_models():
    surface = curve_plane_of(3, off=0.4)
    figure = plots.curve_plane(surface)
    for line in find(figure, "curve"):
        assert line.get_xdata() == pytest.approx(surface.path_alpha.values)
        assert line.get_ydata() == pytest.approx(surface.path_beta.values)
    nodes = np.stack([surface.node_alpha, surface.node_beta], 1)
    for name, node in (("model A", 0), ("model B", -1)):
        assert find(figure, name)[0].get_xydata()[0] == pytest.approx(nodes[node])
    assert len(find(figure, "bends")[0].get_xdata()) == 3
    assert "The curve runs up to 0.1 from this plane." in words(figure)
    assert "from this plane" not in words(plots.curve_plane(curve_plane_of()))


def test_the_found_rise_stands_beside_the_quadratic_model():
    profile = profile_of()
    profile["rise"][0] = 0.0
    figure = plots.sharpness(profile)
    ax = figure.axes[0]
    assert legend_of(ax) == ["found", "quadratic model", "λ ε² / 2", "ε ||g||"]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert lines["found"][1:] == pytest.approx(profile.rise.values[1:])
    assert np.isnan(lines["found"][0])
    assert lines["quadratic model"] == pytest.approx(profile.quadratic.values)
    assert "λ = 2, gradient norm ||g|| = 0.02." in words(figure)
    assert "No finite rise above 0 at 1 of 9 radii." in words(figure)


# -- trajectories --------------------------------------------------------------------------------


def test_the_path_runs_in_the_order_of_its_steps():
    path = path_of()
    shuffled = path.isel(snapshot=np.random.default_rng(0).permutation(30))
    figure = plots.trajectory(plane_of(bowl), shuffled)
    (line,) = find(figure, "path")
    assert isinstance(line, LineCollection)
    starts = np.array([segment[0] for segment in line.get_segments()])
    assert starts[:, 0] == pytest.approx(path["alpha"].values[:-1])
    assert starts[:, 1] == pytest.approx(path["beta"].values[:-1])
    assert find(figure, "start")[0].get_xydata()[0] == pytest.approx([0.8, 0.6])
    assert find(figure, "end")[0].get_xydata()[0] == pytest.approx([0, 0])
    (distance,) = find(figure, "distance")
    ends = np.array([segment[1] for segment in distance.get_segments()])
    assert ends == pytest.approx(np.stack([path["step"], path["distance"]], axis=1)[1:])


def test_the_axes_name_the_explained_variance():
    figure = plots.trajectory(plane_of(bowl), path_of())
    assert figure.axes[0].get_xlabel() == "α: principal component 1 (81.2%)"
    assert figure.axes[0].get_ylabel() == "β: principal component 2 (12.3%)"
    assert "93.5% of the variance of 30 snapshots" in words(figure)


def test_a_path_that_leaves_the_plane_is_shown_whole():
    path = path_of().assign(alpha=lambda p: 3 * p.alpha)
    figure = plots.trajectory(plane_of(bowl), path)
    low, high = figure.axes[0].get_xlim()
    assert low == -1
    assert high > 2.4


def test_snapshots_that_are_not_finite_are_counted():
    path = path_of()
    path["alpha"][3:5] = np.nan
    figure = plots.trajectory(plane_of(bowl), path)
    assert "2 snapshots have no finite coordinates." in words(figure)
    assert len(find(figure, "path")[0].get_segments()) == 27


def test_the_caption_says_how_far_the_plane_can_be_trusted():
    path = path_of()
    path.attrs["loss_gap"] = float(abs(path.loss - path.plane_loss).max())
    text = words(plots.trajectory(plane_of(bowl), path))
    off = float(path.distance.max())
    assert f"lie up to {off:.3g} off the plane and up to 1 from its origin" in text
    assert "differs from theirs by up to 0.1 (at step 0)" in text


def test_a_trajectory_in_three_given_axes_has_all_its_panels():
    axes = plt.Figure().subplots(3, 1)
    plots.trajectory(plane_of(bowl), path_of(), list(axes))
    assert [len(ax.get_lines()) > 0 for ax in axes] == [True, True, True]
    assert axes[2].get_ylabel() == "loss"


def test_a_film_follows_the_path_to_its_end(tmp_path):
    path = path_of(12)
    file = plots.animate(
        plane_of(bowl), path, tmp_path / "new" / "run.gif", seconds=1, rate=6, caption=False
    )
    assert [f.name for f in file.parent.iterdir()] == ["run.gif"]
    with Image.open(file) as film:
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("L"), dtype=float))
            assert film.info["duration"] >= 150
    assert len(frames) == 6  # those that stay are one
    for before, after in pairwise(frames):
        assert np.abs(after - before).max() > 50


def test_a_film_shows_the_snapshots_up_to_a_time(monkeypatch, tmp_path):
    path = path_of(5)
    scene = draw_scene(plane_of(bowl), path, None, 10, "auto", "here")
    runner = _animation._Runner(scene.axes, scene.path)
    finish_scene(scene, plane_of(bowl), path, [runner.end], False)
    runner.show(2.5)
    points = np.array([segment[1] for segment in runner.line.get_segments()])
    alpha, beta = path.alpha.values, path.beta.values
    assert points[:, 0] == pytest.approx([alpha[1], alpha[2], (alpha[2] + alpha[3]) / 2])
    assert points[:, 1] == pytest.approx([beta[1], beta[2], (beta[2] + beta[3]) / 2])
    assert runner.end.get_xydata()[0] == pytest.approx(points[-1])
    assert scene.axes[0].get_legend().get_texts()[0].get_text() == "step 20 of 40"
    assert [line.get_xdata()[0] for line in runner.lines] == [25, 25]


# -- several solutions ---------------------------------------------------------------------------


def test_correlation_says_the_rank_correlation_and_draws_the_errors():
    table = measures_of()
    figure = plots.correlation(table, "lambda_max", "error")
    assert "Rank correlation of 6 solutions: 1.00." in words(figure)
    texts = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["0", "1", "2", "3", "4", "5"]
    assert figure.axes[0].get_xscale() == "log"
    bars = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    ends = np.array([bar.get_segments()[0][:, 0] for bar in bars])
    assert ends == pytest.approx(np.outer(table.lambda_max.values, [0.9, 1.1]))
    falling = table.assign(error=-table.error)
    assert "-1.00" in words(plots.correlation(falling, "lambda_max", "error"))
    assert "not defined" in words(plots.correlation(table, "lambda_max", "flat"))


# -- bad input -----------------------------------------------------------------------------------

curve, plane, log = curve_of(np.square), plane_of(bowl), log_of()
BAD = [
    (lambda: plots.contour(curve), ValueError, r"plots.contour: surface must have dimensions "
     r"\(alpha, beta\), got \(alpha\)"),
    (lambda: plots.contour(plane.expand_dims("gamma")), ValueError, "Select one point along gamma"),
    (lambda: plots.contour(plane["loss"]), TypeError, "surface must be an xarray.Dataset, got"),
    (lambda: plots.contour(plane, variable="f"), ValueError, "variable 'f', got loss"),
    (lambda: plots.contour(plane[["loss"]].isel(alpha=[0])), ValueError, "at least 2 finite"),
    (lambda: plots.contour(plane.isel(beta=slice(None, None, -1))), ValueError, "increasing"),
    (lambda: plots.contour(plane.drop_vars("alpha")), ValueError, "coordinates along alpha"),
    (lambda: plots.contour(plane, levels=0), ValueError, "levels must be at least 1"),
    (lambda: plots.contour(plane, levels=[2, 1]), ValueError, r"increasing values, got \[2, 1\]"),
    (lambda: plots.contour(plane, scale="lg"), ValueError, "scale must be 'auto', 'linear'"),
    (lambda: plots.contour(plane, aspect=2), ValueError, "aspect must be None, 'auto' or 'equal'"),
    (lambda: plots.contour(plane - 9, scale="log"), ValueError, "where values are negative"),
    (lambda: plots.surface(curve), ValueError, "plots.surface: surface must have dimensions"),
    (lambda: plots.surface(plane, plt.Figure().subplots()), TypeError, "projection='3d'"),
    (lambda: plots.surface(plane, clip=0.0), ValueError, "clip must be above the lowest value"),
    (lambda: plots.line(plane), ValueError, r"plots.line: curve must have dimensions \(alpha\)"),
    (lambda: plots.line(curve, ax="here"), TypeError, "ax must be axes or a pair"),
    (lambda: plots.interpolation(plane), ValueError, "plots.interpolation: result must have"),
    (lambda: plots.barriers(plane), ValueError, "table must have a variable 'barrier', got loss"),
    (lambda: plots.barriers(plane.assign(barrier=1.0)), ValueError, r"dimensions \(pair, path"),
    (lambda: plots.curve_plane(curve), ValueError, "plots.curve_plane: surface must have dimensio"),
    (lambda: plots.curve_plane(plane), ValueError, "must hold a curve, got none of path_alpha"),
    (lambda: plots.sharpness(plane), ValueError, "variable 'rise', got loss"),
    (lambda: plots.sharpness(profile_of() * -1), ValueError, "positive and finite rise, got none"),
    (lambda: plots.training(curve), ValueError, r"plots.training: log must have dimensions \(step"),
    (lambda: plots.gradient_norm(log[["loss"]]), ValueError, "variable 'grad_norm', got loss"),
    (lambda: plots.training(log * np.nan), ValueError, "finite loss at some step, got none in 300"),
    (lambda: plots.trajectory(plane, plane), ValueError, r"dimensions \(snapshot\)"),
    (lambda: plots.trajectory(plane, path_of().drop_vars("distance")), ValueError, "'distance'"),
    (lambda: plots.trajectory(plane, path_of() * np.nan), ValueError, "finite snapshot"),
    (lambda: plots.trajectory(plane, 3), TypeError, "projected must be an xarray.Dataset, got 3"),
    (lambda: plots.density(curve), ValueError, "variable 'density', got loss"),
    (lambda: plots.density([1.0]), TypeError, "spectrum must be an xarray.Dataset"),
    (lambda: plots.density(spectrum_of() * np.nan), ValueError, "must be finite, got NaN"),
    (lambda: plots.eigenvalue_path(curve), ValueError, r"dimensions \(step\)|'lambda_max'"),
    (lambda: plots.axis_curvature(curve), ValueError, "variable 'curvature', got loss"),
    (lambda: plots.layers(curve), ValueError, r"must have a dimension layer, got alpha"),
    (lambda: plots.layers(layers_of()[["trace"]]), ValueError, "variable 'lambda_max', got trace"),
    (lambda: plots.animate(plane, path_of(), "run.avi"), ValueError, "end in .gif or .mp4, got"),
    (lambda: plots.animate(plane, path_of(), "a.gif", rate=0), ValueError, "rate must be a pos"),
    (lambda: plots.animate(plane, 3, "a.gif"), TypeError, "projected must be an xarray.Dataset"),
    (lambda: plots.correlation(measures_of(), "loss", "error"), ValueError, "variable 'loss'"),
    (lambda: plots.correlation(measures_of(), "flat", "error", names="a"), ValueError, "be 6"),
    (lambda: plots.correlation(plane, "loss", "loss"), ValueError, "over one same dimension"),
    (lambda: plots.eigenvalues([1.0]), TypeError, "pairs must have values and residuals"),
    (lambda: plots.eigenvalues(SimpleNamespace(values=[1.0], residuals=[])), ValueError, "one len"),
    (lambda: plots.eigenvalues(SimpleNamespace(values=[np.nan], residuals=[1.0])), ValueError,
     "finite"),
    (lambda: plots.caption(3), TypeError, "plots.caption: result must have a mapping attrs, got 3"),
    (lambda: plots.save(plane, "a"), TypeError, "plots.save: figure must be a matplotlib figure"),
    (lambda: plots.save(plots.line(curve), "a.png"), ValueError, "path must have no suffix"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[case[2][:30] for case in BAD])
def test_bad_input_is_answered_in_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("plots.")


def test_a_film_without_ffmpeg_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(_animation.FFMpegWriter, "isAvailable", lambda: False)
    with pytest.raises(ValueError, match=r"end in .gif where ffmpeg is not installed"):
        plots.animate(plane, path_of(), tmp_path / "run.mp4")
    assert not list(tmp_path.iterdir())
