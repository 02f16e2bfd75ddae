"""Sharpness: how much the loss can rise close to a point, by the measures in use.

Each takes an Objective and gives a result whose `value` is the measure: `ball` and `sam` in a ball,
`keskar` in a box, `adaptive` where every parameter moves in its own size, `average` under random
perturbations, `critical` along the step of an optimiser. `table` has them all, `profile` the ball
over its radius.
"""

from pylandscape.sharpness._adaptive import Adaptive, adaptive
from pylandscape.sharpness._average import Average, average
from pylandscape.sharpness._ball import Ball, ball
from pylandscape.sharpness._critical import Critical, critical
from pylandscape.sharpness._keskar import Keskar, keskar
from pylandscape.sharpness._profile import profile
from pylandscape.sharpness._sam import Sam, sam
from pylandscape.sharpness._table import table

__all__ = [
    "Adaptive",
    "Average",
    "Ball",
    "Critical",
    "Keskar",
    "Sam",
    "adaptive",
    "average",
    "ball",
    "critical",
    "keskar",
    "profile",
    "sam",
    "table",
]
