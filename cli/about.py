"""``wiremap tasks | models | schema | info``: what there is."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import click

from ..edges.names.vocabulary import DOCUMENTS
from . import options
from .asked import Asked, Shown, gathered
from .console import show_json, show_table, show_text
from .loading import load_model


@click.command()
@click.option("--model", help="Count the words that this model spells as one token.")
@options.output
@gathered(shown=Shown)
def tasks(model: str | None, shown: Shown) -> None:
    """List the built-in tasks."""
    from ..circuits.tasks.builtin import TASKS
    from ..circuits.tasks.task import count_words

    # Its tokenizer is all that is needed, which no GPU helps.
    loaded = load_model(Asked(model=model, device="cpu")) if model else None
    rows: list[dict[str, Any]] = []
    for task in TASKS.values():
        row: dict[str, Any] = {
            "name": task.name,
            "description": task.description,
            "metric": task.metric,
            "corruptions": dict(task.corruptions),
        }
        if loaded is not None:
            row["words"] = count_words(task, loaded.require_tokenizer())
        rows.append(row)
    if shown.as_json:
        show_json(rows)
    elif not shown.quiet:
        show_table(
            "built-in tasks",
            [
                "task",
                "metric",
                "corruptions",
                "what it is" if model is None else "words of one token",
            ],
            [
                [
                    row["name"],
                    row["metric"],
                    ", ".join(row["corruptions"]),
                    row["description"]
                    if model is None
                    else ", ".join(
                        f"{kind} {count['used']} of {count['used'] + count['rejected']}"
                        for kind, count in row["words"].items()
                    ),
                ]
                for row in rows
            ],
        )


@click.command()
@options.output
@gathered(shown=Shown)
def models(shown: Shown) -> None:
    """List the bundled models."""
    from ..circuits.zoo import training_records
    from ..edges.model.architectures import SUPPORTED

    records = training_records()
    if shown.as_json:
        show_json(records)
    elif not shown.quiet:
        rows = [
            [
                record["model"],
                record["architecture"],
                f"{record['parameters']:,}",
                ", ".join(
                    f"{task} {accuracy:.1%}"
                    for task, accuracy in record["held_out_accuracy"].items()
                ),
            ]
            for record in records
        ]
        show_table(
            "bundled models", ["model", "kind", "parameters", "tasks, held-out accuracy"], rows
        )
        show_text(
            "\nAny other --model is a Hugging Face directory or a model of the hub; architectures: "
            f"{', '.join(known.name for known in SUPPORTED.values())}."
        )


@click.command()
@click.argument("document", type=click.Choice(DOCUMENTS), default=DOCUMENTS[0])
def schema(document: str) -> None:
    """Print the JSON Schema of circuit.json, or of scrub.json."""
    name = f"{document}.schema.json"
    # The file ends its last line itself.
    click.echo(files("wiremap.circuits").joinpath(name).read_text(), nl=False)


@click.command()
@options.output
@gathered(shown=Shown)
def info(shown: Shown) -> None:
    """Show versions and devices."""
    import torch

    dot = shutil.which("dot")
    versions = {
        **{
            name: version(name) for name in ("wiremap", "torch", "transformer_lens", "transformers")
        },
        "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        # dot says its version on stderr.
        "dot": dot
        and subprocess.run([dot, "-V"], capture_output=True, text=True, check=False)
        .stderr.strip()
        .removeprefix("dot - "),
    }
    if shown.as_json:
        show_json(versions)
    elif not shown.quiet:
        rows = [
            [name, "no" if value in (None, False) else str(value)]
            for name, value in versions.items()
        ]
        show_table("wiremap", ["", ""], rows)
