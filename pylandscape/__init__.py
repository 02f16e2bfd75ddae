"""The geometry of a neural network's loss: slices, curvature, trajectories, connectivity."""

from pylandscape import _ops as _ops
from pylandscape import plots, sharpness
from pylandscape._version import __version__
from pylandscape.connectivity import (
    Curve,
    align,
    barriers,
    connect,
    interpolate,
    match_units,
    permutation_groups,
)
from pylandscape.curvature import (
    GGN,
    Eigenpairs,
    Estimate,
    Fisher,
    Hessian,
    axis_curvature,
    diagonal,
    eigen_directions,
    eigenpairs,
    frobenius_norm,
    layer_spectra,
    spectral_density,
    trace,
)
from pylandscape.directions import Directions, difference_directions, random_directions
from pylandscape.explain import explain
from pylandscape.objective import Interrupted, Objective
from pylandscape.parameters import ParameterSpace
from pylandscape.surface import grid, line, plane
from pylandscape.trajectory import (
    Recorder,
    Trajectory,
    huggingface_callback,
    lightning_callback,
    principal_directions,
    project,
    trajectory_plane,
)

__all__ = [
    # the loss as a function
    "Interrupted",
    "Objective",
    "ParameterSpace",
    "explain",
    # directions and slices
    "Directions",
    "difference_directions",
    "grid",
    "line",
    "plane",
    "random_directions",
    # curvature
    "Eigenpairs",
    "Estimate",
    "Fisher",
    "GGN",
    "Hessian",
    "axis_curvature",
    "diagonal",
    "eigen_directions",
    "eigenpairs",
    "frobenius_norm",
    "layer_spectra",
    "sharpness",
    "spectral_density",
    "trace",
    # the path that training took
    "Recorder",
    "Trajectory",
    "huggingface_callback",
    "lightning_callback",
    "principal_directions",
    "project",
    "trajectory_plane",
    # between solutions
    "Curve",
    "align",
    "barriers",
    "connect",
    "interpolate",
    "match_units",
    "permutation_groups",
    # figures
    "plots",
    # the package
    "__version__",
]
