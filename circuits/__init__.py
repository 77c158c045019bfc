"""The pruned causal graph and the evidence for it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .discovery import discover
    from .evidence.claims import run_tests
    from .evidence.faithfulness import curve, evaluate, localize, read_metrics
    from .evidence.knockouts import completeness, minimality
    from .evidence.scrubbing import Scrubbing, scrub
    from .evidence.stability import bootstrap
    from .evidence.verification import verify
    from .record.effects_file import Verified
    from .result.circuit import Circuit, CircuitEdge, CircuitNode, Faithfulness
    from .result.comparison import Comparison, compare
    from .result.hypothesis import Hypothesis
    from .tasks.builtin import TASKS, load_task
    from .tasks.task import Task

__all__ = [
    "TASKS",
    "Circuit",
    "CircuitEdge",
    "CircuitNode",
    "Comparison",
    "Faithfulness",
    "Hypothesis",
    "Scrubbing",
    "Task",
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
    "discovery": ("discover",),
    "evidence.claims": ("run_tests",),
    "evidence.faithfulness": ("curve", "evaluate", "localize", "read_metrics"),
    "evidence.knockouts": ("completeness", "minimality"),
    "evidence.scrubbing": ("Scrubbing", "scrub"),
    "evidence.stability": ("bootstrap",),
    "evidence.verification": ("verify",),
    "record.effects_file": ("Verified",),
    "result.circuit": ("Circuit", "CircuitEdge", "CircuitNode", "Faithfulness"),
    "result.comparison": ("Comparison", "compare"),
    "result.hypothesis": ("Hypothesis",),
    "tasks.builtin": ("TASKS", "load_task"),
    "tasks.task": ("Task",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
