"""Built-in tasks: aligned, answerable, distinct, for whatever tokenizer."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from command import refused, told
from tokens_for_tests import letters

from wiremap.circuits import TASKS, Task, discover, load_task
from wiremap.circuits.tasks.task import (
    Record,
    Words,
    count_words,
    sample_records,
    spelled,
    usable_templates,
)
from wiremap.circuits.zoo import RECIPES, build_tokenizer
from wiremap.edges import InputError, Model, PromptPairs, Tokenizer
from wiremap.edges.model.loading import bundled_path

EVERY = [(task.name, corruption) for task in TASKS.values() for corruption in task.corruptions]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(build_tokenizer(list(TASKS.values())), bos=True)


def texts(pairs: PromptPairs, tokenizer: Tokenizer, row: int) -> tuple[list[str], list[str]]:
    clean, corrupted = (
        [tokenizer.decode(token) for token in tokens[row].tolist() if token >= 0]
        for tokens in (pairs.clean, pairs.corrupted)
    )
    return clean, corrupted


@pytest.mark.parametrize(("task", "corruption"), EVERY)
def test_pairs_are_aligned_distinct_and_repeatable(
    task: str, corruption: str, tokenizer: Tokenizer
) -> None:
    pairs = load_task(task, tokenizer, 50, seed=1, corruption=corruption)
    again = load_task(task, tokenizer, 50, seed=1, corruption=corruption)
    other = load_task(task, tokenizer, 50, seed=2, corruption=corruption)
    assert pairs.fingerprint() == again.fingerprint() != other.fingerprint()
    assert len(pairs) == 50
    rows = {
        (tuple(c), tuple(x))
        for c, x in zip(pairs.clean.tolist(), pairs.corrupted.tolist(), strict=True)
    }
    assert len(rows) == 50
    assert all(clean != corrupted for clean, corrupted in rows)
    assert pairs.source["corruption"] == corruption
    assert pairs.wrong.shape[1] > 0


def names_said(words: list[str]) -> list[str]:
    known = set(TASKS["ioi"].words["name"])
    return [word for word in words if word in known]


@pytest.mark.parametrize("corruption", ["abc", "swap", "s2-flip"])
def test_indirect_objects(corruption: str, tokenizer: Tokenizer) -> None:
    pairs = load_task("ioi", tokenizer, 80, corruption=corruption)
    orders: set[object] = set()
    for row in range(80):
        clean, corrupted = texts(pairs, tokenizer, row)
        answer = tokenizer.decode(int(pairs.answers[row, 0]))
        wrong = tokenizer.decode(int(pairs.wrong[row, 0]))
        said, said_then = names_said(clean), names_said(corrupted)
        assert said.count(answer) == 1
        assert said.count(wrong) == 2
        assert said[-1] == wrong
        orders.add(pairs.features[row]["order"])
        bystanders = [name for name in said if name not in (answer, wrong)]
        if corruption == "abc":
            assert answer not in said_then
            assert wrong not in said_then
            assert all(name in said_then for name in bystanders)
        elif corruption == "swap":
            exchange = {answer: wrong, wrong: answer}
            assert said_then == [exchange.get(name, name) for name in said]
        else:
            assert said_then == [*said[:-1], answer]
    assert orders == {"ABBA", "BABA"}


def test_years(tokenizer: Tokenizer) -> None:
    pairs = load_task("greater-than", tokenizer, 40)
    for row in range(40):
        clean, corrupted = texts(pairs, tokenizer, row)
        ((place, start, other),) = [
            (place, *words)
            for place, words in enumerate(zip(clean, corrupted, strict=True))
            if len(set(words)) > 1
        ]
        answers = [tokenizer.decode(t) for t in pairs.answers[row].tolist() if t >= 0]
        wrong = [tokenizer.decode(t) for t in pairs.wrong[row].tolist() if t >= 0]
        assert other == "01"
        assert min(answers) > start
        assert max(wrong) == start
        assert clean[-1] == clean[place - 1], "the prompt ends with the century"


def test_agreement_changes_the_number_of_the_subject_alone(tokenizer: Tokenizer) -> None:
    pairs = load_task("agreement", tokenizer, 40)
    for row in range(40):
        clean, corrupted = texts(pairs, tokenizer, row)
        ((one, other),) = [
            pair for pair in zip(clean, corrupted, strict=True) if pair[0] != pair[1]
        ]
        assert {one + "s", one} & {other, other + "s"}
        plural = one.endswith("s")
        answer = tokenizer.decode(int(pairs.answers[row, 0]))
        assert answer == ("are" if plural else "is")
        assert pairs.features[row]["number"] == ("plural" if plural else "singular")


def test_induction_has_one_right_continuation(tokenizer: Tokenizer) -> None:
    for corruption in ("target", "list"):
        pairs = load_task("induction", tokenizer, 40, corruption=corruption)
        for row in range(40):
            clean, corrupted = texts(pairs, tokenizer, row)
            answer = tokenizer.decode(int(pairs.answers[row, 0]))
            wrong = tokenizer.decode(int(pairs.wrong[row, 0]))
            assert clean[clean.index(clean[-1]) + 1] == answer
            assert answer not in corrupted
            if corruption == "target":
                assert corrupted[corrupted.index(corrupted[-1]) + 1] == wrong
            else:
                assert corrupted.count(corrupted[-1]) == 1


def test_pronouns_follow_the_name(tokenizer: Tokenizer) -> None:
    pairs = load_task("gendered-pronoun", tokenizer, 40)
    female = set(TASKS["gendered-pronoun"].words["female"])
    answers: set[str] = set()
    for row in range(40):
        clean, corrupted = texts(pairs, tokenizer, row)
        answer = tokenizer.decode(int(pairs.answers[row, 0]))
        assert (answer == "she") == any(word in female for word in clean)
        assert (answer == "he") == any(word in female for word in corrupted)
        answers.add(answer)
    assert answers == {"she", "he"}


def test_words_of_several_tokens_are_rejected_and_counted(tokenizer: Tokenizer) -> None:
    counts = count_words(TASKS["greater-than"], tokenizer)
    assert counts["year"] == {"used": 8 * 98, "rejected": 0}
    few = count_words(TASKS["ioi"], letters())
    assert few["name"] == {"used": 0, "rejected": 64}


def test_templates_with_strange_words_are_left_out() -> None:
    task = TASKS["ioi"]
    known = build_tokenizer([task])
    without_opening = [t for t in task.templates if not t.startswith("Last year")]
    vocabulary = {w: i for w, i in known.get_vocab().items() if w not in ("Last", "city")}
    words = [w for w, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    from tokenizers import Tokenizer as Core
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    core = Core(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    poorer = Tokenizer(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, unk_token="<unk>", bos_token="<s>"
        ),
        bos=True,
    )
    assert usable_templates(task, task.words, poorer) == without_opening


def _sample_colour(template: str, words: Words, rng: random.Random, corruption: str) -> Record:
    first, second = rng.sample(words["colour"], 2)
    return {
        "clean": template.format(colour=first),
        "corrupted": template.format(colour=second),
        "answer": f" {first}",
        "wrong_answer": f" {second}",
    }


COLOURS = Task(
    name="colours",
    description="a colour is said again",
    metric="prob_diff",
    corruptions={"colour": "another colour"},
    templates=("The words are {colour}. And again:",),
    words={"colour": ["green", "silver", "yellow", "orange", "copper"]},
    needs={"colour": 2},
    sample=_sample_colour,
)


def test_a_task_of_ones_own_is_loaded_and_explained(tmp_path: Path) -> None:
    model = Model.load("induction-mini")
    pairs = load_task(COLOURS, model, 4, seed=2)
    assert pairs.fingerprint() == load_task(COLOURS, model, 4, seed=2).fingerprint()
    assert pairs.source["task"] == "colours"
    circuit = discover(
        model, pairs, tmp_path / "run", budget=60, size=60, allow_weak=True, bound=False
    )
    assert circuit.method["metric"] == "prob_diff"
    question = json.loads((tmp_path / "run" / "run.json").read_text())["question"]
    document = json.loads((tmp_path / "run" / "circuit.json").read_text())
    for record in (question, document):
        assert (record["task"]["task"], record["task"]["seed"]) == ("colours", 2)
    again = ["evaluate", tmp_path / "run", "--model", "induction-mini"]
    for asked in (again[:2], again):  # as it was found, and by a model that is named
        error = refused(*asked)
        assert "unknown task 'colours'; built-in tasks: ioi" in error
        assert "A task of your own is not built in: give its prompt pairs as a file" in error
    records = sample_records(COLOURS, "colour", 4, seed=2)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = told("evaluate", tmp_path / "run", "--pairs", file)
    assert circuit.faithfulness is not None
    assert found["circuit"] == pytest.approx(circuit.faithfulness.circuit, rel=1e-5)


def test_a_task_of_ones_own_has_a_name_of_its_own(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="under a name of its own, got 'ioi', which is built in"):
        load_task(replace(COLOURS, name="ioi"), tokenizer, 2)


@pytest.mark.parametrize("model", RECIPES)
def test_tasks_give_the_words_of_the_bundled_tokenizers(model: str) -> None:
    built = build_tokenizer(RECIPES[model].tasks).get_vocab()
    bundled = transformers.AutoTokenizer.from_pretrained(bundled_path(model))
    assert set(bundled.get_vocab()) <= set(built)


TRAINED = {"ioi": 48, "greater-than": 3, "agreement": 3, "induction": 1, "gendered-pronoun": 6}


@pytest.mark.parametrize("model", RECIPES)
def test_bundled_models_are_asked_what_they_learnt(model: str) -> None:
    """Tasks may grow by templates and words that bundled tokenizers lack, so draws stay."""
    bundled = transformers.AutoTokenizer.from_pretrained(bundled_path(model))
    for task in RECIPES[model].tasks:
        usable = spelled(task, Tokenizer(bundled, bos=True))
        assert list(usable.templates) == list(task.templates)[: TRAINED[task.name]]
        for kind, words in usable.words.items():
            assert list(words) == list(task.words[kind])[: len(words)]


def test_a_task_beyond_the_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs 6 words of the kind 'name'.*has 0 of 64"):
        load_task("ioi", letters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "chess"}, "unknown task 'chess'; built-in tasks: ioi, greater-than"),
        (
            {"corruption": "noise"},
            "unknown corruption 'noise' of task ioi; there are s2-flip, swap",
        ),
        ({"n_pairs": 0}, "expected n_pairs >= 1, got 0"),
        (
            {"task": COLOURS, "n_pairs": 40},
            "expected 40 distinct pairs of task colours, but the .* make only about 20; ask for",
        ),
    ],
)
def test_bad_options_are_refused(
    tokenizer: Tokenizer, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_task(**{"task": "ioi", "model": tokenizer, **options})  # pyright: ignore[reportArgumentType]
