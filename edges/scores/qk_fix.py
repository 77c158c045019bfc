"""The QK fix: how attention reacts to another query or key, exactly, and what that is worth.

The gradient through a saturated softmax is about 0, although a finite patch moves the pattern. So
the softmax is recomputed, and only what follows is linearized (Kramar et al., 2024,
arXiv 2403.00745, section 3.1.1):

    estimate = sum_qk (patched pattern - pattern)_qk * d metric / d pattern_qk

A query patched alone moves its row, and rows do not mix: ``query_fix``. A key patched alone moves
one score in every row; doing so for each key in turn costs O(T^2) in the leave-one-out form of
``KeyFix``, where the form in common use loses all precision in float32 in just the saturated rows.

Scores are those that enter the softmax: after masks (``-inf``), windows and soft-caps. A learned
sink is one more column of scores with a gradient of 0, which no patch changes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def pattern_difference(
    scores: Float[Tensor, "*batch query key"], patched: Float[Tensor, "*batch query key"]
) -> Float[Tensor, "*batch query key"]:
    """softmax(patched) - softmax(scores), row by row."""
    return patched.softmax(-1) - scores.softmax(-1)


def contract_rows(
    difference: Float[Tensor, "*batch query key"],
    scores: Float[Tensor, "*batch query key"],
    gradient: Float[Tensor, "*batch query key"],
) -> Float[Tensor, "*batch query"]:
    """sum_k difference * gradient, for differences of patterns, whose rows sum to 0.

    The gradient is taken relative to its value at the row's largest score: where that key has all
    the weight, its difference is lost to rounding, and must not count.
    """
    return (difference * _relative(gradient, scores.argmax(-1, keepdim=True))).sum(-1)


class KeyFix:
    """Each key alone: how every row reacts when key t, and no other, is replaced.

    With s the scores, s' those with key t replaced, p = softmax(s), G the gradient by the pattern,
    and leave-one-out terms over the keys k != t:

        estimate_qt = [sigmoid(s'_qt - LSE_-t) - sigmoid(s_qt - LSE_-t)] (G_qt - Gbar_q,-t)
        t not the largest of its row:  LSE_-t = LSE + log(1 - p_t),  Gbar_-t = (Gbar - p_t G_t) / (1 - p_t)
        t the largest:                 one softmax over the other keys
        a row with one visible key:    0

    Args:
        scores: masked entries are -inf.
        patched: at (q, t) the score of query q with key t replaced.
    """

    def __init__(
        self,
        scores: Float[Tensor, "*batch query key"],
        patched: Float[Tensor, "*batch query key"],
    ) -> None:
        self.largest = scores.argmax(-1, keepdim=True)
        self.pattern = scores.softmax(-1)
        others = scores.scatter(-1, self.largest, -torch.inf)
        # Rows with one visible key have no others; they are taken out below.
        self.other_pattern = others.softmax(-1).nan_to_num()
        # 1 - p loses its digits where p is near 1, which only the largest can be: 1 stands there, and
        # what belongs there comes from the softmax over the others.
        self.rest = (1 - self.pattern).scatter(-1, self.largest, 1.0)
        log_rest = scores.logsumexp(-1, keepdim=True) + self.rest.log()
        log_rest = log_rest.scatter(-1, self.largest, others.logsumexp(-1, keepdim=True))
        # Elsewhere both arguments become 0, and so does the change.
        visible = scores.isfinite() & log_rest.isfinite()
        self.change = _sigmoid_difference(
            (patched - log_rest).where(visible, 0.0), (scores - log_rest).where(visible, 0.0)
        )

    def contract(self, gradient: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch key"]:
        """The estimates for each key, summed over queries."""
        return self.by_query(gradient).sum(-2)

    def by_query(
        self, gradient: Float[Tensor, "*batch query key"]
    ) -> Float[Tensor, "*batch query key"]:
        """The estimates for each key, query by query."""
        relative = _relative(gradient, self.largest)
        mean = (self.pattern * relative).sum(-1, keepdim=True)
        # G_t - Gbar_-t = (G_t - Gbar) / (1 - p_t); the largest has relative gradient 0.
        difference = (relative - mean) / self.rest
        of_largest = -(self.other_pattern * relative).sum(-1, keepdim=True)
        return self.change * difference.scatter(-1, self.largest, of_largest)


def _relative(gradient: Tensor, largest: Tensor) -> Tensor:
    """The gradient less its value at each row's largest score, whose place is ``largest``."""
    return gradient - gradient.gather(-1, largest)


def _sigmoid_difference(one: Tensor, other: Tensor) -> Tensor:
    """sigmoid(one) - sigmoid(other) to full relative precision, however saturated both are."""
    high, low = torch.maximum(one, other), torch.minimum(one, other)
    # sigmoid(h) - sigmoid(l) = sigmoid(h) sigmoid(-l) (1 - exp(l - h)): no terms that cancel.
    size = high.sigmoid() * (-low).sigmoid() * -torch.expm1(low - high)
    return torch.where(one >= other, size, -size)
