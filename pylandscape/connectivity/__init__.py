"""Paths between solutions."""

from pylandscape.connectivity.alignment import Matching, align, match_units
from pylandscape.connectivity.barriers import barriers
from pylandscape.connectivity.curve_training import connect
from pylandscape.connectivity.curves import Curve
from pylandscape.connectivity.interpolation import interpolate
from pylandscape.connectivity.symmetry import Group, permutation_groups

__all__ = [
    "Curve",
    "Group",
    "Matching",
    "align",
    "barriers",
    "connect",
    "interpolate",
    "match_units",
    "permutation_groups",
]
