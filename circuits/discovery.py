"""The main job: from a model and prompt pairs to a verified circuit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..edges.effects.reduced_runs import ReducedRuns
from ..edges.errors import InputError
from ..edges.model.transformer import Model
from ..edges.names.graph import Edge
from ..edges.names.vocabulary import (
    BOUNDED,
    BUDGET,
    DIRECTION,
    PRUNE,
    READER,
    SCHEDULE,
    STEPS,
    TARGET,
)
from ..edges.question.prompts import PromptPairs
from ..edges.question.question import Question
from ..edges.runs.masks import places_mask
from ..edges.runs.sweep import Report, Resources, silent
from ..edges.scores.edge_scores import EdgeOptions, EdgeScores, check_reader, edge_scores
from ..edges.scores.node_scores import NodeOptions, NodeScores, node_scores, node_set_of
from ..edges.scores.rules.registry import recommended_gradient, resolve_gradient
from ..edges.scores.rules.rule import GradientRule
from .choice.acdc import prune_by_acdc
from .choice.pruning import (
    BEYOND_SIZE,
    NOT_VERIFIED,
    Pruned,
    prune_by_effect,
    prune_to_size,
    prune_to_target,
)
from .choice.rules import Rules
from .describe import describe_question
from .evidence.faithfulness import faithfulness_of
from .evidence.gap import gap_of
from .evidence.gather import (
    bound_evidence,
    bound_rest,
    gather,
    gather_tests,
    resample,
    stability_evidence,
)
from .evidence.stability import Stability
from .evidence.verification import BoundOptions, Verifier, VerifyOptions, check_bound
from .record.effects_file import EFFECTS_FILE, Verified
from .record.run_directory import RunDirectory
from .record.scores_file import SCORES_FILE, read_scores, write_scores
from .result.circuit import Circuit, CircuitEdge, Faithfulness
from .result.document import dumps, to_document
from .result.evidence import BoundEvidence, Evidence
from .result.upward import exporters
from .tasks.builtin import usual_metric


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
    bound: bool = BOUNDED,
    tests: bool = False,
    allow_weak: bool = False,
    batch_size: int | None = None,
    resume: bool = False,
    progress: Report = silent,
) -> Circuit:
    """Finds the circuit of a behaviour and proves its edges.

    Scores all nodes and edges, measures the best ``budget`` edges by path patching, keeps those
    worth keeping that lie on a path from input to logits, and evaluates what the circuit carries
    by itself.

    Args:
        out: a run directory: every result is written there as it comes, and at the end report,
            viewer and pictures; what could not be drawn is a ``WiremapWarning``.
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
        bound: also bound what was not verified: more than half of the time of a small run. Without
            it nothing is said of those edges but their scores.
        tests: also test what the circuit claims: completeness, minimality, and the tests of
            ``run_tests``.
        allow_weak: go on although the model hardly does the task.
        batch_size: rows at once; None takes what fits into memory.
        resume: finish the run that ``out`` holds.
        progress: called with (stage, steps finished since the last call, steps in all).

    Raises:
        InputError: options, pairs or a directory that cannot be used, or no behaviour to explain.
        WiremapError: results that are not finite.
    """
    rules = _one_rule(
        Rules(target=target, threshold=threshold, alpha=alpha, size=size, prune=prune, acdc=acdc)
    )
    if alpha is not None and len(pairs) < 2:
        raise InputError(f"alpha needs at least 2 pairs for a t test, got {len(pairs)}; add pairs")
    budget = _budget_of(model, budget, until_bound, bound)
    question = Question(pairs=pairs, metric=metric or usual_metric(pairs), direction=direction)
    gradient = gradient or recommended_gradient(question.metric, model)
    check_reader(reader, None, model.graph)
    rule = resolve_gradient(gradient, direction, question.metric, steps, schedule)
    method = Method(
        gradient=rule.name,
        steps=steps,
        schedule=schedule,
        reader=reader,
        budget=budget,
        until_bound=until_bound,
        rules=rules,
        bound=bound,
        tests=tests,
    )
    resources = Resources(batch_size=batch_size, report=progress)
    described = describe_question(
        model, pairs, **question.describe(), **method.describe(), batch_size=batch_size
    )
    # Before the directory is made, so that a task the model cannot do leaves none behind.
    gap_of(model, question, resources.quiet(), allow_weak)
    run = None if out is None else RunDirectory(Path(out), described, model.device, resume)
    return _Discovery(model, question, method, rule, resources, run, described).circuit()


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a circuit is found, beside the question; see ``discover``."""

    gradient: str
    steps: int
    schedule: str
    reader: str
    budget: int | None
    until_bound: float | None
    rules: Rules
    bound: bool
    tests: bool

    def describe(self) -> dict[str, Any]:
        """As plain data, the way a result's ``method`` goes on after the question."""
        # asdict takes the rules apart as well: they come out flat, as the arguments of discover.
        described = asdict(self)
        rules, bound, tests = (described.pop(name) for name in ("rules", "bound", "tests"))
        without = {} if bound else {"bound": False}  # said where it departs from what is usual
        return {**described, **rules, **without, "tests": tests}


