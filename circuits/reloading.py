"""The model and the pairs of an earlier result, recognized by their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..edges.errors import InputError
from ..edges.model.transformer import Model
from ..edges.names.vocabulary import DEVICE, GROUPED, PART
from ..edges.question.prompts import PromptPairs
from .describe import describe_model, describe_task
from .evidence.held_out import set_aside
from .tasks.builtin import load_task


def reload(
    described_model: Mapping[str, Any],
    described_task: Mapping[str, Any],
    device: str = DEVICE,
    tf32: bool = False,
) -> tuple[Model, PromptPairs]:
    """The model and pairs that a result says it belongs to (``Circuit.model``, ``Circuit.task``).

    Raises:
        InputError: they cannot be found, or are no longer what they were.
    """
    try:
        model = _model(described_model, device, tf32)
        pairs = _pairs(described_task, model)
    except KeyError as error:
        raise InputError(
            f"the result does not say {error} of the model or task it belongs to; give both "
            "(--model and --task or --pairs, or Model.load and load_task or PromptPairs.read)"
        ) from None
    _check_same("model", describe_model(model), described_model)
    _check_same("prompt pairs", describe_task(pairs), described_task)
    return model, pairs


def _model(described: Mapping[str, Any], device: str, tf32: bool) -> Model:
    name, dtype, bos = (described[key] for key in ("name", "dtype", "bos"))
    kv = described.get("kv", GROUPED)
    return Model.load(name, device, getattr(torch, dtype), bos=bos, kv=kv, tf32=tf32)


def _pairs(described: Mapping[str, Any], model: Model) -> PromptPairs:
    pairs = _all_pairs(described, model)
    if "set_aside" in described:  # the others were held out
        return set_aside(pairs, described["set_aside"])[0]
    return pairs


def _all_pairs(described: Mapping[str, Any], model: Model) -> PromptPairs:
    chat = bool(described.get("chat"))
    if "pairs" in described:
        skip_bad = "left_out" in described
        return PromptPairs.read(described["pairs"], model, chat=chat, skip_bad=skip_bad)
    if "task" not in described:
        raise InputError(
            "the result does not say which prompts it belongs to; give them (--task, --pairs, "
            "or load_task, PromptPairs.read)"
        )
    name, n_pairs, seed, corruption = (
        described[key] for key in ("task", "n_pairs", "seed", "corruption")
    )
    return load_task(
        name,
        model,
        described.get("set_aside_of", n_pairs),
        seed=seed,
        corruption=corruption,
        chat=chat,
        part=described.get("part", PART),
    )


def _check_same(what: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    if now["sha256"] != then.get("sha256"):
        raise InputError(
            f"the {what} changed since this result was made (sha256 {now['sha256'][:12]}, was "
            f"{str(then.get('sha256'))[:12]}); use the old one, or make the result again"
        )
