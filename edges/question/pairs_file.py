"""Files of prompt pairs: JSON Lines, one JSON document, or a table; what is unambiguous is read.

Records are taken as they stand; which column is which, and tokens, are matters of ``columns`` and
``records``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import InputError
from ..files import read_text
from ..names.vocabulary import RECORDS_UNDER, SEPARATORS
from .cells import is_json, plain_value
from .columns import PROMPTS, find_columns
from .faults import Faults

_SUCH_AS = '{"clean": ..., "corrupted": ..., "answer": ...}'
_NO_OBJECT = f"expected a JSON object such as {_SUCH_AS}"
_QUOTED_LATE = re.compile(r'[ \t]+".*"$', re.DOTALL)
_TABLES = (".csv", ".tsv", ".tab", ".txt")
_OTHER_KINDS = {
    b"PK\x03\x04": "a workbook or another zip archive: save the sheet as CSV (UTF-8)",
    b"PAR1": 'a Parquet file: df.to_json("pairs.jsonl", orient="records", lines=True)',
    b"ARROW1": 'an Arrow file: dataset.to_json("pairs.jsonl")',
    b"\x1f\x8b": "compressed with gzip: unpack it (gunzip)",
    b"\x80": "a Python pickle, which is never read: write the records as JSON Lines",
}


@dataclass
class PairsFile:
    """What a file holds, before any of it is tokenized.

    Attributes:
        records: of each row; None where the row is no record.
        faults: why others cannot be used, and the line that each row ends on, if there are lines.
        shape: what kind of file it was taken for, where its name says another; for a note.
        table: its cells are texts, whatever they mean.
    """

    records: list[dict[str, Any] | None]
    faults: Faults
    shape: str = ""
    table: bool = False

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> PairsFile:
        """Records that come from no file."""
        rows = [dict(record) for record in records]
        return cls(list(rows), Faults(len(rows)))


def read_pairs_file(path: Path) -> PairsFile:
    """The records of a file of prompt pairs.

    Raises:
        InputError: it cannot be read, is empty, or no file of records of any known shape.
    """
    try:
        _refuse_other_kinds(path)
        text = read_text(path)
        if not text.strip():
            raise InputError("expected prompt pairs, got an empty file")
        found = _parse(text, path.suffix.lower())
        if not found.records:
            raise InputError("expected prompt pairs, got a file without any")
        return found
    except InputError as error:
        separator = ", " if str(error).startswith("line ") else ": "
        raise InputError(f"{path}{separator}{error}") from None


def _refuse_other_kinds(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return  # read_text says why
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise InputError(f"expected prompt pairs as JSON Lines, JSON or CSV, got {kind}")


def _parse(text: str, suffix: str) -> PairsFile:
    if text.lstrip()[0] in "{[":
        return _json(text, suffix)
    found = _table(text, suffix)
    if found is None and any(isinstance(value, dict) for *_, value in _lines(text)):
        return _json(text, suffix)
    if found is None:
        line = next(n for n, content in enumerate(text.split("\n"), 1) if content.strip())
        raise InputError(
            f"line {line}: expected one JSON object a line, such as {_SUCH_AS}, or a table whose "
            f"first line names its columns, got {text.strip().splitlines()[0][:40]!r}"
        )
    return found


# ---- JSON


def _json(text: str, suffix: str) -> PairsFile:
    whole = plain_value(text)
    shape = "" if suffix not in _TABLES else "JSON"
    if whole is not None:
        many = "\n" in text.strip()
        records, within = _records_of(whole)
        within += "" if is_json(text) else ", as Python prints it"
        if within or many:
            shape = f"one JSON document{within}"
        lines = None if within or many else [1]
        return _checked(records, lines, shape)
    by_line = _lines(text)
    if not shape and any(value is not None and not is_json(line) for line, _, value in by_line):
        shape = "lines of Python literals"
    if text.lstrip().startswith("[") or all(value is None for *_, value in by_line):
        by_object = None if text.lstrip().startswith("[") else _objects(text)
        if by_object is None:
            raise InputError(_broken(text))
        return _checked([value for _, value in by_object], [line for line, _ in by_object], shape)
    return _checked([value for *_, value in by_line], [line for _, line, _ in by_line], shape)


def _lines(text: str) -> list[tuple[str, int, Any]]:
    """Every line that is not blank, with its number and its value; None where it has none."""
    # Not splitlines: a JSON string may hold U+2028 and other ends of lines as they are.
    return [
        (content, line, plain_value(content))
        for line, content in enumerate(text.split("\n"), start=1)
        if content.strip()
    ]


def _objects(text: str) -> list[tuple[int, Any]] | None:
    """Values one after another, each over several lines; None if what stands there is no JSON."""
    decoder, at, found = json.JSONDecoder(), 0, list[tuple[int, Any]]()
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        found.append((text.count("\n", 0, at) + 1, value))
    return found


def _broken(text: str) -> str:
    """Where a text stops to be JSON, in our words."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos : error.pos + 20]
        at = f"before {rest!r}" if rest.strip() else "where the file ends"
        return (
            f"line {error.lineno}: expected one JSON object a line, or one JSON document of records; "
            f"it is no JSON from column {error.colno} on, {at} (a comma, a quote or a bracket too few "
            "or too many)"
        )
    except RecursionError:
        pass
    return "line 1: expected one JSON object a line, or one JSON document of records; it is nested too deep"


