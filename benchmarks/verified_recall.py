"""The AtP* paper's yardstick: what it costs to find, and verify, the nodes that matter.

    python benchmarks/verified_recall.py [--model DIR --pairs FILE] [--only TEXT]

A method's ranking is followed with exact one-node patches. cost(k) is what the method itself cost
plus the verifications until all of the true top k are among the verified, in forward passes per
pair; a backward pass counts as two forward passes. The oracle has cost(k) = k. The summary is the
inverse-rank-weighted geometric mean exp(sum_k ln(cost(k) / k) / k / sum_k 1/k), oracle 1 (Kramar
et al., 2024, arXiv 2403.00745). k runs over the nodes with at least 1e-3 of the largest effect.

Settings: every bundled model and task (and a model of your own), attention nodes and neurons, a
single pair with every position a node of its own, and 16 pairs with positions summed. The joint
patching methods are tuned in hindsight, each to the best of three values of its parameter, where
there are at most 2,000 nodes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from measure import write_section
from numpy.typing import NDArray

from wiremap.circuits import load_task
from wiremap.circuits.zoo import RECIPES
from wiremap.edges import Model, PromptPairs, patch_nodes, score_nodes
from wiremap.edges.scores.baselines import rank_nodes
from wiremap.edges.scores.node_scores import recommended_method

PLOTS = Path(__file__).parent / "verified_recall"
N_PAIRS = 16
TUNED_UP_TO = 2000
SMALLEST = 1e-3


@dataclass(frozen=True)
class Setting:
    """What is asked of which model."""

    name: str
    model: Model
    pairs: PromptPairs
    family: str

    @property
    def positions(self) -> str:
        return "each" if len(self.pairs) == 1 else "sum"

    @property
    def title(self) -> str:
        what = "attention nodes" if self.family == "heads" else "neurons"
        how = "one pair" if len(self.pairs) == 1 else f"{len(self.pairs)} pairs"
        return f"{self.name}, {what}, {how}"


@dataclass(frozen=True)
class Ranked:
    """Nodes in the order a method visits them, and what it has spent when it reaches each."""

    order: NDArray[numpy.int64]
    spent: NDArray[numpy.float64]


def asked_questions(
    own: tuple[str, str] | None, n_pairs: int
) -> Iterator[tuple[str, Model, PromptPairs]]:
    """Every bundled model and task, and a model directory and pairs file of your own."""
    for name, recipe in RECIPES.items():
        model = Model.load(name, device="cpu")
        for task in recipe.weights:
            # Corrupted as in training: a comparison that stays when a task's usual contrast changes.
            corruption = recipe.corruptions.get(task)
            pairs = load_task(task, model, n_pairs=n_pairs, corruption=corruption)
            yield f"{name} {task}", model, pairs
    if own is not None:
        model = Model.load(own[0], device="cpu")
        yield Path(own[0]).name, model, _rows(PromptPairs.read(own[1], model), n_pairs)


def settings(own: tuple[str, str] | None) -> Iterator[Setting]:
    for name, model, pairs in asked_questions(own, N_PAIRS):
        for family in ("heads", "neurons"):
            for n_pairs in (1, N_PAIRS):
                yield Setting(name, model, _rows(pairs, n_pairs), family)


def _rows(pairs: PromptPairs, n: int) -> PromptPairs:
    """The first ``n`` pairs."""
    length = int(pairs.lengths[:n].max())
    return PromptPairs(
        pairs.clean[:n, :length], pairs.corrupted[:n, :length], pairs.answers[:n], pairs.wrong[:n]
    )


def gradient_methods(setting: Setting) -> Iterator[tuple[str, Callable[[], Ranked]]]:
    """The methods that estimate all nodes at once; costs in forward passes."""
    n_layers = setting.model.graph.n_layers
    forward, backward, fix = 1, 2, 2
    one = 2 * forward + backward
    dropped = 2 * forward + (n_layers + 1) / 2 * backward
    integrated = 2 * forward + 10 * (forward + backward)
    rules: list[tuple[str, str, str | None, float]] = [
        ("AtP", "atp", None, one),
        ("AtP, corrupted gradient", "atp", "corrupted", one),
        ("AtP, both gradients", "atp", "both", one + backward),
        ("AtP, integrated (10 steps)", "atp", "integrated", integrated),
        ("AtP + GradDrop", "atp", "graddrop", dropped),
    ]
    if setting.family == "heads":
        rules += [
            ("AtP + QK fix", "atp-qk", None, one + fix),
            ("AtP + QK fix, both gradients", "atp-qk", "both", one + backward + fix),
            ("AtP + QK fix, integrated (10 steps)", "atp-qk", "integrated", integrated + fix),
        ]
    # Neurons have no softmax to fix: AtP* is AtP + GradDrop there.
    extra = fix if setting.family == "heads" else 0
    rules.append(("AtP*", "atp-star", None, dropped + extra))
    for label, method, gradient, cost in rules:

        def ranked(
            method: str = method, gradient: str | None = gradient, cost: float = cost
        ) -> Ranked:
            scores = score_nodes(
                setting.model,
                setting.pairs,
                setting.family,
                method=method,
                gradient=gradient,
                steps=10,
                positions=setting.positions,
            ).scores
            order = scores.abs().argsort(descending=True, stable=True).numpy()
            return Ranked(order, numpy.full(len(order), cost))

        yield label, ranked


def joint_methods(
    setting: Setting, n_nodes: int
) -> Iterator[tuple[str, list[Callable[[], Ranked]]]]:
    """The methods that patch many nodes together, each with three values of its parameter."""

    def ranked(method: str, **parameter: float) -> Callable[[], Ranked]:
        def run() -> Ranked:
            found = rank_nodes(
                setting.model,
                setting.pairs,
                setting.family,
                method=method,
                positions=setting.positions,
                **parameter,  # pyright: ignore[reportArgumentType]
            )
            return Ranked(numpy.array(found.order), numpy.array(found.costs, dtype=float))

        return run

    def values(some: Sequence[float]) -> list[int]:
        return [max(2, round(value)) for value in (some if n_nodes <= TUNED_UP_TO else some[1:2])]

    root = math.sqrt(n_nodes)
    yield (
        "subsampling",
        [ranked("subsampling", n_samples=n) for n in values([root / 2, 2 * root, 8 * root])],
    )
    yield "blocks", [ranked("blocks", block_size=n) for n in values([root / 4, root / 2, root])]
    yield "hierarchical", [ranked("hierarchical", branching=n) for n in values([2, 3, 8])]


def cost_curve(ranked: Ranked, truth: NDArray[numpy.float64], n_top: int) -> NDArray[numpy.float64]:
    """cost(k) for k = 1 .. n_top."""
    place = numpy.empty(len(truth), dtype=numpy.int64)
    place[ranked.order] = numpy.arange(len(truth))
    best_first = numpy.argsort(-truth, kind="stable")[:n_top]
    last = numpy.maximum.accumulate(place[best_first])
    return ranked.spent[last] + last + 1


def random_order(n_nodes: int, n_top: int) -> NDArray[numpy.float64]:
    """cost(k) when nodes are verified one by one in random order: the mean over orders."""
    # The last of k places drawn from n has the mean k (n + 1) / (k + 1).
    k = numpy.arange(1, n_top + 1)
    return k * (n_nodes + 1) / (k + 1)


def summary(curve: NDArray[numpy.float64]) -> float:
    """The inverse-rank-weighted geometric mean of cost(k) / k."""
    k = numpy.arange(1, len(curve) + 1)
    return float(numpy.exp((numpy.log(curve / k) / k).sum() / (1 / k).sum()))


@dataclass(frozen=True)
class Found:
    """What came out in a setting: cost curves, also with the methods' own cost left out."""

    n_nodes: int
    curves: dict[str, NDArray[numpy.float64]]
    of_ranking: dict[str, NDArray[numpy.float64]]


