"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click

from ..edges.names import vocabulary as words

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]


def together(*options: Option[Any]) -> Option[Any]:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Any) -> Any:
        # click lists the decorator that is applied last first.
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def file(*names: str, help: str, **rest: Any) -> Option[Any]:
    """An option that takes a path."""
    return click.option(*names, type=click.Path(path_type=Path), help=help, **rest)


def count(*names: str, help: str, least: int = 1, default: int | None = None) -> Option[Any]:
    """An option that takes a whole number, at least ``least``; the default is shown, if any."""
    of_type, shown = click.IntRange(min=least), default is not None
    return click.option(*names, type=of_type, default=default, show_default=shown, help=help)


def number(name: str, *, help: str, default: float | None = None, **rest: Any) -> Option[Any]:
    """An option that takes a number; the default is shown, if any."""
    shown = default is not None
    return click.option(name, type=float, default=default, show_default=shown, help=help, **rest)


def choice(
    name: str, words: Collection[str], default: str | None = None, *, help: str, **rest: Any
) -> Option[Any]:
    """An option that takes one of some words; the default is shown, if there is one."""
    shown = default is not None
    return click.option(
        name, type=click.Choice(list(words)), default=default, show_default=shown, help=help, **rest
    )


def flag(*names: str, help: str, **rest: Any) -> Option[Any]:
    """An option that is there or not."""
    return click.option(*names, is_flag=True, help=help, **rest)


def flags(**helps: str) -> Option[Any]:
    """Several flags with their helps."""
    return together(*(flag(f"--{name}", help=help) for name, help in helps.items()))


def path_argument(name: str) -> Option[Any]:
    """An argument that is a path."""
    return click.argument(name, type=click.Path(path_type=Path))


def out(help: str, **rest: Any) -> Option[Any]:
    """Where the result goes."""
    return file("-o", "--out", help=help, **rest)


device = click.option(
    "--device", default=words.DEVICE, show_default=True, help=f"{', '.join(words.DEVICES)}."
)

tf32 = flag(
    "--tf32",
    help="Let CUDA multiply float32 matrices with 10 bits of mantissa: faster, less exact.",
)


def _where(dtype: str | None, usual: str) -> Option[Any]:
    precision = f"Precision of the weights and runs ({usual})."
    return together(
        device,
        click.option("--dtype", type=click.Choice(words.DTYPES), default=dtype, help=precision),
        count("--batch-size", help="Rows at once; what fits into memory by default."),
    )


where = _where(words.DTYPE, f"{words.DTYPE} by default")
"""Where and how runs are computed."""

# None is as the circuit says.
where_of_circuit = _where(
    None, f"that of the circuit, or of another model {words.DTYPE}, by default"
)
"""The same, of a model that a circuit names."""

group = file(
    "--group",
    help="YAML file of roles with their nodes (name movers: [a9.h6, a9.h9]): boxes in diagrams, "
    "marks in the viewer.",
)

pairs_of_a_file = together(
    file(
        "--pairs",
        help="Your own prompt pairs: JSON Lines, JSON, or a table (CSV, TSV) with their columns.",
    ),
    flag(
        "--skip-bad-pairs", help="Leave out pairs of a file that cannot be used; they are counted."
    ),
    flag(
        "--as-written",
        help="Do not tell of answers that lack the space which words of their prompt have.",
    ),
)
"""Pairs of one's own, and what is done with those that do not fit."""

_corruption = click.option("--corruption", help="How the task's corrupted prompts differ.")


def _bos(help: str) -> Option[Any]:
    # None is neither: the model's convention, or what the circuit was found with.
    return click.option("--bos/--no-bos", default=None, help=help)


def _chat(help: str) -> Option[Any]:
    return click.option("--chat/--no-chat", default=None, help=help)


