"""Looking into an MLP: its neurons, or its experts, as writers and readers of their own.

A part writes its share of what the MLP writes, and reads the MLP's input by a copy of its own:

    m5.n17      a neuron: writes its activation times its row of W_out, reads through its columns of
                W_in (and of the gate)
    m5.e3       an expert: writes its output times its routing weight, reads with the routing fixed
    m5.shared   the shared expert, with its gate
    m5.router   the router: a reader only

The linear reader, so that parts sum to the whole: the scores out of all parts are those out of the
MLP, the scores into all parts those into the MLP (biases apart, which are the same in both runs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import ModelGraph, mlp_name
from ..names.vocabulary import DIRECTION, METRIC, SCHEDULE, STEPS
from ..question.metrics import Metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import Question
from ..runs.sweep import Report, Resources, Turn, Work, silent, sweep, table
from ..runs.trace import BothRuns, cost_of_trace
from ..runs.writes import WRITES, Writes
from .linear import INPUTS, ReaderGradients, of_runs, onward_scores
from .rules.registry import recommended_gradient, resolve_gradient
from .rules.rule import GradientRule, Gradients, Pass, check_depends

PARTS = ("neurons", "experts")


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Estimated effects of the edges out of, and into, the parts of an MLP; mean over pairs.

    Attributes:
        node: the MLP.
        parts: names of its parts, in order.
        outgoing: nan where no edge exists: readers that the MLP comes after, parts that do not write.
        incoming: the same the other way round.
    """

    graph: ModelGraph
    node: str
    parts: tuple[str, ...]
    outgoing: Float32[Tensor, "part reader"]
    incoming: Float32[Tensor, "writer part"]
    gradient: str

    def top(self, n: int | None = None) -> list[tuple[str, float]]:
        """The ``n`` largest by magnitude (all by default), as (edge name, score)."""
        writers = [writer.name for writer in self.graph.writers]
        readers = [reader.name for reader in self.graph.readers]
        tables = ((self.parts, readers, self.outgoing), (writers, self.parts, self.incoming))
        edges = [
            (f"{rows[row]}->{columns[column]}", table[row, column].item())
            for rows, columns, table in tables
            for row, column in (~table.isnan()).nonzero().tolist()
        ]
        return sorted(edges, key=lambda item: -abs(item[1]))[:n]


def score_split(
    model: Model,
    pairs: PromptPairs,
    split: str,
    *,
    metric: str | Metric = METRIC,
    gradient: str | GradientRule | None = None,
    direction: str = DIRECTION,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    progress: Report = silent,
) -> SplitScores:
    """Scores of the edges out of and into the parts of an MLP, by the linear reader.

    Args:
        split: the MLP and what to split it into: ``m5:neurons`` or ``m5:experts``.

    All else as ``score_edges``.

    Raises:
        InputError: a node that is no MLP, parts that it does not have, graddrop (its averages of
            absolute values do not add up to the whole's). Else as ``score_edges``.
    """
    question = Question(pairs=pairs, metric=metric, direction=direction)
    gradient = gradient or recommended_gradient(metric)
    rule = resolve_gradient(gradient, direction, metric, steps, schedule)
    resources = Resources(batch_size=batch_size, memory_limit=memory_limit, report=progress)
    return split_scores(model, question, split, rule, resources)