@dataclass(frozen=True)
class _Discovery:
    """One search for a circuit, with the run directory that it is kept in, if there is one.

    Attributes:
        described: the model, the pairs and the method as plain data.
    """

    model: Model
    question: Question
    method: Method
    rule: GradientRule
    resources: Resources
    run: RunDirectory | None
    described: Mapping[str, Any]

    def circuit(self) -> Circuit:
        """Scores, verifies, prunes and evaluates."""
        model, question, quiet = self.model, self.question, self.resources.quiet()
        nodes, edges = self._score()
        verified, bound = self._verify(edges)
        with self._stage("prune"):
            pruned = self._prune(edges, verified)
            names = [edge.name for edge in pruned.kept]
            faithfulness = faithfulness_of(model, question, names, quiet)
        with self._stage("evidence"):
            sections = gather(model, question, names, edges, self.resources)
            if self.method.tests:
                sections |= gather_tests(model, question, names, self.resources)
            evidence = Evidence.from_document(sections)
            evidence = replace(evidence, bound=bound, removed=pruned.counts())
            resampled = resample(verified, names, self.method.rules.threshold)
            kept = pruned.kept
            if resampled is not None:
                evidence = replace(evidence, stability=stability_evidence(*resampled))
                kept = _with_intervals(kept, resampled[0])
        self.resources.report("prune and evaluate", 1, 1)
        method = {
            **self.described["method"],
            "edges_in_model": model.graph.n_edges,
            "edges_verified": len(verified),
        }
        circuit = Circuit.build(
            model.graph,
            kept,
            dict(nodes.top()),
            model=self.described["model"],
            task=self.described["task"],
            method=method,
            faithfulness=faithfulness,
            evidence=evidence,
        )
        if self.run is not None:
            document = to_document(circuit)
            # Data first: drawings can be made again from it, should one of them fail.
            self.run.write("circuit.json", dumps(document))
            of_size = {name: document["evidence"][name] for name in ("curve", "metrics")}
            self.run.write("faithfulness.json", dumps({**document["faithfulness"], **of_size}))
            exporters("run_directory").write_run_directory(circuit, self.run.path)
        return circuit

    def _stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.run is None else self.run.stage(name)

    def _score(self) -> tuple[NodeScores, EdgeScores]:
        """Scores of all nodes and edges, from the run directory if they are there."""
        model, question, run = self.model, self.question, self.run
        if run is not None and (run.path / SCORES_FILE).exists():
            nodes, edges, _ = read_scores(run.path / SCORES_FILE)
            if nodes is not None and edges is not None:
                n_pairs = len(question.pairs)
                self.resources.report("score all edges", n_pairs, n_pairs)
                if "score" not in run.record["stages"]:  # a kill came between the two files
                    with run.stage("score"):
                        pass
                return nodes, edges
        with self._stage("score"):
            writers = node_set_of(model, ("writers",), question.pairs, "sum")
            of_nodes = NodeOptions(rule=self.rule)
            nodes = node_scores(model, question, writers, of_nodes, self.resources.quiet())
            of_edges = EdgeOptions(reader=self.method.reader)
            edges = edge_scores(model, question, self.rule, of_edges, self.resources)
            if run is not None:
                write_scores(run.path / SCORES_FILE, self.described, nodes, edges)
        return nodes, edges

    def _verify(self, scores: EdgeScores) -> tuple[list[Verified], BoundEvidence | None]:
        """The edges verified, best first, and a bound on the others if the method wants one."""
        model, question, n_pairs = self.model, self.question, len(self.question.pairs)
        options = VerifyOptions(effects_file=self.run.path / EFFECTS_FILE if self.run else None)
        verifier = Verifier(model, question, options, self.resources)
        budget, until_bound = self.method.budget, self.method.until_bound
        with self._stage("verify"):
            if until_bound is not None:
                names = [name for name, _ in scores.top()]
                verified, bound = verifier.until(names, until_bound, BoundOptions())
                return verified, bound and bound_evidence(bound, n_pairs, n_pairs)
            verified = list(verifier.measure([name for name, _ in scores.top(budget)]))
        if not self.method.bound:
            return verified, None
        with self._stage("bound"):
            # By places, since names of all the edges of a large model take long to make; the
            # ranking is the one that `top` cut, so what was verified is not among them.
            rest = scores.ranking()[0][budget:]
            return verified, bound_rest(model, question, rest, self.resources)

    def _prune(self, scores: EdgeScores, verified: Sequence[Verified]) -> Pruned:
        """The edges to keep. Those that no rule can keep are counted, and never made."""
        graph, rules = self.model.graph, self.method.rules
        # Edges are verified in the order of the ranking, so the first so many are just those.
        n_candidates, rule = len(verified), NOT_VERIFIED
        if rules.size is not None:
            n_candidates, rule = max(len(verified), rules.size), BEYOND_SIZE
        # Either may come to an edge of any rank.
        if rules.acdc is not None or rules.prune == "greedy":
            n_candidates = graph.n_edges
        candidates = candidates_of(scores, n_candidates, verified)
        pruned = self._choose(candidates)
        return replace(pruned, beyond={rule: graph.n_edges - len(candidates)})

    def _choose(self, candidates: Sequence[CircuitEdge]) -> Pruned:
        graph, rules = self.model.graph, self.method.rules
        if rules.size is not None:
            return prune_to_size(graph, candidates, rules.size, rules.prune or PRUNE[0])
        if rules.threshold is not None or rules.alpha is not None:
            return prune_by_effect(graph, candidates, rules.threshold or 0.0, rules.alpha)
        # Rules that try one set of edges after another: the corrupted run is made once for all.
        with ReducedRuns(self.model, self.question, self.resources.quiet()) as runs:
            if rules.acdc is not None:
                return prune_by_acdc(runs, candidates, rules.acdc, self.resources.report)
            target = TARGET if rules.target is None else rules.target
            return prune_to_target(graph, candidates, target, _faithfulness_in(runs))


