"""Verified effects on disk: what is there is right, and a cut-off end is measured again."""

from __future__ import annotations

import json
import math
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny

from wiremap.circuits import Verified, verify
from wiremap.circuits.evidence import verification
from wiremap.circuits.evidence.verification import verify_until
from wiremap.circuits.record import effects_file
from wiremap.circuits.record.effects_file import intervals, read_effects
from wiremap.circuits.record.intervals import resampled_means
from wiremap.edges import (
    InputError,
    Model,
    PromptPairs,
    WiremapWarning,
    patch_edges,
    patch_nodes,
    score_edges,
)
from wiremap.edges.effects import bounds, reduced
from wiremap.edges.effects.bounds import BoundOptions, bound_unverified

N_EDGES = 10


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("gpt2")


@pytest.fixture(scope="module")
def names(model: Model) -> list[str]:
    return [model.graph.edge_name(edge) for edge in model.graph.edges()][::20][:N_EDGES]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verification, effects_file):
        monkeypatch.setattr(module, "CHUNK", 4)


def test_effects_are_those_of_patching(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    found = verify(model, pairs, names, effects_file=file)
    exact = patch_edges(model, pairs, names)
    for item, mean, error in zip(found, exact.mean(), exact.standard_error(), strict=True):
        assert item.effect == pytest.approx(mean.item(), rel=1e-5, abs=1e-5)
        assert item.standard_error == pytest.approx(error.item(), rel=1e-4, abs=1e-5)
    assert read_effects(file) == found
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == names


def test_nodes_are_patched_as_nodes(model: Model, pairs: PromptPairs) -> None:
    (found,) = verify(model, pairs, ["a1.h2"], nodes=True)
    exact = patch_nodes(model, pairs, ["a1.h2"]).mean().item()
    assert found.effect == pytest.approx(exact, rel=1e-5)


def test_mean_and_error_by_hand() -> None:
    item = Verified("m0", (1.0, 2.0, 6.0))
    assert item.effect == 3
    assert item.standard_error == pytest.approx(statistics.stdev(item.effects) / math.sqrt(3))
    assert Verified("m0", (1.0,)).standard_error is None


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 6, 8, 9, 10])
@pytest.mark.parametrize("torn", [0, 17], ids=["at a line's end", "within a line"])
def test_a_file_cut_anywhere_is_finished_with_the_same_bytes(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path, keep: int, torn: int
) -> None:
    file = tmp_path / "effects.jsonl"
    whole = verify(model, pairs, names, effects_file=file)
    unbroken = file.read_bytes()
    lines = unbroken.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:keep]) + b"".join(lines[keep : keep + 1])[:torn])
    done: list[int] = []
    told = (
        pytest.warns(WiremapWarning, match=f"its first {keep // 4 * 4} effects is dropped")
        if torn and keep < N_EDGES
        else nullcontext()
    )
    with told:
        assert (
            verify(
                model, pairs, names, effects_file=file, progress=lambda _, n, total: done.append(n)
            )
            == whole
        )
    assert file.read_bytes() == unbroken
    assert sum(done) == N_EDGES


