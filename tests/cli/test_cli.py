"""The command, from outside: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tiny
from click.testing import CliRunner, Result

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.cli import main
from wiremap.edges import ModelGraph
from wiremap.exporters import FORMATS, read_circuit, write_circuit

has_dot = shutil.which("dot") is not None

SMALL = ["--model", "ioi-mini", "--task", "ioi", "--n-pairs", "16", "--budget", "60"]


def wiremap(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The error of a command that must exit with 2 and print nothing else."""
    result = wiremap(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


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
    result = wiremap("discover", *SMALL, "-o", out)
    assert result.exit_code == 0
    names = {path.name for path in out.iterdir()}
    pictures = {"circuit.svg"} if has_dot else set[str]()
    assert names == pictures | {
        "run.json", "scores.safetensors", "effects.jsonl", "circuit.json", "faithfulness.json",
        "circuit.dot", "circuit.graphml",
    }  # fmt: skip
    circuit = read_circuit(out / "circuit.json")
    assert circuit.faithfulness is not None
    assert f"faithfulness {circuit.faithfulness.faithfulness:.3f}" in result.stdout
    largest = max(circuit.edges, key=lambda edge: abs(edge.effect or 0))
    assert re.search(
        rf"{re.escape(largest.name)} +{re.escape(f'{largest.effect:+.3f}')}", result.stdout
    )
    assert str(out) in result.stdout
    assert result.stderr == "" or not has_dot


def test_discover_says_when_the_target_is_out_of_reach(tmp_path: Path) -> None:
    result = wiremap("discover", *SMALL, "--budget", "2", "-o", tmp_path / "run")
    assert result.exit_code == 0
    assert "the 2 verified edges (of 479) do not reach a faithfulness of 0.9" in result.stderr


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
    from wiremap.edges.loading import bundled_path

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
    result = wiremap("discover", "--model", model, "--pairs", pairs, "-o", out, "--budget", "40")
    assert result.exit_code == 0, result.output
    circuit = read_circuit(out / "circuit.json")
    assert circuit.task["pairs"] == str(pairs)
    assert circuit.task["n_pairs"] == 8


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


def test_control_c_keeps_what_there_is_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "wiremap.cli", "discover", "--budget", "400", "-o", str(out)]
    # Tests run in the background ignore Ctrl-C, and their children would inherit that.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    effects = out / "effects.jsonl"
    deadline = time.monotonic() + 120
    while not (effects.exists() and effects.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"what was measured is kept in {out}: the same command with --resume goes on" in stderr
    assert "Traceback" not in stderr
    assert effects.stat().st_size
    assert not (out / "circuit.json").exists()


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "ioi-mino"], "model 'ioi-mino' is not bundled"),
        (["--task", "chess"], "unknown task 'chess'; built-in tasks: ioi"),
        (["--task", "induction"], "task induction needs 20 words"),
        (["--corruption", "noise"], "unknown corruption 'noise'"),
        (["--metric", "loss"], "unknown metric 'loss'; there are logit_diff"),
        (["--direction", "up"], "'up' is not one of 'noising', 'denoising'"),
        (["--gradient", "mean"], "'mean' is not one of 'clean', 'corrupted'"),
        (["--budget", "0"], "0 is not in the range x>=1"),
        (["--n-pairs", "many"], "'many' is not a valid integer"),
        (["--threshold", "-1"], "expected a threshold >= 0, got -1.0"),
        (["--threshold", "nan"], "expected a threshold >= 0, got nan"),
        (["--threshold", "1", "--size", "5"], "one rule to keep edges by, got threshold and size"),
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
    out = tmp_path / "run"
    assert message in " ".join(refused("discover", *arguments, "-o", out).split())
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
    assert wiremap("discover", "--pairs", pairs, "-o", out, "--allow-weak").exit_code == 0


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused("discover", *SMALL, "-o", tmp_path / "file" / "run")
    assert "cannot make run directory" in error


# ---- score and verify


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
        (["--steps", "9"], "--steps: not for method atp-qk with this gradient"),
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


def test_options_of_nodes_are_refused_for_edges(tmp_path: Path) -> None:
    asked = ["--method", "atp", "-o", tmp_path / "s.safetensors"]
    assert "--method: for scores of nodes" in refused("score", "edges", *asked)


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
        assert "measured for question" in error
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
    assert "nothing to bound" in refused(*everything)


def test_a_budget_beyond_all_there_are_is_refused(tmp_path: Path, equal_pairs: Path) -> None:
    scores = tmp_path / "s.safetensors"
    wiremap("score", "nodes", "--pairs", equal_pairs, "--nodes", "mlps", "-o", scores)
    assert "expected a budget of at most 4, all there are, got 5" in refused(
        "verify", scores, "--top-k", "5"
    )


def test_the_scores_of_a_run_are_verified_too(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "effects.jsonl"
    result = wiremap("verify", run, "--budget", "60", "-o", out)
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
    assert "(64 pairs)" in result.stdout
    assert "name the task too" in refused("evaluate", run, "--seed", "7")


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
    asked = ("discover", "--pairs", pairs, "-o", out, "--budget", "5", "--allow-weak")
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
    assert found["effects.jsonl"]["effects"] == 60
    assert found["scores.safetensors"]["edges"] == 479
    assert found["circuit.graphml"]["format"] == "graphml"
    assert found["run.json"]["stages"] == 3
    assert "valid circuit" in wiremap("validate", run / "circuit.json").stdout


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
