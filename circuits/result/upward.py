"""The one door upwards: circuits stand below the exporters and never import them.

But a circuit shows itself in a notebook, and a run directory holds its pictures, without anyone
having imported the exporters: there, and there only, they are fetched by name when they are used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def exporters(module: str) -> ModuleType:
    """A module of ``wiremap.exporters``, such as ``pages.viewer``."""
    return import_module(f"wiremap.exporters.{module}")