def test_a_longer_list_goes_on_after_a_shorter_one(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    verify(model, pairs, names[:8], effects_file=file)
    verify(model, pairs, names, effects_file=file)
    unbroken = tmp_path / "unbroken.jsonl"
    verify(model, pairs, names, effects_file=unbroken)
    assert file.read_bytes() == unbroken.read_bytes()


def test_effects_of_another_question_are_refused(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    verify(model, pairs, names, effects_file=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="expected the effect of .* in another order"):
        verify(model, pairs, names[::-1], effects_file=file)
    others = PromptPairs(pairs.corrupted, pairs.clean, pairs.answers, pairs.wrong)
    asked: list[tuple[str, Model, PromptPairs, dict[str, Any]]] = [
        ("model", tiny.model("gpt2", seed=1), pairs, {}),
        ("pairs", model, tiny.pairs(4), {}),
        ("pairs", model, others, {}),
        ("metric", model, pairs, {"metric": "log_prob"}),
        ("direction", model, pairs, {"direction": "denoising"}),
        ("frozen", model, pairs, {"frozen": "heads"}),
        ("metric, direction", model, pairs, {"metric": "kl", "direction": "denoising"}),
    ]
    for what, of_model, on_pairs, how in asked:
        with pytest.raises(InputError, match=f"measured with another {what}; ask the same again"):
            verify(of_model, on_pairs, names, effects_file=file, **how)
    assert file.read_bytes() == before
    file.write_text('{"name": "m0->logits", "effects": [1.0, 2.0, 3.0]}\n')
    with pytest.raises(InputError, match="measured with what it does not say"):
        verify(model, pairs, names[:1], effects_file=file)


@pytest.mark.parametrize(
    "line",
    [
        b'{"name": "m0->logits"}\n',
        b'{"name": "m0->logits", "effects": ["x"]}\n',
        b'{"name": "m0->logits", "effects": []}\n',
        b'{"name": "m0->logits", "effects": [NaN]}\n',
        b"\xff\xfe\n",
        b"[]\n",
    ],
)
def test_damaged_lines_are_refused(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "effects.jsonl"
    file.write_bytes(b'{"name": "m0->m1", "effects": [1.0]}\n' + line)
    with pytest.raises(InputError, match="line 2: expected a verified effect"):
        read_effects(file)


def test_an_unwritable_file_is_reported(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot write .*No such file"):
        verify(model, pairs, names, effects_file=tmp_path / "none" / "effects.jsonl")


def test_asking_for_less_throws_nothing_away(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    found = verify(model, pairs, names, effects_file=file)
    content = file.read_bytes()
    assert verify(model, pairs, names[:3], effects_file=file) == found[:3]
    assert file.read_bytes() == content


# ---- intervals


def test_intervals_of_all_are_those_of_each() -> None:
    random = numpy.random.default_rng(0)
    some = [Verified(f"e{n}", tuple(row)) for n, row in enumerate(random.normal(size=(50, 6)))]
    for one, found in zip(some, intervals(some), strict=True):
        assert found == pytest.approx(one.interval, rel=1e-12)
        assert found is not None
        assert found[0] < one.effect < found[1]
    assert intervals([]) == []
    assert intervals([Verified("m0", (1.0,))] * 2) == [None, None]
    with pytest.raises(InputError, match=r"on the same pairs, got \[1, 6\] pairs"):
        intervals([Verified("m0", (1.0,)), some[0]])


def test_an_interval_is_that_of_resampling_by_hand() -> None:
    """Two pairs: resamples have the mean 0, 1/2 or 1, a quarter, a half and a quarter of them."""
    assert Verified("m0", (0.0, 1.0)).interval == (0, 1)
    assert Verified("m0", (2.0, 2.0, 2.0)).interval == (2, 2)


def test_the_intervals_of_a_large_model_are_taken_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as GPT-2 small has edges, on 8 pairs."""
    at_once: list[int] = []

    def counted(effects: Any, n_resamples: int) -> Any:
        at_once.append(len(effects))
        return resampled_means(effects, n_resamples)

    monkeypatch.setattr(effects_file, "resampled_means", counted)
    some = [Verified("e", tuple(float(n % (7 + pair)) for pair in range(8))) for n in range(32_491)]
    assert len(intervals(some)) == sum(at_once) == 32_491
    assert len(at_once) < 100


# ---- until what is left is bounded

LAX = BoundOptions(samples=200, probability=0.1)


@pytest.fixture(scope="module")
def linear() -> Model:
    return tiny.linear_model()


@pytest.fixture(scope="module")
def ranked(linear: Model, pairs: PromptPairs) -> list[str]:
    """Some edges into the logits and the last MLP, which do not wait for each other."""
    names = [name for name, _ in score_edges(linear, pairs).top()]
    return [name for name in names if name.endswith(("->logits", "->m2"))]


def test_with_a_linear_model_the_bound_shrinks_as_more_is_verified(
    linear: Model, pairs: PromptPairs, ranked: list[str], tmp_path: Path
) -> None:
    """Effects add up there, so what a bound is about are the effects themselves."""
    effects = patch_edges(linear, pairs, ranked).mean().abs().double()
    order = effects.argsort(descending=True).tolist()
    ranked, effects = [ranked[place] for place in order], effects[order]
    bounds: list[float] = []
    sizes = [4, 8, 16]
    assert sizes[-1] < len(ranked) <= 32
    of_each = 1 - (1 - LAX.confidence) / len(sizes)
    for size in sizes:
        rest = ranked[size:]
        found = bound_unverified(
            linear,
            pairs,
            rest,
            metric="logit_diff",
            direction="noising",
            items="edges",
            n_samples=200,
            probability=0.1,
            confidence=of_each,
        )
        assert found.largest >= effects[size:].max()
        bounds.append(found.largest)
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == len(bounds)
    for size, bound, below in zip(sizes, bounds, [math.inf, *bounds], strict=False):
        largest = bound * (1 + 1e-9)
        assert largest < below
        file = tmp_path / f"{size}.jsonl"
        verified, told = verify_until(
            linear, pairs, ranked, largest=largest, effects_file=file, options=LAX
        )
        assert [one.name for one in verified] == ranked[:size]
        assert told is not None
        assert told.largest == bound
        assert told.confidence == LAX.confidence
        assert "over at most 3 such bounds" in told.statement()
        assert told.names == tuple(ranked[size:])
        assert read_effects(file) == verified


def test_a_strict_bound_measures_all_and_leaves_none(
    linear: Model, pairs: PromptPairs, ranked: list[str]
) -> None:
    done: list[int] = []
    verified, bound = verify_until(
        linear,
        pairs,
        ranked,
        largest=1e-9,
        options=LAX,
        progress=lambda _, n, total: done.append(n),
    )
    assert bound is None
    assert [one.name for one in verified] == ranked
    assert sum(done) == len(ranked)
    for largest in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="expected a bound above 0 to stop at"):
            verify_until(linear, pairs, ranked, largest=largest)


def test_looks_that_are_hopeless_cost_a_few_subsets(
    linear: Model, pairs: PromptPairs, ranked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_subsets: list[int] = []
    measure = reduced.effects_of_sets

    def counted(model: Model, question: Any, sets: Any, resources: Any) -> Any:
        n_subsets.append(len(sets))
        return measure(model, question, sets, resources)

    monkeypatch.setattr(bounds, "effects_of_sets", counted)
    verify_until(linear, pairs, ranked, largest=1e-9, options=LAX)
    looks = sum(4 << look < len(ranked) for look in range(10))
    assert n_subsets == [bounds.PILOT] * looks
    n_subsets.clear()
    verify_until(linear, pairs, ranked, largest=1e9, options=LAX)
    assert sum(n_subsets) == LAX.samples


def test_verifying_until_a_bound_goes_on_where_it_was_cut(
    linear: Model, pairs: PromptPairs, ranked: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    whole, bound = verify_until(linear, pairs, ranked, largest=1e-9, effects_file=file, options=LAX)
    unbroken = file.read_bytes()
    lines = unbroken.splitlines(keepends=True)
    for keep in (3, 8):
        file.write_bytes(b"".join(lines[:keep]))
        again = verify_until(linear, pairs, ranked, largest=1e-9, effects_file=file, options=LAX)
        assert again == (whole, bound)
        assert file.read_bytes() == unbroken
