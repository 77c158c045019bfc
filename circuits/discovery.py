"""The main job: from a model and prompt pairs to a verified circuit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..edges.effects.reduced_runs import ReducedRuns
from ..edges.errors import InputError
from ..edges.model.transformer import Model
from ..edges.names.graph import Edge
from ..edges.names.vocabulary import (
    BOUNDED,
    BUDGET,
    DIRECTION,
    EDGE_AGGREGATE,
    PRUNE,
    READER,
    SCHEDULE,
    STEPS,
    TARGET,
)
from ..edges.question.prompts import PromptPairs
from ..edges.question.question import Question
from ..edges.runs.masks import edge_names
from ..edges.runs.sweep import Report, Resources, silent
from ..edges.scores.edge_scores import EdgeOptions, EdgeScores, check_reader, edge_scores
from ..edges.scores.node_scores import NodeOptions, NodeScores, node_scores, node_set_of
from ..edges.scores.rules.registry import recommended_gradient, resolve_gradient
from ..edges.scores.rules.rule import GradientRule
from .choice.acdc import prune_by_acdc
from .choice.budget import CHUNK_IN_TIME, Deadline
from .choice.pruning import (
    BEYOND_SIZE,
    NOT_NEEDED,
    NOT_VERIFIED,
    Pruned,
    prune_by_effect,
    prune_to_size,
)
from .choice.rules import Rules
from .choice.search import SearchOptions, SearchResult, search
from .describe import describe_question, describe_task
from .evidence.faithfulness import faithfulness_of
from .evidence.gap import gap_of
from .evidence.gather import (
    bound_evidence,
    gather,
    gather_tests,
    resample,
    stability_evidence,
)
from .evidence.held_out import HeldOut, held_out_evidence, hold_out
from .evidence.losses import LOSSES_FILE, losses_of
from .evidence.missed import SampleOptions, sample_missed, thresholds_of
from .evidence.next_best import MissedPlan, bound_next, plan_missed
from .evidence.stability import Stability
from .evidence.verification import BoundOptions, Verifier, VerifyOptions, check_bound
from .record.effects_file import EFFECTS_FILE, Verified, read_effects
from .record.given_scores import GivenScores
from .record.run_directory import RunDirectory
from .record.scores_file import SCORES_FILE, read_scores, write_scores
from .record.search_file import SEARCH_FILE, open_journal
from .result.circuit import Circuit, CircuitEdge
from .result.document import dumps, to_document
from .result.evidence import BoundEvidence, Evidence, SearchEvidence, SearchPoint
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
    budget: int | timedelta | None = None,
    until_bound: float | None = None,
    held_out: HeldOut = None,
    faithful_to: str | None = None,
    target: float | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    size: int | None = None,
    prune: str | None = None,
    acdc: float | None = None,
    bound: bool = BOUNDED,
    tests: bool = False,
    allow_weak: bool = False,
    scores: GivenScores | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    progress: Report = silent,
) -> Circuit:
    """Finds the circuit of a behaviour, proves its edges, and judges it on pairs it was not found on.

    Scores all nodes and edges, searches for a small set of edges that is as faithful as the target
    asks by running sets of edges (``search``), measures its edges and then the best others by path
    patching, and what the circuit loses without each of its own. Other rules than a target
    (``threshold``, ``alpha``, ``size``, ``acdc``) choose among the edges measured instead.

    Args:
        out: a run directory: every result is written there as it comes, and at the end report,
            viewer and pictures; what could not be drawn is a ``WiremapWarning``.
        metric: a name in ``METRICS``; None takes the one usual for the pairs' task.
        direction: ``noising`` or ``denoising``; see ``patch_edges``.
        gradient, steps, schedule, reader: how edges are scored; see ``score_edges``. Nodes are scored by the
            same gradient.
        budget: how many edges to verify: the circuit's own, those with the largest shares first,
            then others, best score first (by other rules than a target, all best score first). Or
            the time that all of the run may take: what is left of it after the search is for
            verifying, a fifth of it for evaluating; results then depend on the machine. None
            takes ``BUDGET``, or all edges if there are no more.
        until_bound: verify until what is left is bounded below this, in units of the metric,
            instead; see ``verify_until``.
        held_out: pairs that the circuit is judged on, or the share of ``pairs`` set aside for it;
            see ``hold_out`` for what is usual.
        faithful_to: the metric that the target is about, such as ``kl``: then the target is a share
            of the divergence recovered; None is ``metric``.
        target: keep few edges whose faithfulness together lies between this and 2 - target (0.9
            if no other rule is given); see ``search``.
        threshold: keep the verified edges of at least this magnitude, in units of the metric.
        alpha: keep the verified edges whose effects differ from 0 at this false discovery rate;
            alone or with a threshold. See ``prune_by_effect``.
        size: keep this many edges; may reach beyond the verified ones.
        prune: how ``size`` chooses: ``top`` (the default) or ``greedy``; see ``prune_to_size``.
        acdc: keep what ACDC keeps with this tau, in units of the metric; it tries every edge,
            verified or not. See ``prune_by_acdc``.
        bound: also say what may have been missed: of a random sample of the other edges, verified
            as well, how many are above some size (``sample_missed``), and if the budget allows, a
            bound on those next in rank (``bound_next``). At most a quarter of the run; without it
            nothing is said of those edges but their scores.
        tests: also test what the circuit claims: completeness, minimality, and the tests of
            ``run_tests``.
        allow_weak: go on although the model hardly does the task.
        scores: of all edges, to take in the place of scoring them (``given_scores``).
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
    pairs, others = hold_out(model, pairs, held_out)
    if alpha is not None and len(pairs) < 2:
        raise InputError(f"alpha needs at least 2 pairs for a t test, got {len(pairs)}; add pairs")
    deadline = Deadline(budget.total_seconds() if isinstance(budget, timedelta) else None)
    n_budget = _budget_of(model, budget, until_bound, bound)
    question = Question(pairs=pairs, metric=metric or usual_metric(pairs), direction=direction)
    question.about(metric=faithful_to or question.metric)  # refused now, if it is none
    gradient = gradient or recommended_gradient(question.metric)
    check_reader(reader, None, model.graph)
    rule = resolve_gradient(gradient, direction, question.metric, steps, schedule)
    if scores is not None and scores.edges.graph != model.graph:
        raise InputError(
            f"{scores.source}: expected scores of a model of shape {model.graph.as_dict()}, got "
            f"{scores.edges.graph.as_dict()}"
        )
    method = Method(
        gradient=rule.name,
        steps=steps,
        schedule=schedule,
        reader=reader,
        budget=n_budget,
        until_bound=until_bound,
        faithful_to=faithful_to or question.metric_name,
        rules=rules,
        bound=bound,
        tests=tests,
    )
    resources = Resources(batch_size=batch_size, report=progress)
    described = describe_question(
        model, pairs, **question.describe(), **method.describe(), batch_size=batch_size
    )
    if scores is not None:
        described["method"] |= scores.describe(rule.name)
    if others is not None:
        described["task"]["held_out"] = describe_task(others)
    # Before the directory is made, so that a task the model cannot do leaves none behind.
    gap_of(model, question, resources.quiet(), allow_weak)
    run = None if out is None else RunDirectory(Path(out), described, model.device, resume)
    return _Discovery(
        model, question, others, method, rule, deadline, resources, run, described, scores
    ).circuit()


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a circuit is found, beside the question; see ``discover``.

    Attributes:
        budget: edges to verify, or the time of the run, in words; None until a bound holds.
    """

    gradient: str
    steps: int
    schedule: str
    reader: str
    budget: int | str | None
    until_bound: float | None
    faithful_to: str
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
        held_out: the pairs that the circuit is judged on.
        described: the model, the pairs and the method as plain data.
    """

    model: Model
    question: Question
    held_out: PromptPairs | None
    method: Method
    rule: GradientRule
    deadline: Deadline
    resources: Resources
    run: RunDirectory | None
    described: Mapping[str, Any]
    given: GivenScores | None = None

    def circuit(self) -> Circuit:
        """Scores, searches, verifies, prunes and evaluates."""
        model, question, quiet = self.model, self.question, self.resources.quiet()
        nodes, edges = self._score()
        searched = None if self.method.rules.target is None else self._search()
        ordered = edges.ranking()[0] if searched is None else _circuit_first(searched, edges)
        verified, bound = self._verify(ordered)
        with self._stage("prune"):
            if searched is None:
                pruned = self._prune(edges, verified)
            else:
                pruned = _found(searched, edges, ordered, verified)
            names = [edge.name for edge in pruned.kept]
            faithfulness = faithfulness_of(model, question, names, quiet)
        kept = self._with_losses(pruned.kept)
        with self._stage("missed"):
            gap = faithfulness.full - faithfulness.empty
            missed = self._missed(ordered[len(verified) :], verified, gap)
        with self._stage("evidence"):
            evidence = self._evidence(edges, names)
            evidence = replace(
                evidence,
                bound=missed.bound or bound,
                sample=missed.sample,
                not_done={**(evidence.not_done or {}), **(missed.not_done or {})} or None,
                removed=pruned.counts(),
            )
            if searched is not None:
                evidence = replace(evidence, search=self._of_search(searched))
            resampled = resample(verified, names, self.method.rules.threshold)
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

    def _came_beyond(self, stage: str) -> bool:
        """Whether a run in time, which is gone on with, had finished a stage: it is not done again."""
        in_time = self.deadline.seconds is not None
        return in_time and self.run is not None and stage in self.run.record["stages"]

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
            if self.given is None:
                of_edges = EdgeOptions(reader=self.method.reader)
                edges = edge_scores(model, question, self.rule, of_edges, self.resources)
            else:
                edges = self.given.edges
            if run is not None:
                write_scores(run.path / SCORES_FILE, self.described, nodes, edges)
        return nodes, edges

    def _search(self) -> SearchResult:
        """A small circuit that is as faithful as the target asks, or the nearest to it."""
        question = self.question.about(metric=self.method.faithful_to)
        journal = None
        if self.run is not None:
            journal = open_journal(self.run.path / SEARCH_FILE, self.model.graph)
        with self._stage("search"):
            return search(self.model, question, self._sought, self.resources, journal)

    @property
    def _sought(self) -> SearchOptions:
        return SearchOptions(target=self.method.rules.target or TARGET)

    def _of_search(self, searched: SearchResult) -> SearchEvidence:
        """How the search went."""
        target = self._sought.target
        return SearchEvidence(
            metric=self.method.faithful_to,
            least=target,
            greatest=2 - target,
            reached=searched.reached,
            minimal=searched.minimal,
            rounds=searched.n_rounds,
            trials=searched.n_trials,
            path=tuple(SearchPoint(**point) for point in searched.path()),
        )

    def _verify(
        self, ordered: Int64[Tensor, "edge end"]
    ) -> tuple[list[Verified], BoundEvidence | None]:
        """The edges verified, in order, and the bound on the others that ended it, if one did."""
        model, n_pairs = self.model, len(self.question.pairs)
        budget, until_bound = self.method.budget, self.method.until_bound
        verifier = self._verifier(EFFECTS_FILE, self.resources)
        with self._stage("verify"):
            if until_bound is not None:
                names = edge_names(model.graph, ordered)
                verified, bound = verifier.until(names, until_bound, BoundOptions())
                return verified, bound and bound_evidence(bound, n_pairs, n_pairs)
            if isinstance(budget, int):
                names = edge_names(model.graph, ordered[:budget])
                return list(verifier.measure(names)), None
            return self._verify_in_time(verifier, edge_names(model.graph, ordered)), None

    def _verifier(self, file: str, resources: Resources) -> Verifier:
        options = VerifyOptions(
            effects_file=self.run.path / file if self.run else None,
            chunk=None if self.deadline.seconds is None else CHUNK_IN_TIME,
        )
        return Verifier(self.model, self.question, options, resources)

    def _missed(
        self, rest: Int64[Tensor, "edge end"], verified: Sequence[Verified], full_gap: float
    ) -> Evidence:
        """What is said of the edges that were not verified, best first: by a sample, by a bound.

        It may cost what ``_FOR_MISSED`` of the edges verified did: a quarter of a run at most.
        """
        evidence = Evidence()
        if not len(rest) or not self.method.bound or self.method.until_bound is not None:
            return evidence
        plan = self._plan(len(verified), len(rest))
        if plan.n_sample:
            options = SampleOptions(
                n_edges=plan.n_sample, thresholds=thresholds_of(full_gap), unit=self.question.unit
            )
            measure = self._verifier(SAMPLE_FILE, self.resources.within("verify a sample")).measure
            sample = sample_missed(
                self.model.graph, rest, lambda names: list(measure(names)), options
            )
            evidence = replace(evidence, sample=sample)
        if plan.no_bound is not None:
            return replace(evidence, not_done={"bound": plan.no_bound})
        largest = max((abs(each.effect) for each in verified), default=math.inf)
        bound = bound_next(
            self.model,
            self.question,
            rest,
            self.resources.quiet(),
            n_subsets=plan.n_subsets,
            largest=largest,
        )
        if isinstance(bound, str):
            return replace(evidence, not_done={"bound": bound})
        return replace(evidence, bound=bound)

    def _plan(self, n_verified: int, n_rest: int) -> MissedPlan:
        """How many edges are sampled, and how many subsets patched."""
        if self.deadline.seconds is None:
            return plan_missed(1.0, _FOR_MISSED * n_verified, n_rest)
        sample = None if self.run is None else self.run.path / SAMPLE_FILE
        if sample is not None and sample.exists():
            # Of an earlier run that had other time left: what it drew, if it came to an end.
            if self._came_beyond("missed"):
                return MissedPlan(len(read_effects(sample)), 0)
            sample.unlink()
        seconds = max(self.deadline.left(), 0.0)
        return plan_missed(self.deadline.seconds_per_edge or 1.0, seconds, n_rest)

    def _verify_in_time(self, verifier: Verifier, names: Sequence[str]) -> list[Verified]:
        """As many edges as there is time for; of a run that came beyond this, those it had."""
        if self._came_beyond("verify") and self.run is not None:
            return list(verifier.measure(names[: len(read_effects(self.run.path / EFFECTS_FILE))]))
        verified: list[Verified] = []
        start = time.monotonic()
        for each in verifier.measure(names):
            verified.append(each)
            if len(verified) % CHUNK_IN_TIME == 0 and self.deadline.left(_FOR_EFFECTS) <= 0:
                break
        self.deadline.seconds_per_edge = (time.monotonic() - start) / len(verified)
        return verified

    def _with_losses(self, kept: Sequence[CircuitEdge]) -> list[CircuitEdge]:
        """The circuit's edges with what it loses without each, as many as the budget allows."""
        if not kept:
            return []
        largest_first = sorted(kept, key=lambda edge: -abs(edge.worth or 0.0))
        budget = self.method.budget if isinstance(self.method.budget, int) else len(kept)
        names = [edge.name for edge in largest_first[:budget]]
        path = None if self.run is None else self.run.path / LOSSES_FILE
        if self._came_beyond("weigh") and path is not None:
            names = names[: len(read_effects(path))]
        with self._stage("weigh"):
            losses = losses_of(
                self.model,
                self.question,
                [edge.name for edge in kept],
                names,
                self.resources,
                path,
                enough=lambda n_known: n_known > 0 and self.deadline.left(_FOR_LOSSES) <= 0,
            )
        by_name = {each.name: each.effect for each in losses}
        return [replace(edge, loss=by_name.get(edge.name)) for edge in kept]

    def _evidence(self, edges: EdgeScores, names: Sequence[str]) -> Evidence:
        """What the circuit is worth as a whole, on the pairs it was found on and on others."""
        model, question = self.model, self.question
        sections = gather(model, question, names, edges, self.resources)
        if self.method.tests:
            sections |= gather_tests(model, question, names, self.resources)
        evidence = Evidence.from_document(sections)
        if self.held_out is None:
            return evidence
        others = question.about(pairs=self.held_out)
        quiet = self.resources.quiet()
        judged = held_out_evidence(model, others, names, quiet, self.method.faithful_to)
        return replace(evidence, held_out=judged)

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
        candidates = candidates_of(scores, scores.ranking()[0][:n_candidates], verified)
        pruned = self._choose(candidates)
        return replace(pruned, beyond={rule: graph.n_edges - len(candidates)})

    def _choose(self, candidates: Sequence[CircuitEdge]) -> Pruned:
        graph, rules = self.model.graph, self.method.rules
        if rules.size is not None:
            return prune_to_size(graph, candidates, rules.size, rules.prune or PRUNE[0])
        if rules.acdc is None:
            return prune_by_effect(graph, candidates, rules.threshold or 0.0, rules.alpha)
        # It tries one set of edges after another: the corrupted run is made once for all.
        with ReducedRuns(self.model, self.question, self.resources.quiet()) as runs:
            return prune_by_acdc(runs, candidates, rules.acdc, self.resources.report)


