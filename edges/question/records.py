"""Records of prompt pairs: read from JSON Lines or CSV, and turned into tokens."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError, WiremapWarning, name_rows
from ..files import read_text
from ..model.tokens import Tokenizer
from .prompts import PADDING
from .spans import moved

_COLUMNS = ("clean", "corrupted", "answer", "wrong_answer")


def tokenized(
    records: Sequence[Mapping[str, Any]], model: Any, chat: bool = False
) -> tuple[dict[str, Tensor], tuple[dict[str, Any], ...]]:
    """The tables that ``PromptPairs`` is made of, and its features; see ``from_records``."""
    tokenizer = model if isinstance(model, Tokenizer) else model.require_tokenizer()
    for row, record in enumerate(records):
        _check_record(record, f"row {row + 1}")
    _note_bos(tokenizer, records)
    if chat:
        records = _in_chat(tokenizer, records)
    clean = tokenizer.encode([record["clean"] for record in records])
    corrupted = tokenizer.encode([record["corrupted"] for record in records])
    _refuse_unknown(tokenizer, records, clean, corrupted)
    unequal = [
        row
        for row, (clean_ids, corrupted_ids) in enumerate(zip(clean, corrupted, strict=True))
        if len(clean_ids) != len(corrupted_ids)
    ]
    if unequal:
        row = unequal[0]
        raise InputError(
            "expected clean and corrupted prompts of equal length in tokens; they differ "
            + name_rows(
                unequal,
                f"row {row + 1} has {len(clean[row])} clean and {len(corrupted[row])} "
                "corrupted tokens; exchange words for others of as many tokens",
            )
        )
    n_wrong = sum("wrong_answer" in record for record in records)
    if n_wrong not in (0, len(records)):
        missing = [row for row, record in enumerate(records) if "wrong_answer" not in record]
        raise InputError(
            "expected a wrong_answer in every row or in none; missing "
            + name_rows(missing, "add it, or take the column out")
        )
    tables = {
        "clean": _table(clean),
        "corrupted": _table(corrupted),
        "answers": _table(_answer_tokens(tokenizer, records, "answer")),
    }
    if n_wrong:
        tables["wrong_answers"] = _table(_answer_tokens(tokenizer, records, "wrong_answer"))
    features = tuple(
        {key: value for key, value in record.items() if key not in _COLUMNS} for record in records
    )
    return tables, features


def _in_chat(tokenizer: Tokenizer, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records with both prompts in the chat template, and their spans moved along."""
    plain = [str(record["clean"]) for record in records]
    # The template begins with BOS where the model wants it; in the user's message it has no place.
    clean, corrupted = (
        tokenizer.chat([record[column].removeprefix(tokenizer.bos_text) for record in records])
        for column in _COLUMNS[:2]
    )
    filled = [
        {**record, "clean": in_clean, "corrupted": in_corrupted}
        for record, in_clean, in_corrupted in zip(records, clean, corrupted, strict=True)
    ]
    spanned = [row for row, record in enumerate(records) if "spans" in record]
    alone = tokenizer.encode([plain[row] for row in spanned])
    within = tokenizer.encode([clean[row] for row in spanned])
    for row, prompt, whole in zip(spanned, alone, within, strict=True):
        moved_by = _place(prompt[1:] if tokenizer.bos else prompt, whole)
        if moved_by is None:
            raise InputError(
                f"row {row + 1}: the chat template changes how its prompt is parted into tokens, "
                "so that its spans cannot be moved along; leave the spans out, or --chat (chat=True)"
            )
        filled[row]["spans"] = moved(records[row]["spans"], moved_by - int(tokenizer.bos))
    return list(filled)


