"""Pairs to search on, and pairs held out: never the same, of other words where there are enough."""

from __future__ import annotations

from itertools import pairwise

import pytest
import transformers

from wiremap.circuits import TASKS, Task, load_task
from wiremap.circuits.describe import describe_model, describe_task
from wiremap.circuits.reloading import reload
from wiremap.circuits.tasks.parts import in_part, part_of, split
from wiremap.circuits.tasks.task import held_apart, sample_records, spelled
from wiremap.circuits.zoo import RECIPES, build_tokenizer
from wiremap.edges import InputError, Model, Tokenizer
from wiremap.edges.model.loading import bundled_path

EVERY = [(task.name, corruption) for task in TASKS.values() for corruption in task.corruptions]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(build_tokenizer(list(TASKS.values())), bos=True)


@pytest.mark.parametrize(
    ("n_items", "least", "n_held_out"),
    [(1, 1, 0), (2, 1, 0), (3, 1, 1), (7, 1, 1), (8, 1, 2), (64, 6, 16), (44, 20, 20), (40, 20, 0)],
)
def test_a_quarter_is_held_out_or_what_is_needed(n_items: int, least: int, n_held_out: int) -> None:
    items = [str(item) for item in range(n_items)]
    halves = split(items, least)
    if not n_held_out:
        assert halves is None
        assert part_of(items, "held-out", least) == part_of(items, "search", least) == items
        return
    assert halves is not None
    searched, held_out = halves
    assert len(held_out) == n_held_out
    assert sorted(searched + held_out, key=int) == items
    assert len(searched) > n_held_out >= least
    assert part_of(items, "search", least) == searched
    assert part_of(items, "held-out", least) == held_out
    assert part_of(items, "all", least) == items
    gaps = {int(b) - int(a) for a, b in pairwise(held_out)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("task", "corruption"), EVERY)
def test_no_prompt_is_of_both_parts(task: str, corruption: str, tokenizer: Tokenizer) -> None:
    usable = spelled(TASKS[task], tokenizer)
    searched, held_out = (
        [
            record
            for seed in (0, 1)
            for record in sample_records(usable, corruption, 400, seed=seed, part=part)
        ]
        for part in ("search", "held-out")
    )
    assert not {r["clean"] for r in searched} & {r["clean"] for r in held_out}
    assert "templates" in held_apart(usable)


def test_names_places_and_objects_are_other_ones(tokenizer: Tokenizer) -> None:
    usable = spelled(TASKS["ioi"], tokenizer)
    names = set(usable.words["name"])
    said = {
        part: {
            word.strip(".,")
            for record in sample_records(usable, "abc", 300, seed=0, part=part)
            for word in f"{record['clean']} {record['corrupted']}".split()
        }
        & names
        for part in ("search", "held-out")
    }
    assert not said["search"] & said["held-out"]
    assert said["search"] | said["held-out"] == names


def test_the_source_says_what_is_held_apart(tokenizer: Tokenizer) -> None:
    pairs = load_task("agreement", tokenizer, 4, part="held-out")
    assert pairs.source["part"] == "held-out"
    assert pairs.source["apart"] == ["noun", "templates"]
    assert "part" not in load_task("agreement", tokenizer, 4).source
    years = load_task("greater-than", tokenizer, 4, part="search")
    assert years.source["apart"] == ["event", "templates"], "years are compared with all years"


@pytest.mark.parametrize("model", RECIPES)
def test_bundled_models_have_both_parts(model: str) -> None:
    core = transformers.AutoTokenizer.from_pretrained(bundled_path(model))
    tokenizer = Tokenizer(core, bos=True)
    for task in RECIPES[model].weights:
        searched, held_out = (
            load_task(task, tokenizer, 64, part=part) for part in ("search", "held-out")
        )
        assert held_out.overlap(searched) == []


def test_with_one_template_a_checksum_decides() -> None:
    # Words that tasks-mini does not hold apart, for want of a second template, but prompts.
    tokenizer = Tokenizer(
        transformers.AutoTokenizer.from_pretrained(bundled_path("induction-mini")), bos=True
    )
    usable = spelled(TASKS["induction"], tokenizer)
    assert held_apart(usable) == ["word"]
    for part in ("search", "held-out"):
        records = sample_records(usable, "target", 50, seed=3, part=part)
        assert len(records) == 50
        assert all(in_part(record["clean"], part) for record in records)
    prompts = [f"prompt {number}" for number in range(4000)]
    assert sum(in_part(prompt, "held-out") for prompt in prompts) == pytest.approx(1000, abs=100)
    assert all(in_part(p, "held-out") != in_part(p, "search") for p in prompts)


def _sample_same(template: str, words: object, rng: object, corruption: str) -> dict[str, object]:
    return {"clean": template, "corrupted": template + " x", "answer": "a"}


def test_a_part_may_be_empty() -> None:
    task = Task("same", "", "kl", {"x": ""}, ("only one",), {}, {}, _sample_same)
    parts = [sample_records(task, "x", 9, seed=0, part=part) for part in ("search", "held-out")]
    assert sorted(len(records) for records in parts) == [0, 1]


def test_unknown_parts_and_too_few_pairs_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="unknown part 'test'.*there are all, search, held-out"):
        load_task("ioi", tokenizer, part="test")
    agreeing = Tokenizer(
        transformers.AutoTokenizer.from_pretrained(bundled_path("tasks-mini")), bos=True
    )
    with pytest.raises(InputError, match=r"agreement \(part held-out\), but .* about \d+; ask for"):
        load_task("agreement", agreeing, 2000, part="held-out")


def test_a_part_is_loaded_again() -> None:
    model = Model.load("induction-mini", "cpu")
    pairs = load_task("induction", model, 3, part="held-out", seed=4)
    assert pairs.fingerprint() != load_task("induction", model, 3, seed=4).fingerprint()
    _, again = reload(describe_model(model), describe_task(pairs), "cpu")
    assert again.fingerprint() == pairs.fingerprint()
