"""Second-order information: curvature matrices as operators, and their eigenpairs."""

from pylandscape.curvature.lanczos import Eigenpairs, eigenpairs
from pylandscape.curvature.operators import GGN, CurvatureOperator, Fisher, Hessian

__all__ = ["CurvatureOperator", "Eigenpairs", "Fisher", "GGN", "Hessian", "eigenpairs"]