def split_scores(
    model: Model, question: Question, split: str, rule: GradientRule, resources: Resources
) -> SplitScores:
    """Scores of the edges out of and into the parts of an MLP; see ``score_split``."""
    layer, kind = parse_split(model, split)
    rule.check(model)
    if rule.unsigned:
        raise InputError(
            f"--split needs signed scores, which gradient {rule.name} has not; use another gradient "
            '(--gradient integrated, gradient="integrated")'
        )
    splitter: _Neurons | _Experts = (_Neurons if kind == "neurons" else _Experts)(model, layer)
    graph = model.graph
    outgoing = table(model, len(splitter.parts), len(graph.readers))
    incoming = table(model, len(graph.writers), len(splitter.parts))
    chunk_bytes = resources.available(model) // 16
    depends = False

    def scores(batch: PairBatch, turn: Turn) -> tuple[Tensor, Tensor]:
        nonlocal depends
        keep = (*WRITES, "mlp_in", "neurons")
        runs = BothRuns(model, batch, question.measure, keep, ("resid_pre", "mlp_in"))
        out, into = torch.zeros_like(outgoing), torch.zeros_like(incoming)
        for way in rule.passes(runs, (*INPUTS, *splitter.by), turn.rows.rows):
            layers = {at: gradients for at, gradients, _ in way.layers}
            of_readers = ReaderGradients(model, way, layers)
            difference = Writes.difference(runs.at("clean"), runs.at("corrupted"))
            for tokens in _chunks(batch, splitter, chunk_bytes):
                out += onward_scores(of_readers, splitter.made(runs, tokens), layer, tokens)
                into += splitter.incoming(difference, way, layers[layer], tokens)
        depends |= runs.depends
        return out, into

    def collect(batch: PairBatch, both: tuple[Tensor, Tensor]) -> None:
        outgoing.add_(both[0])
        incoming.add_(both[1])

    work = Work(
        stage=f"split {split}",
        function=scores,
        collect=collect,
        cost=cost_of_trace,
        gradients=True,
    )
    sweep(model, question.pairs, work, resources)
    check_depends(depends)
    divisor = len(question.pairs) * rule.divisor(graph.n_layers, within=True)
    n_read = graph.readers[graph.mlp_reader(layer)].n_writers
    # Readers up to the MLP have read before it writes; the router, the last part, writes nothing.
    outgoing[:, : graph.mlp_reader(layer) + 1] = torch.nan
    outgoing[splitter.n_writing :] = torch.nan
    incoming[n_read:] = torch.nan
    return SplitScores(
        graph, mlp_name(layer), splitter.parts, outgoing / divisor, incoming / divisor, rule.name
    )


def parse_split(model: Model, split: str) -> tuple[int, str]:
    """The layer and the parts that ``m5:neurons`` asks for. Raises InputError if there are none."""
    node, _, kind = split.partition(":")
    mlps = [writer.name for writer in model.graph.writers if writer.kind == "mlp"]
    if node not in mlps:
        raise InputError(
            f"expected an MLP to split, {mlps[0]} to {mlps[-1]}, got {node!r}; write --split "
            f'{mlps[0]}:neurons (split="{mlps[0]}:neurons")'
        )
    layer = mlps.index(node)
    has = "experts" if model.blocks[layer].mlp.experts() else "neurons"
    if has == "neurons" and not model.has_neurons:
        raise InputError(
            f"{node} of model {model.name} has no experts, and TransformerLens does not show its "
            "neurons; split another MLP"
        )
    if kind not in PARTS or kind != has:
        raise InputError(
            f"{node} of model {model.name} has {has}, got {split!r}; write --split {node}:{has} "
            f'(split="{node}:{has}")'
        )
    return layer, kind


