"""The command, from outside: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import safetensors
import tiny
import torch
from click.testing import Result
from command import refused, wiremap
from safetensors.torch import load_file
from tokens_for_tests import letters_core

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.circuits.record.scores_file import read_scores
from wiremap.edges import EdgeScores, Model, ModelGraph, PromptPairs, score_edges
from wiremap.exporters import FORMATS, read_circuit, write_circuit

has_dot = shutil.which("dot") is not None

BUDGET = 80  # enough for a faithfulness of 0.9
ASKED = ["--model", "ioi-mini", "--task", "ioi", "--n-pairs", "8", "--budget", str(BUDGET)]
SMALL = [*ASKED, "--size", "30", "--no-bound"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a small discover."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = wiremap("discover", *SMALL, "-o", out)
    assert result.exit_code == 0, result.output
    return out


# ---- discover


def test_discover_writes_a_run_and_says_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = wiremap("discover", *ASKED, "-o", out)
    assert result.exit_code == 0
    names = {path.name for path in out.iterdir()}
    pictures = {"circuit.svg"} if has_dot else set[str]()
    assert names == pictures | {
        "run.json", "scores.safetensors", "search.jsonl", "effects.jsonl", "losses.jsonl",
        "sample.jsonl", "circuit.json", "faithfulness.json", "faithfulness.svg", "circuit.html", "circuit.dot",
        "circuit.graphml", "report.html",
    }  # fmt: skip
    circuit = read_circuit(out / "circuit.json")
    assert circuit.faithfulness is not None
    assert f"faithfulness {circuit.faithfulness.faithfulness:.3f}" in result.stdout
    largest = max(circuit.edges, key=lambda edge: abs(edge.effect or 0))
    assert re.search(
        rf"{re.escape(largest.name)} +{re.escape(f'{largest.effect:+.3f}')}", result.stdout
    )
    removed = circuit.evidence.removed
    assert removed is not None
    assert f"removed: {', '.join(f'{n} {rule}' for rule, n in removed.items())}\n" in result.stdout
    assert str(out) in result.stdout
    assert result.stderr == "" or not has_dot


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--alpha", "0.05"], "not significant"),
        (["--size", "20", "--prune", "greedy"], "beyond size"),
        (["--acdc", "0.5", "--n-pairs", "3"], "metric falls by less than tau without it"),
    ],
)
def test_discover_prunes_by_the_rule_it_is_given(
    tmp_path: Path, options: list[str], rule: str
) -> None:
    result = wiremap("discover", *ASKED, *options, "--no-bound", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert re.search(rf"removed: .*\d+ {rule}", result.stdout)


def test_discover_says_when_the_target_is_out_of_reach(tmp_path: Path) -> None:
    # Its circuits of all sizes stay a little below the model.
    asked = ["--model", "tasks-mini", "--task", "agreement", "--n-pairs", "8", "--budget", "2"]
    target = ["--no-bound", "--target", "0.9999"]
    result = wiremap("discover", *asked, *target, "-o", tmp_path / "run")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()[:2]
    assert first.startswith("target of 0.9999 to 1.0001 not reached: ")
    assert "held-out faithfulness" in first
    assert "give more pairs (--n-pairs)" in second


def test_discover_as_json_is_the_circuit(tmp_path: Path) -> None:
    result = wiremap("discover", *SMALL, "-o", tmp_path / "run", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "run" / "circuit.json").read_text())


def test_discover_quietly_prints_nothing(tmp_path: Path) -> None:
    result = wiremap("discover", *SMALL, "-o", tmp_path / "run", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_discover_without_dot_says_so_and_writes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = wiremap("discover", *SMALL, "-o", tmp_path / "run")
    assert result.exit_code == 0
    assert "note: no svg picture: the dot program of Graphviz is not installed" in result.stderr
    assert (tmp_path / "run" / "circuit.dot").is_file()
    assert not (tmp_path / "run" / "circuit.svg").exists()


def test_discover_on_a_directory_and_a_pairs_file(tmp_path: Path) -> None:
    from wiremap.edges.model.loading import bundled_path

    pairs = tmp_path / "mine.jsonl"
    records = [
        {
            "clean": f"At the farm {a} sat with {b}. Later, with a smile, {b} brought a {thing} to",
            "corrupted": f"At the farm {c} sat with {d}. Later, with a smile, {e} brought a {thing} to",
            "answer": f" {a}",
            "wrong_answer": f" {b}",
        }
        for a, b, c, d, e in [("Mary", "John", "Tom", "Anna", "Max"), ("Tim", "Rose", "Amy", "Ben", "Kate")]
        for thing in ("book", "ring", "map", "coin")
    ]  # fmt: skip
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "run"
    model = bundled_path("ioi-mini")
    asked = ["--model", model, "--pairs", pairs, "--budget", "40", "--no-bound"]
    result = wiremap("discover", *asked, "-o", out)
    assert result.exit_code == 0, result.output
    circuit = read_circuit(out / "circuit.json")
    assert circuit.task["pairs"] == str(pairs)
    # A quarter is held out; the model and the pairs are found again without it.
    assert circuit.task["n_pairs"] == 6
    assert circuit.task["held_out"]["n_pairs"] == 2
    evaluated = wiremap("evaluate", out, "--json")
    assert evaluated.exit_code == 0, evaluated.output
    assert circuit.faithfulness is not None
    again = json.loads(evaluated.stdout)["faithfulness"]
    assert again == pytest.approx(circuit.faithfulness.faithfulness, rel=1e-5)
    assert "among its pairs are" in refused(
        "discover", *asked, "--held-out", pairs, "-o", tmp_path / "other"
    )


def test_resume_finishes_a_run(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.json"}
    assert "already holds a run" in refused("discover", *SMALL, "-o", run)
    result = wiremap("discover", *SMALL, "-o", run, "--resume")
    assert result.exit_code == 0
    assert before == {p.name: p.read_bytes() for p in run.iterdir() if p.name != "run.json"}
    other = [*SMALL, "--direction", "denoising"]
    assert "method.direction was 'noising', now 'denoising'" in refused(
        "discover", *other, "-o", run, "--resume"
    )


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "ioi-mino"], "model 'ioi-mino' is not bundled"),
        (["--task", "chess"], "unknown task 'chess'; built-in tasks: ioi"),
        (["--task", "induction"], "task induction needs 20 words"),
        (["--corruption", "noise"], "unknown corruption 'noise'"),
        (["--direction", "up"], "'up' is not one of 'noising', 'denoising'"),
        (["--gradient", "mean"], "'mean' is not one of 'clean', 'corrupted'"),
        (["--budget", "0"], "expected a budget of at least 1 edge, got 0"),
        (["--budget", "5 minutes"], "expected a number of edges, such as 200, or a time"),
        (["--budget", "0s"], "expected a number of edges, such as 200, or a time"),
        (["--held-out", "1.5"], "expected a share of the pairs to hold out"),
        (["--held-out", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--faithful-to", "truth"], "unknown metric 'truth'"),
        (["--n-pairs", "many"], "'many' is not a valid integer"),
        (["--threshold", "-1"], "expected a threshold >= 0, got -1.0"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--dtype", "int8"], "'int8' is not one of"),
        (["--pairs", "none.jsonl"], "none.jsonl: cannot be read: No such file"),
        (["--pairs", "none.jsonl", "--task", "ioi"], "--task belong to built-in tasks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """What the library refuses, such as a negative threshold, is listed in its own test."""
    out = tmp_path / "run"
    assert message in refused("discover", *arguments, "-o", out)
    assert not out.exists()


def test_a_model_without_a_usual_task_wants_one(tmp_path: Path) -> None:
    tiny.hf_model("gpt2").save_pretrained(tmp_path)
    error = refused("discover", "--model", tmp_path)
    assert "name a built-in one (--task, see: wiremap tasks) or a file" in error


def test_a_task_the_model_does_not_do_is_refused(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    record = {
        "clean": "One morning Mary met John near the river. Then John handed the map to",
        "corrupted": "One morning Tom met Anna near the river. Then Max handed the map to",
        "answer": " John",
        "wrong_answer": " Mary",
    }
    pairs.write_text(json.dumps(record) + "\n")
    out = tmp_path / "run"
    error = refused("discover", "--pairs", pairs, "-o", out)
    assert re.search(r"its mean logit_diff is -\S+ on the clean prompts and", error)
    assert "--allow-weak" in error
    assert not out.exists()
    asked = ("discover", "--pairs", pairs, "--allow-weak", "--no-bound", "-o", out)
    assert wiremap(*asked).exit_code == 0


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused("discover", *SMALL, "-o", tmp_path / "file" / "run")
    assert "cannot make run directory" in error


# ---- score


@pytest.mark.parametrize("what", ["nodes", "edges"])
def test_scores_are_ranked_written_and_verified(tmp_path: Path, what: str) -> None:
    scores = tmp_path / "scores.safetensors"
    asked = ["--n-pairs", "16", "-o", scores]
    result = wiremap("score", what, *asked)
    assert result.exit_code == 0, result.output
    assert f"wiremap verify {scores}" in result.stdout
    assert "exists; replace it (--force)" in refused("score", what, *asked)
    as_json = json.loads(wiremap("score", what, *asked, "--force", "--json").stdout)
    magnitudes = [abs(row["score"]) for row in as_json["scores"]]
    assert magnitudes == sorted(magnitudes, reverse=True)
    assert len(magnitudes) == {"nodes": 68, "edges": 479}[what]
    result = wiremap("verify", scores, "--top-k", "10", "--json")
    assert result.exit_code == 0, result.output
    verified = json.loads(result.stdout)["effects"]
    assert [row["name"] for row in verified] == [r["name"] for r in as_json["scores"][:10]]
    effects = scores.with_suffix(".effects.jsonl")
    assert len(effects.read_text().splitlines()) == 10
    assert "exists; go on with it (--resume)" in refused("verify", scores)
    more = wiremap("verify", scores, "--budget", "15", "--resume")
    assert more.exit_code == 0, more.output
    assert len(effects.read_text().splitlines()) == 15


@pytest.fixture(scope="module")
def equal_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of one length that ioi-mini answers."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    scene = "While {a} and {b} waited at the school, {s} showed a book to"
    records = [
        {
            "clean": scene.format(a=a, b=b, s=b),
            "corrupted": scene.format(a=a, b=b, s=a),
            "answer": f" {a}",
            "wrong_answer": f" {b}",
        }
        for a, b in (("Mary", "John"), ("Rose", "Tim"))
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_kind_of_node_is_scored_and_measured(tmp_path: Path, equal_pairs: Path) -> None:
    for family, positions in (("neurons", "each"), ("residual", "sum"), ("heads", "each")):
        scores = tmp_path / f"{family}.safetensors"
        asked = ["--pairs", equal_pairs, "--nodes", family, "--positions", positions, "-o", scores]
        shown = wiremap("score", "nodes", *asked)
        assert shown.exit_code == 0, shown.output
        assert f"positions {positions}" in shown.stdout
        found = json.loads(wiremap("verify", scores, "--top-k", "2", "--json").stdout)
        names = [row["name"] for row in found["effects"]]
        assert all(("@" in name) == (positions == "each") for name in names)
        assert json.loads(wiremap("validate", scores, "--json").stdout)[0]["nodes"] > 2


def test_the_method_is_the_papers_advice_and_is_said(tmp_path: Path) -> None:
    asked = ["score", "nodes", "--force", "-o", tmp_path / "s.safetensors"]
    one = wiremap(*asked, "--n-pairs", "1").stdout
    assert "method atp-star, gradient graddrop, positions sum" in one
    assert "an unsigned ranking" in one
    many = wiremap(*asked, "--n-pairs", "4").stdout
    assert "method atp-qk, gradient clean" in many
    assert "an unsigned ranking" not in many
    mlps = wiremap(*asked, "--n-pairs", "4", "--nodes", "mlps", "--aggregate", "mean-of-abs").stdout
    assert "method atp, gradient clean, positions sum, ranked by mean-of-abs" in mlps


@pytest.mark.parametrize("method", ["iterative", "subsampling", "blocks", "hierarchical"])
def test_baselines_rank_nodes_too(tmp_path: Path, equal_pairs: Path, method: str) -> None:
    scores = tmp_path / "s.safetensors"
    asked = ["--pairs", equal_pairs, "--nodes", "mlps", "--nodes", "heads", "--method", method]
    result = wiremap("score", "nodes", *asked, "-o", scores)
    assert result.exit_code == 0, result.output
    assert f"method {method}, positions sum" in result.stdout
    assert wiremap("verify", scores, "--top-k", "3", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "atp-star", "--gradient", "both"], "method atp-star means gradient graddrop"),
        (["--method", "blocks", "--gradient", "both"], "--gradient: not for method blocks"),
        (["--samples", "9"], "--samples: not for method atp-qk"),
        (["--steps", "9"], "--steps: goes with --gradient integrated only; leave it out"),
        (["--positions", "each"], "needs prompts of one length"),
        (["--metric", "kl", "--gradient", "clean"], "metric kl is 0 at the clean run"),
    ],
)
def test_node_options_that_contradict_each_other_are_refused(
    tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "s.safetensors"
    assert message in refused("score", "nodes", "--n-pairs", "8", *options, "-o", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("what", "option"),
    [
        ("edges", ("--method", "atp")),
        ("edges", ("--nodes", "heads")),
        ("edges", ("--samples", "9")),
        ("nodes", ("--reader", "exact")),
        ("nodes", ("--candidates", "9")),
        ("nodes", ("--crossing", "9")),
        ("nodes", ("--split", "m1:neurons")),
        ("nodes", ("--importances",)),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_nodes_and_edges_have_options_of_their_own(
    tmp_path: Path, what: str, option: tuple[str, ...]
) -> None:
    error = refused("score", what, *option, "-o", tmp_path / "s.safetensors")
    assert f"No such option '{option[0]}'" in error
    assert list(tmp_path.iterdir()) == []


def test_something_must_be_scored() -> None:
    for asked in (["score"], ["score", "heads"]):
        result = wiremap(*asked)
        assert result.exit_code == 2
        assert "Commands" in result.output or "No such command 'heads'" in result.output


# ---- score edges


def described(scores: Path) -> dict[str, Any]:
    """What a scores file says of its tables."""
    with safetensors.safe_open(scores, framework="pt") as file:
        return json.loads(file.metadata()["wiremap"])


def score_pairs(pairs: Path, scores: Path, *options: str) -> tuple[Result, EdgeScores]:
    """What ``score edges`` says, and writes, of ioi-mini on these pairs."""
    result = wiremap("score", "edges", "--pairs", pairs, *options, "-o", scores)
    assert result.exit_code == 0, result.output
    _, found, _ = read_scores(scores)
    assert found is not None
    return result, found


@pytest.fixture(scope="module")
def ioi_mini() -> Model:
    return Model.load("ioi-mini", "cpu")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model whose query heads share keys and values, and pairs for it."""
    path = tmp_path_factory.mktemp("grouped")
    _save("llama-gqa", path)
    return path


