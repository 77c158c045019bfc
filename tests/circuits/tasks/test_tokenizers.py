"""Built-in tasks on the kinds of tokenizers that language models have."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import transformers
from tokenizers import Regex, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE

from wiremap.circuits import TASKS, load_task
from wiremap.circuits.tasks.task import sample_records, spelled
from wiremap.edges import InputError, Tokenizer
from wiremap.edges.names.vocabulary import PARTS

EVERY = [(task.name, corruption) for task in TASKS.values() for corruption in task.corruptions]

# How numbers are cut before merges are looked for; GPT-2's are not.
CUTS = {
    "pairs of digits": None,
    "digits": pre_tokenizers.Digits(individual_digits=True),
    "threes from the left": pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"),
    "threes from the right": pre_tokenizers.Split(Regex(r"\d{1,3}(?=(\d{3})*\b)"), "isolated"),
}
COMPARED = {
    "pairs of digits": ("last two digits", "01"),
    "digits": ("last digit", "0"),
    "threes from the left": ("last digit", "0"),
    "threes from the right": ("last three digits", "101"),
}


def texts() -> list[str]:
    """What merges are learnt from: every word of every task after a blank, and numbers."""
    words: list[str] = []
    for task in TASKS.values():
        words += [word for part in task.templates for word in part.split() if "{" not in word]
        words += [w for kind in task.words.values() for word in kind for w in word.split("/")]
        words += task.answers
    numbers = [f"({number:02d}" for number in range(100)]
    numbers += [f"({number:03d}(" for number in range(1000)]
    # Years of two tokens: " 17" comes often, and 4 digits never.
    centuries = [f" {century}" for century in range(11, 19)] * 20
    return [f" {word}" for word in words if "|" not in word] * 50 + numbers * 3 + centuries * 50


@functools.cache
def trained(cut: str, n_tokens: int = 20_000) -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2 has, that cuts numbers in this way."""
    core = Core(BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = CUTS[cut]
    core.pre_tokenizer = (  # pyright: ignore[reportAttributeAccessIssue]
        pre_tokenizers.Sequence([first, bytes_of]) if first else bytes_of
    )
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    return Tokenizer(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<|endoftext|>", unk_token="<|endoftext|>"
        ),
        bos=True,
    )


def check_enough(tokenizer: Tokenizer, task: str, corruption: str, n_tokenized: int = 16) -> None:
    """That there are 512 distinct pairs of every part, and tokens of some are aligned."""
    usable = spelled(TASKS[task], tokenizer)
    for part in PARTS:
        records = sample_records(usable, corruption, 512, seed=0, part=part)
        assert len({(record["clean"], record["corrupted"]) for record in records}) == 512
        pairs = load_task(task, tokenizer, n_tokenized, corruption=corruption, part=part)
        assert len(pairs) == n_tokenized
        assert (pairs.clean != pairs.corrupted).any(1).all()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("task", "corruption"), EVERY)
def test_every_task_has_many_pairs(task: str, corruption: str, cut: str) -> None:
    check_enough(trained(cut), task, corruption)


@pytest.mark.parametrize(("task", "corruption"), EVERY)
def test_every_task_has_many_pairs_for_smollm2(
    task: str, corruption: str, smollm2_tokenizer: Tokenizer
) -> None:
    check_enough(smollm2_tokenizer, task, corruption, n_tokenized=512)


def test_smollm2_compares_years_by_their_last_digit(smollm2_tokenizer: Tokenizer) -> None:
    check_years(smollm2_tokenizer, "last digit", "0")


@pytest.mark.parametrize("cut", CUTS)
def test_the_compared_part_of_a_year_is_a_token(cut: str) -> None:
    check_years(trained(cut), *COMPARED[cut])


def check_years(tokenizer: Tokenizer, compared: str, least: str) -> None:
    pairs = load_task("greater-than", tokenizer, 24)
    assert pairs.source["compared"] == compared
    for row in range(len(pairs)):
        clean, corrupted = (
            decoded(tokenizer, table[row].tolist()) for table in (pairs.clean, pairs.corrupted)
        )
        ((place, start),) = [
            (place, word)
            for place, (word, other) in enumerate(zip(clean, corrupted, strict=True))
            if word != other
        ]
        assert corrupted[place] == least
        # Before the start year and at the end stand the same digits: of one century, or decade.
        before = "".join(clean[:place]).split()[-1]
        assert len(before + start) == 4
        assert "".join(clean).split()[-1] == before
        answers, wrong = (
            decoded(tokenizer, table[row].tolist()) for table in (pairs.answers, pairs.wrong)
        )
        assert max(wrong) == start < min(answers)
        assert {len(word) for word in answers + wrong} == {len(start)}


def decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    return [tokenizer.decode(token) for token in tokens if token >= 0]


@pytest.mark.parametrize("task", TASKS)
def test_a_tokenizer_of_bytes_is_refused_with_a_way_out(task: str) -> None:
    with pytest.raises(InputError, match=r"has 0 of \d+; choose another model or task, or bring"):
        load_task(task, trained("digits", n_tokens=257))
