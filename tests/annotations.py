"""Annotations checked on a sample of calls: jaxtyping's checks of every call double a test's time."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping

_FIRST = 4
_jaxtyped: Callable[..., Any] = jaxtyping.jaxtyped
_n_calls: Counter[str] = Counter()


def check_annotations(package: str) -> None:
    """Checks shapes and types in a package not imported yet: see ``_is_checked``."""
    jaxtyping.jaxtyped = _sampled  # pyright: ignore[reportAttributeAccessIssue]
    jaxtyping.install_import_hook(package, "beartype.beartype")


def begin_anew() -> None:
    """The next call of every function is its first; each test begins so."""
    _n_calls.clear()


def _is_checked(call: int, nested: bool) -> bool:
    """The first four of a function in a test, then the 8th, the 16th, the 32nd, ...

    Of a nested function, which is compiled anew with each function around it, the first alone.
    """
    return call == 1 if nested else call <= _FIRST or call & (call - 1) == 0


def _sampled(*, typechecker: Any) -> Callable[[Any], Any]:
    """In place of ``jaxtyped``, which the hook writes above every function and class."""

    def decorate(made: Any) -> Any:
        if dataclasses.is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = decorate(made.__init__)
        if not isinstance(made, FunctionType):
            return made
        name = f"{made.__module__}.{made.__qualname__}"
        nested = "<locals>" in name
        checked: Any = None

        @functools.wraps(made)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal checked
            _n_calls[name] += 1
            if not _is_checked(_n_calls[name], nested):
                return made(*arguments, **options)
            checked = checked or _jaxtyped(made, typechecker=typechecker)
            return checked(*arguments, **options)

        return call

    return decorate
