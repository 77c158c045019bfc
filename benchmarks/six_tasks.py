"""Six questions to a real language model: ``discover`` with its defaults, and what it comes to.

Of ``real_model.py``, which runs it. Each question has a process of its own, so that its peak memory
is its own, and in which plain forward passes over its pairs are timed beside it. What was measured
stands in ``measured.json`` of the run directory; all else that is said is read from the directory.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from measure import machine, write_section
from numpy.typing import NDArray

from wiremap.circuits.result.circuit import Circuit, CircuitEdge
from wiremap.circuits.result.document import loads
from wiremap.circuits.result.headline import headline, remarks
from wiremap.edges.errors import InputError, WiremapError
from wiremap.exporters import View, read_circuit, write_circuit

CPU = torch.device("cpu")
MODEL = "SmolLM2-135M-Instruct"
PAGE = Path(__file__).parent.parent / "docs/smollm2.md"
PICTURES = PAGE.parent / "smollm2"
MEASURED_FILE = "measured.json"
WINDOW = (0.9, 1.1)
ALLOWED = 400
"""A run may take so many times a plain forward pass over its pairs."""
N_LARGEST = 5
CROWDED = 60
"""Of more edges the picture shows layers, and so many connections."""


@dataclass(frozen=True)
class Asked:
    """A task, and how its prompts are corrupted; None is its first way."""

    task: str
    corruption: str | None = None

    @property
    def name(self) -> str:
        """Of the run directory, too."""
        return self.task + (f"-{self.corruption}" if self.corruption else "")


SIX = (
    Asked("ioi", "s2-flip"),
    Asked("ioi", "swap"),
    Asked("ioi", "abc"),
    Asked("agreement"),
    Asked("induction"),
    Asked("gendered-pronoun"),
)


# ---- a run


def run_all(script: str, model: Path, out: Path) -> None:
    """Runs what is not finished there, one after the other."""
    for asked in SIX:
        directory = out / asked.name
        if not (directory / MEASURED_FILE).exists():
            if (directory / "run.json").exists():  # of a run that was stopped: times must be whole
                shutil.rmtree(directory)
            print(f"{asked.name}: into {directory}", flush=True)
            command = [sys.executable, "-W", "ignore", script, "--smollm2", str(model)]
            subprocess.run([*command, "--one", asked.name, "--out", str(out)], check=True)


def run_one(model_directory: Path, name: str, out: Path) -> None:
    """One run, measured: from before the model is loaded to when all files are there."""
    # Not above, since the other modes need no model.
    from wiremap.circuits import discover, load_task
    from wiremap.edges import Model

    asked = {each.name: each for each in SIX}[name]
    start = _now()
    model = Model.load(str(model_directory), device="cpu")
    pairs = load_task(asked.task, model, corruption=asked.corruption, part="search")
    loading = _now() - start
    plain, plain_processor = plain_seconds(model, pairs)
    start = _now()
    circuit = discover(model, pairs, out / name, progress=_Stages())
    seconds, processor = loading + _now() - start
    measured = {
        "seconds": float(seconds),
        "processor_seconds": float(processor),
        "plain_seconds": float(plain),
        "plain_processor_seconds": float(plain_processor),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "machine": machine(CPU),
    }
    (out / name / MEASURED_FILE).write_text(json.dumps(measured, indent=1) + "\n")
    print(headline(circuit), flush=True)


def _now() -> NDArray[numpy.float64]:
    """By the clock, and what this process has had of the processors."""
    return numpy.array([time.perf_counter(), time.process_time()])


def plain_seconds(model: Any, pairs: Any) -> NDArray[numpy.float64]:
    """Of a forward pass of the plain bridge over the clean prompts: medians of three, after one.

    By the clock, and of the processors.
    """
    seconds: list[NDArray[numpy.float64]] = []
    for _ in range(4):
        start = _now()
        with torch.no_grad():
            for batch in pairs.batches():
                model.bridge(batch.clean)
        seconds.append(_now() - start)
    return numpy.median(seconds[1:], axis=0)


class _Stages:
    """Says which stage has begun."""

    def __init__(self) -> None:
        self.stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            print(f"  {time.strftime('%H:%M:%S')} {stage}", flush=True)


# ---- what a run directory says


@dataclass(frozen=True)
class Answer:
    """A finished run directory."""

    asked: Asked
    directory: Path

    @cached_property
    def circuit(self) -> Circuit:
        """What was found."""
        return read_circuit(self.directory / "circuit.json")

    @cached_property
    def measured(self) -> dict[str, Any]:
        """What ``run_one`` wrote; nothing for a run of ``wiremap discover``."""
        path = self.directory / MEASURED_FILE
        return loads(path.read_text()) if path.exists() else {}

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of every stage."""
        record = loads((self.directory / "run.json").read_text())
        return {name: stage["seconds"] for name, stage in record["stages"].items()}

    @property
    def seconds(self) -> float:
        """Of the whole run; of all its stages, where only these were measured."""
        return self.measured.get("seconds") or sum(self.stages.values())

    @property
    def ratio(self) -> float | None:
        """To a plain forward pass over its pairs, in the same process; None if none was timed.

        Of the processors' seconds, which other load on the machine leaves alone.
        """
        plain = self.measured.get("plain_processor_seconds")
        return None if plain is None else self.measured["processor_seconds"] / plain

    @property
    def reached(self) -> bool:
        """Whether the held-out faithfulness is within the window, as it is shown."""
        return WINDOW[0] <= round(self.held_out.faithfulness, 2) <= WINDOW[1]

    @property
    def held_out(self) -> Any:
        """What it is worth on the pairs held out."""
        known = self.circuit.evidence.held_out
        if known is None:
            raise InputError(f"{self.directory}: it has no held-out pairs; run it with some")
        return known

    def row(self) -> str:
        """Of the table."""
        held_out, peak = self.held_out, self.measured.get("peak_bytes")
        low, high = held_out.interval
        cells = [
            self.asked.name,
            f"{len(self.circuit.edges):,}",
            f"{held_out.faithfulness:.2f} ({low:.2f} to {high:.2f})",
            f"{held_out.kl_share:.2f}",
            f"{held_out.accuracy:.2f} ({held_out.model_accuracy:.2f})",
            "yes" if self.reached else "**no**",
            f"{self.seconds / 60:.1f}",
            "not measured" if self.ratio is None else f"{self.ratio:.0f}",
            "not measured" if peak is None else f"{peak / 2**30:.1f} GiB",
        ]
        return f"| {' | '.join(cells)} |"