def measure(setting: Setting) -> Found:
    """Each method's cost of verified recall against the exact effects of all nodes."""
    scored = score_nodes(
        setting.model,
        setting.pairs,
        setting.family,
        method="atp",
        positions=setting.positions,
    )
    exact = patch_nodes(setting.model, setting.pairs, scored.names)
    truth = exact.mean().abs().double().numpy()
    n_top = int((truth >= SMALLEST * truth.max()).sum())
    methods = [(label, [rank]) for label, rank in gradient_methods(setting)]
    found = Found(len(truth), {}, {})
    for label, variants in [*methods, *joint_methods(setting, len(truth))]:
        ranked = [rank() for rank in variants]
        curves = [cost_curve(one, truth, n_top) for one in ranked]
        best = min(range(len(curves)), key=lambda index: summary(curves[index]))
        found.curves[label] = curves[best]
        free = Ranked(ranked[best].order, numpy.zeros(len(truth)))
        found.of_ranking[label] = cost_curve(free, truth, n_top)
    found.curves["random order"] = found.of_ranking["random order"] = random_order(
        len(truth), n_top
    )
    return found


def plot(setting: Setting, curves: dict[str, NDArray[numpy.float64]]) -> None:
    """cost(k) over k, both logarithmic, as in the paper's figures."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "wiremap"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    n_top = len(next(iter(curves.values())))
    ks = numpy.unique(numpy.geomspace(1, n_top, 80).round().astype(int))
    axes.plot(ks, ks, color="black", linestyle=":", label="oracle")
    for (label, curve), color in zip(curves.items(), pyplot.get_cmap("tab20").colors, strict=False):  # pyright: ignore[reportAttributeAccessIssue]
        joint = not label.startswith("AtP")
        axes.plot(ks, curve[ks - 1], label=label, color=color, linestyle="--" if joint else "-")
    axes.set(
        xscale="log", yscale="log", title=setting.title, xlabel="k: the true top k nodes",
        ylabel="forward passes per pair until all are verified",
    )  # fmt: skip
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    PLOTS.mkdir(exist_ok=True)
    name = setting.title.replace(", ", "-").replace(" ", "-")
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model directory of your own; with --pairs")
    parser.add_argument("--pairs", help="its prompt pairs")
    parser.add_argument("--only", default="", help="settings with this text in their title")
    options = parser.parse_args()
    own = (options.model, options.pairs) if options.model else None
    tables: dict[str, list[tuple[Setting, Found]]] = {}
    behind: list[str] = []
    for setting in settings(own):
        if options.only not in setting.title:
            continue
        start = time.perf_counter()
        found = measure(setting)
        plot(setting, found.curves)
        kind = setting.title.removeprefix(f"{setting.name}, ")
        tables.setdefault(kind, []).append((setting, found))
        behind += _behind(setting, found)
        print(f"{setting.title}: {time.perf_counter() - start:.0f} s", flush=True)
    text = (
        "Inverse-rank-weighted geometric mean of the cost of verified recall, the oracle has 1; in "
        "brackets that of the ranking alone, the method's own cost left out.\n"
    )
    for kind, rows in tables.items():
        methods = list(rows[0][1].curves)
        text += f"\n### {kind}\n\n| | {' | '.join(setting.name for setting, _ in rows)} |\n"
        text += "|---" * (len(rows) + 1) + "|\n"
        sizes = [f"{len(found.curves['AtP']):,} of {found.n_nodes:,}" for _, found in rows]
        text += f"| nodes that matter | {' | '.join(sizes)} |\n"
        for method in methods:
            cells = [
                f"{summary(found.curves[method]):.2f} ({summary(found.of_ranking[method]):.2f})"
                for _, found in rows
            ]
            text += f"| {method} | {' | '.join(cells)} |\n"
    text += "\nWhere what the paper recommends is behind plain AtP or a joint method:\n\n"
    text += "\n".join(f"- {line}" for line in behind) if behind else "nowhere."
    write_section("Cost of verified recall of nodes", torch.device("cpu"), text)


def _behind(setting: Setting, found: Found) -> list[str]:
    """The setting, if what the paper recommends there costs more than another method."""
    advised = recommended_method([setting.family], len(setting.pairs))
    label = {"atp": "AtP", "atp-qk": "AtP + QK fix", "atp-star": "AtP*"}[advised]
    costs = {name: summary(curve) for name, curve in found.curves.items()}
    rivals = ("AtP", "subsampling", "blocks", "hierarchical")
    better = [f"{rival} {costs[rival]:.2f}" for rival in rivals if costs[rival] < costs[label]]
    return [f"{setting.title}: {label} {costs[label]:.2f}, {', '.join(better)}"] if better else []


if __name__ == "__main__":
    main()
