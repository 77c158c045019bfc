"""The model and the pairs that options ask for."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..edges.errors import InputError, SpaceWarning
from ..edges.names.vocabulary import DTYPE, GROUPED, MODEL, N_PAIRS, PART, SEED
from .asked import Asked, given
from .console import show_note

if TYPE_CHECKING:
    from ..circuits.result.circuit import Circuit
    from ..edges.model.transformer import Model
    from ..edges.names.graph import ModelGraph
    from ..edges.question.prompts import PromptPairs
    from ..exporters.hypotheses import Claim


_SKIPS = "--skip-bad-pairs is of a file of pairs; name it (--pairs)"


def load_model(asked: Asked) -> Model:
    """The model that the options ask for."""
    import torch

    from ..edges.model.transformer import Model

    return Model.load(
        asked.model or MODEL,
        asked.device,
        getattr(torch, asked.dtype or DTYPE),
        bos=asked.bos,
        kv=asked.kv or GROUPED,
        tf32=asked.tf32,
    )


def load_pairs(model: Model, asked: Asked, part: str = PART) -> PromptPairs:
    """The pairs that the options ask for. Raises InputError if they contradict each other.

    Args:
        part: of a built-in task; see ``load_task``.
    """
    from ..circuits.tasks.builtin import load_task
    from ..circuits.zoo import bundled_tasks

    if asked.pairs is not None:
        superfluous = given(
            {
                "--task": asked.task,
                "--corruption": asked.corruption,
                "--n-pairs": asked.n_pairs,
                "--seed": asked.seed,
            }
        )
        if superfluous:
            raise InputError(
                f"--pairs {asked.pairs} says which prompts to use; {', '.join(superfluous)} belong "
                "to built-in tasks: give one or the other"
            )
        return read_pairs(model, asked.pairs, asked)
    if asked.skip_bad_pairs:
        raise InputError(_SKIPS)
    # A bundled model was trained for tasks: the first is what it is asked about by default.
    usual = [asked.task] if asked.task is not None else bundled_tasks(model.name)
    if not usual:
        raise InputError(
            f"expected a task for model {model.name}: name a built-in one (--task, see: "
            "wiremap tasks) or a file of prompt pairs (--pairs)"
        )
    n_pairs, seed = asked.n_pairs or N_PAIRS, asked.seed or SEED
    corruption, chat = asked.corruption, bool(asked.chat)
    return load_task(
        usual[0], model, n_pairs, seed=seed, corruption=corruption, part=part, chat=chat
    )


def read_pairs(model: Model, path: Path, asked: Asked) -> PromptPairs:
    """The pairs of a file, as the options want them read."""
    from ..edges.question.prompts import PromptPairs

    with _silenced(asked):
        return PromptPairs.read(path, model, chat=bool(asked.chat), skip_bad=asked.skip_bad_pairs)


@contextmanager
def _silenced(asked: Asked) -> Generator[None]:
    """Without the notes that the options do not want."""
    with warnings.catch_warnings():
        if asked.as_written:
            warnings.simplefilter("ignore", SpaceWarning)
        yield


def load_split(
    model: Model, asked: Asked, held_out: str | None
) -> tuple[PromptPairs, PromptPairs | float | None]:
    """The pairs to find a circuit on, and what it is to be judged on, as ``discover`` takes it.

    Args:
        held_out: a share of the pairs, or a file of others.
    """
    if held_out is None:
        # Of a built-in task other names and templates are left to judge on.
        return load_pairs(model, asked, part="search"), None
    try:
        share = float(held_out)
    except ValueError:
        # Of a task's pairs none is bad; those held out may be.
        skip_bad = asked.skip_bad_pairs and asked.pairs is not None
        pairs = load_pairs(model, replace(asked, skip_bad_pairs=skip_bad))
        return pairs, read_pairs(model, Path(held_out), asked)
    pairs = load_pairs(model, asked)
    if share == 0:
        show_note(
            "no pairs are held out: what the circuit is said to be worth is of the pairs it was "
            "found on, where it is worth more than elsewhere"
        )
    return pairs, share


def load_for_circuit(claim: Claim, asked: Asked) -> tuple[Model, PromptPairs, Circuit]:
    """The model and pairs that a circuit was found with, or those that the options ask for; and it.

    What the options leave open is as the circuit was found: of the same model BOS and precision, of
    the same task corruption and number of pairs, of any prompts the chat template. The seed is that
    of a task named.
    """
    model, pairs = load_for_claim(claim, asked)
    return model, pairs, claim.circuit(model.graph)


def load_for_claim(claim: Claim, asked: Asked) -> tuple[Model, PromptPairs]:
    """The same without the circuit, as scores alone are none."""
    model, pairs = _load_for(claim, asked)
    if claim.shape is not None:
        check_shape(model, claim.shape)
    return model, pairs


def _load_for(claim: Claim, asked: Asked) -> tuple[Model, PromptPairs]:
    from ..circuits.reloading import reload

    of_model, of_task = claim.about
    # The readers it names decide: not all files say kv, and a model may share keys and values where
    # the file does not say so.
    described: Mapping[str, Any] = {**of_model, "kv": asked.kv or claim.kv or GROUPED}
    # Without a task --seed is of draws alone, and must not change the circuit's pairs.
    asked = replace(asked, seed=asked.seed if asked.task else None)
    no_prompts = asked.task is None and asked.pairs is None
    of_task_only = {
        "--corruption": asked.corruption,
        "--n-pairs": asked.n_pairs,
        "--chat": asked.chat,
    }
    if no_prompts and given(of_task_only):
        raise InputError(f"{' and '.join(of_task_only)} go with --task; name the task too")
    if asked.skip_bad_pairs and asked.pairs is None:
        raise InputError(_SKIPS)
    if no_prompts and asked.model is None:
        if asked.bos is not None or asked.dtype is not None:
            raise InputError(
                "without --model, --task or --pairs everything is as the circuit was found; leave "
                "--bos and --dtype out, or name what they are for"
            )
        # By their hashes these are what they were; with other options that cannot be checked.
        with _silenced(asked):
            return reload(described, of_task, asked.device)
    model = load_model(_model_of(described, asked))
    same_task = asked.pairs is None and asked.task in (None, of_task.get("task"))
    part = str(of_task.get("part", PART)) if same_task else PART
    return model, load_pairs(model, _task_of(of_task, asked), part)


def _model_of(described: Mapping[str, Any], asked: Asked) -> Asked:
    """The options with what they leave open of the model."""
    name = asked.model or described.get("name")
    if not name:
        raise InputError("the circuit does not say which model it is of; name it (--model)")
    # BOS and precision are habits of a model: another one has its own.
    same = described if name == described.get("name") else {}
    return replace(
        asked,
        model=str(name),
        bos=same.get("bos") if asked.bos is None else asked.bos,
        # By this readers are named, so it follows the circuit whatever the model is.
        kv=str(described["kv"]),
        dtype=asked.dtype or str(same.get("dtype", DTYPE)),
    )


def _task_of(described: Mapping[str, Any], asked: Asked) -> Asked:
    """The options with what they leave open of the pairs."""
    # How prompts are put goes with the circuit, whichever they are.
    chat = bool(described.get("chat")) if asked.chat is None else asked.chat
    asked = replace(asked, chat=chat)
    task = asked.task or (None if asked.pairs else described.get("task"))
    # Corruptions and numbers of pairs belong to a task: another one has its own.
    if task is None or task != described.get("task"):
        return replace(asked, task=task)
    return replace(
        asked,
        task=task,
        corruption=asked.corruption or described.get("corruption"),
        n_pairs=asked.n_pairs or described.get("n_pairs"),
    )


def check_shape(model: Model, shape: ModelGraph) -> None:
    """Raises InputError unless a circuit of this shape is one of the model."""
    if model.graph.differs_in_kv_alone(shape):
        raise InputError(
            f"the circuit has {shape.n_kv_heads} readers of keys, and of values, in a layer, "
            f"but {model.name} is loaded with {model.graph.n_kv_heads} for its "
            f"{model.graph.n_heads} query heads; "
            + (
                f"leave --kv out, or say --kv {shape.kv} (kv={shape.kv!r})"
                if model.kv != shape.kv
                else "choose a model of the same shape"
            )
        )
    if model.graph != shape:
        raise InputError(
            f"the circuit is of a model of shape {shape.as_dict()}, but {model.name} is "
            f"{model.graph.as_dict()}; choose a model of the same shape"
        )


def subject(model: Model, pairs: PromptPairs) -> str:
    """MODEL-TASK, or MODEL-PAIRS for pairs of a file: what results are called if nothing else is said."""
    task = pairs.source.get("task") or Path(str(pairs.source["pairs"])).stem
    return f"{Path(model.name).name}-{task}"
