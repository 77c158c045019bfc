"""A transformer as writers, readers and the edges between them, and what each edge is worth."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .effects.edge_effects import patch_edges
    from .effects.engine import Effects
    from .effects.node_effects import patch_nodes
    from .errors import InputError, SpaceWarning, WiremapError, WiremapWarning
    from .model.tokens import Tokenizer
    from .model.transformer import Model
    from .names.graph import Edge, ModelGraph, Reader, Writer
    from .question.metrics import METRICS
    from .question.prompts import PromptPairs
    from .scores.edge_scores import EdgeScores, score_edges
    from .scores.node_scores import NodeScores, score_nodes

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
    "SpaceWarning",
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
    "effects.edge_effects": ("patch_edges",),
    "effects.engine": ("Effects",),
    "effects.node_effects": ("patch_nodes",),
    "errors": ("InputError", "SpaceWarning", "WiremapError", "WiremapWarning"),
    "model.tokens": ("Tokenizer",),
    "model.transformer": ("Model",),
    "names.graph": ("Edge", "ModelGraph", "Reader", "Writer"),
    "question.metrics": ("METRICS",),
    "question.prompts": ("PromptPairs",),
    "scores.edge_scores": ("EdgeScores", "score_edges"),
    "scores.node_scores": ("NodeScores", "score_nodes"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
