"""Verified effects on disk: what is there is right, and a cut-off end is measured again."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
import tiny

from wiremap.circuits import Verified, verification, verify
from wiremap.circuits.verification import read_effects
from wiremap.edges import InputError, Model, PromptPairs, patch_edges, patch_nodes

N_EDGES = 10


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("gpt2")


@pytest.fixture(scope="module")
def names(model: Model) -> list[str]:
    return [model.graph.edge_name(edge) for edge in model.graph.edges()][::20][:N_EDGES]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "CHUNK", 4)


def test_effects_are_those_of_patching(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    found = verify(model, pairs, names, effects_file=file)
    exact = patch_edges(model, pairs, names)
    for item, mean, error in zip(found, exact.mean(), exact.standard_error(), strict=True):
        assert item.effect == pytest.approx(mean.item(), rel=1e-5, abs=1e-6)
        assert item.standard_error == pytest.approx(error.item(), rel=1e-4, abs=1e-6)
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
    assert verify(model, pairs, names, effects_file=file, progress=done.append) == whole
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
    with pytest.raises(InputError, match="expected the effect of"):
        verify(model, pairs, names[::-1], effects_file=file)
    with pytest.raises(InputError, match="on 4 pairs, got .* on 3"):
        verify(model, tiny.pairs(4), names, effects_file=file)
    assert file.read_bytes() == before


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


def test_effects_of_another_question_are_not_taken(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    verify(model, pairs, names, effects_file=file)
    others = PromptPairs(pairs.corrupted, pairs.clean, pairs.answers, pairs.wrong)
    with pytest.raises(InputError, match="measured for question"):
        verify(model, pairs, names, direction="denoising", effects_file=file)
    with pytest.raises(InputError, match="measured for question"):
        verify(model, pairs, names, "log_prob", effects_file=file)
    with pytest.raises(InputError, match="measured for question"):
        verify(model, others, names, effects_file=file)


def test_asking_for_less_throws_nothing_away(
    model: Model, pairs: PromptPairs, names: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "effects.jsonl"
    found = verify(model, pairs, names, effects_file=file)
    content = file.read_bytes()
    assert verify(model, pairs, names[:3], effects_file=file) == found[:3]
    assert file.read_bytes() == content
