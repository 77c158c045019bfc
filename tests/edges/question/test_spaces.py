"""Spaces, and BOS tokens, that change what a model reads: told with both tokenizations."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from tokens_for_tests import letters, spelling

from wiremap.edges import InputError, PromptPairs, SpaceWarning, Tokenizer, WiremapWarning

TO = {
    "clean": "When Mary and John went to the store, John gave a book to",
    "corrupted": "When Mary and John went to the store, Mary gave a book to",
    "answer": " Mary",
    "wrong_answer": " John",
}
SAD = {"clean": "a girl was sad because", "corrupted": "a book was sad because"}


def notes(records: list[dict[str, Any]], tokenizer: Tokenizer | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        PromptPairs.from_records(records, tokenizer or spelling())
    return [str(each.message) for each in said]


def test_nothing_is_said_of_pairs_as_they_should_be() -> None:
    assert notes([TO, {**SAD, "answer": " she", "wrong_answer": " he"}]) == []


def spaced(record: dict[str, str], end: str = " ") -> dict[str, str]:
    return {**record, **{name: record[name] + end for name in ("clean", "corrupted")}}


def test_a_prompt_that_ends_with_a_space_is_told() -> None:
    sad = spaced({**SAD, "answer": " she", "wrong_answer": " he"})
    (said,) = notes([TO, sad])
    assert "prompts end with a space in row 2: " in said
    assert "sad| because| | she; without the space" in said
    assert "was| sad| because| she. The" in said
    (said,) = notes([spaced(TO, "\t"), sad])
    assert "in 2 rows: 1, 2: " in said


def test_a_tokenizer_of_words_does_not_mind() -> None:
    record = {"clean": "a b ", "corrupted": "a c ", "answer": "e", "wrong_answer": " f"}
    assert notes([record], letters()) == []


def test_an_answer_that_merges_with_the_space_is_refused_with_both() -> None:
    message = (
        r"to\|  becomes .*\| to\| Mary; take the space off the prompt and write ' Mary', which"
    )
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([spaced({**TO, "answer": "Mary"})], spelling())


@pytest.mark.parametrize("name", ["clean", "corrupted"])
def test_a_space_before_one_prompt_alone_is_told(name: str) -> None:
    girl = {"clean": "a girl was sad because", "corrupted": "a book was sad because"}
    record = {**girl, "answer": " she", name: f" {girl[name]}"}
    with pytest.warns(
        WiremapWarning, match=r"one prompt begins with a space .* in row 1: .*<s>\| a\|"
    ):
        PromptPairs.from_records([record], spelling())
    letter = {"clean": "a b", "corrupted": " a c", "answer": " e"}
    assert notes([letter], letters()) == []


def test_digits_that_merge_with_the_prompt_are_shown_with_their_token() -> None:
    years = {"clean": "the year 12", "corrupted": "the year 17", "wrong_answer": "01"}
    tokenizer = spelling()
    token = tokenizer.named("80")
    message = rf"12 becomes .*1280; '80' alone is the token {token}; choose .*answer_ids"
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([{**years, "answer": "80"}], tokenizer)
    with pytest.warns(WiremapWarning, match=r"as token ids: answer .*\[\d+\] is 80\)"):
        pairs = PromptPairs.from_records([{**years, "answer": token}], tokenizer)
    assert pairs.answers.tolist() == [[token]]


@pytest.mark.parametrize("name", ["clean", "corrupted"])
def test_a_space_at_one_prompt_alone_is_named(name: str) -> None:
    message = rf"corrupted tokens \(the {name} one ends with a space\)"
    with pytest.raises(InputError, match=message):
        PromptPairs.from_records([{**TO, name: TO[name] + " "}], spelling())


@pytest.mark.parametrize(
    ("change", "shown"),
    [({"answer": "Mary"}, "to|Mary, with ' Mary' as"), ({"wrong_answer": "John"}, "to|John, with")],
)
def test_an_answer_without_the_space_is_told_and_may_be_silenced(
    change: dict[str, str], shown: str
) -> None:
    (said,) = notes([TO, {**TO, **change}])
    assert "without the space that words of their prompt have in row 2: " in said
    assert shown in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", SpaceWarning)
        PromptPairs.from_records([{**TO, **change}], spelling())
    assert issubclass(SpaceWarning, WiremapWarning)


@pytest.mark.parametrize(
    "record",
    [
        {"clean": "went to the store", "corrupted": "gave to the store", "answer": ","},  # no word
        {"clean": "store 17", "corrupted": "store 12", "answer": "3"},  # goes on with a number
        {"clean": "Mary", "corrupted": "John", "answer": "s"},  # no word stands apart
        {"clean": 'a book to "', "corrupted": 'a girl to "', "answer": "M"},  # after a quote
    ],
)
def test_answers_that_need_no_space(record: dict[str, str]) -> None:
    assert notes([record]) == []


# ---- BOS


def test_bos_twice_in_a_text_is_told() -> None:
    twice = {name: f"<s><s>{TO[name]}" for name in ("clean", "corrupted")}
    said = notes([{**TO, **twice}])
    assert "2 of 2 prompts begin with '<s>' twice; take one off" in said[1]
    once = {name: f"<s>{TO[name]}" for name in ("clean", "corrupted")}
    assert len(notes([{**TO, **once}])) == 1
    with pytest.raises(InputError, match="the clean one begins with <s> twice"):
        PromptPairs.from_records([{**TO, "clean": twice["clean"]}], spelling())


@pytest.mark.parametrize("bos", ["<bos>", "<|begin_of_text|>", "<|endoftext|>"])
def test_bos_of_another_tokenizer_is_told(bos: str) -> None:
    foreign = {name: bos + TO[name] for name in ("clean", "corrupted")}
    (said,) = notes([{**TO, **foreign}])
    assert f"2 of 2 prompts begin with {bos!r}, which is no token of this tokenizer" in said