def finished(directory: Path) -> list[Answer]:
    """The runs of ``directory`` that are finished. Raises InputError if there is none."""
    answers = [
        Answer(asked, directory / asked.name)
        for asked in SIX
        if (directory / asked.name / "circuit.json").exists()
    ]
    if not answers:
        raise InputError(
            f"{directory}: no finished run; expected directories such as {SIX[0].name} of "
            "wiremap discover in it"
        )
    return answers


def table(answers: Sequence[Answer]) -> list[str]:
    """Lines of Markdown."""
    titles = (
        "task", "edges", "held-out faithfulness (90 % interval)", "KL recovered",
        "accuracy (model's)", "reached", "minutes", "times a plain pass", "peak memory",
    )  # fmt: skip
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *(a.row() for a in answers)]


def verdict(answers: Sequence[Answer]) -> Iterator[str]:
    """What the table comes to, in sentences."""
    n_reached = sum(answer.reached for answer in answers)
    yield (
        f"{n_reached} of {len(answers)} are within {WINDOW[0]:g} to {WINDOW[1]:g} on pairs that the "
        "search never saw."
    )
    ratios = [answer.ratio for answer in answers if answer.ratio is not None]
    if ratios:
        yield (
            f"Of {len(ratios)} that were timed beside a plain pass, "
            f"{sum(ratio <= ALLOWED for ratio in ratios)} took at most {ALLOWED} times as long."
        )
    if len(ratios) < len(answers):
        yield (
            f"{'Others' if ratios else 'All'} were not timed beside a plain pass, and ran on a "
            "machine with other load: their minutes would be fewer on a quiet one."
        )
    missing = [each.name for each in SIX if each not in [answer.asked for answer in answers]]
    if missing:
        yield f"Not run: {', '.join(missing)}."


# ---- what is written


def report(answers: Sequence[Answer]) -> None:
    """Writes the section of RESULTS.md and the page with its pictures."""
    text = "\n".join(table(answers))
    write_section(
        f"Six tasks on {MODEL}",
        CPU,
        f"""
`wiremap discover` with its defaults; {_pairs(answers)}. {" ".join(verdict(answers))}
Times include all: loading the model, search, verification, evaluation, pictures. A plain pass is a
forward pass of the bridge over the clean prompts of the search, in the same process, compared by the
processors' seconds.
{_machines(answers)}
{text}
""",
    )
    PICTURES.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(_page(answers)) + "\n")
    print(f"{os.path.relpath(PAGE)} is written")


