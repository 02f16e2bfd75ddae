"""Second-order information: curvature matrices as operators, and their eigenpairs."""

from pylandscape.curvature.lanczos import Eigenpairs, eigenpairs
from pylandscape.curvature.operators import CurvatureOperator, Hessian

__all__ = ["CurvatureOperator", "Eigenpairs", "Hessian", "eigenpairs"]
