"""Masked runs, and gradients by all edges' masks, beside the plain bridge's own passes.

    python benchmarks/mask_gradients.py --model DIRECTORY [--task ioi] [--corruption abc]

8 pairs of one length, one thread; seconds are the processor's, so that other load counts less. Runs
without gradients are compared with a forward pass of the plain bridge over the clean prompts (logits
everywhere), gradients with a forward and a backward pass of it (parameters frozen). The clean and
the corrupted runs, which all masks share, are timed apart. Circuits are of random edges, all on
paths from the input to the logits.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from measure import median_ratio, peak_bytes, write_section

from wiremap.circuits import load_task
from wiremap.edges import Model, PromptPairs
from wiremap.edges.effects.mask_gradients import MaskedRuns
from wiremap.edges.names.graph import ModelGraph
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import full_mask, live_mask, places_mask
from wiremap.edges.runs.sweep import Resources, check_pairs

N_PAIRS = 8
REPEATS = 5
N_EDGES = (2_000, 300)
N_REMOVED = 10
"""Edges that are taken from a circuit, each alone."""
FORWARD, BOTH = "plain forward", "plain forward and backward"
IN_MEMORY = "all gradients, all edges"
WITH_RUNS = "the same with the shared runs"
CPU = torch.device("cpu")


def plain_forward(model: Model, pairs: PromptPairs) -> None:
    """A forward pass of the bridge over the clean prompts."""
    with torch.no_grad():
        for batch in pairs.batches():
            model.bridge(batch.clean)


def plain_both(model: Model, pairs: PromptPairs) -> None:
    """A forward and a backward pass of the bridge over the clean prompts."""
    for batch in pairs.batches():
        leaves: list[torch.Tensor] = []

        def root(embedding: torch.Tensor, hook: Any, leaves: list[Any] = leaves) -> torch.Tensor:
            leaves.append(embedding.detach().requires_grad_())
            return leaves[0]

        rows = torch.arange(len(batch))
        with torch.enable_grad(), model.bridge.hooks(fwd_hooks=[("hook_embed", root)]):
            logits = model.bridge(batch.clean)[:, -1]
        right, wrong = batch.answers[:, 0], batch.wrong_answers[:, 0]
        torch.autograd.grad((logits[rows, right] - logits[rows, wrong]).sum(), leaves)


def processor_seconds(
    functions: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Of each function, run in turn so that drift hits all alike; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if repeat:
                seconds[name].append(time.process_time() - start)
    return seconds


def circuit(graph: ModelGraph, n_edges: int) -> torch.Tensor:
    """About so many random edges that all lie on a path from the input to the logits."""
    every = full_mask(graph)
    order = torch.rand(every.shape, generator=torch.Generator().manual_seed(0))
    order = order.masked_fill(~every, 2.0)

    def drawn(n_drawn: int) -> torch.Tensor:
        return live_mask(graph, order <= order.flatten().kthvalue(n_drawn).values)

    few, many = 1, graph.n_edges
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if int(drawn(middle).sum()) <= n_edges else (few, middle)
    return drawn(few)


def prepared(options: argparse.Namespace) -> tuple[Model, PromptPairs]:
    """The model, frozen, and pairs of its most frequent length."""
    model = Model.load(options.model, device="cpu")
    pairs = load_task(options.task, model, corruption=options.corruption, n_pairs=128)
    usual = pairs.lengths.mode().values
    pairs = pairs.take((pairs.lengths == usual).nonzero().flatten()[:N_PAIRS].tolist())
    check_pairs(model, pairs)
    for weight in model.bridge.parameters():
        weight.requires_grad_(False)
    return model, pairs


def shared_runs(model: Model, pairs: PromptPairs) -> MaskedRuns:
    """What all masks share: the clean and the corrupted run."""
    return MaskedRuns(model, Question(pairs=pairs), Resources())


@dataclass(frozen=True)
class Timed:
    """A function, the plain passes it is compared with, and how many of what is meant it does."""

    run: Callable[[], Any]
    beside: str
    times: int = 1


def timed(model: Model, pairs: PromptPairs) -> dict[str, Timed]:
    """What is measured, by name."""
    runs = shared_runs(model, pairs)
    masks = {f"all {model.graph.n_edges:,} edges": full_mask(model.graph)}
    for n_edges in N_EDGES:
        mask = circuit(model.graph, n_edges)
        masks[f"{int(mask.sum()):,} edges"] = mask

    def borrowed(run: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> None:
            with runs:  # takes the bridge's hooks away, which the plain passes need
                run()

        return inside

    functions = {
        FORWARD: Timed(lambda: plain_forward(model, pairs), FORWARD),
        BOTH: Timed(lambda: plain_both(model, pairs), BOTH),
        "the shared runs": Timed(lambda: shared_runs(model, pairs), FORWARD),
    }
    for name, mask in masks.items():
        edges = mask.nonzero()
        drawn = torch.randperm(len(edges), generator=torch.Generator().manual_seed(0))[:N_REMOVED]
        groups = [places_mask(model.graph, edges[[place]]) for place in drawn.tolist()]
        functions |= {
            f"one edge less, {name}": Timed(
                borrowed(lambda mask=mask, groups=groups: runs.values_without(mask, groups)),
                FORWARD,
                N_REMOVED,
            ),
            f"masked run, {name}": Timed(borrowed(lambda mask=mask: runs.values(mask)), FORWARD),
            f"all gradients, {name}": Timed(borrowed(lambda mask=mask: runs.gradients(mask)), BOTH),
            f"the circuit's own gradients, {name}": Timed(
                borrowed(lambda mask=mask: runs.gradients(mask, wanted=mask)), BOTH
            ),
        }
    return functions


def memory(options: argparse.Namespace, what: str) -> int:
    """Peak bytes in a process of its own, above the weights (and the shared runs, unless said)."""
    command = [
        sys.executable, "-W", "ignore", __file__, "--model", options.model, "--task", options.task,
        "--memory-of", what,
    ]  # fmt: skip
    if options.corruption:
        command += ["--corruption", options.corruption]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(printed.split()[-1])


def print_memory(model: Model, pairs: PromptPairs, what: str) -> None:
    """The peak of one function."""
    if what == BOTH:
        print(peak_bytes(lambda: plain_both(model, pairs), CPU))
    elif what == IN_MEMORY:
        with shared_runs(model, pairs) as runs:
            print(peak_bytes(lambda: runs.gradients(full_mask(model.graph)), CPU))
    else:

        def whole() -> None:
            with shared_runs(model, pairs) as runs:
                runs.gradients(full_mask(model.graph))

        print(peak_bytes(whole, CPU))


def report(options: argparse.Namespace, model: Model, pairs: PromptPairs) -> None:
    """Measures all and writes the section."""
    functions = timed(model, pairs)
    seconds = processor_seconds(
        {name: function.run for name, function in functions.items()}, options.repeats
    )
    rows = [
        f"| {name} | {statistics.median(seconds[name]) / function.times:.3f} | {function.beside} | "
        f"**{median_ratio(seconds[name], seconds[function.beside]) / function.times:.2f}** |"
        for name, function in functions.items()
    ]
    peaks = {name: memory(options, name) for name in (BOTH, IN_MEMORY, WITH_RUNS)}
    rows_of_memory = [
        f"| {name} | {peak / 2**20:.0f} | {peak / peaks[BOTH]:.2f} |"
        for name, peak in peaks.items()
    ]
    newline = "\n"
    write_section(
        f"Masked runs and gradients by masks of {model.graph.n_edges:,} edges, "
        f"{model.name.rstrip('/').split('/')[-1]}",
        CPU,
        f"""
{N_PAIRS} pairs of {options.task}, {int(pairs.lengths[0])} tokens each. Relative to passes of the plain bridge over the clean
prompts (parameters frozen, logits everywhere). Wanted are at most 0.9, 1.5 and 1.7 for masked runs
of about 300, about 2,000 and all edges, and 1.6 for all gradients at any circuit. *One edge less* is
the mean over {N_REMOVED} edges, each taken from the circuit alone: what is upstream of them is run once.
Circuits are of random edges that lie on paths; seconds are the processor's.

| | seconds | beside | relative to it |
|---|---|---|---|
{newline.join(rows)}

Peak memory above what is there before, in processes of their own (wanted 1.5):

| | MiB | relative to plain |
|---|---|---|
{newline.join(rows_of_memory)}
""",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--corruption")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--memory-of", help="for this script's own use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, pairs = prepared(options)
    if options.memory_of:
        print_memory(model, pairs, options.memory_of)
    else:
        report(options, model, pairs)


if __name__ == "__main__":
    main()
