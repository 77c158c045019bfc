"""The pruned causal graph and the evidence for it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .circuit import Circuit, CircuitEdge, CircuitNode, Faithfulness
    from .comparison import Comparison, compare
    from .discovery import discover
    from .faithfulness import curve, evaluate, localize, read_metrics
    from .hypothesis import Hypothesis
    from .hypothesis_tests import run_tests
    from .knockouts import completeness, minimality
    from .scrubbing import Scrubbing, scrub
    from .stability import bootstrap
    from .tasks import TASKS, load_task
    from .verification import Verified, verify

__all__ = [
    "TASKS",
    "Circuit",
    "CircuitEdge",
    "CircuitNode",
    "Comparison",
    "Faithfulness",
    "Hypothesis",
    "Scrubbing",
    "Verified",
    "bootstrap",
    "compare",
    "completeness",
    "curve",
    "discover",
    "evaluate",
    "load_task",
    "localize",
    "minimality",
    "read_metrics",
    "run_tests",
    "scrub",
    "verify",
]

# Where each name lives: imported when first used, because torch takes a second.
_MODULES = {
    "circuit": ("Circuit", "CircuitEdge", "CircuitNode", "Faithfulness"),
    "comparison": ("Comparison", "compare"),
    "discovery": ("discover",),
    "faithfulness": ("curve", "evaluate", "localize", "read_metrics"),
    "hypothesis": ("Hypothesis",),
    "hypothesis_tests": ("run_tests",),
    "knockouts": ("completeness", "minimality"),
    "scrubbing": ("Scrubbing", "scrub"),
    "stability": ("bootstrap",),
    "tasks": ("TASKS", "load_task"),
    "verification": ("Verified", "verify"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