def _faithfulness_in(runs: ReducedRuns) -> Callable[[Sequence[Edge]], float]:
    """The faithfulness of a set of edges."""
    full, empty = runs.full.mean().item(), runs.empty.mean().item()

    def faithfulness(edges: Sequence[Edge]) -> float:
        if full == empty:
            return math.nan  # never enough; evaluating the circuit says why
        value = runs.values(places_mask(runs.model.graph, edges)).mean().item()
        return Faithfulness(full, empty, value, len(runs.full)).faithfulness

    return faithfulness


def _budget_of(
    model: Model, budget: int | None, until_bound: float | None, bound: bool
) -> int | None:
    """How many edges to verify; None until a bound holds."""
    if until_bound is not None:
        if budget is not None:
            raise InputError("expected a budget or a bound to verify until, got both")
        check_bound(until_bound)
        if not bound:
            raise InputError(
                "until_bound verifies until a bound on the rest is low enough; leave bound=False "
                "(--no-bound) out, or give a budget"
            )
        return None
    if budget is None:
        budget = BUDGET.get(model.device.type, BUDGET["cpu"])
    if budget < 1:
        raise InputError(f"expected a budget of at least 1 edge, got {budget}")
    return min(budget, model.graph.n_edges)


def _one_rule(given: Rules) -> Rules:
    """The rule to keep edges by, with the default if none was given."""
    # Threshold and alpha may be given together, and then are one rule.
    by_effect = " with ".join(
        name for name in ("threshold", "alpha") if getattr(given, name) is not None
    )
    rules = {
        "target": given.target,
        by_effect: by_effect or None,
        "size": given.size,
        "acdc": given.acdc,
    }
    names = [name for name, value in rules.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"expected one rule to keep edges by, got {' and '.join(names)}")
    if given.prune is not None and given.size is None:
        raise InputError(f"prune {given.prune!r} says how a size is chosen; give a size, too")
    given.check()
    if not names:
        return replace(given, target=TARGET)
    return replace(given, prune=PRUNE[0]) if given.size is not None and not given.prune else given


def _with_intervals(edges: Sequence[CircuitEdge], stability: Stability) -> list[CircuitEdge]:
    """The edges with what resampling tells of each that was verified."""
    resampled = {each.edge: each for each in stability.edges}
    return [
        replace(edge, interval=(known.low, known.high), inclusion=known.frequency)
        if (known := resampled.get(edge.name))
        else edge
        for edge in edges
    ]


def candidates_of(
    scores: EdgeScores, n: int | None = None, verified: Sequence[Verified] = ()
) -> list[CircuitEdge]:
    """The ``n`` edges of the best scores (all by default), with what is known of each."""
    graph, measured = scores.graph, {edge.name: edge for edge in verified}
    places, values = scores.ranking()
    candidates: list[CircuitEdge] = []
    for ends, score in zip(places[:n].tolist(), values[:n].tolist(), strict=True):
        writer, reader = graph.ends(Edge(*ends))
        edge = CircuitEdge(writer.name, reader.node, reader.slot, score)
        if (effect := measured.get(edge.name)) is not None:
            edge = replace(
                edge,
                effect=effect.effect,
                standard_error=effect.standard_error,
                n_pairs=len(effect.effects),
            )
        candidates.append(edge)
    return candidates
