"""Second-order information: curvature matrices as operators, their eigenpairs and spectra."""

from pylandscape.curvature.axes import axis_curvature, eigen_directions
from pylandscape.curvature.density import layer_spectra, spectral_density
from pylandscape.curvature.lanczos import Eigenpairs, eigenpairs
from pylandscape.curvature.operators import GGN, CurvatureOperator, Fisher, Hessian
from pylandscape.curvature.trace import Estimate, diagonal, frobenius_norm, trace

__all__ = [
    "CurvatureOperator",
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
    "spectral_density",
    "trace",
]
