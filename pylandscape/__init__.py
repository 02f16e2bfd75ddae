"""The geometry of a neural network's loss."""

from pylandscape import _ops as _ops
from pylandscape._version import __version__

__all__ = ["__version__"]
