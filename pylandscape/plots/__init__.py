"""Figures of results: one function per kind of figure, each from an `xarray.Dataset`.

Every function takes the result, optionally axes to draw in, and returns the figure. Without axes it
makes a figure of one column's width (8.5 cm) with a caption that says how the result was made. Such
figures do not belong to pyplot: nothing has to be closed, and no window opens; `save` writes them,
notebooks show them. The caller's rcParams neither matter nor change.

What is not a number stays visible: NaN, infinite and not evaluated points are hatched or left open,
named in a legend and counted in the caption. Nothing is interpolated over them.
"""

from pylandscape.plots._animation import animate
from pylandscape.plots._barriers import barriers
from pylandscape.plots._caption import caption
from pylandscape.plots._contour import contour
from pylandscape.plots._correlation import correlation
from pylandscape.plots._curve_plane import curve_plane
from pylandscape.plots._density import axis_curvature, density, layers
from pylandscape.plots._eigenvalues import eigenvalue_path, eigenvalues
from pylandscape.plots._interpolation import interpolation
from pylandscape.plots._line import line
from pylandscape.plots._sharpness import sharpness
from pylandscape.plots._style import save
from pylandscape.plots._surface import surface
from pylandscape.plots._training import gradient_norm, training
from pylandscape.plots._trajectory import trajectory

__all__ = [
    "animate",
    "axis_curvature",
    "barriers",
    "caption",
    "contour",
    "curve_plane",
    "correlation",
    "density",
    "eigenvalue_path",
    "eigenvalues",
    "gradient_norm",
    "interpolation",
    "layers",
    "line",
    "save",
    "sharpness",
    "surface",
    "training",
    "trajectory",
]
