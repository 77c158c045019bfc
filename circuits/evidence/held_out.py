"""Pairs that the search never sees, and what a circuit is worth on them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ...edges.effects.reduced import values_of_sets
from ...edges.errors import InputError, name_rows
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import (
    FEWEST_TO_HOLD_OUT,
    HELD_OUT,
    HELD_OUT_CONFIDENCE,
    HELD_OUT_SHARE,
    RESAMPLES,
    SEED,
)
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.runs.masks import EdgeSet
from ...edges.runs.sweep import Resources
from ..record.intervals import percentile_intervals, resampled_means
from ..result.evidence import HeldOutEvidence
from ..tasks.builtin import TASKS, load_task
from .faithfulness import check_gap

HeldOut = PromptPairs | float | None
"""Pairs, or the share of the pairs that is set aside; None is what is usual."""


def hold_out(
    model: Model, pairs: PromptPairs, held_out: HeldOut
) -> tuple[PromptPairs, PromptPairs | None]:
    """The pairs to find a circuit on, and those to judge it on, which the search never sees.

    Args:
        held_out: pairs; or the share of ``pairs`` to set aside, at random but always the same, 0
            for none. None draws as many more of a built-in task, of other names and templates where
            the task has them, and of other pairs sets a quarter aside, if there are at least 8.

    Raises:
        InputError: pairs of the search among those held out (the rows are named); a share that is
            none; too few pairs to set any aside.
    """
    if isinstance(held_out, PromptPairs):
        refuse_shared(pairs, held_out)
        return pairs, held_out
    if held_out is None:
        if pairs.source.get("task") in TASKS:
            return pairs, _more_of_task(model, pairs)
        if len(pairs) < FEWEST_TO_HOLD_OUT:
            return pairs, None
    share = HELD_OUT_SHARE if held_out is None else held_out
    if not 0 <= share < 1:
        raise InputError(
            f"expected a share of the pairs to hold out, at least 0 and below 1, got {share}"
        )
    return set_aside(pairs, share) if share else (pairs, None)


def set_aside(pairs: PromptPairs, share: float) -> tuple[PromptPairs, PromptPairs]:
    """The pairs without, and those of, a share that is set aside at random; the same every time.

    Raises:
        InputError: too few pairs for any to be left, or set aside.
    """
    n_aside = round(share * len(pairs))
    if not 0 < n_aside < len(pairs):
        raise InputError(
            f"expected pairs enough to hold {share:g} of them out, got {len(pairs)}; give more "
            "pairs, others to judge on (--held-out FILE, held_out=PromptPairs), or hold none out "
            "(--held-out 0, held_out=0)"
        )
    aside = sorted(random.Random(SEED).sample(range(len(pairs)), n_aside))
    rest = [row for row in range(len(pairs)) if row not in set(aside)]
    # Enough to find the rest again.
    source = {**pairs.source, "set_aside": share, "set_aside_of": len(pairs)}
    return replace(pairs.take(rest), source=source), pairs.take(aside)


def refuse_shared(pairs: PromptPairs, held_out: PromptPairs) -> None:
    """Raises InputError for pairs of the search among those held out."""
    shared = held_out.overlap(pairs)
    if shared:
        raise InputError(
            "expected held-out pairs that the search never sees; among its pairs are "
            + name_rows(shared, "leave these out of the one or the other")
        )


def held_out_evidence(
    model: Model,
    question: Question,
    edges: EdgeSet,
    resources: Resources,
    faithful_to: str,
) -> HeldOutEvidence:
    """What a circuit is worth on the pairs of the question.

    Faithfulness is of the metric ``faithful_to``; its interval is that of the percentile bootstrap
    over pairs, each resample's means making one ratio. Beside it the share of the divergence
    recovered, 1 - KL(model || circuit) / KL(model || no edge), means over pairs, at the answer, and
    the share of pairs whose most likely token is an answer.

    Raises:
        InputError: the metric is the same on the clean and on the corrupted prompts.
    """
    questions = [question.about(metric=name) for name in (faithful_to, "kl", "accuracy")]
    of_metric, kl, accuracy = values_of_sets(model, questions, [edges], resources)
    ends = {
        name: torch.stack([each.full, each.empty, each.circuit[0]]).cpu().double()
        for name, each in (("metric", of_metric), ("kl", kl), ("accuracy", accuracy))
    }
    full, empty, circuit = ends["metric"].mean(1).tolist()
    check_gap(full, empty)
    share, interval = _recovered(ends["metric"])
    kl_share, kl_interval = None, None
    if ends["kl"][1].mean() != ends["kl"][0].mean():
        kl_share, kl_interval = _recovered(ends["kl"])
    return HeldOutEvidence(
        n_pairs=len(question.pairs),
        metric=faithful_to,
        full=full,
        empty=empty,
        circuit=circuit,
        faithfulness=share,
        interval=interval,
        confidence=HELD_OUT_CONFIDENCE,
        kl_share=kl_share,
        kl_interval=kl_interval,
        accuracy=ends["accuracy"][2].mean().item(),
        model_accuracy=ends["accuracy"][0].mean().item(),
    )


def _recovered(
    values: Float64[Tensor, "run pair"],
) -> tuple[float, tuple[float, float] | None]:
    """(circuit - empty) / (full - empty), means over pairs, and its interval over resamples.

    No interval of a single pair, or where a resample has no denominator.
    """
    full, empty, circuit = values.mean(1).tolist()
    share = (circuit - empty) / (full - empty)
    if values.shape[1] == 1:
        return share, None
    means = resampled_means(values, RESAMPLES)  # [resample run]
    shares = (means[:, 2] - means[:, 1]) / (means[:, 0] - means[:, 1])
    if not bool(shares.isfinite().all()):
        return share, None
    low, high = percentile_intervals(shares[:, None], HELD_OUT_CONFIDENCE).flatten().tolist()
    return share, (low, high)


def _more_of_task(model: Model, pairs: PromptPairs) -> PromptPairs | None:
    """As many more pairs of the same task, less those that are among the pairs after all."""
    source: Mapping[str, Any] = pairs.source
    more = load_task(
        str(source["task"]),
        model,
        len(pairs),
        seed=int(source["seed"]),
        corruption=str(source["corruption"]),
        part=HELD_OUT,
        chat=bool(source.get("chat")),
    )
    seen = set(more.overlap(pairs))
    unseen = [row for row in range(len(more)) if row not in seen]
    return more.take(unseen) if unseen else None
