"""The command that finds a circuit again, from what the circuit says of itself."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ...circuits.result.circuit import Circuit
from ...edges.names.vocabulary import FEWEST_TO_HOLD_OUT, HELD_OUT_SHARE

_DEFAULTS: Mapping[str, Any] = {
    "n_pairs": 64,
    "seed": 0,
    "dtype": "float32",
    "kv": "grouped",
    "direction": "noising",
    "reader": "linear",
    "budget": 200,
    "target": 0.9,
    "prune": "top",
    "tests": False,
}
"""Options of ``wiremap discover`` that are the same for all models and tasks, left out of a command."""


_RULES = ("target", "threshold", "alpha", "size", "acdc")


def rebuilt_command(circuit: Circuit) -> str | None:
    """The ``wiremap discover`` that finds the circuit again; None if the circuit does not say.

    What depends on the model or the task (metric, gradient, corruption, BOS) is always named, other
    options where they differ from the default.
    """
    model, task, method = circuit.model, circuit.task, circuit.method
    # Circuits of other tools lack some of this. A command that finds something else would be worse
    # than none.
    if not model.get("name") or "budget" not in method or not (task.get("task") or "pairs" in task):
        return None
    options = [*_of_task(model, task), *_of_model(model), *_of_method(method)]
    measured = circuit.faithfulness
    # discover refuses such a task, unless told to go on.
    if measured is not None and measured.full <= measured.empty:
        options.append(("allow_weak", True))
    words = ["wiremap", "discover"]
    for name, value in options:
        # A target of None is not the default, but says that another rule chose, which is an option
        # itself.
        if value is not None:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return shlex.join(words)


def _of_task(model: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "model", model["name"]
    if "pairs" in task:
        yield "pairs", task["pairs"]
    else:
        yield "task", task["task"]
        yield "corruption", task.get("corruption")
        drawn = {**task, "n_pairs": task.get("set_aside_of", task.get("n_pairs"))}
        yield from _changed(drawn, "n_pairs", "seed")
    yield from _held_out(task)
    if "left_out" in task or "left_out" in (task.get("held_out") or {}):
        yield "skip_bad_pairs", True
    if task.get("chat"):
        yield "chat", True


def _held_out(task: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the circuit was judged on, where that is not what is usual."""
    others: Mapping[str, Any] | None = task.get("held_out")
    if others is None:
        # Of few pairs none is set aside by default.
        if "pairs" not in task or task.get("n_pairs", 0) >= FEWEST_TO_HOLD_OUT:
            yield "held_out", 0
    elif "set_aside" in task:
        if "pairs" not in task or task["set_aside"] != HELD_OUT_SHARE:
            yield "held_out", task["set_aside"]
    elif "pairs" in others:
        yield "held_out", others["pairs"]


def _of_model(model: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if model.get("bos") is not None:
        yield "bos" if model["bos"] else "no-bos", True
    yield from _changed(model, "dtype")
    if model.get("tf32"):
        yield "tf32", True
    yield from _changed(model, "kv")


def _of_method(method: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    steps = ("steps", "schedule") if method.get("gradient") == "integrated" else ()
    scored = ("metric", "direction", "gradient", *steps, "reader", "budget", "until_bound")
    yield from _changed(method, *scored, *_RULES, "prune", "tests", "batch_size")
    if isinstance(given := method.get("scores"), dict):
        yield "scores", given.get("source")
    if method.get("faithful_to", method.get("metric")) != method.get("metric"):
        yield "faithful_to", method["faithful_to"]


def _changed(part: Mapping[str, Any], *names: str) -> Iterator[tuple[str, Any]]:
    """The options of these names that are not the default."""
    for name in names:
        if part.get(name) != _DEFAULTS.get(name):
            yield name, part.get(name)