def _place(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Where ``part`` stands in ``whole`` for the last time; None if it does not."""
    starts = range(len(whole) - len(part), -1, -1)
    return next((at for at in starts if whole[at : at + len(part)] == part), None)


def _note_bos(tokenizer: Tokenizer, records: Sequence[Mapping[str, Any]]) -> None:
    """Says how many prompts begin with BOS as text."""
    texts = [record[column] for record in records for column in _COLUMNS[:2]]
    count = sum(tokenizer.begins_with_bos(texts))
    if count:
        warnings.warn(
            f"{count} of {len(texts)} prompts begin with the BOS token {tokenizer.bos_text!r} as "
            "text; they are not given a second",
            WiremapWarning,
            stacklevel=2,
        )


def _table(rows: Sequence[Sequence[int]]) -> Int64[Tensor, "row column"]:
    """Rows of different lengths as one table, filled up with PADDING."""
    table = torch.full((len(rows), max(map(len, rows), default=0)), PADDING, dtype=torch.int64)
    for row, values in enumerate(rows):
        table[row, : len(values)] = torch.tensor(values, dtype=torch.int64)
    return table


def _answer_tokens(
    tokenizer: Tokenizer, records: Sequence[Mapping[str, Any]], column: str
) -> list[list[int]]:
    """The token ids of each row's answers. All are tokenized in one call."""
    texts = [
        (row, record["clean"], answer)
        for row, record in enumerate(records)
        for answer in ([record[column]] if isinstance(record[column], str) else record[column])
    ]
    added = tokenizer.continuations([clean for _, clean, _ in texts], [text for *_, text in texts])
    tokens: list[list[int]] = [[] for _ in records]
    refused: list[tuple[int, str]] = []
    for (row, _, text), new in zip(texts, added, strict=True):
        if new is None or len(new) != 1 or new[0] == tokenizer.unknown:
            refused.append((row, text))
        elif new[0] not in tokens[row]:  # two spellings of one token count once
            tokens[row].append(new[0])
    if refused:
        row, text = refused[0]
        added_here = tokenizer.continuations([records[row]["clean"]], [text])[0]
        came = (
            "it changes the tokens of the prompt it follows"
            if added_here is None
            else f"it adds {len(added_here)} tokens"
            if len(added_here) != 1
            else "it is outside the vocabulary"
        )
        rows = sorted({row for row, _ in refused})
        raise InputError(
            f"expected every {column} to add exactly one token to its clean prompt; not so "
            + name_rows(
                rows,
                f"{text!r} in row {row + 1}: {came}; choose a word of one token "
                "(most tokenizers want a space in front of it)",
            )
        )
    return tokens


def _refuse_unknown(
    tokenizer: Tokenizer,
    records: Sequence[Mapping[str, Any]],
    clean: Sequence[Sequence[int]],
    corrupted: Sequence[Sequence[int]],
) -> None:
    unknown = tokenizer.unknown
    rows = [
        row
        for row in range(len(records))
        if unknown is not None and (unknown in clean[row] or unknown in corrupted[row])
    ]
    if not rows:
        return
    record = records[rows[0]]
    words = f"{record['clean']} {record['corrupted']}".split()
    spelled = tokenizer.encode(words)
    strange = sorted({word for word, ids in zip(words, spelled, strict=True) if unknown in ids})
    raise InputError(
        "expected prompts of words the model's vocabulary has; it lacks some "
        + name_rows(rows, f"row {rows[0] + 1} has {', '.join(map(repr, strange[:5]))}; use others")
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file. Raises InputError, with the line, if it has none or broken ones."""
    try:
        text = read_text(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    parse = _parse_csv if path.suffix.lower() == ".csv" else _parse_jsonl
    records = parse(path, text)
    if not records:
        raise InputError(f"{path}: expected prompt pairs, got an empty file")
    for line, record in records:
        _check_record(record, f"{path}, line {line}")
    return [record for _, record in records]


def _parse_jsonl(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    records: list[tuple[int, dict[str, Any]]] = []
    # Not splitlines: a JSON string may hold U+2028 and other ends of lines as they are.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {line}: expected one JSON object a line: {error}"
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {line}: expected a JSON object such as "
                f'{{"clean": ..., "corrupted": ..., "answer": ...}}, got {content.strip()[:40]}'
            )
        records.append((line, cast("dict[str, Any]", record)))
    return records


def _parse_csv(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    # Ends of lines are left as they are: a quoted cell may hold some.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, dict[str, Any]]] = []
    try:
        for row in reader:
            # The csv module puts cells too many under the key None, and None for cells too few.
            if None in row or None in row.values():
                raise InputError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} "
                    "columns as in the header; quote cells that hold commas"
                )
            record: dict[str, Any] = dict(row)
            for column in ("answer", "wrong_answer"):
                if record.get(column, "").startswith("["):
                    record[column] = json.loads(record[column])
            records.append((reader.line_num, record))
    except (csv.Error, json.JSONDecodeError) as error:
        raise InputError(f"{path}, line {reader.line_num}: not readable as CSV: {error}") from None
    return records


def _check_record(record: Mapping[str, Any], where: str) -> None:
    """Raises InputError if a column is missing or no text."""
    missing = [column for column in _COLUMNS[:3] if column not in record]
    if missing:
        raise InputError(
            f"{where}: expected the columns clean, corrupted, answer (and "
            f"wrong_answer); missing {', '.join(missing)}; found {', '.join(map(str, record))}"
        )
    for column in _COLUMNS:
        value = record.get(column, "")
        texts = cast("list[Any]", value if isinstance(value, list) else [value])
        if not texts or not all(isinstance(text, str) for text in texts):
            expected = "a text" if column in _COLUMNS[:2] else "a text or a list of texts"
            raise InputError(f"{where}: expected {column} to be {expected}, got {value!r:.60}")
        if isinstance(value, list) and column in _COLUMNS[:2]:
            raise InputError(f"{where}: expected {column} to be a text, got a list")