def _save(kind: str, path: Path) -> None:
    tiny.hf_model(kind).save_pretrained(path)
    letters_core().save_pretrained(path)
    record = {"clean": "a b c", "corrupted": "a d c", "answer": " e", "wrong_answer": " f"}
    (path / "pairs.jsonl").write_text(json.dumps(record) + "\n")


def of_directory(path: Path, *options: str | Path) -> list[str | Path]:
    """The arguments of ``score edges`` for that model and its pairs."""
    return [
        "score", "edges", "--model", path, "--pairs", path / "pairs.jsonl", "--allow-weak", *options,
    ]  # fmt: skip


def test_edges_are_scored_by_integrated_gradients_and_drawn(
    tmp_path: Path, equal_pairs: Path
) -> None:
    scores = tmp_path / "s.safetensors"
    result, found = score_pairs(equal_pairs, scores)
    assert "gradient integrated, reader linear, positions sum, ranked by sum" in result.stdout
    assert (found.gradient, found.reader, found.exact) == ("integrated", "linear", None)
    picture = scores.with_suffix(".svg")
    assert "ioi-mini: 479 edges" in picture.read_text()
    assert f"heat map: {picture}" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"s.safetensors", "s.svg"}
    as_json = wiremap("score", "edges", "--pairs", equal_pairs, "--force", "--json", "-o", scores)
    said = json.loads(as_json.stdout)
    assert said["files"] == {"scores": str(scores), "heat map": str(picture)}
    assert [(row["name"], row["score"]) for row in said["scores"]] == found.top()


