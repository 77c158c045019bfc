"""Metrics: what a run is worth, as functions of its logits at the answer position.

A metric takes ``(logits [row, d_vocab], targets)`` and returns one number per row; the higher, the
more the model does the behaviour. Units: logits for ``logit_diff``, nats for ``log_prob`` and
``kl``, probability for ``prob_diff``, share of pairs for ``accuracy``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError
from .prompts import PADDING, PairBatch


@dataclass(frozen=True)
class Targets:
    """What the rows of logits are compared with; row ``i`` of each table belongs to row ``i``.

    Attributes:
        clean_logits: the logits of the same pairs' clean run.
    """

    answers: Int64[Tensor, "row answer"]
    wrong_answers: Int64[Tensor, "row wrong"]
    clean_logits: Float[Tensor, "row d_vocab"]

    @classmethod
    def of(cls, batch: PairBatch, clean_logits: Float[Tensor, "pair d_vocab"]) -> Targets:
        """The targets of a batch, on the device of its clean logits."""
        device = clean_logits.device
        return cls(batch.answers.to(device), batch.wrong_answers.to(device), clean_logits)

    def repeat(self, times: int) -> Targets:
        """The same rows ``times`` times over, for that many variants of every run."""
        # [row ...] -> [(variant row) ...], the order that edited runs stand in.
        return Targets(
            self.answers.repeat(times, 1),
            self.wrong_answers.repeat(times, 1),
            self.clean_logits.repeat(times, 1),
        )


Metric = Callable[[Float[Tensor, "row d_vocab"], Targets], Float[Tensor, "row"]]


def logit_diff(logits: Float[Tensor, "row d_vocab"], targets: Targets) -> Float[Tensor, "row"]:
    """Mean logit of the answers minus mean logit of the wrong answers."""
    return _mean(logits, targets.answers) - _mean(logits, targets.wrong_answers)


def log_prob(logits: Float[Tensor, "row d_vocab"], targets: Targets) -> Float[Tensor, "row"]:
    """Log-probability, in nats, that the next token is one of the answers."""
    chosen = _gather(logits.log_softmax(-1), targets.answers)
    # Filled-up places are 0 so far, a log-probability like any other; -inf adds nothing to the sum.
    return chosen.masked_fill(targets.answers == PADDING, -torch.inf).logsumexp(-1)


def prob_diff(logits: Float[Tensor, "row d_vocab"], targets: Targets) -> Float[Tensor, "row"]:
    """Probability of the answers minus probability of the wrong answers (Hanna et al., 2023)."""
    probabilities = logits.softmax(-1)
    right = _gather(probabilities, targets.answers).sum(-1)
    return right - _gather(probabilities, targets.wrong_answers).sum(-1)


def kl(logits: Float[Tensor, "row d_vocab"], targets: Targets) -> Float[Tensor, "row"]:
    """Minus the Kullback-Leibler divergence KL(clean run || this run), in nats: 0 at best.

    Its gradient at the clean run is zero, so estimates need the gradient at the corrupted run.
    """
    clean = targets.clean_logits.log_softmax(-1)
    return -(clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


def accuracy(logits: Float[Tensor, "row d_vocab"], targets: Targets) -> Float[Tensor, "row"]:
    """1 where the token of the largest logit is one of the answers, else 0.

    Of equal logits the first counts. It has no gradient: it is measured, never estimated from.
    """
    # PADDING is no token, so it never is the one of the largest logit.
    return (targets.answers == logits.argmax(-1, keepdim=True)).any(-1).to(logits)


METRICS: Mapping[str, Metric] = {
    "logit_diff": logit_diff,
    "log_prob": log_prob,
    "prob_diff": prob_diff,
    "kl": kl,
    "accuracy": accuracy,
}


_NEED_WRONG_ANSWERS = ("logit_diff", "prob_diff")


def resolve_metric(metric: str | Metric, has_wrong_answers: bool) -> Metric:
    """The metric of that name, or ``metric`` itself, made to check what it returns.

    Raises:
        InputError: an unknown name, or a metric that needs wrong answers for pairs without. From
            the metric returned: a function that does not give one number per row.
    """
    if not isinstance(metric, str):
        return _checked(metric)
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    if metric in _NEED_WRONG_ANSWERS and not has_wrong_answers:
        raise InputError(
            f"metric {metric} compares the answer with a wrong answer, and these pairs have none; "
            "add wrong_answer to every pair, or use log_prob or kl"
        )
    return METRICS[metric]


def _checked(metric: Metric) -> Metric:
    def checked(logits: Tensor, targets: Targets) -> Tensor:
        values = metric(logits, targets)
        if values.shape != logits.shape[:1]:
            raise InputError(
                f"expected the metric to return one number per row, [{len(logits)}], got "
                f"{list(values.shape)}; do not sum or average over rows"
            )
        return values

    return checked


def _gather(
    table: Float[Tensor, "row d_vocab"], tokens: Int64[Tensor, "row n"]
) -> Float[Tensor, "row n"]:
    """Entries of ``table`` at ``tokens``; 0 where a row of tokens is filled up."""
    chosen = table.gather(-1, tokens.clamp(min=0))  # PADDING is no place in the table: token 0's
    return chosen.masked_fill(tokens == PADDING, 0.0)


def _mean(
    logits: Float[Tensor, "row d_vocab"], tokens: Int64[Tensor, "row n"]
) -> Float[Tensor, "row"]:
    return _gather(logits, tokens).sum(-1) / (tokens != PADDING).sum(-1)
