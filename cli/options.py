"""Options that mean the same in every command, and the model and pairs they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..edges.errors import InputError

if TYPE_CHECKING:
    from ..circuits.record.effects_file import Verified
    from ..circuits.result.circuit import Circuit, Faithfulness
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_MODEL = "ioi-mini"
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")

tf32 = click.option(
    "--tf32",
    is_flag=True,
    help="Let CUDA multiply float32 matrices with 10 bits of mantissa: faster, less exact.",
)


def _where(dtype: str | None, usual: str) -> Callable[[Command], Command]:
    return _all(
        device,
        click.option(
            "--dtype",
            type=click.Choice(_DTYPES),
            default=dtype,
            help=f"Precision of the weights and runs ({usual}).",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            help="Rows at once; what fits into memory by default.",
        ),
    )


where = _where("float32", "float32 by default")
"""Where and how runs are computed."""

where_of_circuit = _where(None, "that of the circuit, or of another model float32, by default")
"""The same, of a model that a circuit names."""

group = click.option(
    "--group",
    type=click.Path(path_type=Path),
    help="YAML file of roles with their nodes (name movers: [a9.h6, a9.h9]): boxes in diagrams, "
    "marks in the viewer.",
)

question = _all(
    click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        help="A bundled model, a local Hugging Face directory, or a model of the hub.",
    ),
    click.option("--task", help="A built-in task (see: wiremap tasks)."),
    click.option(
        "--pairs",
        type=click.Path(path_type=Path),
        help="Your own prompt pairs: JSON Lines or CSV.",
    ),
    click.option("--corruption", help="How the task's corrupted prompts differ."),
    click.option(
        "--n-pairs",
        type=click.IntRange(min=1),
        help="Pairs of the built-in task (64 by default).",
    ),
    click.option("--seed", type=int, help="Seed of the built-in task's pairs (0 by default)."),
    click.option(
        "--bos/--no-bos",
        default=None,
        help="Begin every prompt with the BOS token; the model's own convention by default.",
    ),
    click.option(
        "--kv",
        type=click.Choice(["grouped", "per-query"]),
        default="grouped",
        show_default=True,
        help="Where query heads share keys and values: one reader for each, or for each query.",
    ),
    click.option("--metric", help="logit_diff, prob_diff, log_prob or kl; the task's by default."),
    click.option(
        "--direction",
        type=click.Choice(["noising", "denoising"]),
        default="noising",
        show_default=True,
        help="Edit the clean run with corrupted values, or the other way round.",
    ),
    click.option(
        "--allow-weak", is_flag=True, help="Go on although the model hardly does the task."
    ),
    where,
)
"""What is asked of which model."""

other_question = _all(
    click.option("--model", help="Another model than the circuit was found in."),
    click.option("--task", help="Another built-in task than it was found on."),
    click.option("--pairs", type=click.Path(path_type=Path), help="Other prompt pairs."),
    click.option("--corruption", help="How the task's corrupted prompts differ."),
    click.option("--n-pairs", type=click.IntRange(min=1), help="Pairs of the built-in task."),
    click.option("--bos/--no-bos", default=None, help="Begin every prompt with the BOS token."),
    click.option("--metric", help="Another metric than it was found with."),
)
"""What is asked of which model about a circuit: by default what it was found with."""

gradient = _all(
    click.option(
        "--gradient",
        type=click.Choice(
            ["clean", "corrupted", "both", "integrated", "graddrop", "relevance", "gim"]
        ),
        help="Gradient rule. By default, for nodes the gradient at the run edited, for edges "
        "relevance (gim for mixtures of experts).",
    ),
    click.option("--steps", type=click.IntRange(min=1), help="Of --gradient integrated (10)."),
    click.option(
        "--schedule",
        type=click.Choice(["midpoint", "left"]),
        help="Of --gradient integrated: midpoints (default), or EAP-IG's left ends.",
    ),
)
"""Where scores take gradients, and how."""

reader = click.option(
    "--reader",
    type=click.Choice(["linear", "exact", "exact-attention"]),
    default="linear",
    show_default=True,
    help="How an edge's reader is taken to react: linearly, or computed anew (wholly, or the "
    "softmax of queries and keys alone).",
)

output = _all(
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--quiet", is_flag=True, help="Print errors only (and JSON, if asked for)."),
)
"""How results are shown."""


def gradient_options(
    gradient: str | None, steps: int | None, schedule: str | None
) -> dict[str, Any]:
    """Steps and schedule, which only ``integrated`` has."""
    given = {"--steps": steps, "--schedule": schedule}
    superfluous = [name for name, value in given.items() if value is not None]
    if superfluous and gradient != "integrated":
        raise InputError(
            f"{', '.join(superfluous)}: goes with --gradient integrated only; leave it out"
        )
    return {"steps": steps or 10, "schedule": schedule or "midpoint"}


def load_model(
    model: str,
    device: str,
    dtype: str,
    bos: bool | None,
    kv: str = "grouped",
    tf32: bool = False,
) -> Model:
    """The model that the options ask for."""
    import torch

    from ..edges.model.transformer import Model

    return Model.load(model, device, getattr(torch, dtype), bos=bos, kv=kv, tf32=tf32)


def float32_error(
    model: Model, pairs: PromptPairs, verified: Sequence[Verified], **how: Any
) -> float | None:
    """How far edges measured in less than float32 are off, on a sample; None for float32 itself.

    Args:
        how: see ``precision_error``.
    """
    from ..circuits.evidence.verification import precision_error

    if not verified or (str(model.dtype) in ("torch.float32", "torch.float64") and not model.tf32):
        return None
    bos = model.tokenizer.bos if model.tokenizer else None
    exact = load_model(model.name, str(model.device), "float32", bos, model.kv)
    return precision_error(exact, pairs, verified, **how)


def precision_note(model: Model, error: float, n_verified: int) -> str:
    """What to say of effects that were not measured in float32."""
    from ..circuits.evidence.verification import PRECISION_SAMPLE

    how = "TF32" if model.tf32 else str(model.dtype).removeprefix("torch.")
    n_sampled = min(PRECISION_SAMPLE, n_verified)
    return (
        f"measured in {how}: of the first {n_sampled} effects none is more than {error:.2g} from "
        "that in float32"
    )


def load_pairs(
    model: Model,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    seed: int | None,
) -> PromptPairs:
    """The pairs that the options ask for. Raises InputError if they contradict each other."""
    from ..circuits.tasks.builtin import load_task
    from ..circuits.zoo import bundled_tasks
    from ..edges.question.prompts import PromptPairs

    if pairs is not None:
        given = {"--task": task, "--corruption": corruption, "--n-pairs": n_pairs, "--seed": seed}
        superfluous = [name for name, value in given.items() if value is not None]
        if superfluous:
            raise InputError(
                f"--pairs {pairs} says which prompts to use; {', '.join(superfluous)} belong to "
                "built-in tasks: give one or the other"
            )
        return PromptPairs.read(pairs, model)
    if task is None:
        usual = bundled_tasks(model.name)
        if not usual:
            raise InputError(
                f"expected a task for model {model.name}: name a built-in one (--task, see: "
                "wiremap tasks) or a file of prompt pairs (--pairs)"
            )
        task = usual[0]
    return load_task(task, model, n_pairs or 64, seed=seed or 0, corruption=corruption)


def reload(
    described_model: Mapping[str, Any],
    described_task: Mapping[str, Any],
    device: str,
    tf32: bool = False,
) -> tuple[Model, PromptPairs]:
    """The model and pairs of an earlier result.

    Raises:
        InputError: they cannot be found, or are no longer what they were.
    """
    from ..circuits.describe import describe_model, describe_task
    from ..circuits.tasks.builtin import load_task
    from ..edges.question.prompts import PromptPairs

    try:
        name, dtype, bos = (described_model[key] for key in ("name", "dtype", "bos"))
        model = load_model(name, device, dtype, bos, described_model.get("kv", "grouped"), tf32)
        if "pairs" in described_task:
            pairs = PromptPairs.read(described_task["pairs"], model)
        elif "task" in described_task:
            pairs = load_task(
                described_task["task"],
                model,
                described_task["n_pairs"],
                seed=described_task["seed"],
                corruption=described_task["corruption"],
            )
        else:
            raise InputError(
                "the result does not say which prompts it belongs to; give them (--task, --pairs)"
            )
    except KeyError as error:
        raise InputError(
            f"the result does not say {error} of the model or task it belongs to; give both "
            "(--model and --task or --pairs)"
        ) from None
    for what, now, then in (
        ("model", describe_model(model), described_model),
        ("prompt pairs", describe_task(pairs), described_task),
    ):
        if now["sha256"] != then.get("sha256"):
            raise InputError(
                f"the {what} changed since this result was made (sha256 {now['sha256'][:12]}, was "
                f"{str(then.get('sha256'))[:12]}); use the old one, or make the result again"
            )
    return model, pairs


def load_for_circuit(
    described_model: Mapping[str, Any],
    described_task: Mapping[str, Any],
    model: str | None,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    seed: int | None,
    bos: bool | None,
    device: str,
    dtype: str | None,
    kv: str | None = None,
) -> tuple[Model, PromptPairs]:
    """The model and pairs that a circuit was found with, or those that the options ask for.

    What the options leave open is as the circuit was found: of the same model BOS and precision, of
    the same task corruption and number of pairs.
    """
    given = {"--corruption": corruption, "--n-pairs": n_pairs}
    if task is None and pairs is None and any(value is not None for value in given.values()):
        raise InputError(f"{' and '.join(given)} go with --task; name the task too")
    if model is None and task is None and pairs is None:
        if bos is not None or dtype is not None:
            raise InputError(
                "without --model, --task or --pairs everything is as the circuit was found; leave "
                "--bos and --dtype out, or name what they are for"
            )
        return reload(described_model, described_task, device)
    name = model or described_model.get("name")
    if not name:
        raise InputError("the circuit does not say which model it is of; name it (--model)")
    same = described_model if name == described_model.get("name") else {}
    bos = same.get("bos") if bos is None else bos
    kv = kv or str(described_model.get("kv", "grouped"))
    dtype = dtype or str(same.get("dtype", "float32"))
    loaded = load_model(str(name), device, dtype, bos, kv)
    task = task or (None if pairs else described_task.get("task"))
    if task is not None and task == described_task.get("task"):
        corruption = corruption or described_task.get("corruption")
        n_pairs = n_pairs or described_task.get("n_pairs")
    return loaded, load_pairs(loaded, task, pairs, corruption, n_pairs, seed)


def check_shape(model: Model, circuit: Circuit) -> None:
    """Raises InputError unless the circuit is of a model of this shape."""
    if model.graph != circuit.shape:
        raise InputError(
            f"the circuit is of a model of shape {circuit.shape.as_dict()}, but {model.name} is "
            f"{model.graph.as_dict()}; choose a model of the same shape"
        )


def summary(metric: str, found: Faithfulness) -> str:
    """What a circuit carries by itself, in two lines."""
    return (
        f"{metric}: {found.full:.3f} on clean prompts, {found.empty:.3f} on corrupted ones, "
        f"{found.circuit:.3f} with the circuit alone ({found.n_pairs} pairs)\n"
        f"faithfulness {found.faithfulness:.3f}"
    )