def test_kl_takes_the_gradient_at_the_corrupted_run(tmp_path: Path, equal_pairs: Path) -> None:
    result, _ = score_pairs(
        equal_pairs, tmp_path / "s.safetensors", "--metric", "kl", "--allow-weak"
    )
    assert "gradient corrupted" in result.stdout
    asked = ["--pairs", equal_pairs, "--metric", "kl", "--allow-weak", "--gradient", "relevance"]
    assert "kl is 0 at the clean run" in refused("score", "edges", *asked)


def test_every_rule_and_reader_is_that_of_the_library(
    tmp_path: Path, equal_pairs: Path, ioi_mini: Model
) -> None:
    options = [
        "--gradient", "integrated", "--steps", "3", "--schedule", "left", "--reader", "exact",
        "--candidates", "50",
    ]  # fmt: skip
    scores = tmp_path / "s.safetensors"
    result, found = score_pairs(equal_pairs, scores, *options)
    assert (
        "gradient integrated, reader exact, the best 50 by the linear one, positions sum, ranked by "
        "sum"
    ) in result.stdout
    method = described(scores)["question"]["method"]
    asked = {"gradient": "integrated", "steps": 3, "schedule": "left"}
    exact = {"reader": "exact", "candidates": 50}
    assert method.items() >= {**asked, **exact, "positions": "sum", "aggregate": "sum"}.items()
    assert found.exact is not None
    assert int(found.exact.sum()) == 50
    pairs = PromptPairs.read(equal_pairs, ioi_mini)
    expected = score_edges(
        ioi_mini, pairs, gradient="integrated", steps=3, schedule="left", reader="exact",
        candidates=50,
    )  # fmt: skip
    torch.testing.assert_close(found.scores, expected.scores, equal_nan=True)
    assert expected.exact is not None
    assert torch.equal(found.exact, expected.exact)


