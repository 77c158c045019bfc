"""Prompt pairs: aligned clean and corrupted tokens, and the answers the metric looks at."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError, name_rows
from ..files import read_text
from ..model.tokens import Tokenizer

PADDING = -1
"""Fills short rows of token and answer tables. It never reaches a model or a metric."""


_COLUMNS = ("clean", "corrupted", "answer", "wrong_answer")


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one length: what a model is run on. ``rows`` are their places in the PromptPairs."""

    rows: Int64[Tensor, "pair"]
    clean: Int64[Tensor, "pair pos"]
    corrupted: Int64[Tensor, "pair pos"]
    answers: Int64[Tensor, "pair answer"]
    wrong_answers: Int64[Tensor, "pair wrong"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> PairBatch:
        return PairBatch(
            self.rows[part],
            self.clean[part],
            self.corrupted[part],
            self.answers[part],
            self.wrong_answers[part],
        )


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Clean and corrupted prompts, aligned token by token, and their answers.

    Args:
        clean, corrupted: int64 ``[pairs, pos]``; the metric is read at each prompt's last token.
            Prompts of different lengths are filled up on the right with ``PADDING`` (-1).
        answers, wrong_answers: int64 ``[pairs]``, or ``[pairs, n]`` filled up with -1 where a pair
            has several; ``wrong_answers`` may be left out for metrics that need none.
        features: the other columns of each pair's record, as they came.
        source: where the pairs came from, as plain data (written into results).

    Raises:
        InputError: shapes that do not fit, unequal lengths, an empty prompt, an answer that is
            also a wrong answer; the rows are named.
    """

    # Checked below, in words, rather than by their annotations.
    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    wrong_answers: Tensor | None = None
    features: tuple[Mapping[str, Any], ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "answers", "wrong_answers"):
            table = getattr(self, name)
            if table is not None and table.dtype != torch.int64:
                raise InputError(f"expected {name} as int64 tokens, got {table.dtype}")
        n_pairs = len(self.clean)
        if n_pairs == 0:
            raise InputError("expected at least one prompt pair, got none")
        if self.clean.shape != self.corrupted.shape or self.clean.ndim != 2:
            raise InputError(
                "expected clean and corrupted tokens of one shape [pairs, pos], got "
                f"{list(self.clean.shape)} and {list(self.corrupted.shape)}"
            )
        wrong = self.answers.new_empty(n_pairs, 0)
        if self.wrong_answers is not None:
            wrong = self.wrong_answers
        for name, table in (("answers", self.answers), ("wrong_answers", wrong)):
            if len(table) != n_pairs or table.ndim not in (1, 2):
                raise InputError(
                    f"expected {name} of shape [{n_pairs}] or [{n_pairs}, n], "
                    f"got {list(table.shape)}"
                )
        # From here on both are tables, whatever came: of one column, or of none.
        object.__setattr__(self, "answers", self.answers.reshape(n_pairs, -1))
        object.__setattr__(self, "wrong_answers", wrong.reshape(n_pairs, -1))
        for name in ("clean", "corrupted", "answers", "wrong"):
            table = getattr(self, name)
            self._refuse_rows(
                (table < PADDING).any(1),
                f"expected {name} to hold tokens, and {PADDING} to fill up; other negative numbers",
                f"fill up with {PADDING}",
            )
            if name in ("clean", "corrupted"):
                # A prompt is filled up from some place to its end: no token follows a PADDING.
                padded = table == PADDING
                self._refuse_rows(
                    (padded[:, :-1] & ~padded[:, 1:]).any(1),
                    f"expected {name} prompts filled up on the right alone; tokens after a "
                    f"{PADDING}",
                    "move the tokens to the left",
                )
        self._refuse_rows(
            self._length(self.clean) != self._length(self.corrupted),
            "expected clean and corrupted prompts of equal length in tokens; they differ",
            "rephrase these pairs so that each word is matched by one of as many tokens",
        )
        self._refuse_rows(
            self._length(self.clean) == 0, "expected prompts of at least one token; empty", ""
        )
        self._refuse_rows(
            (self.answers != PADDING).sum(1) == 0, "expected an answer; none given", ""
        )
        if self.wrong.shape[1]:
            self._refuse_rows(
                (self.wrong == PADDING).all(1),
                "expected a wrong answer in every row or in none; missing",
                "add it, or leave wrong_answers out",
            )
        # [pair answer 1] == [pair 1 wrong], where both may be filled up.
        overlap = (self.answers[:, :, None] == self.wrong[:, None, :]) & (
            self.answers[:, :, None] != PADDING
        )
        self._refuse_rows(
            overlap.flatten(1).any(1),
            "expected the answer and the wrong answer to be different tokens; they are the same",
            "choose another wrong answer",
        )

    def _refuse_rows(self, refused: Tensor, what: str, next_step: str) -> None:
        if bool(refused.any()):
            raise InputError(f"{what} {name_rows(refused.nonzero().flatten().tolist(), next_step)}")

    @staticmethod
    def _length(tokens: Int64[Tensor, "pair pos"]) -> Int64[Tensor, "pair"]:
        return (tokens != PADDING).sum(1)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def lengths(self) -> Int64[Tensor, "pair"]:
        """Tokens of each prompt."""
        return self._length(self.clean)

    @property
    def wrong(self) -> Int64[Tensor, "pair wrong"]:
        """The wrong answers as a table, of no columns when there are none."""
        return cast(Tensor, self.wrong_answers)

    def take(self, rows: Iterable[int]) -> PromptPairs:
        """The pairs of these rows, in this order. Raises InputError if there are none."""
        chosen = list(rows)
        return PromptPairs(
            self.clean[chosen],
            self.corrupted[chosen],
            self.answers[chosen],
            self.wrong[chosen],
            tuple(self.features[row] for row in chosen) if self.features else (),
            self.source,
        )

    def batches(self) -> Iterator[PairBatch]:
        """The pairs in one batch for each length, shortest first, nothing padded."""
        lengths = self.lengths
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            yield PairBatch(
                rows,
                self.clean[rows, :length],
                self.corrupted[rows, :length],
                self.answers[rows],
                self.wrong[rows],
            )

    def fingerprint(self) -> str:
        """SHA-256 of the tokens and answers: equal for equal questions, whatever their source."""
        digest = hashlib.sha256()
        for table in (self.clean, self.corrupted, self.answers, self.wrong):
            # The shape, too: the same numbers may be cut into rows in several ways.
            digest.update(str(tuple(table.shape)).encode())
            digest.update(table.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def read(cls, path: str | Path, model: Any) -> PromptPairs:
        """Reads pairs from JSON Lines or CSV (by extension ``.csv``) with ``model``'s tokenizer.

        Columns: ``clean``, ``corrupted``, ``answer``, and ``wrong_answer`` where the metric needs
        one; the answers are a text or a list of texts (in CSV, a JSON list). All other columns are
        kept as features. See ``from_records`` for how texts become tokens.

        Args:
            model: a ``Model`` or a ``Tokenizer``.

        Raises:
            InputError: unreadable, not UTF-8, empty, malformed or incomplete, with the line.
        """
        path = Path(path)
        records = _read_records(path)
        source = {"pairs": str(path)}
        try:
            return cls.from_records(records, model, source=source)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_records(
        cls,
        records: Sequence[Mapping[str, Any]],
        model: Any,
        source: Mapping[str, Any] | None = None,
    ) -> PromptPairs:
        """Tokenizes records with the columns that ``read`` names.

        An answer's token is the one that tokenizing ``clean + answer`` adds to ``clean``.

        Raises:
            InputError: words outside the vocabulary, unequal lengths, answers that are not one
                token, answers equal to each other; the rows (counted from 1) are named.
        """
        tokenizer = model if isinstance(model, Tokenizer) else model.require_tokenizer()
        for row, record in enumerate(records):
            _check_record(record, f"row {row + 1}")
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
        return cls(
            _table(clean),
            _table(corrupted),
            _table(_answer_tokens(tokenizer, records, "answer")),
            _table(_answer_tokens(tokenizer, records, "wrong_answer")) if n_wrong else None,
            features=tuple(
                {key: value for key, value in record.items() if key not in _COLUMNS}
                for record in records
            ),
            source=source or {},
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


def _read_records(path: Path) -> list[dict[str, Any]]:
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
