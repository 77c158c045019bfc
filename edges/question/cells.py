"""Cells that hold lists: as JSON has them, or as Python prints them (pandas does so in CSV)."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from itertools import pairwise
from typing import Any, cast

_UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def plain_value(text: str) -> Any:
    """The value of JSON, or of a Python literal; None if the text is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        # Names, calls and operators are no literals: nothing is ever run.
        return ast.literal_eval(text.strip())
    except _UNREADABLE:
        return None


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def list_of(text: str) -> list[Any] | None:
    """The list that a cell is; None if it is another text.

    Raises:
        ValueError: it looks like a list and cannot be read as one; the message says why.
    """
    cell = text.strip()
    if cell.startswith("(") and cell.endswith(")"):
        # A tuple, or a text in brackets.
        value = plain_value(cell)
        return list(cast("tuple[Any]", value)) if isinstance(value, tuple) else None
    for maker in ("array(", "tensor(", "Index("):
        if cell.startswith(maker):
            raise ValueError(f"it is the print of a Python object, {maker}...); write a list")
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    if _runs_together(cell):
        raise ValueError("its texts are not parted by commas, as numpy prints them")
    value = plain_value(cell)
    if isinstance(value, list):
        return cast("list[Any]", value)
    raise ValueError("it begins and ends as a list, and is neither JSON's nor Python's")


def _runs_together(cell: str) -> bool:
    """Whether two texts stand side by side, which Python would silently make one of."""
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(cell).readline)]
    except (*_UNREADABLE, tokenize.TokenError):
        return False
    return any(
        (here, following) == (tokenize.STRING, tokenize.STRING)
        for here, following in pairwise(kinds)
    )
