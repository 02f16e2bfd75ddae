"""Bad input is answered in one line, before anything is drawn."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import (
    bowl,
    curve_of,
    layers_of,
    log_of,
    measures_of,
    path_of,
    plane_of,
    profile_of,
    spectrum_of,
)

from pylandscape import plots

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