def _chunks(
    batch: PairBatch, splitter: _Neurons | _Experts, chunk_bytes: int
) -> Iterator[Int64[Tensor, "token"]]:
    per_token = (
        4 * splitter.model.d_model * (len(splitter.parts) + len(splitter.model.graph.writers))
    )
    tokens = torch.arange(batch.clean.numel(), device=splitter.model.device)
    yield from tokens.split(max(1, chunk_bytes // per_token))


class _Neurons:
    """The neurons of an MLP: its W_out applies to them, activation and gate are theirs."""

    by = ("gate", "up")

    @torch.no_grad()
    def __init__(self, model: Model, layer: int) -> None:
        self.model, self.layer = model, layer
        self.mlp = model.blocks[layer].mlp
        self.weights = self.mlp.weights()
        self.n_writing = len(self.weights.out)
        self.parts = tuple(f"{mlp_name(layer)}.n{neuron}" for neuron in range(self.n_writing))

    def made(
        self, runs: BothRuns, tokens: Int64[Tensor, "token"]
    ) -> Float32[Tensor, "part token d_model"]:
        """What each neuron writes in the clean run less what it writes in the corrupted one."""
        # [pair pos neuron] -> [token neuron], scaled as a norm behind the MLP scales the whole.
        amounts = [
            (run.kept.neurons[self.layer] * self.mlp.scale(run.kept.neurons[self.layer]))
            .flatten(0, 1)[tokens]
            .float()
            for run in (runs.at("clean"), runs.at("corrupted"))
        ]
        return torch.einsum("tn,nm->ntm", amounts[0] - amounts[1], self.weights.out.float())

    def incoming(
        self, difference: Writes, way: Pass, gradients: Gradients, tokens: Int64[Tensor, "token"]
    ) -> Float32[Tensor, "writer part"]:
        """(clean - corrupted write) . J_norm^T (W_gate g_gate + W_up g_up), neuron by neuron."""
        model, layer = self.model, self.layer
        n_read = model.graph.readers[model.graph.mlp_reader(layer)].n_writers
        mlp_in = of_runs(way.tape.kept.mlp_in[layer], way.n_runs, tokens)
        scores = mlp_in.new_zeros(len(model.graph.writers), len(self.parts))
        sides = [("gate", self.weights.gate), ("up", self.weights.up)]
        gradient = {
            name: of_runs(gradients[name], way.n_runs, tokens)
            for name, weight in sides
            if weight is not None
        }
        # Forwards through the norm, writer by writer: backwards would take a stream of d_model numbers
        # for each neuron, and there are mostly more neurons than writers.
        for writer in range(n_read):
            (write,) = difference.of(model, [writer])
            change = write.flatten(0, 1)[tokens].float()
            for run in range(way.n_runs):
                norm = self.mlp.norm_derivative(mlp_in[run], way.frozen)
                moved = change if norm is None else norm.push_forward(change)
                for name, weight in sides:
                    if weight is not None:
                        # [token d_model] @ [d_model neuron], times [token neuron]
                        scores[writer] += ((moved @ weight.float()) * gradient[name][run]).sum(0)
        return scores


class _Experts:
    """The experts of a mixture, their router, and the expert they share, if there is one."""

    by = ("mlp_out",)

    def __init__(self, model: Model, layer: int) -> None:
        self.model, self.layer = model, layer
        self.mlp = model.blocks[layer].mlp
        self.experts = self.mlp.experts()
        self.n_writing = len(self.experts)
        self.parts = tuple(f"{mlp_name(layer)}.{name}" for name in (*self.experts, "router"))

    def made(
        self, runs: BothRuns, tokens: Int64[Tensor, "token"]
    ) -> Float32[Tensor, "part token d_model"]:
        """What each expert writes in the clean run less what it writes in the corrupted one."""
        writes: list[Tensor] = []
        for name in self.experts:
            clean, corrupted = (
                self._written(run.kept.mlp_in[self.layer], tokens, name)
                for run in (runs.at("clean"), runs.at("corrupted"))
            )
            writes.append(clean - corrupted)
        # The router is a part that writes nothing.
        return torch.stack([*writes, torch.zeros_like(writes[0])]).float()

    @torch.no_grad()
    def _written(
        self, mlp_in: Float[Tensor, "pair pos d_model"], tokens: Int64[Tensor, "token"], name: str
    ) -> Float[Tensor, "token d_model"]:
        normed = self.mlp.norm(mlp_in.flatten(0, 1)[tokens])
        return self.mlp.expert(name, normed, normed)

    def incoming(
        self, difference: Writes, way: Pass, gradients: Gradients, tokens: Int64[Tensor, "token"]
    ) -> Float32[Tensor, "writer part"]:
        """(clean - corrupted write) . gradient by the copy of the input that a part reads."""
        model, layer = self.model, self.layer
        n_read = model.graph.readers[model.graph.mlp_reader(layer)].n_writers
        mlp_in = of_runs(way.tape.kept.mlp_in[layer], way.n_runs, tokens).to(model.dtype)
        gradient = of_runs(gradients["mlp_out"], way.n_runs, tokens).to(model.dtype)
        towards = [self._by_copy(name, mlp_in, gradient) for name in (*self.experts, "router")]
        scores = torch.zeros(len(model.graph.writers), len(self.parts), device=model.device)
        for writer in range(n_read):
            (write,) = difference.of(model, [writer])
            change = write.flatten(0, 1)[tokens].float()
            for run in range(way.n_runs):
                norm = self.mlp.norm_derivative(mlp_in[run].float(), way.frozen)
                moved = change if norm is None else norm.push_forward(change)
                for part, by_input in enumerate(towards):
                    scores[writer, part] += (moved * by_input[run]).sum()
        return scores

    def _by_copy(
        self,
        name: str,
        mlp_in: Float[Tensor, "run token d_model"],
        gradient: Float[Tensor, "run token d_model"],
    ) -> Float32[Tensor, "run token d_model"]:
        """The gradient by the normalized input as one part alone reads it."""
        normed = self.mlp.norm(mlp_in).flatten(0, 1).detach()
        with torch.enable_grad():
            # The one leaf: whatever else reads the input reads it as a constant.
            copy = normed.clone().requires_grad_()
            if name == "router":
                written = sum(
                    self.mlp.expert(expert, normed, copy)
                    for expert in self.experts
                    if expert != "shared"  # which is not routed to
                )
            else:
                written = self.mlp.expert(name, copy, normed)
            # [(run token) d_model], and back to [run token d_model]
            (by_copy,) = torch.autograd.grad(torch.as_tensor(written), copy, gradient.flatten(0, 1))
        return by_copy.view_as(mlp_in).float()
