"""A circuit as files other tools open, and back. Nothing in here imports torch."""

from .formats import FORMATS, read_circuit, write_circuit

__all__ = ["FORMATS", "read_circuit", "write_circuit"]