def test_verify_follows_the_aggregate_that_ranked(tmp_path: Path, grouped: Path) -> None:
    orders: list[list[str]] = []
    for aggregate in ("sum", "sum-of-abs"):
        scores = tmp_path / f"{aggregate}.safetensors"
        options = ["--positions", "each", "--aggregate", aggregate, "-o", scores]
        result = wiremap(*of_directory(grouped, *options))
        assert result.exit_code == 0, result.output
        assert f"positions each, ranked by {aggregate}" in result.stdout
        assert "edges by position" in result.stdout
        _, found, _ = read_scores(scores)
        assert found is not None
        assert found.positions == ("0", "1", "2", "3")
        assert found.top_by_position(1)[0][0] in result.stdout
        best = found.top(8, aggregate=aggregate)
        verified = wiremap("verify", scores, "--top-k", "8", "--json")
        said = json.loads(verified.stdout)["effects"]
        assert [(row["name"], row["score"]) for row in said] == best
        orders.append([name for name, _ in best])
    assert orders[0] != orders[1]


def test_named_spans_of_the_pairs_are_scored(
    tmp_path: Path, equal_pairs: Path, ioi_mini: Model
) -> None:
    pairs = tmp_path / "spans.jsonl"
    records = [json.loads(line) for line in equal_pairs.read_text().splitlines()]
    spans = [{"names": [1, 4], "end": 13}, {"end": 13, "names": [2, 5]}]
    rows = [{**record, "spans": one} for record, one in zip(records, spans, strict=True)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, found = score_pairs(pairs, tmp_path / "s.safetensors", "--positions", "spans")
    assert found.positions == ("outside", "names", "end")
    expected = score_edges(ioi_mini, PromptPairs.read(pairs, ioi_mini), positions="spans")
    torch.testing.assert_close(found.by_position, expected.by_position, equal_nan=True)
    assert re.search(r"-> *\S+ @(names|end|outside)", result.stdout)
    asked = ["score", "edges", "--pairs", equal_pairs, "--positions", "spans"]
    assert "expected spans for every pair, row 1 has none" in refused(
        *asked, "-o", tmp_path / "none.safetensors"
    )


def test_the_best_keys_and_values_are_split_by_query(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    result, found = score_pairs(equal_pairs, scores, "--crossing", "3")
    best = [name for name, _ in found.top() if name.endswith(("<k>", "<v>"))][:3]
    assert described(scores)["crossings"] == best
    assert "edges from key to query position" in result.stdout
    assert re.search(rf"{re.escape(best[0])} @\d+ to @\d+", result.stdout)
    crossings = load_file(scores)["crossings"]
    assert crossings.shape == (3, 15, 15)
    assert not crossings.triu(1).any()
    assert wiremap("verify", scores, "--top-k", "2", "--quiet").exit_code == 0


def test_an_mlp_is_split_into_neurons(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    result, found = score_pairs(equal_pairs, scores, "--split", "m1:neurons")
    assert "edges of the parts of m1" in result.stdout
    assert re.search(r"m1\.n\d+", result.stdout)
    tables = load_file(scores)
    neurons = described(scores)["splits"]["m1"]
    assert neurons == [f"m1.n{neuron}" for neuron in range(128)]
    after = found.graph.mlp_reader(1) + 1
    torch.testing.assert_close(
        tables["m1_outgoing"][:, after:].sum(0),
        found.scores[found.graph.mlp_writer(1), after:],
        rtol=1e-4,
        atol=1e-5,
    )
    assert tables["m1_incoming"].shape == (len(found.graph.writers), 128)


def test_all_mixtures_are_split_into_experts(tmp_path: Path) -> None:
    _save("qwen2-moe", tmp_path)
    scores = tmp_path / "s.safetensors"
    result = wiremap(*of_directory(tmp_path, "--experts", "--split", "m1:experts", "-o", scores))
    assert result.exit_code == 0, result.output
    assert "gradient integrated" in result.stdout
    assert set(described(scores)["splits"]) == {"m0", "m1"}
    for layer in (0, 1):
        assert result.stdout.count(f"edges of the parts of m{layer}") == 1
    error = refused(*of_directory(tmp_path, "--gradient", "relevance", "-o", tmp_path / "none"))
    assert "gradient relevance has no rule for the mixture of experts" in error


def test_importances_are_written_for_eap_ig(tmp_path: Path, equal_pairs: Path) -> None:
    result, found = score_pairs(equal_pairs, tmp_path / "s.safetensors", "--importances")
    file = tmp_path / "s.importances.json"
    assert f"importances: {file}" in result.stdout
    written = json.loads(file.read_text())
    scores = {name: edge["score"] for name, edge in written["edges"].items()}
    assert scores == dict(found.top())
    assert written["cfg"] == {
        "n_layers": 4, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 64,
    }  # fmt: skip


def test_keys_shared_by_heads_may_be_read_one_by_one(tmp_path: Path, grouped: Path) -> None:
    scores = tmp_path / "s.safetensors"
    refusal = refused(*of_directory(grouped, "--importances", "-o", scores))
    assert (
        "4 query heads share 2 of them. Score with one reader for each: --kv per-query" in refusal
    )
    assert list(tmp_path.iterdir()) == []
    asked = of_directory(grouped, "--importances", "--kv", "per-query", "-o", scores)
    result = wiremap(*asked)
    assert result.exit_code == 0, result.output
    assert described(scores)["shape"]["n_kv_heads"] == 4
    written = json.loads((tmp_path / "s.importances.json").read_text())
    assert "a0.h1->a1.h3<k>" in written["edges"]
    as_grouped = tmp_path / "grouped.safetensors"
    assert wiremap(*of_directory(grouped, "-o", as_grouped)).exit_code == 0
    assert described(as_grouped)["shape"]["n_kv_heads"] == 2
    verified = wiremap("verify", scores, "--top-k", "3", "--json")
    assert verified.exit_code == 0, verified.output
    assert len(json.loads(verified.stdout)["effects"]) == 3


def test_little_memory_changes_nothing(tmp_path: Path, equal_pairs: Path) -> None:
    options = [
        "--crossing",
        "1",
        "--split",
        "m0:neurons",
        "--reader",
        "exact",
        "--candidates",
        "20",
    ]
    tables: list[dict[str, torch.Tensor]] = []
    for limit in ("1", "0.001"):
        scores = tmp_path / f"{limit}.safetensors"
        score_pairs(equal_pairs, scores, *options, "--memory-limit", limit)
        tables.append(load_file(scores))
    assert set(tables[0]) == {
        "edge_scores", "edge_scores_exact", "crossings", "m0_outgoing", "m0_incoming",
    }  # fmt: skip
    for name, table in tables[0].items():
        torch.testing.assert_close(tables[1][name], table, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".svg", ".importances.json"])
def test_files_that_exist_are_kept_unless_forced(
    tmp_path: Path, equal_pairs: Path, suffix: str
) -> None:
    scores = tmp_path / "s.safetensors"
    there = scores.with_suffix(suffix)
    there.write_text("precious")
    asked = ["score", "edges", "--pairs", equal_pairs, "--importances", "-o", scores]
    error = refused(*asked)
    assert f"{there} exists; replace it (--force), or choose another file (-o)" in error
    assert there.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [there]
    assert wiremap(*asked, "--force", "--quiet").output == ""
    assert {path.name for path in tmp_path.iterdir()} == {
        "s.safetensors", "s.svg", "s.importances.json",
    }  # fmt: skip
    assert there.read_bytes() != b"precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--steps", "3", "--gradient", "clean"],
            "--steps: goes with --gradient integrated only; leave it out",
        ),
        (
            ["--schedule", "left", "--gradient", "clean"],
            "--schedule: goes with --gradient integrated only",
        ),
        (
            ["--split", "a0.h1:neurons"],
            "expected an MLP to split, m0 to m3, got 'a0.h1'; write --split m0:neurons",
        ),
        (["--split", "m1:experts"], "m1 of model ioi-mini has neurons, got 'm1:experts'; write"),
        (["--experts"], "model ioi-mini has no mixture of experts; leave --experts out"),
        (["--candidates", "9"], "candidates are for the exact reader (--reader exact"),
        (
            ["--reader", "exact", "--candidates", "480"],
            "expected between 1 and 479 candidates, the edges of the model, got 480; leave them out",
        ),
        (["--aggregate", "sum-of-abs"], "sum-of-abs needs scores by position (--positions each"),
        (["--gradient", "graddrop", "--crossing", "2"], "--crossing need signed scores"),
        (["--gradient", "graddrop", "--split", "m0:neurons"], "use another gradient (--gradient"),
        (["--memory-limit", "0"], "0.0 is not in the range x>0"),
        (["--reader", "exactly"], "'exactly' is not one of 'linear', 'exact', 'exact-attention'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_edge_options_that_contradict_each_other_are_refused(
    tmp_path: Path, equal_pairs: Path, options: list[str], message: str
) -> None:
    asked = ["score", "edges", "--pairs", equal_pairs, "-o", tmp_path / "s.safetensors"]
    assert message in refused(*asked, *options)
    assert list(tmp_path.iterdir()) == []