question = together(
    click.option(
        "--model",
        default=words.MODEL,
        show_default=True,
        help="A bundled model, a local Hugging Face directory or .gguf file, or a model of the hub.",
    ),
    click.option("--task", help="A built-in task (see: wiremap tasks)."),
    pairs_of_a_file,
    _corruption,
    count("--n-pairs", help=f"Pairs of the built-in task ({words.N_PAIRS} by default)."),
    click.option(
        "--seed", type=int, help=f"Seed of the built-in task's pairs ({words.SEED} by default)."
    ),
    _chat("Put every prompt into the tokenizer's chat template, as the user's message."),
    _bos("Begin every prompt with the BOS token; the model's own convention by default."),
    choice(
        "--kv",
        words.KV,
        words.GROUPED,
        help="Where query heads share keys and values: one reader for each, or for each query.",
    ),
    click.option("--metric", help="logit_diff, prob_diff, log_prob or kl; the task's by default."),
    choice(
        "--direction",
        words.DIRECTIONS,
        words.DIRECTION,
        help="Edit the clean run with corrupted values, or the other way round.",
    ),
    flag("--allow-weak", help="Go on although the model hardly does the task."),
    where,
)
"""What is asked of which model."""

prompt_of_model = together(
    click.option("--model", help="Show this model too, and a prompt as it sees it."),
    click.option("--task", help="The built-in task the prompt is of."),
    pairs_of_a_file,
    _chat("Put it into the chat template."),
    _bos("Begin it with the BOS token; the model's own convention by default."),
)
"""Which prompt is shown, of which model."""

pairs_of_model = together(
    click.option("--model", help="FILE has prompt pairs for this model."),
    _chat("Put them into the chat template."),
    _bos("Begin them with the BOS token; the model's own convention by default."),
)
"""Of which model a file of prompt pairs is."""

other_question = together(
    click.option("--model", help="Another model than the circuit was found in."),
    click.option("--task", help="Another built-in task than it was found on."),
    pairs_of_a_file,
    _corruption,
    count("--n-pairs", help="Pairs of the built-in task."),
    _chat("Put every prompt into the chat template."),
    _bos("Begin every prompt with the BOS token."),
    click.option("--metric", help="Another metric than it was found with."),
)
"""What is asked of which model about a circuit: by default what it was found with."""

kv_of_circuit = choice(
    "--kv",
    words.KV,
    help="Readers of keys and values that query heads share: one for each, or for each query head; "
    "as the circuit names them by default.",
)
"""The readers of a circuit's model."""

shape_of_table = together(
    click.option("--model", help="The model that a table of edges is of; other files say it."),
    kv_of_circuit,
)
"""Of which model a table of edges is, where none is run."""

weight = click.option(
    "--weight",
    help="Column of a table of edges, or attribute of a graph's, that is the score (by default "
    f"{', '.join(words.WEIGHTS)}).",
)
"""Which numbers of a file from elsewhere are scores."""

reading = together(
    weight,
    flag(
        "--flip-signs",
        help="Turn the signs of the file's scores, where negative ones carry the behaviour.",
    ),
)
"""How a file from elsewhere is read."""

gradient = together(
    choice(
        "--gradient",
        words.GRADIENTS,
        help="Gradient rule. By default, for nodes the gradient at the run edited, for edges "
        "integrated (corrupted for kl).",
    ),
    count("--steps", help=f"Of --gradient integrated ({words.STEPS})."),
    choice(
        "--schedule",
        words.SCHEDULES,
        help="Of --gradient integrated: midpoints (default), or EAP-IG's left ends.",
    ),
)
"""Where scores take gradients, and how."""

reader = choice(
    "--reader",
    words.READERS,
    words.READER,
    help="How an edge's reader is taken to react: linearly, or computed anew (wholly, or the "
    "softmax of queries and keys alone).",
)


def budget(help: str) -> Option[Any]:
    """How many to measure, best score first; ``--top-k`` is the same."""
    return count("--budget", "--top-k", "budget", help=help)


def edges_drawn(where: str) -> Option[Any]:
    """How many edges are drawn."""
    return count("--top", help=f"Edges in {where}, the largest ({words.EDGES_DRAWN} by default).")


def until_bound(help: str) -> Option[Any]:
    """Measure until what is left is bounded."""
    return number("--until-bound", help=help)


output = together(
    flag("--json", "as_json", help="Print the result as JSON."),
    flag("--quiet", help="Print errors only (and JSON, if asked for)."),
)
"""How results are shown."""
