"""How well edge scores rank: every gradient rule with every reader rule, against exact effects.

    python benchmarks/edge_accuracy.py [--model DIR --pairs FILE] [--only TEXT]
    python benchmarks/edge_accuracy.py --smollm2 DIR [--work DIR]

Truth is exact path patching of all edges (everything downstream recomputed), on every bundled model
and task (and a model of your own). For each combination: the correlation of |score| with |effect|
(Pearson, Spearman), recall@k (the share of the true k largest edges among the k best scores, k a
twentieth of the edges), and the cost of verified recall: a ranking is followed with exact one-edge
patches, cost(k) is what the method itself cost plus the verifications until all of the true top k
are among the verified, in forward passes per pair (a backward pass counts as two; a reader computed
anew as its share of a forward pass). The summary is the inverse-rank-weighted geometric mean of
cost(k) / k (Kramar et al., 2024, arXiv 2403.00745), oracle 1, over the edges of at least 1e-3 of
the largest effect.

With --smollm2, a directory of SmolLM2-135M-Instruct, the same is asked of a real language model,
where only some edges can be measured (``edge_accuracy_at_scale.py``), into a section of its own. It
takes about an hour, and goes on where it left off if --work says where to keep what was measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from edge_accuracy_at_scale import measure_at_scale
from measure import write_section
from numpy.typing import NDArray
from scipy.stats import spearmanr
from verified_recall import SMALLEST, Ranked, asked_questions, cost_curve, random_order, summary

from wiremap.edges import Model, PromptPairs, patch_edges, score_edges
from wiremap.edges.names.vocabulary import READER, STEPS
from wiremap.edges.scores.rules.registry import recommended_gradient

N_PAIRS = 16


@dataclass(frozen=True)
class Method:
    """A gradient rule and a reader rule, and what they cost.

    Attributes:
        candidates: the share of the edges that the exact reader is asked about.
    """

    gradient: str
    reader: str
    steps: int = 10
    schedule: str = "midpoint"
    candidates: float | None = None

    @property
    def label(self) -> str:
        gradient = self.gradient
        if gradient == "integrated":
            gradient += f", {self.steps} steps"
            gradient += ", left" if self.schedule == "left" else ""
        some = "" if self.candidates is None else f", best {self.candidates:.0%}"
        return f"{gradient} x {self.reader}{some}"

    def options(self, n_edges: int) -> dict[str, Any]:
        candidates = None if self.candidates is None else max(1, int(self.candidates * n_edges))
        return {
            "gradient": self.gradient,
            "reader": self.reader,
            "steps": self.steps,
            "schedule": self.schedule,
            "candidates": candidates,
        }

    def cost(self, model: Model, n_pos: int, scored: NDArray[numpy.bool_]) -> float:
        """Forward passes per pair; ``scored`` are the edges whose readers are computed anew."""
        forward, backward = 1, 2
        one = 2 * forward + backward
        n_layers = model.graph.n_layers
        of_gradient = {
            "both": one + backward,
            "integrated": 2 * forward + self.steps * (forward + backward),
            "graddrop": 2 * forward + (n_layers + 1) / 2 * backward,
        }.get(self.gradient, one)
        if self.reader == "linear":
            return of_gradient
        shares = reader_shares(model, n_pos, attention_only=self.reader == "exact-attention")
        twice = 1 if self.candidates is None else 2
        return twice * of_gradient + float(shares[scored].sum())


def methods() -> Iterator[Method]:
    for reader in ("linear", "exact-attention", "exact"):
        for gradient in ("clean", "corrupted", "both"):
            yield Method(gradient, reader)
        for steps in (2, 3, 5, 10):
            yield Method("integrated", reader, steps)
        if reader == "linear":
            yield Method("integrated", reader, 5, "left")
        yield Method("graddrop", reader)
        for gradient in ("relevance", "gim"):
            yield Method(gradient, reader)
    for gradient, steps in (("clean", 1), ("corrupted", 1), ("both", 1), ("integrated", 2)):
        yield Method(gradient, "exact", steps, candidates=0.1)


def reader_shares(model: Model, n_pos: int, attention_only: bool) -> NDArray[numpy.float64]:
    """What computing each edge's reader anew costs, in forward passes; by multiplications."""
    graph, d_head, d_model = model.graph, model.d_head, model.d_model
    group = graph.n_heads // graph.n_kv_heads
    project, attend = n_pos * d_model * d_head, 2 * n_pos**2 * d_head
    mlp = n_pos * sum(w.numel() for w in model.bridge.blocks[0].mlp.parameters())
    block = (2 * graph.n_heads + 2 * graph.n_kv_heads) * project + graph.n_heads * attend + mlp
    unembed = d_model * model.d_vocab
    forward = graph.n_layers * block + unembed
    of_kind = {
        "q": project + attend,
        "k": project + group * attend,
        "v": 0 if attention_only else project + group * attend / 2,
        "mlp": 0 if attention_only else mlp,
        "logits": 0 if attention_only else unembed,
    }
    return numpy.array(
        [of_kind[graph.readers[edge.reader].kind] / forward for edge in graph.edges()]
    )


