"""``wiremap verify``: what is measured, until when, and what is said of it; and the same of discover."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from command import refused, told, wiremap
from tokens_for_tests import letters_core

from wiremap.circuits import load_task
from wiremap.circuits.record.effects_file import intervals, read_effects
from wiremap.circuits.result.document import from_document, loads
from wiremap.edges import Model, PromptPairs, patch_edges
from wiremap.edges.effects.reduced import patch_together

ASKED = ["--model", "induction-mini", "--n-pairs", "4"]
N_EDGES = 110


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "s.safetensors"
    assert wiremap("score", "edges", *ASKED, "-o", out, "--quiet").exit_code == 0
    return out


@pytest.fixture(scope="module")
def known() -> tuple[Model, PromptPairs]:
    model = Model.load("induction-mini", "cpu")
    return model, load_task("induction", model, 4)


def test_all_edges_are_measured_with_their_intervals(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    found = told("verify", scores, "--all", "-o", out)
    effects = read_effects(out)
    assert len(found["effects"]) == len(effects) == N_EDGES
    assert found["bound"] is None
    assert found["float32_error"] is None
    for row, one, interval in zip(found["effects"], effects, intervals(effects), strict=True):
        assert row["name"] == one.name
        assert interval is not None
        assert row["interval"] == list(interval) == pytest.approx(one.interval)
        assert row["interval"][0] <= row["effect"] <= row["interval"][1]


def test_the_table_shows_intervals(scores: Path, tmp_path: Path) -> None:
    result = wiremap("verify", scores, "--budget", "3", "-o", tmp_path / "e.jsonl")
    assert result.exit_code == 0, result.output
    assert "95 % interval" in result.stdout
    for one in read_effects(tmp_path / "e.jsonl"):
        low, high = one.interval or (0, 0)
        row = rf"{re.escape(one.name)} +\{one.effect:+.4f} .* \{low:+.4f} to \{high:+.4f}"
        assert re.search(row, result.stdout)


def test_a_lax_bound_stops_early_and_a_strict_one_measures_all(
    scores: Path, tmp_path: Path
) -> None:
    draws = ["--samples", "200", "--probability", "0.1"]
    lax = told("verify", scores, "--until-bound", "1000", *draws, "-o", tmp_path / "lax.jsonl")
    assert len(lax["effects"]) == 64
    assert 0 < lax["bound"]["largest"] < 1000
    assert "over 46 edges" in lax["bound"]["statement"]
    out = tmp_path / "strict.jsonl"
    strict = wiremap("verify", scores, "--until-bound", "1e-9", *draws, "-o", out)
    assert strict.exit_code == 0, strict.output
    assert "all were measured; there is nothing to bound" in strict.stdout
    assert len(read_effects(out)) == N_EDGES
    assert out.read_bytes().startswith((tmp_path / "lax.jsonl").read_bytes())


def test_paths_groups_and_frozen_are_those_of_the_library(
    scores: Path, tmp_path: Path, known: tuple[Model, PromptPairs]
) -> None:
    path, group = "m0->a1.h0<v>->logits", ["m0->a1.h0<v>", "a1.h0->m1"]
    asked = ["--path", path, "--path", "m1->logits", "--together", ",".join(group)]
    found = told("verify", scores, *asked, "-o", tmp_path / "named.jsonl")
    effects = [row["effect"] for row in found["effects"]]
    assert [row["name"] for row in found["effects"]] == [path, "m1->logits", " + ".join(group)]
    assert [row["score"] is None for row in found["effects"]] == [True, False, True]
    single = patch_edges(*known, [path, "m1->logits"]).mean().tolist()
    assert effects[:2] == pytest.approx(single, rel=1e-4)
    assert effects[2] == pytest.approx(patch_together(*known, [group]).mean().item(), rel=1e-4)
    # Clean and corrupted prompts end in the same token, so m0 writes the same behind the last token,
    # and with heads frozen no other token's m0 is read. What a0.h0 hands m0 differs there.
    by_frozen: dict[str, list[float]] = {"input->m0": [], "a0.h0->m0": []}
    asked = [part for name in by_frozen for part in ("--path", name)]
    for frozen in ("none", "heads", "all"):
        out = tmp_path / f"{frozen}.jsonl"
        rows = told("verify", scores, *asked, "--frozen", frozen, "-o", out)["effects"]
        exact = patch_edges(*known, list(by_frozen), frozen=frozen).mean().tolist()
        for row, expected in zip(rows, exact, strict=True):
            assert row["effect"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
            by_frozen[row["name"]].append(row["effect"])
    none, heads, all_of_them = by_frozen["input->m0"]
    assert abs(none) > 0.01
    assert [heads, all_of_them] == pytest.approx([0, 0], abs=1e-4)
    none, heads, all_of_them = by_frozen["a0.h0->m0"]
    assert min(abs(none - heads), abs(none - all_of_them), abs(heads - all_of_them)) > 1e-3
    again = ["verify", scores, *asked, "-o", tmp_path / "all.jsonl", "--resume"]
    assert "measured with another frozen; ask the same again" in refused(*again)


def test_a_budget_below_one_chunk_is_resumed(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.jsonl"
    assert len(told("verify", scores, "--budget", "1", "-o", out)["effects"]) == 1
    before = out.read_bytes()
    assert len(told("verify", scores, "--budget", "3", "-o", out, "--resume")["effects"]) == 3
    assert out.read_bytes().startswith(before)


def test_what_was_measured_in_less_than_float32_says_how_far_it_is_off(tmp_path: Path) -> None:
    scores = tmp_path / "s.safetensors"
    asked = ["score", "edges", *ASKED, "--dtype", "bfloat16", "-o", scores, "--quiet"]
    assert wiremap(*asked).exit_code == 0
    found = told("verify", scores, "--budget", "20", "-o", tmp_path / "a.jsonl")
    assert 0 < found["float32_error"] < 2
    shown = wiremap("verify", scores, "--budget", "20", "-o", tmp_path / "b.jsonl")
    error = f"{found['float32_error']:.2g}"
    assert f"measured in bfloat16: of the first 20 effects none is more than {error}" in " ".join(
        shown.stdout.split()
    )


def test_discover_says_what_less_than_float32_costs(tmp_path: Path) -> None:
    asked = ["discover", *ASKED, "--budget", "20", "--size", "5", "--no-bound"]
    half = wiremap(*asked, "--dtype", "bfloat16", "--allow-weak", "-o", tmp_path / "half")
    assert half.exit_code == 0, half.output
    assert "measured in bfloat16: of the first 20 effects none is more than" in half.stderr
    whole = wiremap(*asked, "-o", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert "measured in" not in whole.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all", "--budget", "3"], "one way to say what to measure, got --budget, --all"),
        (["--all", "--until-bound", "1"], "got --all, --until-bound"),
        (["--budget", "3", "--path", "m1->logits"], "got --budget, --path and --together"),
        (["--until-bound", "1", "--together", "m1->logits"], "got --until-bound, --path and"),
        (["--until-bound", "1", "--frozen", "all"], "--until-bound goes with no --frozen"),
        (["--until-bound", "-1"], "expected a bound above 0 to stop at, got -1.0"),
        (["--all", "--bound"], "--bound bounds what is not measured; leave it out"),
        (["--path", "m1->logits", "--bound"], "--bound bounds what is not measured"),
        (["--together", "m0->m1,m1->logits", "--frozen", "all"], "frozen all is for single edges"),
        (["--frozen", "mlps"], "'mlps' is not one of 'none', 'heads', 'all'"),
        (["--tf32"], "tf32"),
        (["--path", "m1"], "expected an edge 'writer->reader', got 'm1'"),
        (["--path", "m7->logits"], "m7"),
        (["--path", "m1->logitz"], "logits"),
        (["--path", "m1->m0"], "edge 'm1->m0' does not exist in this model: m1 is computed after"),
        (["--together", "m0->m1,a9.h9->m1"], "a9.h9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_contradict_each_other_and_unknown_edges_are_refused(
    scores: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    error = refused("verify", scores, *options, "-o", tmp_path / "e.jsonl")
    assert message.lower() in error.lower()
    assert not (tmp_path / "e.jsonl").exists()


def test_names_near_to_an_unknown_one_are_offered(scores: Path, tmp_path: Path) -> None:
    error = refused("verify", scores, "--path", "a1h0->logits", "-o", tmp_path / "e.jsonl")
    assert "a1.h0" in error
    error = refused("verify", scores, "--path", "m0->a1.h0", "-o", tmp_path / "e.jsonl")
    assert "a1.h0<" in error


def test_edges_within_a_parallel_block_are_said_not_to_exist(tmp_path: Path) -> None:
    tiny.hf_model("neox").save_pretrained(tmp_path)
    letters_core().save_pretrained(tmp_path)
    record = {"clean": "a b c", "corrupted": "a d c", "answer": " e", "wrong_answer": " f"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(record) + "\n")
    scores = tmp_path / "s.safetensors"
    asked = ["--model", tmp_path, "--pairs", tmp_path / "pairs.jsonl", "--allow-weak"]
    assert wiremap("score", "edges", *asked, "-o", scores, "--quiet").exit_code == 0
    error = refused("verify", scores, "--path", "a1.h2->m1")
    assert "edge 'a1.h2->m1' does not exist in this model: attention and MLP of a parallel" in error


def test_paths_and_frozen_are_for_edges(tmp_path: Path) -> None:
    scores = tmp_path / "s.safetensors"
    assert wiremap("score", "nodes", *ASKED, "-o", scores, "--quiet").exit_code == 0
    for options in (["--path", "m1->logits"], ["--together", "m0->m1"], ["--frozen", "heads"]):
        error = refused("verify", scores, *options)
        assert "--path, --together and --frozen are for scores of edges" in error


# ---- discover


def test_discover_tells_its_evidence(tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = told("discover", *ASKED, "--budget", "60", "--tests", "-o", out)
    assert json.loads((out / "circuit.json").read_text()) == found
    evidence = found["evidence"]
    assert set(evidence) == {
        "held_out", "search", "curve", "metrics", "completeness", "minimality", "tests", "sample",
        "not_done", "stability", "removed",
    }  # fmt: skip
    drawn = evidence["sample"]["drawn"]
    assert evidence["sample"]["n_edges"] == N_EDGES - 60
    assert 0 < drawn < 60
    assert "subset" in evidence["not_done"]["bound"]
    assert [point["fraction"] for point in evidence["curve"]["signed"]["points"]][-1] == 1
    names = [one["name"] for one in evidence["tests"]]
    assert names == ["equivalence", "independence", "minimality", "against random circuits"]
    assert sum(evidence["removed"].values()) + len(found["edges"]) == N_EDGES
    for edge in from_document(loads((out / "circuit.json").read_text())).edges:
        assert edge.interval is not None
        assert edge.effect is not None
        assert edge.interval[0] <= edge.effect <= edge.interval[1]
        assert edge.inclusion is not None
        assert 0 < edge.inclusion <= 1
    on_disk = loads((out / "faithfulness.json").read_text())
    assert {"curve", "metrics"} <= set(on_disk)


def test_discover_with_all_edges_leaves_no_bound(tmp_path: Path) -> None:
    result = wiremap("discover", *ASKED, "--all", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "missed:" not in result.stdout
    found = json.loads((tmp_path / "run" / "circuit.json").read_text())
    assert "bound" not in found["evidence"]
    parts = {"held_out", "search", "curve", "metrics", "stability", "removed"}
    assert set(found["evidence"]) == parts
    assert found["method"]["edges_verified"] == found["method"]["edges_in_model"] == N_EDGES
    for options in (["--budget", "9"], ["--until-bound", "1"]):
        error = refused("discover", *ASKED, "--all", *options, "-o", tmp_path / "other")
        assert "leave --budget and --until-bound out" in error


def test_discover_does_without_a_bound_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ["discover", *ASKED, "--budget", "20", "--size", "5", "-o", out]
    result = wiremap(*asked, "--no-bound")
    assert result.exit_code == 0, result.output
    assert (
        f"missed: nothing bounds the {N_EDGES - 20} unverified edges (--no-bound)" in result.stdout
    )
    found = json.loads((out / "circuit.json").read_text())
    assert found["method"]["bound"] is False
    assert "bound" not in found["evidence"]
    record = json.loads((out / "run.json").read_text())
    assert record["question"]["method"]["bound"] is False
    assert "bound" not in record["stages"]
    assert "no bound on their effects was computed" in (out / "report.html").read_text()
    assert "method.bound was False, now None" in refused(*asked, "--resume")
    error = refused("discover", *ASKED, "--until-bound", "1", "--no-bound", "-o", tmp_path / "x")
    assert "leave bound=False (--no-bound) out, or give a budget" in error
    whole = wiremap("discover", *ASKED, "--all", "--no-bound", "-o", tmp_path / "whole")
    assert "missed:" not in whole.stdout


@pytest.mark.parametrize(("largest", "verified"), [("1000", 64), ("1e-9", N_EDGES)])
def test_discover_verifies_until_a_bound_and_resumes(
    tmp_path: Path, largest: str, verified: int
) -> None:
    out = tmp_path / "run"
    asked = ["discover", *ASKED, "--until-bound", largest, "--size", "20", "-o", out]
    found = told(*asked)
    assert found["method"]["edges_verified"] == verified
    assert ("bound" in found["evidence"]) == (verified < N_EDGES)
    if verified < N_EDGES:
        assert found["evidence"]["bound"]["largest"] < 1000
        assert found["evidence"]["bound"]["n_edges"] == N_EDGES - verified
    effects = (out / "effects.jsonl").read_bytes()
    (out / "effects.jsonl").write_bytes(b"".join(effects.splitlines(True)[:30]))
    assert told(*asked, "--resume") == found
    assert (out / "effects.jsonl").read_bytes() == effects


def test_float32_on_a_cpu_takes_no_tf32(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("TF32 is CUDA's")
    error = refused("discover", *ASKED, "--tf32", "-o", tmp_path / "run")
    assert "tf32" in error.lower()
    assert not (tmp_path / "run").exists()