def test_positions_need_prompts_of_one_length(tmp_path: Path) -> None:
    asked = ["score", "edges", "--n-pairs", "8", "-o", tmp_path / "s.safetensors"]
    for options in (["--positions", "each"], ["--crossing", "1"]):
        assert "needs prompts of one length, got lengths" in refused(*asked, *options)
    assert list(tmp_path.iterdir()) == []


def test_discover_ranks_by_the_rules_it_is_given(tmp_path: Path, equal_pairs: Path) -> None:
    out = tmp_path / "run"
    asked = ["discover", "--pairs", equal_pairs, "--budget", "10", "--no-bound", "-o", out]
    options = ["--gradient", "integrated", "--steps", "2", "--reader", "exact"]
    result = wiremap(*asked, *options)
    assert result.exit_code == 0, result.output
    _, found, question = read_scores(out / "scores.safetensors")
    assert found is not None
    assert (found.gradient, found.reader) == ("integrated", "exact")
    rules = {"gradient": "integrated", "steps": 2, "schedule": "midpoint", "reader": "exact"}
    for method in (question["method"], read_circuit(out / "circuit.json").method):
        assert method.items() >= rules.items()
    error = refused(*asked, *options[:-2], "--resume")
    assert "method.reader was 'exact', now 'linear'" in error