def _checked(values: Sequence[Any], lines: list[int] | None, shape: str) -> PairsFile:
    """The values that are records, and a fault for each that is none."""
    found = PairsFile([], Faults(len(values), lines=lines), shape)
    for row, value in enumerate(values):
        where = f"line {lines[row]}" if lines else f"row {row + 1}"
        if isinstance(value, dict):
            found.records.append(cast("dict[str, Any]", value))
            continue
        found.records.append(None)
        if value is None:
            what, came = "expected one JSON object a line; no JSON", f"{where} has none"
        else:
            what, came = (
                f"{_NO_OBJECT}; others",
                f"{where} is {json.dumps(value, default=str)[:40]}",
            )
        found.faults.add(row, what, came, "mend it")
    return found


def _records_of(whole: Any) -> tuple[list[Any], str]:
    """The records of one JSON document, and where they stood in it."""
    if isinstance(whole, list):
        values = cast("list[Any]", whole)
        if not values:
            raise InputError("expected prompt pairs, got an empty list")
        if not any(isinstance(value, dict) for value in values):
            raise InputError(
                f"line 1: {_NO_OBJECT} a line, or a list of them, got a list of "
                f"{type(values[0]).__name__}"
            )
        return values, ", a list of records"
    if not isinstance(whole, dict):
        raise InputError(f"line 1: {_NO_OBJECT} a line, got {str(whole)[:40]!r}")
    document = cast("dict[str, Any]", whole)
    if any(isinstance(document.get(name), str) for name in _prompt_names(document)):
        return [document], ""
    return _nested(document) or _by_column(document) or ([document], "")


def _prompt_names(document: Mapping[str, Any]) -> list[str]:
    columns = find_columns([document]).names
    return [columns[name] for name in PROMPTS if name in columns]


