"""GraphML (http://graphml.graphdrawing.org), written so that Gephi and strict readers agree.
"""
from __future__ import annotations
from ..circuits.circuit import Circuit
def to_graphml(circuit: Circuit) -> str:
    return ""