# ---- verify


def test_values_of_other_sources_are_patched_in(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    wiremap("score", "nodes", "--pairs", equal_pairs, "--nodes", "mlps", "-o", scores)
    found: list[float] = []
    for source in ("corrupted", "mean", "mean-by-position", "zero", "noise"):
        out = tmp_path / f"{source}.jsonl"
        asked = ["--top-k", "1", "--patch-with", source, "-o", out, "--json"]
        result = wiremap("verify", scores, *asked)
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout)["effects"][0]["effect"])
        error = refused("verify", scores, "--resume", "-o", tmp_path / "corrupted.jsonl", "--top-k", "1",
                        "--patch-with", "zero")  # fmt: skip
        assert "measured with another patch_with; ask the same again" in error
    assert len(set(found)) == len(found)


def test_options_of_a_source_need_that_source(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    wiremap("score", "nodes", "--pairs", equal_pairs, "--nodes", "mlps", "-o", scores)
    asked = ["verify", scores, "--patch-with", "zero"]
    assert "--noise-seeds goes with --patch-with noise" in refused(*asked, "--noise-seeds", "3")
    assert "--mean-over goes with" in refused(*asked, "--mean-over", equal_pairs)
    edges = tmp_path / "e.safetensors"
    wiremap("score", "edges", "--pairs", equal_pairs, "-o", edges)
    assert "edges are patched with" in refused("verify", edges, "--patch-with", "zero")


def test_what_was_not_measured_is_bounded(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    wiremap("score", "nodes", "--pairs", equal_pairs, "--nodes", "heads", "-o", scores)
    asked = ["verify", scores, "--top-k", "20", "--samples", "300", "--probability", "0.1"]
    shown = wiremap(*asked, "--bound", "-o", tmp_path / "a.jsonl")
    assert shown.exit_code == 0, shown.output
    assert "With 99 % confidence no unverified node" in shown.stdout
    found = json.loads(wiremap(*asked, "--bound", "-o", tmp_path / "b.jsonl", "--json").stdout)
    assert found["bound"]["largest"] > 0
    for options, message in (
        (["--confidence", "1.5"], "expected a confidence above 0 and below 1"),
        (["--samples", "2"], "samples"),
        (["--patch-with", "zero"], "--bound patches with the pairs' other runs"),
    ):
        assert message in refused(*asked, "--bound", *options, "-o", tmp_path / "c.jsonl")
        assert not (tmp_path / "c.jsonl").exists()
    everything = ["verify", scores, "--top-k", "64", "--bound", "-o", tmp_path / "d.jsonl"]
    assert "--bound bounds what is not measured" in refused(*everything)


def test_a_budget_beyond_all_there_are_is_refused(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    wiremap("score", "nodes", "--pairs", equal_pairs, "--nodes", "mlps", "-o", scores)
    assert "expected a budget of at most 4, all there are, got 5" in refused(
        "verify", scores, "--top-k", "5"
    )


def test_the_scores_of_a_run_are_verified_too(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "effects.jsonl"
    result = wiremap("verify", run, "--budget", str(BUDGET), "-o", out)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == (run / "effects.jsonl").read_bytes()


def test_other_files_are_no_scores(tmp_path: Path) -> None:
    assert "cannot be read as scores" in refused("verify", tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    assert "cannot be read as scores" in refused("verify", tmp_path / "text.safetensors")
    tiny.hf_model("gpt2").save_pretrained(tmp_path)
    error = refused("verify", tmp_path / "model.safetensors")
    assert "expected scores written by wiremap, got another safetensors file" in error


# ---- evaluate and export


def test_evaluate_repeats_what_discover_said(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = wiremap("evaluate", run, "--json", "-o", out)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    said = json.loads((run / "faithfulness.json").read_text())
    assert found["faithfulness"] == pytest.approx(said["faithfulness"], rel=1e-5)
    assert json.loads(out.read_text()) == found


def test_evaluate_on_held_out_pairs(run: Path) -> None:
    result = wiremap("evaluate", run / "circuit.json", "--task", "ioi", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert "(8 pairs)" in result.stdout  # as many as it was found on


def test_evaluate_refuses_another_shape(run: Path) -> None:
    error = refused("evaluate", run, "--model", "tasks-mini", "--task", "induction")
    assert "choose a model of the same shape" in error


def test_a_changed_pairs_file_is_noticed(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "run"
    records = [
        {
            "clean": f"One morning {a} met {b} near the river. Then {b} handed the map to",
            "corrupted": f"One morning {c} met {d} near the river. Then {e} handed the map to",
            "answer": f" {a}",
            "wrong_answer": f" {b}",
        }
        for a, b, c, d, e in [("Mary", "John", "Tom", "Anna", "Max"), ("Tim", "Rose", "Amy", "Ben", "Kate")]
    ]  # fmt: skip
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = ("discover", "--pairs", pairs, "-o", out, "--budget", "5", "--allow-weak", "--no-bound")
    assert wiremap(*asked).exit_code == 0
    pairs.write_text(json.dumps(records[0]) + "\n")
    assert "the prompt pairs changed since this result was made" in refused("evaluate", out)
    pairs.unlink()
    assert "cannot be read" in refused("evaluate", out)


@pytest.mark.parametrize("format", FORMATS)
def test_export_writes_every_format(run: Path, tmp_path: Path, format: str) -> None:
    if format in ("svg", "png", "pdf") and shutil.which("dot") is None:
        pytest.skip("needs the dot program of Graphviz")
    out = tmp_path / "circuit"
    result = wiremap("export", run / "circuit.json", "--to", format, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"written to {out}\n"
    loses = FORMATS[format].loses
    assert result.stderr == (f"note: {format} loses {loses}\n" if loses else "")
    written = out.read_bytes()
    beside = run / f"circuit{FORMATS[format].extension}"
    assert not beside.exists() or format in ("png", "pdf") or beside.read_bytes() == written
    out.write_text("kept")
    assert "replace it (--force)" in refused("export", run, "--to", format, "-o", out)
    assert out.read_text() == "kept"
    assert wiremap("export", run, "--to", format, "-o", out, "--force", "--quiet").output == ""
    assert out.read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["circuit"]
    assert f" {format}" in wiremap("export", "--help").stdout


def test_export_reads_what_it_wrote(run: Path, tmp_path: Path) -> None:
    """Through three formats and back: the same bytes; files stand beside each other."""
    shutil.copy(run / "circuit.json", tmp_path / "a.json")
    for before, format in (
        ("a.json", "node-link"),
        ("a.node-link.json", "gexf"),
        ("a.gexf", "json"),
    ):
        options = (
            ("--force",) if format == "json" else ("--qkv", "nodes") if format == "gexf" else ()
        )
        result = wiremap("export", tmp_path / before, "--to", format, *options)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a.json").read_bytes() == (run / "circuit.json").read_bytes()
    for name in ("a.node-link.json", "a.gexf"):
        found = json.loads(wiremap("validate", tmp_path / name, "--json").stdout)
        assert found[0]["edges"] == len(read_circuit(run / "circuit.json").edges)


def test_export_says_how_much_a_diagram_shows(run: Path, tmp_path: Path) -> None:
    n_edges = len(read_circuit(run / "circuit.json").edges)
    result = wiremap("export", run, "--to", "dot", "--top", "3", "-o", tmp_path / "top.dot")
    assert f"note: the diagram has the 3 largest of {n_edges} edges (--top)" in result.stderr
    assert (tmp_path / "top.dot").read_text().count(" id=") == 3
    shape = ModelGraph(12, 12, 12)
    edges = [CircuitEdge(writer.name, "logits", score=1.0) for writer in shape.writers]
    edges += [CircuitEdge(w.name, "m11", score=1.0) for w in shape.writers[:-1]]
    edges += [CircuitEdge("input", f"m{layer}", score=1.0) for layer in range(10)]
    write_circuit(Circuit.build(shape, edges), tmp_path / "many.json")
    result = wiremap("export", tmp_path / "many.json", "--to", "mermaid", "--top", "400")
    assert "note: diagrams of more than 300 edges are hard to read" in result.stderr


def test_export_draws_groups(run: Path, tmp_path: Path) -> None:
    roles = tmp_path / "roles.yaml"
    roles.write_text("ends: [input, logits]\n")
    out = tmp_path / "circuit.dot"
    asked = ("export", run, "--to", "dot", "--group", roles, "-o", out, "--force")
    assert wiremap(*asked).exit_code == 0
    assert "label=ends" in out.read_text()
    assert wiremap(*asked, "--collapse", "groups").exit_code == 0
    assert "<B>ends</B>" in out.read_text()
    assert "give one of the two" in refused(*asked, "--collapse", "layers", "--qkv", "nodes")
    page = tmp_path / "circuit.html"
    assert wiremap("export", run, "--to", "html", "--group", roles, "-o", page).exit_code == 0
    assert 'data-name="ends"' in page.read_text()
    roles.write_text("movers: [a99.h0]")
    assert "'a99.h0' is no node of this model" in refused(*asked)


def test_export_refuses_unknown_formats(run: Path, tmp_path: Path) -> None:
    assert "unknown format 'xlsx'; there are json, dot" in refused("export", run, "--to", "xlsx")
    error = refused("export", run, "--to", "json", "--qkv", "merge", "-o", tmp_path / "a.json")
    assert "json has no choice of qkv" in error
    error = refused("export", run, "--to", "gexf", "-o", tmp_path / "none" / "a.gexf")
    assert "No such file or directory" in error


# ---- what there is


def test_validate_knows_every_data_file(run: Path) -> None:
    result = wiremap("validate", run, "--json")
    assert result.exit_code == 0, result.output
    found = {Path(row["file"]).name: row for row in json.loads(result.stdout)}
    circuit = read_circuit(run / "circuit.json")
    assert found["circuit.json"]["edges"] == len(circuit.edges)
    assert found["effects.jsonl"]["effects"] == BUDGET
    assert found["scores.safetensors"]["edges"] == 479
    assert found["circuit.graphml"]["format"] == "graphml"
    assert found["run.json"]["stages"] == 6
    assert found["losses.jsonl"]["losses"] == len(circuit.edges)
    assert "valid circuit" in wiremap("validate", run / "circuit.json").stdout


def test_validate_counts_the_circuits_of_a_search(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert wiremap("discover", *ASKED, "--no-bound", "--quiet", "-o", out).exit_code == 0
    search = out / "search.jsonl"
    n_circuits = len(search.read_bytes().splitlines())
    assert f"{search}: valid search, {n_circuits} circuits" in wiremap("validate", out).stdout
    search.write_text('{"how": "pruned"}\n')
    assert "search.jsonl, line 1: expected a circuit of a search" in refused("validate", out)


def test_validate_refuses_what_is_wrong(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "circuit.json"
    broken.write_text((run / "circuit.json").read_text().replace("input->", "inputs->", 1))
    assert "edges[0].id: expected" in refused("validate", broken)
    error = refused("validate", run / "circuit.dot")
    assert "got Graphviz DOT, which is not read back; read the circuit.json it was" in error
    assert "it has no run.json" in refused("validate", tmp_path)


def test_the_schema_is_a_schema_and_fits(run: Path) -> None:
    schema: dict[str, Any] = json.loads(wiremap("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((run / "circuit.json").read_text()), schema)


def test_tasks_models_and_info() -> None:
    tasks = json.loads(wiremap("tasks", "--json").stdout)
    assert tasks[0]["name"] == "ioi"
    counted = json.loads(wiremap("tasks", "--model", "ioi-mini", "--json").stdout)
    assert counted[0]["words"]["name"] == {"used": 64, "rejected": 0}
    years = json.loads(wiremap("tasks", "--model", "tasks-mini", "--json").stdout)[1]
    assert years["notes"] == {"compared": "last two digits"}
    assert "compared: last two digits" in wiremap("tasks", "--model", "tasks-mini").stdout
    models = {model["model"]: model for model in json.loads(wiremap("models", "--json").stdout)}
    assert {"ioi-mini", "tasks-mini"} <= set(models)
    for model in models.values():
        assert min(model["held_out_accuracy"].values()) >= 0.99
    assert json.loads(wiremap("info", "--json").stdout)["wiremap"] == version("wiremap")
    for command in ("tasks", "models", "info"):
        assert wiremap(command).exit_code == 0
        assert wiremap(command, "--quiet").output == ""


def test_help_names_every_command() -> None:
    text = wiremap("--help").stdout
    for command in ("discover", "score", "verify", "evaluate", "export", "validate", "tasks"):
        assert command in text
        assert wiremap(command, "--help").exit_code == 0
    assert version("wiremap") in wiremap("--version").stdout
