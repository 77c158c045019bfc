"""Prompt pairs from tokens, texts and files; and every way they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokens_for_tests import chatting, letters

from wiremap.edges import InputError, PromptPairs, Tokenizer, WiremapWarning
from wiremap.edges.question.spans import position_labels

GOOD = {"clean": "a b c", "corrupted": "a d c", "answer": " e", "wrong_answer": " f"}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return letters()


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_json_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "pairs.jsonl", {**GOOD, "kind": "x"}, {**GOOD, "clean": "c b a"})
    pairs = PromptPairs.read(path, tokenizer)
    assert pairs.clean.tolist() == [[0, 3, 4, 5], [0, 5, 4, 3]]
    assert pairs.corrupted.tolist() == [[0, 3, 6, 5], [0, 3, 6, 5]]
    assert pairs.answers.tolist() == [[7], [7]]
    assert pairs.wrong.tolist() == [[8], [8]]
    assert pairs.features == ({"kind": "x"}, {})
    assert pairs.source == {"pairs": str(path)}


def test_csv_with_lists_of_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        "clean,corrupted,answer,wrong_answer,note\n"
        'a b,a c," d"," e",first\n'
        'b b,b c,"["" d"", "" f""]"," e",second\n'
    )
    pairs = PromptPairs.read(path, tokenizer)
    assert pairs.answers.tolist() == [[6, -1], [6, 8]]
    assert pairs.features[1] == {"note": "second"}


def test_wrong_answers_may_be_missing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "p.jsonl", {k: v for k, v in GOOD.items() if k != "wrong_answer"})
    assert PromptPairs.read(path, tokenizer).wrong.shape == (1, 0)


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n\n")
    assert len(PromptPairs.read(path, tokenizer)) == 1


def test_lengths_are_grouped_and_never_padded() -> None:
    clean = torch.tensor([[5, 6, 7], [5, 6, -1], [1, 2, 3]])
    pairs = PromptPairs(clean, clean.flip(0)[[2, 1, 0]], torch.tensor([1, 2, 3]))
    batches = list(pairs.batches())
    assert [batch.rows.tolist() for batch in batches] == [[1], [0, 2]]
    assert [batch.clean.shape[1] for batch in batches] == [2, 3]
    assert all((batch.clean >= 0).all() for batch in batches)


def test_fingerprints_know_the_question_not_its_source() -> None:
    tokens = torch.tensor([[1, 2]])
    one = PromptPairs(tokens, tokens + 1, torch.tensor([5]), source={"pairs": "here"})
    same = PromptPairs(tokens, tokens + 1, torch.tensor([5]))
    other = PromptPairs(tokens, tokens + 1, torch.tensor([6]))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected prompt pairs, got an empty file"),
    "blank": (b"\n \n", "expected prompt pairs, got an empty file"),
    "not json": (b"clean: a\n", "line 1: expected one JSON object a line"),
    "cut off": (json.dumps(GOOD).encode()[:30], "line 1: expected one JSON object a line"),
    "a list": (b"[1, 2]\n", r"line 1: expected a JSON object such as"),
    "deep": (b"[" * 100_000, "line 1: expected one JSON object a line"),
    "not utf-8": (b'{"clean": "caf\xe9"}\n', "expected UTF-8 text, got byte 0xe9 at offset 14"),
    "missing column": (
        b'{"clean": "a", "answer": " b"}\n',
        "missing corrupted; found clean, answer",
    ),
    "number as prompt": (
        b'{"clean": 3, "corrupted": "a", "answer": " b"}\n',
        "expected clean to be a text .* in row 1; row 1 has 3",
    ),
    "nan": (
        b'{"clean": NaN, "corrupted": "a", "answer": " b"}\n',
        "expected clean to be a text .* in row 1; row 1 has nan",
    ),
    "list as prompt": (
        b'{"clean": ["a"], "corrupted": "a", "answer": " b"}\n',
        "expected clean to be a text",
    ),
    "no answers": (
        b'{"clean": "a", "corrupted": "b", "answer": []}\n',
        "expected answer to be a text or a list of texts",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, content: bytes, message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        PromptPairs.read(path, tokenizer)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        PromptPairs.read(tmp_path / "none.jsonl", tokenizer)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        PromptPairs.read(tmp_path, tokenizer)


@pytest.mark.parametrize(
    "row",
    ["a b,a c, d, e, f\n", "a b,a c\n", '"a b,a c, d, e\n'],
    ids=["too many", "too few", "open quote"],
)
def test_bad_csv_is_refused(tmp_path: Path, tokenizer: Tokenizer, row: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"clean,corrupted,answer,wrong_answer\n{row}")
    with pytest.raises(
        InputError, match="expected 4 columns as in the header.* line 2 |line 2: not readable"
    ):
        PromptPairs.read(path, tokenizer)


BAD_RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "unequal lengths": (
        {"corrupted": "a d"},
        r"equal length in tokens; they differ in row 2; row 2 has 4 clean and 3 corrupted tokens",
    ),
    "answer of two tokens": (
        {"answer": " e f"},
        r"every answer to add exactly one token.*' e f' in row 2: it adds 2 tokens",
    ),
    "empty answer": ({"answer": ""}, "expected answer in every row; missing or empty in row 2"),
    "unknown answer": ({"answer": " zebra"}, r"' zebra' in row 2: it is outside the vocabulary"),
    "answer that joins the prompt": ({"answer": "x"}, r"'x' in row 2: it changes the tokens"),
    "equal answers": ({"wrong_answer": " e"}, r"they are the same in row 2"),
    "unknown words": ({"clean": "a zebra c"}, r"lacks some in row 2; row 2 has 'zebra'"),
}


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_records_are_refused_with_their_row(
    tokenizer: Tokenizer, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([GOOD, {**GOOD, **change}], tokenizer)


def test_wrong_answers_in_some_rows_only_are_refused(tokenizer: Tokenizer) -> None:
    without = {k: v for k, v in GOOD.items() if k != "wrong_answer"}
    with pytest.raises(InputError, match="in every row or in none; missing in row 2"):
        PromptPairs.from_records([GOOD, without], tokenizer)


def test_many_rows_are_counted_and_all_are_listed(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="in 30 rows: 1, 2, 3, .* 28, 29, 30; row 1"):
        PromptPairs.from_records([{**GOOD, "corrupted": "a"}] * 30, tokenizer)


def test_bad_tensors_are_refused() -> None:
    two, three = torch.ones(2, 3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.int64)
    one_each = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="expected clean as int64 tokens, got torch.float32"):
        PromptPairs(two.float(), two, one_each)
    with pytest.raises(InputError, match="at least one prompt pair, got none"):
        PromptPairs(two[:0], two[:0], one_each[:0])
    with pytest.raises(InputError, match=r"one shape \[pairs, pos\]"):
        PromptPairs(two, three[:2, :2], one_each)
    with pytest.raises(InputError, match=r"expected answers of shape \[2\]"):
        PromptPairs(two, two, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="they are the same in 2 rows"):
        PromptPairs(two, two, one_each, one_each)
    with pytest.raises(InputError, match="at least one token; empty in row 1"):
        PromptPairs(torch.tensor([[-1]]), torch.tensor([[-1]]), torch.tensor([1]))
    with pytest.raises(InputError, match="expected an answer; none given in row 1"):
        PromptPairs(two[:1], two[:1], torch.tensor([-1]))


def tokens(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_padding_elsewhere_than_on_the_right_is_refused() -> None:
    one = torch.tensor([1, 2])
    with pytest.raises(InputError, match="clean prompts filled up on the right alone.* in row 2"):
        PromptPairs(tokens([1, 2], [-1, 3]), tokens([1, 2], [3, 4]), one, one + 2)
    with pytest.raises(InputError, match="answers to hold tokens.*other negative.* in row 1"):
        PromptPairs(tokens([1, 2]), tokens([1, 3]), tokens([1, -100]), tokens([2]))


def test_a_row_without_wrong_answers_is_refused() -> None:
    clean = tokens([1, 2], [1, 2])
    with pytest.raises(InputError, match="wrong answer in every row or in none; missing in row 2"):
        PromptPairs(clean, clean, torch.tensor([1, 2]), torch.tensor([3, -1]))


def test_records_without_a_column_name_the_row(tokenizer: Tokenizer) -> None:
    record = {"clean": " a", "corrupted": " b"}
    with pytest.raises(InputError, match="row 1: expected the columns .*missing answer"):
        PromptPairs.from_records([record], tokenizer)


# ---- BOS and chat templates


def test_bos_as_text_is_not_given_a_second() -> None:
    texts = {"clean": "<s>a b c", "corrupted": "<s> a d c"}
    with pytest.warns(
        WiremapWarning, match="3 of 6 prompts begin with the BOS token '<s>'"
    ) as said:
        pairs = PromptPairs.from_records(
            [{**GOOD, **texts}, GOOD, {**GOOD, "clean": "<s>a b c"}], letters()
        )
    assert len(said) == 1
    assert pairs.fingerprint() == PromptPairs.from_records([GOOD] * 3, letters()).fingerprint()


def test_chat_puts_both_prompts_into_the_template(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {**GOOD, "spans": {"second": 2, "rest": [3, 4]}})
    plain = PromptPairs.read(path, chatting())
    pairs = PromptPairs.read(path, chatting(), chat=True)
    # <s> g PROMPT </s> h, with one BOS; the answer follows h.
    assert pairs.clean.tolist() == [[0, 9, 3, 4, 5, 2, 10]]
    assert pairs.corrupted.tolist() == [[0, 9, 3, 6, 5, 2, 10]]
    assert pairs.answers.tolist() == plain.answers.tolist()
    assert pairs.source == {"pairs": str(path), "chat": True}
    assert plain.source == {"pairs": str(path)}
    assert PromptPairs.read(path, chatting(), chat=True).fingerprint() == pairs.fingerprint()


@pytest.mark.parametrize("bos", [True, False])
def test_spans_move_with_the_prompt(bos: bool) -> None:
    first = int(bos)
    spans = {"a": first, "b c": [first + 1, first + 3]}
    for given in (spans, json.dumps(spans)):
        record = {**GOOD, "spans": given}
        plain = PromptPairs.from_records([record], letters(bos))
        pairs = PromptPairs.from_records([record], chatting(bos), chat=True)
        for shown in (plain, pairs):
            labels = position_labels(shown, "spans").by_pair[0]
            assert shown.clean[0, labels == 1].tolist() == [3]
            assert shown.clean[0, labels == 2].tolist() == [4, 5]
    malformed = {**GOOD, "spans": {"a": "x"}}
    pairs = PromptPairs.from_records([malformed], chatting(), chat=True)
    with pytest.raises(InputError, match="expected span 'a' as a position"):
        position_labels(pairs, "spans")


def test_bos_as_text_has_no_place_in_a_message() -> None:
    record = {**GOOD, "clean": "<s>a b c", "corrupted": "<s>a d c"}
    with pytest.warns(WiremapWarning, match="2 of 2 prompts begin with the BOS token"):
        pairs = PromptPairs.from_records([record], chatting(), chat=True)
    expected = PromptPairs.from_records([GOOD], chatting(), chat=True)
    assert pairs.fingerprint() == expected.fingerprint()


def test_a_template_without_bos_is_given_it() -> None:
    tokenizer = chatting(template="g {{ messages[0].content }} h")
    pairs = PromptPairs.from_records([GOOD], tokenizer, chat=True)
    assert pairs.clean.tolist() == [[0, 9, 3, 4, 5, 10]]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (letters(), r"expected a tokenizer with a chat template, got one without; leave --chat"),
        (chatting(template="{{ raise_exception('no user') }}"), "cannot be filled: .*no user"),
        (chatting(template="{{ messages[0].content.upper() }}"), "lacks some in row 1"),
    ],
    ids=["none", "refuses", "other words"],
)
def test_templates_that_do_not_serve_are_refused(tokenizer: Tokenizer, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([GOOD], tokenizer, chat=True)


def test_spans_that_a_template_cuts_are_refused() -> None:
    tokenizer = chatting(template="{{ messages[0].content.replace(' ', ' g ') }}")
    with pytest.raises(InputError, match="row 1: the chat template changes how its prompt is"):
        PromptPairs.from_records([{**GOOD, "spans": {"a": 1}}], tokenizer, chat=True)


def test_overlapping_rows_are_those_of_the_same_clean_prompt(tokenizer: Tokenizer) -> None:
    seen = PromptPairs.from_records([GOOD, {**GOOD, "clean": "c b", "corrupted": "c d"}], tokenizer)
    others = [
        {**GOOD, "clean": "a b"},  # the beginning of a prompt, filled up, is another prompt
        {**GOOD, "corrupted": "a h c", "answer": " g"},  # seen, with another contrast
        {**GOOD, "clean": "a d c", "corrupted": "a b c"},  # seen as a corrupted prompt alone
        {**GOOD, "clean": "c b", "corrupted": "g b"},
    ]
    others[0]["corrupted"] = "a d"
    held_out = PromptPairs.from_records(others, tokenizer)
    assert held_out.overlap(seen) == [1, 3]
    assert held_out.take([0, 2]).overlap(seen) == []
    assert seen.overlap(held_out) == [0, 1]
