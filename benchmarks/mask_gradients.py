"""Time and memory of the gradients by all edges' masks, beside the plain bridge's two passes.

    python benchmarks/mask_gradients.py --model DIRECTORY [--task ioi] [--corruption abc]

8 pairs of one length, one thread; seconds are the processor's, so that other load counts less. The limit is a forward and a backward pass of the plain bridge (parameters
frozen, logits everywhere) at the clean prompts. The clean and corrupted runs, which all masks share,
are timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measure import median_ratio, peak_bytes, write_section

from wiremap.circuits import load_task
from wiremap.edges import Model, PromptPairs
from wiremap.edges.effects.mask_gradients import MaskedRuns
from wiremap.edges.names.graph import ModelGraph
from wiremap.edges.runs.masks import full_mask, live_mask

N_PAIRS = 8
REPEATS = 5
N_EDGES = (2_000, 300)


def plain(model: Model, pairs: PromptPairs) -> None:
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
    few, many = 0, graph.n_edges
    while many - few > 1:
        middle = (few + many) // 2
        mask = order <= order.flatten().kthvalue(middle).values
        few, many = (
            (middle, many) if int(live_mask(graph, mask).sum()) <= n_edges else (few, middle)
        )
    return live_mask(graph, order <= order.flatten().kthvalue(max(few, 1)).values)


def prepare(options: argparse.Namespace) -> tuple[Model, PromptPairs]:
    model = Model.load(options.model, device="cpu")
    pairs = load_task(options.task, model, corruption=options.corruption, n_pairs=128)
    usual = pairs.lengths.mode().values
    pairs = pairs.take((pairs.lengths == usual).nonzero().flatten()[:N_PAIRS].tolist())
    model.check_pairs(pairs)
    for weight in model.bridge.parameters():
        weight.requires_grad_(False)
    return model, pairs


def functions(model: Model, runs: MaskedRuns, pairs: PromptPairs) -> dict[str, Any]:
    masks = {"all edges": full_mask(model.graph)}
    masks |= {f"{n:,} edges": circuit(model.graph, n) for n in N_EDGES}
    made: dict[str, Any] = {
        "plain": lambda: plain(model, pairs),
        "both runs": lambda: MaskedRuns(model, pairs),
    }

    def borrowed(run: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> None:
            with runs:  # takes the bridge's hooks away, which the plain passes need
                run()

        return inside

    for name, mask in masks.items():
        made[f"value, {name}"] = borrowed(lambda mask=mask: runs.values(mask))
        made[f"all gradients, {name}"] = borrowed(lambda mask=mask: runs.gradients(mask))
        made[f"the circuit's, {name}"] = borrowed(
            lambda mask=mask: runs.gradients(mask, wanted=mask)
        )
    return made


def memory(options: argparse.Namespace, what: str) -> int:
    """Peak bytes in a process of its own, above the weights (and above both runs, kept before)."""
    command = [
        sys.executable, "-W", "ignore", __file__, "--model", options.model, "--task", options.task,
        "--memory-of", what,
    ]  # fmt: skip
    if options.corruption:
        command += ["--corruption", options.corruption]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--corruption")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", default="", help="measure what has this text in its name")
    parser.add_argument("--memory-of", help="for this script's own use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    model, pairs = prepare(options)
    if options.memory_of == "plain":
        print(peak_bytes(lambda: plain(model, pairs), device))
        return
    if options.memory_of == "with both runs":

        def whole() -> None:
            with MaskedRuns(model, pairs) as runs:
                runs.gradients(full_mask(model.graph))

        print(peak_bytes(whole, device))
        return
    made = functions(model, MaskedRuns(model, pairs), pairs)
    if options.memory_of:
        print(peak_bytes(made[options.memory_of], device))
        return
    made = {name: run for name, run in made.items() if name == "plain" or options.only in name}
    seconds = processor_seconds(made, options.repeats)
    print({name: [round(one, 2) for one in times] for name, times in seconds.items()}, flush=True)
    rows = [
        f"| {name} | {statistics.median(times):.3f} | {median_ratio(times, seconds['plain']):.2f} |"
        for name, times in seconds.items()
    ]
    peaks = {
        name: memory(options, name)
        for name in ("plain", "all gradients, all edges", "with both runs")
    }
    rows_of_memory = [
        f"| {name} | {peak / 2**20:.0f} | {peak / peaks['plain']:.2f} |"
        for name, peak in peaks.items()
    ]
    nl = "\n"
    write_section(
        f"Gradients by the masks of all {model.graph.n_edges:,} edges, {model.name.split('/')[-1]}",
        device,
        f"""
{N_PAIRS} pairs of {options.task}, {int(pairs.lengths[0])} tokens each. Relative to a forward and a backward pass of the plain bridge
(parameters frozen, logits everywhere); limit 1.6 for all gradients at any circuit.

| | seconds | relative to plain |
|---|---|---|
{nl.join(rows)}

Peak memory above what is there before, in processes of their own (limit 1.5):

| | MiB | relative to plain |
|---|---|---|
{nl.join(rows_of_memory)}
""",
    )


if __name__ == "__main__":
    main()