def _nested(document: Mapping[str, Any]) -> tuple[list[Any], str] | None:
    """Records under a key of the document, such as auto-circuit's ``prompts``."""
    under = {
        key: cast("list[Any]", value)
        for key, value in document.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    known = [key for key in under if key in RECORDS_UNDER] or list(under)
    if len(known) > 1:
        raise InputError(
            f"expected one list of records, got several, under {', '.join(known)}; keep the one to use"
        )
    if known:
        rows = under[known[0]]
        # The data sets viewer of Hugging Face has each row within another object.
        if all(isinstance(row, dict) and isinstance(row.get("row"), dict) for row in rows):
            rows = [row["row"] for row in rows]
        return rows, f", its records under {known[0]!r}"
    first = next(iter(document.values()), None)
    if isinstance(first, dict) and _prompt_names(cast("dict[str, Any]", first)):
        return list(document.values()), ", a record under each key"
    names, rows = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(rows, list):
        each = [cast("list[Any]", row) for row in cast("list[Any]", rows) if isinstance(row, list)]
        if len(each) == len(rows) and all(len(row) == len(names) for row in each):
            return [dict(zip(names, row, strict=True)) for row in each], ", columns and data"
    return None


def _by_column(document: Mapping[str, Any]) -> tuple[list[Any], str] | None:
    """One list, or one object of rows, for each column, as pandas writes a table."""
    names = _prompt_names(document)
    first = document[names[0]] if names else None
    if isinstance(first, dict) and first:
        columns = {
            key: list(cast("dict[str, Any]", value).values())
            for key, value in document.items()
            if isinstance(value, dict)
        }
    elif isinstance(first, list) and first and isinstance(first[0], str | list):
        columns = {key: value for key, value in document.items() if isinstance(value, list)}
    else:
        return None
    lengths = {key: len(cast("list[Any]", value)) for key, value in columns.items()}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{key} {n}" for key, n in lengths.items())
        raise InputError(f"expected columns of one length, got {each}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], (
        ", a list for each column"
    )


# ---- tables


def _table(text: str, suffix: str) -> PairsFile | None:
    """The rows of a table; None if it is none, as its name and its first line say."""
    # A spreadsheet's own first line, which says what parts its cells.
    first, _, rest = text.partition("\n")
    declared = first.strip().lower()
    skipped = 0
    if declared.startswith("sep=") and declared[4:5] in SEPARATORS:
        text, skipped = rest, 1
    separator, known = _separator(text)
    if not known and suffix not in _TABLES:
        return None
    usual = "\t" if suffix in (".tsv", ".tab") else ","
    shape = (
        ""
        if separator == usual and suffix in _TABLES
        else f"a table parted by {SEPARATORS[separator]}"
    )
    lines: list[int] = []
    found = PairsFile([], Faults(0, lines=lines), shape, table=True)
    for line, record in _rows(text, separator, found):
        found.records.append(record)
        lines.append(line + skipped)
    found.faults.n_rows = len(found.records)
    return found


def _separator(text: str) -> tuple[str, bool]:
    """What parts the cells: what makes columns of prompt pairs of the first line, if anything does."""
    headers: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            headers[separator] = next(_reader(text, separator))
        except (csv.Error, StopIteration):
            headers[separator] = []
    for separator, header in headers.items():
        columns = find_columns([dict.fromkeys(map(str.strip, header), "")])
        # One of the two prompts: the other may have a name that only a message can tell of.
        if len(header) > 1 and any(
            name in columns.names for name in (*PROMPTS, *(f"{each}_ids" for each in PROMPTS))
        ):
            return separator, True
    return max(headers, key=lambda each: len(headers[each])), False


def _reader(text: str, separator: str) -> Any:
    """Reads cells. Where the header has spaces before its quotes, so have the rows."""
    first = text.partition("\n")[0]
    spaced = f'{separator} "' in first
    # Ends of lines are left as they are: a quoted cell may hold some.
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced
    )


def _rows(
    text: str, separator: str, found: PairsFile
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Each row with the line it ends on. Raises InputError where quotes do not match."""
    reader = _reader(text, separator)
    row = 0
    try:
        header = [name.strip() for name in next(reader)]
        twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
        if twice:
            raise InputError(f"line 1: expected each column once, got {', '.join(twice)} twice")
        for cells in reader:
            if not cells:  # a blank line
                continue
            if any(map(_QUOTED_LATE.match, cells)):
                found.faults.add(
                    row,
                    "expected quotes where a cell begins; a space stands before them",
                    f"line {reader.line_num}",
                    "take the space out",
                )
                yield reader.line_num, None
            elif len(cells) != len(header):
                found.faults.add(
                    row,
                    f"expected {len(header)} columns as in the header; others",
                    f"line {reader.line_num} has {len(cells)}",
                    f"quote cells that hold {SEPARATORS[separator]}",
                )
                yield reader.line_num, None
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
            row += 1
    except csv.Error:
        raise InputError(
            f"line {reader.line_num}: not readable as CSV: a quoted cell is not closed, or goes on "
            "after its closing quote; write quotes within a cell twice"
        ) from None