_FOR_MISSED = 0.8
"""Of what the edges verified cost, for what was missed among the others."""

SAMPLE_FILE = "sample.jsonl"

_FOR_EFFECTS = 0.6
_FOR_LOSSES = 0.75
"""Until which share of the time for measuring edges effects are measured, and what the circuit loses
without each; the rest is for what was missed."""


def _circuit_first(searched: SearchResult, scores: EdgeScores) -> Int64[Tensor, "edge end"]:
    """All edges: the circuit's, those with the largest shares first, and then others by score."""
    mask = searched.chosen.mask
    own = mask.nonzero()
    shares = searched.shares[mask].abs()  # in the order of nonzero
    others = scores.ranking()[0]
    others = others[~mask[others[:, 0], others[:, 1]]]
    return torch.cat([own[shares.argsort(descending=True, stable=True)], others])


def _found(
    searched: SearchResult,
    scores: EdgeScores,
    ordered: Int64[Tensor, "edge end"],
    verified: Sequence[Verified],
) -> Pruned:
    """The edges that a search came to, which are the first of those ordered."""
    n_kept = searched.chosen.n_edges
    kept = candidates_of(scores, ordered[:n_kept], verified)
    return Pruned(tuple(kept), {}, {NOT_NEEDED: len(ordered) - n_kept})


def _budget_of(
    model: Model, budget: int | timedelta | None, until_bound: float | None, bound: bool
) -> int | str | None:
    """How many edges to verify, or the time of the run; None until a bound holds."""
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
    if isinstance(budget, timedelta):
        if budget <= timedelta(0):
            raise InputError(f"expected a budget of some time, got {budget}")
        return f"{budget.total_seconds():g}s"
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
    scores: EdgeScores, places: Int64[Tensor, "edge end"], verified: Sequence[Verified] = ()
) -> list[CircuitEdge]:
    """The edges at these places, with what is known of each."""
    graph, measured = scores.graph, {edge.name: edge for edge in verified}
    values = scores.aggregated(EDGE_AGGREGATE)[places[:, 0], places[:, 1]]
    candidates: list[CircuitEdge] = []
    for ends, score in zip(places.tolist(), values.tolist(), strict=True):
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
