"""Second-order information: curvature matrices as operators, their eigenpairs and spectra."""

from pylandscape.curvature.density import layer_spectra, spectral_density
from pylandscape.curvature.lanczos import Eigenpairs, eigenpairs
from pylandscape.curvature.operators import GGN, CurvatureOperator, Fisher, Hessian

__all__ = [
    "CurvatureOperator",
    "Eigenpairs",
    "Fisher",
    "GGN",
    "Hessian",
    "eigenpairs",
    "layer_spectra",
    "spectral_density",
]
