"""What all figures share: they fit their page, leave no trace, and are written whole."""

import gc
import io
import subprocess
import sys
import weakref
from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from drawn import (
    LONG,
    barriers_of,
    bowl,
    curvatures_of,
    curve_of,
    curve_plane_of,
    eigenvalue_path_of,
    find,
    hill,
    layers_of,
    log_of,
    measures_of,
    pairs_of,
    path_of,
    plane_of,
    profile_of,
    spectrum_of,
    spiked,
    with_gaps,
)
from matplotlib.axes import Axes
from matplotlib.text import Text

from pylandscape import plots

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
