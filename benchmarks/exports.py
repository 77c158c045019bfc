"""Time and size of every format, for the largest circuit there is of GPT-2 small: all its edges.

    python benchmarks/exports.py

Diagrams show the edges they show by default (the 100 largest), and 5,000 in one more row. GraphML
is written beside networkx's own writer, from the same columns, parallel edges and all; neither
checks what it writes, and networkx is given the graph, which we make of the circuit first.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import networkx
import torch
from measure import interleaved_seconds, median_ratio, write_section

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.edges import ModelGraph
from wiremap.exporters import FORMATS, View, read_circuit, write_circuit

REPEATS = 5
CPU = torch.device("cpu")
GPT2 = ModelGraph(12, 12, 12)
MOST_SECONDS = 5.0


def circuit(n_edges: int) -> Circuit:
    """A circuit of that many edges of GPT-2 small, 7 of 10 verified; made up, always the same."""
    numbers = random.Random(0)
    edges: list[CircuitEdge] = []
    for place in numbers.sample(list(GPT2.edges()), n_edges):
        reader = GPT2.readers[place.reader]
        slot = reader.kind if reader.kind in ("q", "k", "v") else None
        score = numbers.gauss(0, 1) ** 3
        edge = CircuitEdge(GPT2.writers[place.writer].name, reader.node, slot, score=score)
        if numbers.random() < 0.7:
            edge = replace(edge, effect=1.1 * score, standard_error=0.1, n_pairs=64)
        edges.append(edge)
    about = {"model": {"name": "gpt2", "d_model": 768}, "method": {"metric": "logit_diff"}}
    return Circuit.build(GPT2, edges, {"m0": 0.5}, **about)


def main() -> None:
    everything, many = circuit(GPT2.n_edges), circuit(5000)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)

        def write(format: str, view: View | None = None) -> Path:
            path = place / f"circuit{FORMATS[format].extension}"
            write_circuit(everything, path, view=view)
            return path

        parallel = View(qkv="parallel")
        text, encode = place / "ours.graphml", FORMATS["graphml"].encode
        graph = networkx.read_graphml(write("graphml", parallel), force_multigraph=True)
        seconds = interleaved_seconds(
            {
                **{name: lambda name=name: write(name) for name in FORMATS},
                "ours": lambda: text.write_bytes(encode(everything, parallel)),
                "networkx": lambda: networkx.write_graphml(graph, place / "networkx.graphml"),
                "5000": lambda: write_circuit(many, place / "many.svg", view=View(top=5000)),
            },
            REPEATS,
            CPU,
        )
        readable = [name for name, known in FORMATS.items() if known.loses is not None]
        paths = {name: write(name) for name in FORMATS}
        reading = interleaved_seconds(
            {name: lambda name=name: read_circuit(paths[name]) for name in readable}, REPEATS, CPU
        )
        size = {name: path.stat().st_size / 1e6 for name, path in paths.items()}
        size["5000"] = (place / "many.svg").stat().st_size / 1e6
    lines = [
        f"| {name} | {median(seconds[name]):.2f} | "
        + (f"{median(reading[name]):.2f}" if name in reading else "")
        + f" | {size[name]:.2f} |"
        for name in FORMATS
    ]
    ratio = median_ratio(seconds["networkx"], seconds["ours"])
    drawn = median(seconds["5000"])
    table = "\n".join(lines)
    write_section(
        "Files of a circuit of all 32,491 edges of GPT-2 small",
        CPU,
        f"""
| format | seconds to write | seconds to read | MB |
|---|---|---|---|
{table}
| svg of 5,000 edges, `--top 5000` | {drawn:.2f} (allowed {MOST_SECONDS:g}) | | {size["5000"]:.2f} |

dot, svg, png, pdf and mermaid show the 100 largest edges. GraphML with parallel edges takes
{median(seconds["ours"]):.2f} s; networkx {networkx.__version__} with lxml takes
{median(seconds["networkx"]):.2f} s for the same columns, **{ratio:.1f}x** as long (wanted at least 1).
""",
    )


if __name__ == "__main__":
    main()
