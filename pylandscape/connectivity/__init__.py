"""Paths between solutions."""

from pylandscape.connectivity.curve_training import connect
from pylandscape.connectivity.curves import Curve
from pylandscape.connectivity.interpolation import interpolate

__all__ = ["Curve", "connect", "interpolate"]
