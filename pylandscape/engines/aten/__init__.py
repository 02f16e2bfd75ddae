"""From aten operators to nodes of a Program: one function per kind of operator.

A function gets the Builder and the Call and gives the entry for the operator's output, or a list of
entries where it has several. What is not in `LOWERINGS` has no native kernel.
"""

from pylandscape.engines.aten import elementwise, layers, movement, pooling
from pylandscape.engines.aten.registry import LOWERINGS

__all__ = ["LOWERINGS", "elementwise", "layers", "movement", "pooling"]
