"""Rows that cannot be used: all are told, and left out where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokens_for_tests import letters

from wiremap.edges import InputError, PromptPairs, WiremapWarning
from wiremap.edges.question.records import bad_rows

GOOD = {"clean": "a b c", "corrupted": "a d c", "answer": " e", "wrong_answer": " f"}
BAD: list[Any] = [
    {**GOOD, "clean": "a b"},
    {**GOOD, "answer": " e f"},
    {**GOOD, "clean": "a zebra c"},
    {**GOOD, "answer": " f"},
    {**GOOD, "answer": 99},
    {"clean": "a b c", "answer": " e", "wrong_answer": " f"},
    {**GOOD, "wrong_answer": None},
    {**GOOD, "corrupted": 3},
    "no record",
]
CAUSES = (
    "equal length", "exactly one token", "it lacks some", "they are the same", "vocabulary of the model",
    "expected corrupted in every row", "wrong_answer in every row", "expected corrupted to be a text",
    "expected a JSON object",
)  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good row between every two bad ones, and a broken line at the end."""
    return write(tmp_path / "p.jsonl", [row for bad in BAD for row in (GOOD, bad)])


def test_every_bad_row_is_told_with_its_cause(path: Path) -> None:
    with pytest.raises(InputError, match="10 of 19 pairs cannot be used:\n- ") as error:
        PromptPairs.read(path, letters())
    lines = str(error.value).split("\n")
    assert len(lines) == 12
    assert lines[-1] == "Mend them, or leave such pairs out (--skip-bad-pairs, skip_bad=True)"
    for cause, row in zip(CAUSES, range(2, 20, 2), strict=True):
        assert sum(cause in line and f" in row {row}" in line for line in lines) == 1
    assert "no JSON in row 19; line 19 has none" in lines[10]


def test_bad_rows_are_plain_data(path: Path) -> None:
    n_pairs, bad = bad_rows(path, letters())
    assert n_pairs == 19
    assert [row["row"] for row in bad] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 19]
    assert [row["line"] for row in bad] == [row["row"] for row in bad]
    assert bad[0]["record"] == BAD[0]
    json.dumps(bad)
    for cause, row in zip(CAUSES, bad, strict=False):
        assert cause in row["cause"]


def test_a_file_of_bad_rows_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{**GOOD, "answer": 99}])
    assert bad_rows(path, letters())[0] == 2
    with pytest.raises(InputError, match="2 of 2 pairs cannot be used") as error:
        PromptPairs.read(path, letters(), skip_bad=True)
    assert "leave" not in str(error.value)


def test_many_bad_rows_may_be_had_as_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [GOOD, *[{**GOOD, "clean": "a"}] * 29])
    with pytest.raises(InputError, match=f"wiremap validate {path} --model MODEL -o bad.jsonl"):
        PromptPairs.read(path, letters())


def test_a_line_before_the_records_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("my pairs:\n" + json.dumps(GOOD))
    with pytest.raises(
        InputError, match="one JSON object a line; no JSON in row 1; line 1 has none"
    ):
        PromptPairs.read(path, letters())
    with pytest.warns(WiremapWarning, match="1 of 2 pairs are left out"):
        assert len(PromptPairs.read(path, letters(), skip_bad=True)) == 1


def test_bad_rows_are_left_out_and_counted(path: Path) -> None:
    with pytest.warns(WiremapWarning, match=r"10 of 19 pairs are left out \(1: expected clean"):
        pairs = PromptPairs.read(path, letters(), skip_bad=True)
    assert pairs.fingerprint() == PromptPairs.from_records([GOOD] * 9, letters()).fingerprint()
    left_out = pairs.source["left_out"]
    assert (left_out["n_pairs"], left_out["of"]) == (10, 19)
    assert sorted(row for rows in left_out["rows"].values() for row in rows) == [
        *range(2, 19, 2), 19,
    ]  # fmt: skip
    assert pairs.take([0]).source == pairs.source


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD))
    assert PromptPairs.read(path, letters(), skip_bad=True).source == {"pairs": str(path)}
    assert PromptPairs.from_records([GOOD], letters(), skip_bad=True).source == {}


def test_rows_of_a_table_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('clean,corrupted,answer\n"a\nb",a c, e\n\na,b c, e\na b,a c\n')
    _, bad = bad_rows(path, letters())
    assert [(row["row"], row["line"]) for row in bad] == [(2, 5), (3, 6)]
    with pytest.raises(
        InputError, match="differ in row 2; row 2 is line 5 of the file; row 2 has 2"
    ):
        PromptPairs.read(path, letters())
    with pytest.warns(WiremapWarning, match="2 of 3 pairs are left out"):
        assert len(PromptPairs.read(path, letters(), skip_bad=True)) == 1


def test_the_features_of_the_rows_that_stay_are_theirs() -> None:
    records = [{**GOOD, "n": 1}, {**GOOD, "n": 2, "clean": "a"}, {**GOOD, "n": 3}]
    with pytest.warns(WiremapWarning, match="1 of 3 pairs are left out"):
        pairs = PromptPairs.from_records(records, letters(), skip_bad=True)
    assert pairs.features == ({"n": 1}, {"n": 3})


def test_more_rows_than_a_message_can_name() -> None:
    with pytest.raises(InputError, match=r" in 300 rows: 1, 2, .* 99, 100, \.\.\.; row 1"):
        PromptPairs.from_records([{**GOOD, "clean": "a"}] * 300, letters())
