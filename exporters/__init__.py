"""A circuit as files other tools open, and back. Nothing in here imports torch."""

from .pictures.groups import read_groups
from .pictures.shown import View
from .registry import FORMATS, read_circuit, write_circuit
from .run_directory import write_run_directory

__all__ = [
    "FORMATS",
    "View",
    "read_circuit",
    "read_groups",
    "write_circuit",
    "write_run_directory",
]
