"""The main job: from a model and prompt pairs to a verified circuit."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..edges.effects.reduced_runs import ReducedRuns
from ..edges.errors import InputError
from ..edges.model.transformer import Model
from ..edges.names.graph import SLOTS
from ..edges.names.vocabulary import (
    BUDGET,
    DIRECTION,
    OTHER_RUN,
    PRUNE,
    READER,
    SCHEDULE,
    STEPS,
    TARGET,
)
from ..edges.question.prompts import PromptPairs
from ..edges.scores.edge_scores import EdgeScores, check_reader, score_edges
from ..edges.scores.node_scores import NodeScores, score_nodes
from ..edges.scores.rules import recommended_gradient, resolve_gradient
from .choice.acdc import prune_by_acdc
from .choice.pruning import (
    Pruned,
    check_rules,
    prune_by_effect,
    prune_to_size,
    prune_to_target,
)
from .describe import describe_question
from .evidence.faithfulness import evaluate
from .evidence.gap import measure_gap
from .evidence.gather import bound_document, bound_rest, gather, resample
from .evidence.stability import Stability
from .evidence.verification import check_bound, verify, verify_until
from .record.effects_file import EFFECTS_FILE, Verified
from .record.run_directory import RunDirectory
from .record.scores_file import SCORES_FILE, read_scores, write_scores
from .result.circuit import Circuit, CircuitEdge, Faithfulness
from .result.document import dumps, to_document
from .tasks.task import usual_metric

Progress = Callable[[str, int, int], Any]
"""Called with (stage, steps finished since the last call, steps in all)."""


def discover(
    model: Model,
    pairs: PromptPairs,
    out: str | Path | None = None,
    *,
    metric: str | None = None,
    direction: str = DIRECTION,
    gradient: str | None = None,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
    reader: str = READER,
    budget: int | None = None,
    until_bound: float | None = None,
    target: float | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    size: int | None = None,
    prune: str | None = None,
    acdc: float | None = None,
    tests: bool = False,
    allow_weak: bool = False,
    batch_size: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Circuit:
    """Finds the circuit of a behaviour and proves its edges.

    Scores all nodes and edges, measures the best ``budget`` edges by path patching, keeps those
    worth keeping that lie on a path from input to logits, and evaluates what the circuit carries
    by itself.

    Args:
        out: a run directory: every result is written there as it comes.
        metric: a name in ``METRICS``; None takes the one usual for the pairs' task.
        direction: ``noising`` or ``denoising``; see ``patch_edges``.
        gradient, steps, schedule, reader: how edges are scored; see ``score_edges``. Nodes are scored by the
            same gradient.
        budget: how many edges to verify, best score first; None takes ``BUDGET``, or all
            if there are no more.
        until_bound: verify until what is left is bounded below this, in units of the metric,
            instead; see ``verify_until``.
        target: keep few verified edges that reach this faithfulness, none of which can be spared
            (0.9 if no other rule is given); see ``prune_to_target``.
        threshold: keep the verified edges of at least this magnitude, in units of the metric.
        alpha: keep the verified edges whose effects differ from 0 at this false discovery rate;
            alone or with a threshold. See ``prune_by_effect``.
        size: keep this many edges; may reach beyond the verified ones.
        prune: how ``size`` chooses: ``top`` (the default) or ``greedy``; see ``prune_to_size``.
        acdc: keep what ACDC keeps with this tau, in units of the metric; it tries every edge,
            verified or not. See ``prune_by_acdc``.
        tests: also test what the circuit claims: completeness, minimality, and the tests of
            ``run_tests``.
        allow_weak: go on although the model hardly does the task.
        batch_size: rows at once; None takes what fits into memory.
        resume: finish the run that ``out`` holds.

    Raises:
        InputError: options, pairs or a directory that cannot be used, or no behaviour to explain.
        WiremapError: results that are not finite.
    """
    rules = _one_rule(target, threshold, alpha, size, prune, acdc)
    if alpha is not None and len(pairs) < 2:
        raise InputError(f"alpha needs at least 2 pairs for a t test, got {len(pairs)}; add pairs")
    if budget is not None and until_bound is not None:
        raise InputError("expected a budget or a bound to verify until, got both")
    if until_bound is not None:
        check_bound(until_bound)
    if budget is None and until_bound is None:
        budget = BUDGET.get(model.device.type, BUDGET["cpu"])
    if budget is not None:
        if budget < 1:
            raise InputError(f"expected a budget of at least 1 edge, got {budget}")
        budget = min(budget, model.graph.n_edges)
    metric = metric or usual_metric(pairs)
    gradient = gradient or recommended_gradient(metric, model)
    check_reader(reader, None, model.graph)
    question = describe_question(
        model,
        pairs,
        metric=metric,
        direction=direction,
        patch_with=OTHER_RUN,
        gradient=resolve_gradient(gradient, direction, metric, steps, schedule).name,
        steps=steps,
        schedule=schedule,
        reader=reader,
        budget=budget,
        until_bound=until_bound,
        **rules,
        tests=tests,
        batch_size=batch_size,
    )
    report = progress or (lambda stage, done, total: None)
    measure_gap(model, pairs, metric, allow_weak, batch_size)
    run = None if out is None else RunDirectory(Path(out), question, model.device, resume)
    nodes, edges = _score(model, pairs, question, run, report)
    ranked = edges.top()
    verified, bound = _verify(model, pairs, [name for name, _ in ranked], question, run, report)
    candidates = candidates_of(model, ranked, verified)

    with _stage(run, "prune"):
        pruned = _prune(model, pairs, candidates, question["method"], report)
        names = [edge.name for edge in pruned.kept]
        faithfulness = evaluate(model, pairs, names, metric, batch_size)
    with _stage(run, "evidence"):
        evidence = gather(model, pairs, names, ranked, question["method"], report)
        if bound is not None:
            evidence["bound"] = bound
        resampled = resample(verified, names, threshold)
        kept = pruned.kept
        if resampled is not None:
            told, rule = resampled
            evidence["stability"] = {
                "rule": rule,
                "resamples": told.n_resamples,
                "jaccard": told.jaccard,
            }
            kept = _with_intervals(kept, told)
        evidence["removed"] = pruned.counts()
    report("prune and evaluate", 1, 1)
    circuit = Circuit.build(
        model.graph,
        kept,
        dict(nodes.top()),
        model=question["model"],
        task=question["task"],
        method={
            **question["method"],
            "edges_in_model": model.graph.n_edges,
            "edges_verified": len(verified),
        },
        faithfulness=faithfulness,
        evidence=evidence,
    )
    if run is not None:
        document = to_document(circuit)
        run.write("circuit.json", dumps(document))
        of_size = {"curve": evidence["curve"], "metrics": evidence["metrics"]}
        run.write("faithfulness.json", dumps({**document["faithfulness"], **of_size}))
    return circuit


def _one_rule(
    target: float | None,
    threshold: float | None,
    alpha: float | None,
    size: int | None,
    prune: str | None,
    acdc: float | None,
) -> dict[str, Any]:
    """The rule to keep edges by, with the default if none was given."""
    by_effect = " with ".join(
        name for name, value in (("threshold", threshold), ("alpha", alpha)) if value is not None
    )
    rules = {"target": target, by_effect: by_effect or None, "size": size, "acdc": acdc}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"expected one rule to keep edges by, got {' and '.join(given)}")
    if prune is not None and size is None:
        raise InputError(f"prune {prune!r} says how a size is chosen; give a size, too")
    check_rules(target, threshold, alpha, size, prune, acdc)
    return {
        "target": target if given else TARGET,
        "threshold": threshold,
        "alpha": alpha,
        "size": size,
        "prune": PRUNE[0] if size is not None and prune is None else prune,
        "acdc": acdc,
    }


def _stage(run: RunDirectory | None, name: str) -> AbstractContextManager[None]:
    return nullcontext() if run is None else run.stage(name)


def _score(
    model: Model,
    pairs: PromptPairs,
    question: Mapping[str, Any],
    run: RunDirectory | None,
    report: Progress,
) -> tuple[NodeScores, EdgeScores]:
    """Scores of all nodes and edges, from the run directory if they are there."""
    if run is not None and (run.path / SCORES_FILE).exists():
        nodes, edges, _ = read_scores(run.path / SCORES_FILE)
        if nodes is not None and edges is not None:
            report("score all edges", len(pairs), len(pairs))
            if "score" not in run.record["stages"]:  # a kill came between the two files
                with run.stage("score"):
                    pass
            return nodes, edges
    method = question["method"]
    same = ("metric", "gradient", "steps", "schedule", "direction", "batch_size")
    options = {key: method[key] for key in same}
    with _stage(run, "score"):
        nodes = score_nodes(model, pairs, "writers", method="atp", **options)
        edges = score_edges(
            model,
            pairs,
            **options,
            reader=method["reader"],
            progress=lambda done: report("score all edges", done, len(pairs)),
        )
        if run is not None:
            write_scores(run.path / SCORES_FILE, question, nodes, edges)
    return nodes, edges


def _verify(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    question: Mapping[str, Any],
    run: RunDirectory | None,
    report: Progress,
) -> tuple[list[Verified], dict[str, Any] | None]:
    """The edges verified of these, best first, and a bound on the others."""
    method = question["method"]
    how = {key: method[key] for key in ("metric", "direction", "batch_size")}
    effects_file = run.path / EFFECTS_FILE if run else None
    with _stage(run, "verify"):
        if method["until_bound"] is not None:
            verified, found = verify_until(
                model,
                pairs,
                edges,
                method["until_bound"],
                **how,
                effects_file=effects_file,
                progress=lambda done: report("verify edges", done, len(edges)),
            )
            return verified, found and bound_document(found, len(pairs), len(pairs))
        budget = method["budget"]
        verified = verify(
            model,
            pairs,
            edges[:budget],
            **how,
            effects_file=effects_file,
            progress=lambda done: report("verify edges", done, budget),
        )
    with _stage(run, "bound"):
        return verified, bound_rest(model, pairs, edges[budget:], **how, report=report)


def _with_intervals(edges: Sequence[CircuitEdge], found: Stability) -> list[CircuitEdge]:
    """The edges with what resampling tells of each that was verified."""
    of = {one.edge: one for one in found.edges}
    return [
        replace(edge, interval=(one.low, one.high), inclusion=one.frequency)
        if (one := of.get(edge.name))
        else edge
        for edge in edges
    ]


def _prune(
    model: Model,
    pairs: PromptPairs,
    candidates: Sequence[CircuitEdge],
    method: Mapping[str, Any],
    report: Progress,
) -> Pruned:
    graph = model.graph
    if method["size"] is not None:
        return prune_to_size(graph, candidates, method["size"], method["prune"])
    if method["threshold"] is not None or method["alpha"] is not None:
        return prune_by_effect(graph, candidates, method["threshold"] or 0.0, method["alpha"])
    with ReducedRuns(model, pairs, method["metric"], method["batch_size"]) as runs:
        if method["acdc"] is not None:
            return prune_by_acdc(
                runs, candidates, method["acdc"], lambda n: report("ACDC", n, graph.n_edges)
            )
        full, empty = runs.full.mean().item(), runs.empty.mean().item()

        def faithfulness(edges: Collection[str]) -> float:
            if full == empty:
                return math.nan  # never enough; evaluating the circuit says why
            value = runs.values(edges).mean().item()
            return Faithfulness(full, empty, value, len(pairs)).faithfulness

        return prune_to_target(graph, candidates, method["target"], faithfulness)


def candidates_of(
    model: Model, ranked: Sequence[tuple[str, float]], verified: Sequence[Verified] = ()
) -> list[CircuitEdge]:
    """Edges, best score first, with what is known of each."""
    measured = {edge.name: edge for edge in verified}
    candidates: list[CircuitEdge] = []
    for name, score in ranked:
        edge = model.graph.edge(name)
        reader = model.graph.readers[edge.reader]
        found = measured.get(name)
        candidates.append(
            CircuitEdge(
                source=model.graph.writers[edge.writer].name,
                target=reader.node,
                slot=reader.kind if reader.kind in SLOTS else None,
                score=score,
                effect=found and found.effect,
                standard_error=found and found.standard_error,
                n_pairs=found and len(found.effects),
            )
        )
    return candidates
