"""The whole line on tiny models: right, refused with reasons, and resumed after kill -9."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import tiny
import torch
from killing import discover_until, start
from safetensors.torch import save_file

from wiremap.circuits import Circuit, discover, evaluate, load_task
from wiremap.circuits.evidence.gap import measure_gap
from wiremap.circuits.record.effects_file import read_effects
from wiremap.circuits.record.run_directory import read_run
from wiremap.circuits.record.scores_file import read_scores, write_scores
from wiremap.circuits.result.document import from_document, loads
from wiremap.edges import InputError, Model, ModelGraph, PromptPairs, patch_edges, score_edges
from wiremap.edges.scores.crossing import score_crossings
from wiremap.edges.scores.refinement import score_split

FILES = ("scores.safetensors", "effects.jsonl", "circuit.json", "faithfulness.json")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("gpt2")


@pytest.fixture(scope="module")
def task(model: Model) -> PromptPairs:
    return tiny.able(model, tiny.pairs(6))


@pytest.fixture(scope="module")
def run(
    model: Model, task: PromptPairs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Circuit]:
    """An unbroken run and its circuit."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    return out, discover(model, task, out, budget=150, size=120)


def test_the_circuit_is_what_its_parts_say(
    model: Model, task: PromptPairs, run: tuple[Path, Circuit]
) -> None:
    out, circuit = run
    scores = dict(score_edges(model, task).top())
    names = [edge.name for edge in circuit.edges]
    exact = patch_edges(model, task, names)
    assert names
    verified = read_effects(out / "effects.jsonl")
    assert set(names) <= {item.name for item in verified}
    removed = circuit.evidence.removed
    assert removed is not None
    assert removed["beyond size"] == model.graph.n_edges - 120
    assert sum(removed.values()) + len(names) == model.graph.n_edges
    for edge, effect in zip(circuit.edges, exact.mean().tolist(), strict=True):
        assert edge.score == pytest.approx(scores[edge.name], rel=1e-5)
        assert edge.effect == pytest.approx(effect, rel=1e-3, abs=1e-4)
    found = evaluate(model, task, names)
    assert circuit.faithfulness is not None
    assert found.faithfulness == pytest.approx(circuit.faithfulness.faithfulness, rel=1e-5)


def test_names_of_edges_are_parsed_where_they_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = Model.load("ioi-mini")
    pairs = load_task("ioi", bundled, 4)
    n_parsed = 0

    def counting(parse: Callable[[ModelGraph, str], Any]) -> Callable[[ModelGraph, str], Any]:
        def parsed(graph: ModelGraph, name: str) -> Any:
            nonlocal n_parsed
            n_parsed += 1
            return parse(graph, name)

        return parsed

    for parser in ("edge", "path"):
        monkeypatch.setattr(ModelGraph, parser, counting(getattr(ModelGraph, parser)))
    discover(bundled, pairs)
    assert bundled.graph.n_edges == 479
    # The 200 verified, twice as paths, and as candidates; the circuit's own.
    assert n_parsed < 1000


def test_the_best_scores_are_verified_in_their_order(
    model: Model, task: PromptPairs, run: tuple[Path, Circuit]
) -> None:
    out, _ = run
    ranked = [name for name, _ in score_edges(model, task).top(150)]
    assert [item.name for item in read_effects(out / "effects.jsonl")] == ranked


def test_the_run_directory_says_what_was_asked_and_found(
    model: Model, task: PromptPairs, run: tuple[Path, Circuit]
) -> None:
    out, circuit = run
    assert from_document(loads((out / "circuit.json").read_text())) == circuit
    record = read_run(out / "run.json")
    assert record["question"]["model"]["sha256"] == model.fingerprint()
    assert record["question"]["task"]["sha256"] == task.fingerprint()
    assert set(record["stages"]) == {
        "score", "verify", "prune", "weigh", "missed", "evidence"
    }  # fmt: skip
    nodes, edges, question = read_scores(out / "scores.safetensors")
    assert nodes is not None
    assert edges is not None
    assert question == record["question"]
    torch.testing.assert_close(edges.scores, score_edges(model, task).scores, equal_nan=True)
    assert not list(out.glob(".*"))


def test_all_edges_at_threshold_zero_are_the_model(model: Model, task: PromptPairs) -> None:
    circuit = discover(model, task, budget=model.graph.n_edges, threshold=0.0)
    assert len(circuit.edges) == model.graph.n_edges
    assert circuit.faithfulness is not None
    assert circuit.faithfulness.faithfulness == pytest.approx(1, abs=1e-4)


