"""The geometry of a neural network's loss: slices, curvature, trajectories, connectivity."""

from pylandscape import _ops as _ops
from pylandscape._version import __version__
from pylandscape.directions import Directions, difference_directions, random_directions
from pylandscape.objective import Interrupted, Objective
from pylandscape.parameters import ParameterSpace
from pylandscape.surface import grid, line, plane

__all__ = [
    # the loss as a function
    "Interrupted",
    "Objective",
    "ParameterSpace",
    # directions and slices
    "Directions",
    "difference_directions",
    "grid",
    "line",
    "plane",
    "random_directions",
    # the package
    "__version__",
]