def measure(model: Model, pairs: PromptPairs) -> tuple[list[dict[str, float]], int, int]:
    """What each method achieves; how many edges matter, and how many there are."""
    graph = model.graph
    edges = list(graph.edges())
    exact = patch_edges(model, pairs, [graph.edge_name(edge) for edge in edges])
    truth = exact.mean().abs().double().numpy()
    signed = exact.mean().double().numpy()
    n_top = int((truth >= SMALLEST * truth.max()).sum())
    k = max(1, len(truth) // 20)
    best = set(numpy.argsort(-truth, kind="stable")[:k].tolist())
    rows, columns = torch.tensor(edges).T
    found: list[dict[str, float]] = []
    for method in methods():
        scores = score_edges(model, pairs, **method.options(len(edges)))
        values = scores.scores[rows, columns].double().numpy()
        scored = numpy.ones(len(edges), dtype=bool)
        if scores.exact is not None:
            scored = scores.exact[rows, columns].numpy()
        order = numpy.argsort(-numpy.abs(values), kind="stable")
        ranks: Any = spearmanr(numpy.abs(values), truth)
        own = method.cost(model, pairs.clean.shape[1], scored)
        spent = numpy.full(len(order), own)
        found.append(
            {
                "pearson": float(numpy.corrcoef(numpy.abs(values), truth)[0, 1]),
                "signed": float(numpy.corrcoef(values, signed)[0, 1]),
                "spearman": float(ranks.statistic),
                "recall": len(best & set(order[:k].tolist())) / k,
                "cost": summary(cost_curve(Ranked(order, spent), truth, n_top)),
                "ranking": summary(cost_curve(Ranked(order, 0 * spent), truth, n_top)),
                "own": own,
            }
        )
    random = summary(random_order(len(edges), n_top))
    found.append({"cost": random, "ranking": random})
    return found, n_top, len(edges)


def geometric_mean(values: list[float]) -> float:
    return float(numpy.exp(numpy.mean(numpy.log(values))))


def table(title: str, names: list[str], labels: list[str], cells: list[list[str]]) -> str:
    lines = [f"\n### {title}\n", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(row)} |" for label, row in zip(labels, cells, strict=True)]
    return "\n".join(lines) + "\n"


def verdict(
    names: list[str], results: list[list[dict[str, float]]], labels: list[str], means: list[float]
) -> str:
    """Which combination costs least over all settings, what wiremap does, and where it loses."""
    default = labels.index(Method(recommended_gradient(), READER, STEPS).label)
    best = min(range(len(labels)), key=means.__getitem__)
    intro = (
        f"Least in the geometric mean: {labels[best]}, {means[best]:.2f}. The default, "
        f"{labels[default]}: {means[default]:.2f}. Where another costs less than the default:\n"
    )
    lines = [intro]
    for name, found in zip(names, results, strict=True):
        winner = min(range(len(labels)), key=lambda i: found[i]["cost"])
        if winner != default:
            lines.append(
                f"- {name}: {labels[winner]} {found[winner]['cost']:.2f}, default "
                f"{found[default]['cost']:.2f}"
            )
    return "\n".join(lines) + "\n"


def at_scale(directory: str, work: Path | None) -> None:
    """The real model's section of RESULTS.md."""
    with tempfile.TemporaryDirectory() as temporary:
        text = measure_at_scale(directory, work or Path(temporary))
    write_section("Accuracy of edge scores on a real language model", torch.device("cpu"), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model directory of your own; with --pairs")
    parser.add_argument("--pairs", help="its prompt pairs")
    parser.add_argument("--only", default="", help="settings with this text in their name")
    parser.add_argument("--smollm2", metavar="DIR", help="SmolLM2-135M-Instruct, and it alone")
    parser.add_argument("--work", metavar="DIR", type=Path, help="keeps what --smollm2 measures")
    options = parser.parse_args()
    if options.smollm2:
        at_scale(options.smollm2, options.work)
        return
    own = (options.model, options.pairs) if options.model else None
    names: list[str] = []
    results: list[list[dict[str, float]]] = []
    sizes: list[str] = []
    for name, model, pairs in asked_questions(own, N_PAIRS):
        if options.only not in name:
            continue
        start = time.perf_counter()
        found, n_top, n_edges = measure(model, pairs)
        names.append(name)
        results.append(found)
        sizes.append(f"{name}: {n_top:,} of {n_edges:,}")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    labels = [method.label for method in methods()] + ["random order"]
    text = (
        f"{N_PAIRS} pairs, noising. Edges of at least {SMALLEST:g} of the largest effect: "
        f"{'; '.join(sizes)}.\n"
    )
    every, scored = range(len(labels)), range(len(labels) - 1)
    means = {
        key: [geometric_mean([found[i][key] for found in results]) for i in every]
        for key in ("cost", "ranking")
    }
    text += table(
        "Cost of verified recall, the oracle has 1; in brackets that of the ranking alone",
        [*names, "geometric mean"],
        labels,
        [
            [f"{found[i]['cost']:.2f} ({found[i]['ranking']:.2f})" for found in results]
            + [f"**{means['cost'][i]:.2f}** ({means['ranking'][i]:.2f})"]
            for i in every
        ],
    )
    text += table(
        "Correlation with the effects: Pearson / Spearman of magnitudes, Pearson with signs",
        names,
        labels[:-1],
        [
            [f"{one['pearson']:.2f} / {one['spearman']:.2f}, {one['signed']:.2f}" for one in row]
            for row in ([found[i] for found in results] for i in scored)
        ],
    )
    text += table(
        "Recall at a twentieth of the edges; in brackets the method's own forward passes",
        [*names, "mean"],
        labels[:-1],
        [
            [f"{found[i]['recall']:.2f} ({found[i]['own']:.0f})" for found in results]
            + [f"{numpy.mean([found[i]['recall'] for found in results]):.2f}"]
            for i in scored
        ],
    )
    text += "\n" + verdict(names, results, labels, means["cost"])
    write_section("Accuracy of edge scores", torch.device("cpu"), text)


if __name__ == "__main__":
    main()