def test_a_size_may_reach_beyond_what_was_verified(model: Model, task: PromptPairs) -> None:
    circuit = discover(model, task, budget=5, size=60, bound=False)
    removed = circuit.evidence.removed
    assert removed is not None
    assert removed["beyond size"] == model.graph.n_edges - 60
    assert len(circuit.edges) + removed.get("on no path from input to logits", 0) == 60
    assert sum(edge.verified for edge in circuit.edges) <= 5
    assert any(not edge.verified for edge in circuit.edges)


@pytest.mark.filterwarnings("ignore::wiremap.edges.WiremapWarning")  # of empty circuits
@pytest.mark.parametrize(
    "rule",
    [
        {"alpha": 0.05},
        {"alpha": 0.2, "threshold": 0.1},
        {"size": 30, "prune": "greedy"},
        {"acdc": 1.0},
        {"target": 0.5},
    ],
    ids=str,
)
def test_every_rule_goes_through_and_resumes(
    model: Model, task: PromptPairs, tmp_path: Path, rule: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    options: dict[str, Any] = {"budget": 40, "bound": False}
    circuit = discover(model, task, out, **options, **rule)
    assert circuit.method.items() >= rule.items()
    removed = circuit.evidence.removed
    assert removed is not None
    assert len(circuit.edges) + sum(removed.values()) == model.graph.n_edges
    before = (out / "circuit.json").read_bytes()
    assert discover(model, task, out, **options, resume=True, **rule) == circuit
    assert (out / "circuit.json").read_bytes() == before
    assert from_document(loads(before.decode())) == circuit
    with pytest.raises(InputError, match=rf"method\.{next(iter(rule))} was "):
        discover(model, task, out, **options, resume=True, threshold=9.0)


def test_significance_needs_two_pairs(model: Model, task: PromptPairs, tmp_path: Path) -> None:
    one = tiny.one_pair(task, 0)
    with pytest.raises(InputError, match="needs at least 2 pairs for a t test, got 1"):
        discover(model, one, tmp_path / "run", alpha=0.05, allow_weak=True)
    assert not (tmp_path / "run").exists()


def test_grouped_queries_go_through(tmp_path: Path) -> None:
    model = tiny.model("llama-gqa")
    circuit = discover(
        model, tiny.able(model, tiny.pairs(4)), tmp_path / "run", budget=120, bound=False
    )
    assert any(node.kind == "kv" for node in circuit.nodes)
    assert from_document(loads((tmp_path / "run" / "circuit.json").read_text())) == circuit


def test_denoising_goes_through(model: Model, task: PromptPairs) -> None:
    circuit = discover(model, task, direction="denoising", budget=30, bound=False)
    assert (circuit.method["gradient"], circuit.method["direction"]) == ("integrated", "denoising")
    scores = dict(score_edges(model, task, direction="denoising").top())
    assert circuit.edges
    for edge in circuit.edges:
        assert edge.score == pytest.approx(scores[edge.name], rel=1e-5)


def test_any_gradient_and_reader_may_rank(model: Model, task: PromptPairs, tmp_path: Path) -> None:
    rules: dict[str, Any] = {
        "gradient": "integrated",
        "steps": 2,
        "schedule": "left",
        "reader": "exact",
        "bound": False,
        "threshold": 0.0,
    }
    out = tmp_path / "run"
    circuit = discover(model, task, out, budget=20, **rules)
    assert circuit.method.items() >= rules.items()
    assert read_run(out / "run.json")["question"]["method"].items() >= rules.items()
    expected = score_edges(
        model, task, **{name: rules[name] for name in rules if name not in ("bound", "threshold")}
    )
    nodes, found, question = read_scores(out / "scores.safetensors")
    assert found is not None
    assert nodes is not None
    assert (found.gradient, found.reader) == (nodes.gradient, "exact") == ("integrated", "exact")
    assert question["method"].items() >= rules.items()
    torch.testing.assert_close(found.scores, expected.scores, equal_nan=True)
    ranked = [name for name, _ in expected.top(20)]
    assert [item.name for item in read_effects(out / "effects.jsonl")] == ranked
    assert discover(model, task, out, budget=20, resume=True, **rules) == circuit
    changes: list[tuple[dict[str, Any], str]] = [
        ({"steps": 3}, r"method\.steps was 2, now 3"),
        ({"reader": "linear"}, r"method\.reader was 'exact', now 'linear'"),
    ]
    for change, message in changes:
        others = {**rules, **change}
        with pytest.raises(InputError, match=message):
            discover(model, task, out, budget=20, resume=True, **others)


def test_mixtures_of_experts_are_ranked_by_the_same_rule() -> None:
    model = tiny.model("mixtral")
    assert (
        discover(model, tiny.able(model, tiny.pairs(4)), budget=10, bound=False).method["gradient"]
        == "integrated"
    )


def test_progress_reaches_the_end_of_every_stage(model: Model, task: PromptPairs) -> None:
    done: dict[str, int] = {}
    totals: dict[str, int] = {}

    def report(stage: str, steps: int, total: int) -> None:
        done[stage] = done.get(stage, 0) + steps
        totals[stage] = total

    discover(model, task, budget=70, progress=report)
    assert done == totals
    assert list(done) == [
        "score all edges", "search", "verify edges", "weigh edges", "verify a sample", "curve",
        "prune and evaluate",
    ]  # fmt: skip


# ---- what is refused


def test_a_task_the_model_does_not_do_is_refused_with_both_values(
    model: Model, task: PromptPairs
) -> None:
    reversed_task = PromptPairs(task.clean, task.corrupted, task.wrong, task.answers)
    with pytest.raises(InputError, match=r"mean logit_diff is -.* on the clean prompts and .* on"):
        discover(model, reversed_task)
    same = PromptPairs(task.clean, task.clean, task.answers, task.wrong)
    with pytest.raises(InputError, match="no better on the clean prompts"):
        discover(model, same)
    circuit = discover(model, reversed_task, budget=5, allow_weak=True, bound=False)
    assert circuit.method["edges_verified"] == 5


def test_a_gap_within_its_error_is_weak(model: Model) -> None:
    pairs = tiny.pairs(3, seed=3)
    with pytest.raises(InputError, match=r"\+- .*(two standard errors|no better)"):
        measure_gap(model, pairs, "logit_diff")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "expected a budget of at least 1 edge, got 0"),
        ({"threshold": 0.1, "size": 5}, "one rule to keep edges by, got threshold and size"),
        ({"target": 0.9, "size": 5}, "one rule to keep edges by, got target and size"),
        ({"acdc": 0.1, "alpha": 0.1}, "one rule to keep edges by, got alpha and acdc"),
        ({"threshold": 1.0, "alpha": 0.1, "size": 5}, "got threshold with alpha and size"),
        ({"prune": "greedy"}, "prune 'greedy' says how a size is chosen; give a size, too"),
        ({"prune": "best", "size": 5}, "unknown way to prune 'best'; there are top, greedy"),
        ({"alpha": 2.0}, "expected a level alpha between 0 and 1, such as 0.05, got 2.0"),
        ({"alpha": 0.0}, "expected a level alpha between 0 and 1, such as 0.05, got 0.0"),
        ({"acdc": -1.0}, "expected a tau of ACDC above 0, in units of the metric, got -1.0"),
        ({"target": 1.5}, "expected a faithfulness target above 0 and at most 1, got 1.5"),
        ({"size": 0}, "expected a size of at least 1 edge"),
        ({"threshold": -1.0}, "expected a threshold >= 0, got -1.0"),
        ({"threshold": float("nan")}, "expected a threshold >= 0, got nan"),
        ({"metric": "loss"}, "unknown metric 'loss'; there are logit_diff"),
        ({"until_bound": 1.0, "bound": False}, "leave bound=False .* out, or give a budget"),
        (
            {"budget": 9, "until_bound": 1.0},
            "expected a budget or a bound to verify until, got both",
        ),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"gradient": "mean"}, "unknown gradient 'mean'"),
        ({"reader": "exactly"}, "unknown reader 'exactly'; there are linear, exact"),
        ({"gradient": "integrated", "steps": 0}, "expected at least one step, got 0"),
        ({"gradient": "integrated", "schedule": "right"}, "unknown schedule 'right'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    model: Model, task: PromptPairs, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        discover(model, task, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# ---- run directories


def test_a_run_is_not_overwritten(
    model: Model, task: PromptPairs, run: tuple[Path, Circuit]
) -> None:
    with pytest.raises(InputError, match="already holds a run; go on with it"):
        discover(model, task, run[0], budget=150, size=120)


def test_another_question_is_not_resumed_and_the_differences_are_named(
    model: Model, task: PromptPairs, run: tuple[Path, Circuit]
) -> None:
    before = {name: (run[0] / name).read_bytes() for name in FILES}
    with pytest.raises(InputError, match=r"method\.budget was 150, now 20"):
        discover(model, task, run[0], budget=20, size=120, resume=True)
    with pytest.raises(InputError, match=r"model\.sha256 was '\w+', now"):
        discover(
            tiny.model("gpt2", seed=1),
            task,
            run[0],
            budget=150,
            size=120,
            resume=True,
            allow_weak=True,
        )
    fewer = PromptPairs(task.clean[:3], task.corrupted[:3], task.answers[:3], task.wrong[:3])
    with pytest.raises(InputError, match=r"task\.n_pairs was 6, now 3"):
        discover(model, fewer, run[0], budget=150, size=120, resume=True)
    assert {name: (run[0] / name).read_bytes() for name in FILES} == before


def test_a_strange_directory_is_refused(model: Model, task: PromptPairs, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(InputError, match="is not empty and holds no wiremap run"):
            discover(model, task, tmp_path, resume=resume)
    with pytest.raises(InputError, match="cannot make run directory"):
        discover(model, task, tmp_path / "thesis.tex" / "run")


def test_a_damaged_run_file_is_refused(model: Model, task: PromptPairs, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": "wiremap-run"')
    with pytest.raises(InputError, match=r"run\.json: expected JSON"):
        discover(model, task, tmp_path, resume=True)


# ---- kill -9


@pytest.mark.parametrize(
    ("stage", "calls"),
    [
        pytest.param("score all edges", 1, id="before the scores are written"),
        pytest.param("verify edges", 1, id="after the first chunk"),
        pytest.param("verify edges", 2, id="after the second chunk"),
        pytest.param("weigh edges", 2, id="while edges are weighed"),
        pytest.param("verify a sample", 1, id="after a chunk of the sample"),
        pytest.param("prune and evaluate", 1, id="before the circuit is written"),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    model: Model,
    task: PromptPairs,
    run: tuple[Path, Circuit],
    tmp_path: Path,
    stage: str,
    calls: int,
) -> None:
    tokens, out = tmp_path / "tokens.pt", tmp_path / "run"
    torch.save([task.clean, task.corrupted, task.answers, task.wrong], tokens)
    killed = start(discover_until, tokens, stage, calls, out, {"budget": 150, "size": 120})
    killed.join()
    assert killed.exitcode == -9
    assert not (out / "circuit.json").exists()
    circuit = discover(model, task, out, budget=150, size=120, resume=True)
    assert circuit == run[1]
    for name in FILES:
        assert (out / name).read_bytes() == (run[0] / name).read_bytes(), name
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("calls", [2, 9])
def test_a_run_killed_in_its_search_resumes_to_the_same_bytes(
    model: Model, task: PromptPairs, tmp_path: Path, calls: int
) -> None:
    options: dict[str, Any] = {"budget": 20, "target": 0.5, "bound": False}
    whole, out = tmp_path / "whole", tmp_path / "run"
    circuit = discover(model, task, whole, **options)
    tokens = tmp_path / "tokens.pt"
    torch.save([task.clean, task.corrupted, task.answers, task.wrong], tokens)
    killed = start(discover_until, tokens, "search", calls, out, options)
    killed.join()
    assert killed.exitcode == -9
    before = (out / "search.jsonl").read_bytes() if calls > 2 else b""
    assert (whole / "search.jsonl").read_bytes().startswith(before)
    assert discover(model, task, out, **options, resume=True) == circuit
    for name in (*FILES, "search.jsonl", "losses.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_run_resumes_to_itself(
    model: Model, task: PromptPairs, run: tuple[Path, Circuit]
) -> None:
    before = {name: (run[0] / name).read_bytes() for name in FILES}
    started = json.loads((run[0] / "run.json").read_text())["started"]
    assert discover(model, task, run[0], budget=150, size=120, resume=True) == run[1]
    assert {name: (run[0] / name).read_bytes() for name in FILES} == before
    assert json.loads((run[0] / "run.json").read_text())["started"] == started


def test_half_written_leftovers_are_swept_away(
    model: Model, task: PromptPairs, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    discover(model, task, out, budget=10, bound=False)
    (out / ".circuit.json.123.tmp").write_text("half")
    discover(model, task, out, budget=10, bound=False, resume=True)
    assert not list(out.glob(".*"))


def test_a_kill_in_the_first_write_does_not_occupy_the_directory(
    model: Model, task: PromptPairs, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.json.123.tmp").write_text("{")
    discover(model, task, out, budget=5, bound=False)
    assert not list(out.glob(".*"))


def test_kl_needs_no_gradient_to_be_named(model: Model, task: PromptPairs) -> None:
    circuit = discover(model, task, metric="kl", budget=5, allow_weak=True, bound=False)
    assert circuit.method["gradient"] == "corrupted"


def test_a_circuit_evaluates_itself(model: Model, task: PromptPairs) -> None:
    circuit = discover(model, task, budget=20, bound=False)
    assert circuit.evaluate(model, task) == circuit.faithfulness


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "9.0"}, "reads version 1.0, the document has 9.0"),
        ({"question": None}, "question: expected dict"),
        ({"shape": {"n_layers": 2}}, "n_heads: expected, but missing"),
    ],
)
def test_scores_of_another_making_are_refused(
    model: Model, task: PromptPairs, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    scores = score_edges(model, task)
    file = tmp_path / "scores.safetensors"
    write_scores(file, {}, scores)
    with safetensors.safe_open(file, framework="pt") as opened:
        described = json.loads(opened.metadata()["wiremap"])
    metadata = {"wiremap": json.dumps({**described, **change})}
    save_file({"edge_scores": scores.scores}, file, metadata)
    with pytest.raises(InputError, match=message):
        read_scores(file)


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "each"},
        {"positions": "each", "gradient": "graddrop"},
        {"reader": "exact", "candidates": 7, "positions": "each"},
        {"reader": "exact-attention", "gradient": "both"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_scores_come_back_as_they_were_written(
    model: Model, task: PromptPairs, tmp_path: Path, options: dict[str, Any]
) -> None:
    scores = score_edges(model, task, **options)
    file, question = tmp_path / "s.safetensors", {"method": {"metric": "logit_diff"}}
    others = (
        score_split(model, task, "m0:neurons"),
        score_crossings(model, task, ["input->a1.h0<v>"]),
    )
    for more in ((), others):  # what else the file holds does not matter
        write_scores(file, question, scores, *more)
        nodes, found, asked = read_scores(file)
        assert nodes is None
        assert asked == question
        assert found is not None
        assert found.graph == scores.graph
        for name in ("positions", "unsigned", "gradient", "reader"):
            assert getattr(found, name) == getattr(scores, name)
        for name in ("scores", "by_position", "exact"):
            one, other = getattr(found, name), getattr(scores, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.equal(one.nan_to_num(), other.nan_to_num())
        assert found.top() == scores.top()
        if scores.by_position is not None:
            assert found.top(9, "sum-of-abs") == scores.top(9, "sum-of-abs")
            assert found.top_by_position(9) == scores.top_by_position(9)


def test_tables_of_parts_and_crossings_are_in_the_file(
    model: Model, task: PromptPairs, tmp_path: Path
) -> None:
    file = tmp_path / "s.safetensors"
    parts = score_split(model, task, "m1:neurons")
    crossings = score_crossings(model, task, ["input->a1.h0<v>", "m0->a1.h2<k>"])
    write_scores(file, {}, score_edges(model, task), parts, crossings)
    with safetensors.safe_open(file, framework="pt") as opened:
        described = json.loads(opened.metadata()["wiremap"])
        tables = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no dict)
    assert described["splits"] == {"m1": list(parts.parts)}
    assert described["crossings"] == list(crossings.edges)
    assert described["writers"] == [writer.name for writer in model.graph.writers]
    assert described["readers"] == [reader.name for reader in model.graph.readers]
    for name, table in (
        ("m1_outgoing", parts.outgoing),
        ("m1_incoming", parts.incoming),
        ("crossings", crossings.scores),
    ):
        torch.testing.assert_close(tables[name], table, equal_nan=True, rtol=0, atol=0)


def test_damaged_scores_by_position_are_refused(
    model: Model, task: PromptPairs, tmp_path: Path
) -> None:
    file = tmp_path / "s.safetensors"
    scores = score_edges(model, task, positions="each")
    by_position = scores.by_position
    assert by_position is not None
    for damaged in (by_position[1:], by_position.nan_to_num(), None):
        write_scores(file, {}, replace(scores, by_position=damaged))
        with pytest.raises(InputError, match="s.safetensors: expected .*edge_scores_by_position"):
            read_scores(file)


def test_infinite_scores_are_refused(model: Model, task: PromptPairs, tmp_path: Path) -> None:
    scores = score_edges(model, task)
    scores.scores[0, 0] = torch.inf
    write_scores(tmp_path / "s.safetensors", {}, scores)
    with pytest.raises(InputError, match="expected finite edge_scores"):
        read_scores(tmp_path / "s.safetensors")
