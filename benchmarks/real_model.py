"""A real language model: six circuits of SmolLM2, and the edges that each method needs.

    python benchmarks/real_model.py --tasks [--out DIR | --from DIR] [--smollm2 DIR]
    python benchmarks/real_model.py --compare [--stories DIR] [--smollm2 DIR [--from DIR]]

``--tasks`` runs ``discover`` with its defaults on six questions (one to two hours on two cores), and
writes a section of RESULTS.md and docs/smollm2.md; what is finished in --out is not run again. With
--from, run directories called as the tasks (``ioi-s2-flip``, ``agreement``) are taken instead.
``--compare`` (``edges_needed.py``) takes the bundled models on all their tasks, and with --smollm2 the
six, too, those of --from with the circuits and scores of their run directories; what is finished in
--work is not measured again. The model is made by ``smollm2.py`` where --smollm2 is not given.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import edges_needed
import six_tasks
import smollm2
import torch
from measure import write_section
from six_tasks import SIX

from wiremap.edges.errors import InputError


def cases(options: argparse.Namespace) -> edges_needed.Cases:
    """What methods are compared on."""
    every = edges_needed.bundled_cases()
    if options.stories:
        name = f"{options.stories.name} pairs.jsonl"
        every[name] = partial(edges_needed.stories_case, options.stories)
    for asked in SIX if options.smollm2 else ():
        name = f"SmolLM2 {asked.task}" + (f", {asked.corruption}" if asked.corruption else "")
        run = options.runs and options.runs / asked.name
        # Of the runs that are given, those there are.
        if run is None or (run / "circuit.json").exists():
            every[name] = partial(
                edges_needed.task_case,
                name, str(options.smollm2), asked.task, asked.corruption, run,
            )  # fmt: skip
    return {name: case for name, case in every.items() if options.only in name}


def compare(options: argparse.Namespace) -> None:
    """The table of edges that methods need."""
    torch.set_num_threads(1)
    rows = edges_needed.compare(cases(options), options.work)
    if options.only or not rows:
        return
    low, high = edges_needed.WINDOW
    newline = "\n"
    write_section(
        f"Edges needed for a held-out faithfulness of {low:g} to {high:g}",
        torch.device("cpu"),
        f"""
Edges (held-out faithfulness) at which each method is within {low:g} to {high:g} on up to
{edges_needed.N_HELD_OUT} pairs that it was not found on. For rankings the held-out pairs themselves choose
among {len(edges_needed.SIZES)} sizes ({edges_needed.SIZES[0]} to {edges_needed.SIZES[-1]:,}): the smallest within the window
whose next larger is not below it, its edges on no path not counted. wiremap's search chooses
without them; *its path, in hindsight* is what they would choose among the circuits that it pruned.
`>`: at no size tried. Signed rankings overshoot the window on their way (what opposes comes last),
which counts as outside of it.{_from_runs(options)}{_left_out(rows)}

{newline.join(edges_needed.table(rows))}

Geometric means of edges, relative to EAP-IG at the better of its two ways in each case (more than
the sizes tried counts as the largest of them). Wanted of wiremap: at most 0.5.

{newline.join(edges_needed.summary(rows))}
""",
    )


def _from_runs(options: argparse.Namespace) -> str:
    """Whose circuits they are, if they were not sought here."""
    if not options.runs:
        return ""
    return (
        " On SmolLM2 wiremap's circuits and EAP-IG's scores are those of earlier runs of discover."
    )


def _left_out(rows: list[edges_needed.Needed]) -> str:
    """Which of the six were not measured, if any was."""
    names = [f"{asked.task}{f', {asked.corruption}' if asked.corruption else ''}" for asked in SIX]
    measured = {row.name.removeprefix("SmolLM2 ") for row in rows}
    missing = [name for name in names if name not in measured]
    return f" Not measured on SmolLM2: {'; '.join(missing)}." if missing else ""


def main() -> None:
    """One of the two, or one run for ``--tasks``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", action="store_true")
    what.add_argument("--compare", action="store_true")
    what.add_argument("--one", help="for this script's own use")
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument(
        "--stories", type=Path, help="a model with pairs.jsonl, such as stories260K"
    )
    parser.add_argument("--out", type=Path, default=Path("out/smollm2"))
    parser.add_argument("--from", type=Path, dest="runs", metavar="DIR")
    parser.add_argument("--work", type=Path, default=Path("out/edges-needed"))
    parser.add_argument(
        "--only", default="", help="cases with this text in their name; not written"
    )
    options = parser.parse_args()
    try:
        if options.compare:
            compare(options)
        elif options.one:
            six_tasks.run_one(options.smollm2, options.one, options.out)
        else:
            if not options.runs:
                six_tasks.run_all(__file__, options.smollm2 or smollm2.made(), options.out)
            six_tasks.report(six_tasks.finished(options.runs or options.out))
    except smollm2.OutOfReachError as error:
        print(error, file=sys.stderr)
        sys.exit(smollm2.OUT_OF_REACH)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
