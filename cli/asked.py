"""What a command is asked, as objects: the options that belong together, filled by one decorator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

from ..edges.errors import InputError
from ..edges.names.vocabulary import DEVICE, DIRECTION, INTEGRATED, READER, SCHEDULE, STEPS


def gathered(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hands a command its options as objects, ``asked=Asked`` all those named as Asked's fields.

    Options that no class has a field for are handed over by themselves, fields that the command has
    no option for keep their defaults. Stands below the options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def gather(**options: Any) -> None:
            # Each option is popped by the first group with a field of its name; what no group has
            # taken is handed on by itself.
            objects = {
                name: group(
                    **{
                        field.name: options.pop(field.name)
                        for field in fields(group)
                        if field.name in options
                    }
                )
                for name, group in groups.items()
            }
            command(**objects, **options)

        return gather

    return decorate


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of which model; None is what is usual, or as a circuit was found.

    Attributes:
        model, device, dtype, bos, kv, tf32: see ``Model.load``.
        task, corruption, n_pairs, seed: see ``load_task``; or ``pairs``, a file of them.
        skip_bad_pairs, as_written: of a file of pairs; see ``PromptPairs.from_records``.
        chat: see ``load_task`` and ``PromptPairs.read``.
        metric, direction, batch_size: see ``discover``; so ``allow_weak``.
    """

    model: str | None = None
    task: str | None = None
    pairs: Path | None = None
    skip_bad_pairs: bool = False
    as_written: bool = False
    corruption: str | None = None
    n_pairs: int | None = None
    seed: int | None = None
    chat: bool | None = None
    bos: bool | None = None
    kv: str | None = None
    metric: str | None = None
    direction: str = DIRECTION
    allow_weak: bool = False
    device: str = DEVICE
    dtype: str | None = None
    batch_size: int | None = None
    tf32: bool = False


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How scores are made; see ``score_edges``. Nodes have no ``reader``."""

    gradient: str | None = None
    steps: int | None = None
    schedule: str | None = None
    reader: str = READER

    @property
    def options(self) -> dict[str, Any]:
        """The options of gradients that were given, by their names on the command line."""
        return given({"--steps": self.steps, "--schedule": self.schedule})

    def settled(self, gradient: str | None) -> dict[str, Any]:
        """Steps and schedule. Raises InputError if given with another rule than ``integrated``."""
        # Another rule would ignore them, and the user would not know.
        if self.options and gradient != INTEGRATED:
            raise InputError(
                f"{', '.join(self.options)}: goes with --gradient integrated only; leave it out"
            )
        return {"steps": self.steps or STEPS, "schedule": self.schedule or SCHEDULE}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How results are shown."""

    as_json: bool
    quiet: bool

    @property
    def no_progress(self) -> bool:
        """Whether to show no bars."""
        return self.quiet or self.as_json


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name, value in options.items() if value is not None}
