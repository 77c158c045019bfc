"""A circuit as files other tools open, and back. Nothing in here imports torch."""

from .formats import FORMATS, read_circuit, write_circuit
from .groups import read_groups
from .view import View

__all__ = ["FORMATS", "View", "read_circuit", "read_groups", "write_circuit"]
