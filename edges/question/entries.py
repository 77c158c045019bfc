"""Records as a file or a program gives them, made records by wiremap's names and forms."""

from __future__ import annotations

from typing import Any, cast

from ..errors import InputError
from .cells import is_json, list_of, plain_value
from .columns import ANSWERS, IDS, OWN, PROMPTS, Columns, find_columns
from .pairs_file import PairsFile

Ids = list[int]

WRONG = {"wrong_answer", "wrong_answer_ids"}


class Entries:
    """The records of a file, checked for what needs no tokenizer.

    A row that is not as it should be gets its fault in ``file.faults``.

    Attributes:
        records: by the names of ``OWN`` where there are texts, of ``IDS`` where there are token
            ids, and all other columns as they came.
        columns: what these were read from.
        lists_of_python: whether a cell held a list as Python prints it.

    Raises:
        InputError: no record, or columns that all rows lack.
    """

    def __init__(self, file: PairsFile, n_tokens: int) -> None:
        self.faults, self._table, self._n_tokens = file.faults, file.table, n_tokens
        self.records: list[dict[str, Any]] = [record or {} for record in file.records]
        self.columns = Columns()
        self.lists_of_python = False
        self._name_columns()
        for row in self.faults.good:
            self._check(row, self.records[row])
        self._refuse_lacking()

    def _name_columns(self) -> None:
        there = [self.records[row] for row in self.faults.good]
        if not there:
            if not self.faults.found:
                raise InputError("expected at least one prompt pair, got none")
            return
        self.columns = find_columns(there)
        if self.columns.missing:
            if self._table and len(self.columns.missing) > 2:
                self.columns.hints.append("a table's first line has to name its columns")
            row = self.faults.good[0]
            lines = self.faults.lines
            where = f"line {lines[row]}" if lines else f"row {row + 1}"
            names = dict.fromkeys(key for record in there for key in record)
            raise InputError(f"{where}: {self.columns.say_missing(names)}")
        self.records = [self.columns.of(record) for record in self.records]

    def _called(self, name: str) -> str:
        """What the file calls a column."""
        return self.columns.names.get(name, name)

    def _check(self, row: int, record: dict[str, Any]) -> None:
        self._read_cells(row, record)
        for name in (*PROMPTS, "answer"):
            if _absent(record.get(name)) and _absent(record.get(f"{name}_ids")):
                self.faults.add(
                    row, f"expected {name} in every row; missing or empty", "", "add it"
                )
        wrong = WRONG & record.keys()
        if all(_absent(record[name]) for name in wrong):
            for name in wrong:
                record.pop(name)
        for name in (*OWN, *IDS):
            self._check_value(row, record, name)

    def _refuse_lacking(self) -> None:
        lacking = [row for row in self.faults.good if not WRONG & self.records[row].keys()]
        if len(lacking) == len(self.faults.good):
            return
        for row in lacking:
            self.faults.add(
                row,
                "expected a wrong_answer in every row or in none; missing",
                "",
                "add it, or take the column out",
            )

    def _read_cells(self, row: int, record: dict[str, Any]) -> None:
        """Cells that hold lists, and numbers of a table that are ids."""
        for name in (*ANSWERS, *IDS):
            value = record.get(name)
            if not isinstance(value, str):
                continue
            column = self._called(name)
            try:
                cell = list_of(value)
            except ValueError as error:
                self.faults.add(
                    row,
                    f'expected {column} as a text or a list such as [" Mary", " Anna"]; unreadable',
                    f"row {row + 1} has {value!r:.60}: {error}",
                    "write it as JSON",
                )
                continue
            if cell is not None and (self._table or all(type(each) is str for each in cell)):
                record[name] = cell
                self.lists_of_python = self.lists_of_python or not is_json(value)
            elif name in IDS and self._table:
                number = plain_value(value)
                record[name] = value if number is None else number
        for name in PROMPTS:
            value = record.get(name)
            if self._table and isinstance(value, str) and _ids_as_text(value):
                self.faults.add(
                    row,
                    f"expected {name} as a text; it looks like a list of token ids",
                    f"row {row + 1} has {value!r:.40}",
                    f"call the column {name}_ids if it is one, or write the pairs as JSON Lines",
                )

    def _check_value(self, row: int, record: dict[str, Any], name: str) -> None:
        """Texts, or token ids; a column of texts whose values are ids is one of ids."""
        value = record.get(name)
        if value is None:
            record.pop(name, None)
            return
        several = isinstance(value, list | tuple)
        values = list(cast("list[Any]", value)) if several else [value]
        numbers = [_as_id(each) for each in values]
        if (
            values
            and all(number is not None for number in numbers)
            and (several or name not in PROMPTS)
        ):
            self._check_ids(row, name, cast("Ids", numbers))
            record.pop(name)
            record[name if name in IDS else f"{name}_ids"] = numbers
            return
        texts = bool(values) and all(isinstance(each, str) for each in values)
        if name in IDS or not texts or (several and name in PROMPTS):
            self.faults.add(
                row,
                f"expected {self._called(name)} to be {_expected(name)}; others",
                f"row {row + 1} has {value!r:.60}",
            )

    def _check_ids(self, row: int, name: str, ids: Ids) -> None:
        strange = [token for token in ids if not 0 <= token < self._n_tokens]
        if strange:
            self.faults.add(
                row,
                f"expected token ids from 0 to {self._n_tokens - 1}, the vocabulary of the model; "
                f"{self._called(name)} has others",
                f"row {row + 1} has {strange[0]}",
                "take the ids of this model's tokenizer",
            )


def _absent(value: Any) -> bool:
    return value is None or value == ""


def _as_id(value: Any) -> int | None:
    """A whole number, which pandas may have made a float of."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _ids_as_text(text: str) -> bool:
    cell = text.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return False
    value = plain_value(cell)
    return isinstance(value, list) and all(type(each) is int for each in cast("list[Any]", value))


def _expected(name: str) -> str:
    if name in PROMPTS:
        return "a text (or a list of token ids)"
    return (
        "a token id or a list of them"
        if name in IDS
        else "a text or a list of texts (or of token ids)"
    )
