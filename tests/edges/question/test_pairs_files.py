"""Files of prompt pairs as people have them: shapes, column names, lists in cells, token ids."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokens_for_tests import chatting, letters

from wiremap.edges import InputError, PromptPairs, WiremapWarning
from wiremap.edges.names.vocabulary import PROMPT_COLUMNS, WRONG_BESIDE, WRONG_IDS_BESIDE

GOOD = {"clean": "a b c", "corrupted": "a d c", "answer": " e", "wrong_answer": " f"}
OTHER = {"clean": "c b a", "corrupted": "d b a", "answer": " e", "wrong_answer": " g"}
BOTH = [GOOD, OTHER]
EXPECTED = PromptPairs.from_records(BOTH, letters())


def read(path: Path, content: str, **options: Any) -> tuple[PromptPairs, list[str]]:
    """The pairs of a file with this content, and the notes."""
    path.write_text(content)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        pairs = PromptPairs.read(path, letters(), **options)
    assert all(issubclass(each.category, WiremapWarning) for each in notes)
    return pairs, [str(each.message) for each in notes]


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        PromptPairs.read(path, letters())
    assert str(error.value).startswith(str(path))
    return str(error.value)


def table(separator: str, records: list[dict[str, str]] = BOTH) -> str:
    rows = [list(records[0]), *(record.values() for record in records)]
    return "".join(separator.join(row) + "\n" for row in rows)


def circuits(records: list[dict[str, str]]) -> list[dict[str, Any]]:
    """As auto-circuit has them."""
    return [
        {
            "clean": record["clean"],
            "corrupt": record["corrupted"],
            "answers": [record["answer"]],
            "wrong_answers": [record["wrong_answer"]],
        }
        for record in records
    ]


COLUMNS: dict[str, list[str]] = {name: [record[name] for record in BOTH] for name in GOOD}
SHAPES: dict[str, tuple[str, str, str]] = {
    "auto-circuit": (
        "p.json",
        json.dumps({"word_idxs": {}, "prompts": circuits(BOTH)}, indent=2),
        "one JSON document, its records under 'prompts', corrupted from the column corrupt, answer",
    ),
    "auto-circuit in a line": ("p.json", json.dumps({"prompts": circuits(BOTH)}), "under 'prompts'"),
    "a list": ("p.json", json.dumps(BOTH, indent=1), "one JSON document, a list of records"),
    "a list in a line": ("p.jsonl", json.dumps(BOTH), "a list of records"),
    "an unknown key": ("p.json", json.dumps({"ours": BOTH}), "its records under 'ours'"),
    "a data set viewer": (
        "p.json",
        json.dumps({"features": [{}], "rows": [{"row": record} for record in BOTH]}),
        "its records under 'rows'",
    ),
    "columns": ("p.json", json.dumps(COLUMNS), "a list for each column"),
    "pandas' columns": (
        "p.json",
        json.dumps({name: dict(enumerate(values)) for name, values in COLUMNS.items()}),
        "a list for each column",
    ),
    "pandas' index": ("p.json", json.dumps(dict(enumerate(BOTH))), "a record under each key"),
    "pandas' table": ("p.json", json.dumps({"schema": {}, "data": BOTH}), "records under 'data'"),
    "pandas' split": (
        "p.json",
        json.dumps({"columns": list(GOOD), "data": [list(record.values()) for record in BOTH]}),
        "columns and data",
    ),
    "objects over lines": ("p.jsonl", "\n".join(json.dumps(r, indent=1) for r in BOTH), ""),
    "Python's": ("p.jsonl", f"{GOOD}\n{OTHER}\n", "lines of Python literals"),
    "Python's list": ("p.json", str(BOTH), "a list of records, as Python prints it"),
    "a comma too many": ("p.json", json.dumps(BOTH)[:-1] + ",]", "as Python prints it"),
    "lines called csv": ("p.csv", "\n".join(map(json.dumps, BOTH)), "read as JSON"),
    "TSV": ("p.tsv", table("\t"), ""),
    "tabs": ("p.csv", table("\t"), "a table parted by tabs"),
    "semicolons": ("p.csv", table(";"), "a table parted by semicolons"),
    "bars": ("p.txt", table("|"), "a table parted by bars"),
    "a spreadsheet's": ("p.csv", "sep=;\n" + table(";"), "a table parted by semicolons"),
    "a table called jsonl": ("p.jsonl", table(","), "a table parted by commas"),
    "an index": ("p.csv", table(",", [{"": "0", **record} for record in BOTH]), ""),
    "spaces before quotes": (
        "p.csv",
        "".join(", ".join(f'"{cell}"' for cell in row) + "\n" for row in ([*GOOD], *(r.values() for r in BOTH))),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "note"), SHAPES.values(), ids=SHAPES)
def test_other_shapes_are_read_and_said(tmp_path: Path, name: str, content: str, note: str) -> None:
    pairs, notes = read(tmp_path / name, content)
    assert pairs.fingerprint() == EXPECTED.fingerprint()
    assert len(notes) == bool(note)
    assert note in "".join(notes)


BAD_SHAPES: dict[str, tuple[str, str | bytes, str]] = {
    "two lists": ("p.json", json.dumps({"train": BOTH, "test": BOTH}), "several, under train, test"),
    "unequal columns": (
        "p.json", json.dumps({**COLUMNS, "answer": [" e"]}), "of one length, got clean 2, .*answer 1",
    ),
    "numbers": ("p.json", "[1, 2]", "expected a JSON object .* a list of them, got a list of int"),
    "an empty list": ("p.json", "[]", "got an empty list"),
    "an empty object": ("p.json", "{}", "missing clean, corrupted, answer; found none"),
    "a comma too few": ("p.json", json.dumps(BOTH).replace("}, ", "} "), "JSON from column .* before "),
    "cut off": ("p.json", json.dumps(BOTH, indent=1)[:60], "line 5: .*it is no JSON from column 12 on, where the file ends"),
    "a number": ("p.json", "3", "line 1: expected one JSON object a line, such as"),
    "a column twice": ("p.csv", "clean,clean,corrupted,answer\na,b,c, e\n", "once, got clean twice"),
    "no header": ("p.csv", "a b,a c, e\nb b,b c, e\n", "first line has to name its columns"),
    "a workbook": ("p.xlsx", b"PK\x03\x04\x00", "a workbook .*save the sheet as CSV"),
    "pickle": ("p.jsonl", b"\x80\x04}", "a Python pickle, which is never read"),
    "parquet": ("p.parquet", b"PAR1....", "a Parquet file: df.to_json"),
    "quotes": ("p.csv", 'clean,corrupted,answer\n"a b,a c, e\n', "line 2: not readable as CSV: a quoted"),
    "a quote after a space": ("p.csv", 'clean,corrupted,answer\na b,a c, "e"\n', "take the space out"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_what_is_no_file_of_pairs_is_told_in_our_words(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    error = refused(tmp_path / name, content)
    assert_matches(message, error)
    for parsers in ("Expecting", "delimiter", "Extra data", "char ", "codec", "literal"):
        assert parsers not in error


def assert_matches(message: str, error: str) -> None:
    with pytest.raises(InputError, match=message):
        raise InputError(error)


# ---- columns


@pytest.mark.parametrize("role", ["clean", "corrupted"])
def test_columns_of_prompts_have_many_names(role: str) -> None:
    for name in PROMPT_COLUMNS[role][1:]:
        records = [{name if key == role else key: value for key, value in r.items()} for r in BOTH]
        with pytest.warns(WiremapWarning, match=f"prompt pairs: {role} from the column {name}"):
            pairs = PromptPairs.from_records(records, letters())
        assert pairs.fingerprint() == EXPECTED.fingerprint()
        assert pairs.features == ({}, {})


@pytest.mark.parametrize("answer", WRONG_BESIDE)
@pytest.mark.filterwarnings("ignore:prompt pairs")
def test_columns_of_answers_have_many_names(answer: str) -> None:
    for wrong in WRONG_BESIDE[answer]:
        names = {"answer": answer, "wrong_answer": wrong}
        records = [{names.get(key, key): value for key, value in r.items()} for r in BOTH]
        with warnings.catch_warnings(record=True):
            pairs = PromptPairs.from_records(records, letters())
        assert pairs.fingerprint() == EXPECTED.fingerprint()


@pytest.mark.parametrize("answer", WRONG_IDS_BESIDE)
@pytest.mark.filterwarnings("ignore:prompt pairs")
def test_columns_of_ids_have_many_names(answer: str) -> None:
    for wrong in WRONG_IDS_BESIDE[answer]:
        prompts = [{name: r[name] for name in ("clean", "corrupted")} for r in BOTH]
        records = [{**prompts[0], answer: 7, wrong: 8}, {**prompts[1], answer: [7], wrong: 9}]
        with pytest.warns(
            WiremapWarning, match=r"as token ids: answer \(2 pairs; in row 1 \[7\] is e"
        ):
            pairs = PromptPairs.from_records(records, letters())
        assert pairs.fingerprint() == EXPECTED.fingerprint()


def test_names_are_taken_in_any_case(tmp_path: Path) -> None:
    pairs, notes = read(tmp_path / "p.csv", "Clean Prompt,CORRUPT,Answer\na b,a c, e\n")
    assert pairs.answers.tolist() == [[7]]
    assert "clean from the column Clean Prompt, corrupted from the column CORRUPT" in notes[0]


def test_the_harder_corruption_is_not_taken_for_the_other(tmp_path: Path) -> None:
    content = "clean,corrupted,corrupted_hard,answer\na b,a c,a d, e\n"
    pairs, notes = read(tmp_path / "p.csv", content)
    assert pairs.corrupted.tolist() == [[0, 3, 5]]
    assert "corrupted_hard is another corruption and not used" in notes[0]
    alone, _ = read(tmp_path / "q.csv", "clean,corrupted_hard,answer\na b,a d, e\n")
    assert alone.corrupted.tolist() == [[0, 3, 6]]


AMBIGUOUS: dict[str, tuple[dict[str, Any], str]] = {
    "two prompts": (
        {"clean_prompt": "a b", "clean_text": "a c", "corrupt": "a d", "answer": " e"},
        "one column for clean, got clean_prompt, clean_text; call the one",
    ),
    "two answers": (
        {"clean": "a b", "corrupted": "a d", "clean_answer": " e", "answers": " f"},
        "one column for answer, got answers, clean_answer; call the one to use 'answer'",
    ),
    "two of ids": (
        {"clean": "a b", "corrupted": "a d", "country_idx": 7, "corrupted_country_idx": 8}
        | {"city_idx": 8, "corrupted_city_idx": 7},
        "one column for answer_ids, got country_idx, city_idx; call the one",
    ),
    "classes": (
        {"clean": "a b", "corrupted": "a c", "label": 1},
        "found clean, corrupted, label; the column label holds numbers",
    ),
    "digits": (
        {"clean": "a b", "corrupted": "a c", "label": "52"},
        "digits .EAP-IG's greater-than. or token ids; call it answer_ids",
    ),
    "a year": (
        {"clean": "a b", "corrupted": "a c", "correct_idx": 52},
        "the column correct_idx alone, without incorrect_idx, holds in EAP-IG's",
    ),
    "a form": ({"clean": "a b", "corrupted": "a c", "plural": 1}, "the column plural says which"),
    "another benchmark's": ({"prompt": "a b", "choices": [" e", " f"]}, "found prompt, choices"),
}


@pytest.mark.parametrize(("record", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_may_mean_two_things_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([record], letters())


def test_tokens_beside_texts_stay_a_column() -> None:
    record = {**GOOD, "clean_tokens": ["a", "b", "c"]}
    pairs = PromptPairs.from_records([record], letters())
    assert pairs.features == ({"clean_tokens": ["a", "b", "c"]},)


def test_the_same_under_two_names_is_one(tmp_path: Path) -> None:
    record = {"clean_prompt": "a b", "clean_text": "a b", "corrupt": "a d", "answer": " e"}
    with pytest.warns(WiremapWarning, match="clean from the column clean_prompt"):
        assert len(PromptPairs.from_records([record], letters())) == 1


# ---- lists in cells

CELLS: dict[str, tuple[str, list[int]]] = {
    "JSON": ('[" e", " g"]', [7, 9]),
    "Python": ("[' e', ' g']", [7, 9]),
    "one": ("[' e']", [7]),
    "a tuple": ("(' e', ' g')", [7, 9]),
    "ids": ("[7, 9]", [7, 9]),
}


@pytest.mark.parametrize(("cell", "tokens"), CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_in_cells(tmp_path: Path, cell: str, tokens: list[int], separator: str) -> None:
    cell = '"' + cell.replace('"', '""') + '"'
    row = separator.join(("a b", "a c", cell))
    content = separator.join(("clean", "corrupted", "answer")) + f"\n{row}\n"
    pairs, _ = read(tmp_path / "p.csv", content)
    assert pairs.answers.tolist() == [tokens]


BAD_CELLS = {
    "numpy's texts": ("\"[' e' ' g']\"", "not parted by commas, as numpy prints them"),
    "numpy's numbers": ('"[7 9]"', "neither JSON's nor Python's"),
    "an array": ('"array([7])"', "print of a Python object"),
    "a call": ("\"[__import__('os')]\"", "neither JSON's nor Python's"),
    "cut off": ("\"[' e', ' g]\"", "neither JSON's nor Python's"),
    "empty": ('"[]"', "expected answers to be a text or a list of texts"),
}


@pytest.mark.parametrize(("cell", "message"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_lists_that_are_none_are_told_by_column_and_form(
    tmp_path: Path, cell: str, message: str
) -> None:
    error = refused(tmp_path / "p.csv", f"clean,corrupted,answers\na b,a c,{cell}\n")
    assert_matches(message, error)
    assert "answer" in error
    assert "row 1 is line 2 of the file" in error


def test_spans_of_pandas(tmp_path: Path) -> None:
    from wiremap.edges.question.spans import position_labels

    content = "clean,corrupted,answer,spans\na b,a c, e,\"{'second': [1, 2]}\"\n"
    pairs, _ = read(tmp_path / "p.csv", content)
    assert position_labels(pairs, "spans").names == ("outside", "second")


# ---- token ids

IDS: dict[str, tuple[str, str]] = {
    "integers": ("p.jsonl", '{"clean": "a b", "corrupted": "a c", "answer": 7, "wrong_answer": 8}'),
    "lists": ("p.jsonl", '{"clean": "a b", "corrupted": "a c", "answer": [7], "wrong_answer": [8]}'),
    "columns": (
        "p.jsonl", '{"clean": "a b", "corrupted": "a c", "answer_ids": 7, "wrong_answer_ids": [8]}',
    ),
    "one of each": (
        "p.jsonl", '{"clean": "a b", "corrupted": "a c", "answer": " e", "wrong_answer_ids": 8}',
    ),
    "the other of each": (
        "p.jsonl", '{"clean": "a b", "corrupted": "a c", "answer_ids": 7, "wrong_answer": " f"}',
    ),
    "both": (
        "p.jsonl",
        '{"clean": "a b", "corrupted": "a c", "answer": "e", "answer_ids": 7, "wrong_answer": " f"}',
    ),
    "prompts": (
        "p.jsonl",
        '{"clean": [0, 3, 4], "corrupted_ids": [0, 3, 5], "answer": 7, "wrong_answer": 8}',
    ),
    "prompts of a table": (
        "p.csv", 'clean_ids,corrupted_ids,answer_ids,wrong_answer_ids\n"[0, 3, 4]","[0, 3, 5]",7,8\n',
    ),
    "pandas' floats": ("p.csv", "clean,corrupted,answer_ids,wrong_answer_ids\na b,a c,7.0,8.0\n"),
    "EAP-IG's names": (
        "p.csv", ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n470,a b,a c,a d,7,8\n",
    ),
    "EAP-IG's facts": (
        "p.csv",
        "clean,capital,country,country_idx,corrupted,corrupted_country,corrupted_country_idx\n"
        + "a b,g,e and more,7,a c,f,8\n",
    ),
    "EAP-IG's kinds": (
        "p.csv",
        "clean,answers,answers_idx,corrupted,corrupted_answers,corrupted_answers_idx\n"
        + "a b,['e'],[7],a c,['f'],[8]\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), IDS.values(), ids=IDS)
def test_token_ids(tmp_path: Path, name: str, content: str) -> None:
    texts = {"clean": "a b", "corrupted": "a c", "answer": " e", "wrong_answer": " f"}
    expected = PromptPairs.from_records([texts], letters())
    pairs, notes = read(tmp_path / name, content)
    assert pairs.fingerprint() == expected.fingerprint()
    assert any("taken as token ids: " in note for note in notes)


BAD_IDS: dict[str, tuple[dict[str, Any], str]] = {
    "beyond": ({"answer": 11}, "token ids from 0 to 10, .* answer has others in row 2; row 2 has 11"),
    "negative": ({"wrong_answer": [-1]}, "wrong_answer has others in row 2; row 2 has -1"),
    "a prompt's": (
        {"clean": [0, 3, 99, 5], "answer": 7, "wrong_answer": 8},
        "clean has others in row 2; row 2 has 99",
    ),
    "truth": ({"answer": True}, "expected answer to be a text or a list .* row 2 has True"),
    "mixed": ({"answer": [7, " e"]}, "expected answer to be a text or a list"),
    "a fraction": ({"answer": 7.5}, "expected answer to be a text or a list"),
    "no id": ({"answer_ids": "seven"}, "expected answer_ids to be a token id or a list"),
    "text after ids": (
        {"clean": [0, 3, 4, 5], "corrupted": [0, 3, 6, 5]},
        "every answer as a token id where its prompt is given as token ids; a text in row 2",
    ),
    "other words": (
        {"answer_ids": [9]},
        "that begin the text beside them; answer has others in row 2; row 2: 9 is 'g', beside ' e'",
    ),
    "lengths": ({"corrupted_ids": [0, 3]}, "row 2 has 4 clean and 2 corrupted tokens"),
    "the same": ({"answer": 8}, "they are the same in row 2"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_IDS.values(), ids=BAD_IDS)
@pytest.mark.filterwarnings("ignore::wiremap.edges.WiremapWarning")
def test_bad_ids_are_refused_by_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([GOOD, {**GOOD, **change}], letters())


@pytest.mark.parametrize("bad", [99, "seven"])
def test_bad_ids_are_named_by_their_own_column(tmp_path: Path, bad: Any) -> None:
    content = f"clean,corrupted,correct_idx,incorrect_idx\na b,a c,7,{bad}\n"
    assert "incorrect_idx" in refused(tmp_path / "p.csv", content)


def test_prompts_of_ids_are_taken_as_they_are() -> None:
    record = {"clean": [3, 4], "corrupted": [3, 5], "answer": 7}
    with pytest.warns(WiremapWarning) as notes:
        pairs = PromptPairs.from_records([record], letters())
    assert pairs.clean.tolist() == [[3, 4]]
    assert "1 of 1 prompts given as token ids do not begin with the BOS token" in str(
        notes[1].message
    )
    with pytest.warns(WiremapWarning) as notes:
        PromptPairs.from_records([record], letters(bos=False))
    assert len(notes) == 1
    with pytest.raises(InputError, match="which the chat template takes; token ids in row 1"):
        PromptPairs.from_records([record], chatting(), chat=True)


def test_ids_up_to_the_models_own_vocabulary_are_taken() -> None:
    class Padded:
        d_vocab = 64
        require_tokenizer: Callable[..., Any] = staticmethod(letters)

    with pytest.warns(WiremapWarning):
        pairs = PromptPairs.from_records([{**GOOD, "answer": 63}], Padded())
    assert torch.equal(pairs.answers, torch.tensor([[63]]))
    with pytest.raises(InputError, match="from 0 to 63"):
        PromptPairs.from_records([{**GOOD, "answer": 64}], Padded())


def test_answers_that_change_the_prompt_are_shown_with_their_tokens() -> None:
    with pytest.raises(
        InputError, match=r"\.\.\.\|a\|b\|c becomes .*give the token itself .answer_ids"
    ):
        PromptPairs.from_records([{**GOOD, "answer": "e"}], letters())
