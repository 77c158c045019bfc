"""``wiremap tasks | models | schema | info``: what there is."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import click

from ..edges.errors import InputError
from ..edges.names.vocabulary import DOCUMENTS
from . import options
from .asked import Asked, Shown, gathered
from .console import show_json, show_table, show_text
from .loading import load_model, load_pairs

if TYPE_CHECKING:
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs


@click.command()
@click.option(
    "--model", help="Count the words that this model spells as one token, and show first prompts."
)
@options.output
@gathered(shown=Shown)
def tasks(model: str | None, shown: Shown) -> None:
    """List the built-in tasks."""
    from ..circuits.tasks.builtin import TASKS
    from ..circuits.tasks.task import count_words, fitted

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
            tokenizer = loaded.require_tokenizer()
            spelling = fitted(task, tokenizer)
            row["words"] = count_words(spelling, tokenizer)
            row["notes"] = dict(spelling.notes)
            row |= _first_of_task(loaded, task.name)
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
                    row["description"] if model is None else _spelling(row),
                ]
                for row in rows
            ],
        )
        for row in rows:
            if "first prompt" in row:
                show_text(f"\n{row['name']}: {row['first prompt']}\n  then {row['first answer']}")


def _spelling(row: Mapping[str, Any]) -> str:
    """How many words of each kind a tokenizer spells, and what else it makes of the task."""
    words = (
        f"{kind} {count['used']} of {count['used'] + count['rejected']}"
        for kind, count in row["words"].items()
    )
    return ", ".join([*words, *(f"{name}: {note}" for name, note in row["notes"].items())])


def _first_of_task(model: Model, task: str) -> dict[str, str]:
    """The first pair of a task as tokens; nothing where a tokenizer has too few words for it."""
    from ..circuits.tasks.builtin import load_task

    try:
        pairs = load_task(task, model, 1)
    except InputError:
        return {}
    return _first_pair(model, pairs)


def _first_pair(model: Model, pairs: PromptPairs) -> dict[str, str]:
    """The first pair as the model sees it, its tokens parted by ``|``."""
    from ..edges.question.spaces import shown_tokens

    tokenizer = model.require_tokenizer()
    n_tokens = int(pairs.lengths[0])
    prompts = {"first prompt": pairs.clean, "corrupted": pairs.corrupted}
    rows = {
        name: shown_tokens(tokenizer, table[0, :n_tokens].tolist())
        for name, table in prompts.items()
    }
    answers = {"first answer": pairs.answers, "wrong answer": pairs.wrong}
    for name, table in answers.items():
        tokens = [token for token in table[0].tolist() if token >= 0]
        if tokens:
            more = f" and {len(tokens) - 5} more" if len(tokens) > 5 else ""
            spelled = ", ".join(repr(tokenizer.decode(token)) for token in tokens[:5])
            rows[name] = f"{spelled}{more}"
    return rows


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
            "\nAny other --model is a Hugging Face directory, a .gguf file or a model of the hub; "
            "architectures: "
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
@options.prompt_of_model
@options.output
@gathered(asked=Asked, shown=Shown)
def info(asked: Asked, shown: Shown) -> None:
    """Show versions and devices; of a --model how it is stored, and the tokens of a first pair."""
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
        **(_of_model(asked) if asked.model or asked.task or asked.pairs else {}),
    }
    if shown.as_json:
        show_json(versions)
    elif not shown.quiet:
        rows = [
            [name, "no" if value in (None, False) else str(value)]
            for name, value in versions.items()
        ]
        show_table("wiremap", ["", ""], rows)


def _of_model(asked: Asked) -> dict[str, str]:
    """What a model is, and the first pair that is asked for, its tokens parted by ``|``."""
    from ..circuits.zoo import bundled_tasks

    # One prompt is tokenized and none is run, which no GPU helps.
    model = load_model(replace(asked, device="cpu"))
    rows = {"model": model.name, "architecture": model.architecture}
    if model.quantization is not None:
        rows["quantization"] = model.quantization
    if asked.task or asked.pairs or bundled_tasks(model.name):
        one = asked if asked.pairs else replace(asked, n_pairs=1)
        rows |= _first_pair(model, load_pairs(model, one))
    return rows