def _pairs(answers: Sequence[Answer]) -> str:
    of_search = Counter(answer.circuit.task["n_pairs"] for answer in answers).most_common(1)[0][0]
    held_out = Counter(answer.held_out.n_pairs for answer in answers).most_common(1)[0][0]
    return f"{of_search} pairs to search on and {held_out} others to judge on"


def _machines(answers: Sequence[Answer]) -> str:
    machines = {answer.measured["machine"] for answer in answers if answer.measured}
    return f"The runs: {'; '.join(sorted(machines))}.\n" if machines else ""


def _page(answers: Sequence[Answer]) -> Iterator[str]:
    in_model = answers[0].circuit.method["edges_in_model"]
    shape = loads((answers[0].directory / "circuit.json").read_text())["shape"]
    yield f"""# {MODEL}: six circuits

All of this page is written by `make demo-real` from the run directories it leaves
(`benchmarks/real_model.py --tasks`): the model is fetched once, and `wiremap discover` is run with
its defaults on six questions. The model has {shape["n_layers"]} layers of {shape["n_heads"]} heads and
{in_model:,} edges; there are {_pairs(answers)}.

{" ".join(verdict(answers))}
"""
    yield from table(answers)
    yield """
*Reached*: the held-out faithfulness lies within the window. *KL recovered*: 1 - KL(circuit) /
KL(corrupted), of the whole next-token distribution. *Accuracy*: how often the most likely token is
an answer, beside the model's own. *A plain pass*: a forward pass of the model over the clean prompts
of the search, in the same process.
"""
    for answer in answers:
        yield from _section(answer)


def _section(answer: Answer) -> Iterator[str]:
    circuit, name = answer.circuit, answer.asked.name
    first = headline(circuit)
    yield f"## {name}\n\n{first[0].upper()}{first[1:]}.\n"
    yield from (f"- {remark}" for remark in remarks(circuit))
    yield _picture(circuit, name)
    yield from _kinds(circuit)
    yield from _largest(circuit)
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in answer.stages.items())
    yield f"Its stages: {stages}.\n"


def _picture(circuit: Circuit, name: str) -> str:
    """The circuit drawn, or why it is not."""
    crowded = len(circuit.edges) > CROWDED
    view = View(collapse="layers", top=CROWDED) if crowded else View()
    try:
        write_circuit(circuit, PICTURES / f"{name}.svg", view=view)
    except WiremapError as error:  # there is no Graphviz
        return f"\nNot drawn: {error}.\n"
    shown = f"the {CROWDED} largest connections between its layers" if crowded else "all its edges"
    return f"\n![{name}: {shown}](smollm2/{name}.svg)\n\n*{shown.capitalize()}.*\n"


def _kinds(circuit: Circuit) -> Iterator[str]:
    """How many edges of each kind of writer go into each kind of reader."""
    counts = Counter((_writer(edge), _reader(edge)) for edge in circuit.edges)
    readers = ("queries", "keys", "values", "MLPs", "logits")
    yield f"Edges by what writes and what reads:\n\n| | {' | '.join(readers)} |"
    yield "|" + "---|" * (len(readers) + 1)
    for writer in ("input", "attention", "MLPs"):
        yield f"| {writer} | {' | '.join(str(counts[writer, each]) for each in readers)} |"
    yield ""


def _writer(edge: CircuitEdge) -> str:
    return {"i": "input", "a": "attention", "m": "MLPs"}[edge.source[0]]


def _reader(edge: CircuitEdge) -> str:
    if edge.slot is not None:
        return {"q": "queries", "k": "keys", "v": "values"}[edge.slot]
    return "logits" if edge.target == "logits" else "MLPs"


def _largest(circuit: Circuit) -> Iterator[str]:
    """The edges of the largest effects."""
    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.worth or 0.0))[:N_LARGEST]
    metric = circuit.method["metric"]
    yield f"Its largest edges, in units of {metric}:\n\n| edge | effect in the model | loss |"
    yield "|---|---|---|"
    for edge in edges:
        effect = "not verified" if edge.effect is None else f"{edge.effect:+.2f}"
        error = "" if edge.standard_error is None else f" ± {edge.standard_error:.2f}"
        loss = "not measured" if edge.loss is None else f"{edge.loss:+.2f}"
        yield f"| `{edge.name}` | {effect}{error} | {loss} |"
    yield ""
