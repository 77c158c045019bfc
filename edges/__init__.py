"""A transformer as writers, readers and the edges between them, and what each edge is worth."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .atpstar import NodeScores, score_nodes
    from .attribution import EdgeScores, score_edges
    from .errors import InputError, WiremapError, WiremapWarning
    from .graph import Edge, ModelGraph, Reader, Writer
    from .metrics import METRICS
    from .model import Model
    from .node_patching import patch_nodes
    from .patching import Effects, patch_edges
    from .prompts import PromptPairs
    from .tokens import Tokenizer

__all__ = [
    "METRICS",
    "Edge",
    "EdgeScores",
    "Effects",
    "InputError",
    "Model",
    "ModelGraph",
    "NodeScores",
    "PromptPairs",
    "Reader",
    "Tokenizer",
    "WiremapError",
    "WiremapWarning",
    "Writer",
    "patch_edges",
    "patch_nodes",
    "score_edges",
    "score_nodes",
]

# Where each name lives: imported when first used, because torch takes a second.
_MODULES = {
    "atpstar": ("NodeScores", "score_nodes"),
    "attribution": ("EdgeScores", "score_edges"),
    "errors": ("InputError", "WiremapError", "WiremapWarning"),
    "graph": ("Edge", "ModelGraph", "Reader", "Writer"),
    "metrics": ("METRICS",),
    "model": ("Model",),
    "node_patching": ("patch_nodes",),
    "patching": ("Effects", "patch_edges"),
    "prompts": ("PromptPairs",),
    "tokens": ("Tokenizer",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
