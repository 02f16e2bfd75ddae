"""Paths between solutions."""

from pylandscape.connectivity.interpolation import interpolate

__all__ = ["interpolate"]
