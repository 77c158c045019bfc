"""Rows of prompt pairs that cannot be used: all of them, each with its cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, name_rows

_ROWS_NAMED = 100
"""Of each cause; beyond, ``wiremap validate`` lists them."""


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be used.

    Attributes:
        row: counted from 0.
        what: what was expected and what came, the same for all rows of a kind.
        detail: what came in this row.
        next_step: what to do.
    """

    row: int
    what: str
    detail: str = ""
    next_step: str = ""


@dataclass
class Faults:
    """The rows of ``n_rows`` that cannot be used; of each row its first fault.

    Attributes:
        lines: the line of the file that each row ends on, if it has lines.
    """

    n_rows: int
    found: dict[int, Fault] = field(default_factory=dict[int, Fault])
    lines: list[int] | None = None

    def add(self, row: int, what: str, detail: str = "", next_step: str = "") -> None:
        """Takes a row out."""
        self.found.setdefault(row, Fault(row, what, detail, next_step))

    @property
    def good(self) -> list[int]:
        """The rows without a fault."""
        return [row for row in range(self.n_rows) if row not in self.found]

    def by_kind(self) -> dict[str, list[Fault]]:
        """The faults of each kind, in the order of rows."""
        kinds: dict[str, list[Fault]] = {}
        for row in sorted(self.found):
            kinds.setdefault(self.found[row].what, []).append(self.found[row])
        return kinds

    def refuse(self) -> None:
        """Raises InputError, with every row and the cause of each kind, if there are any."""
        if not self.found:
            return
        kinds = [self._sentence(faults) for faults in self.by_kind().values()]
        if len(kinds) == 1:
            message = kinds[0]
        else:
            each = "".join(f"\n- {kind}" for kind in kinds)
            message = f"{len(self.found)} of {self.n_rows} pairs cannot be used:{each}"
        if self.good:
            message += "; " if len(kinds) == 1 else "\nMend them, "
            message += "or leave such pairs out (--skip-bad-pairs, skip_bad=True)"
        raise InputError(message)

    def described(self) -> dict[str, Any]:
        """What a result says of the rows left out: how many of how many, and which, by cause."""
        why = {what: [fault.row + 1 for fault in faults] for what, faults in self.by_kind().items()}
        return {"n_pairs": len(self.found), "of": self.n_rows, "rows": why}

    def _sentence(self, faults: Sequence[Fault]) -> str:
        """What was expected, the rows it is not so in, the detail of the first, and what to do."""
        first = faults[0]
        line = self.lines[first.row] if self.lines else first.row + 1
        place = "" if line == first.row + 1 else f"row {first.row + 1} is line {line} of the file"
        next_step = "; ".join(filter(None, (place, first.detail, first.next_step)))
        return f"{first.what} " + name_rows([fault.row for fault in faults], next_step, _ROWS_NAMED)


def listed(faults: Faults, records: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Every fault as plain data: row, line of the file if it has lines, cause, and the record."""
    return [
        {
            "row": row + 1,
            **({} if faults.lines is None else {"line": faults.lines[row]}),
            "cause": "; ".join(filter(None, (fault.what, fault.detail))),
            "next_step": fault.next_step,
            "record": records[row],
        }
        for row, fault in sorted(faults.found.items())
    ]
