"""Layer-wise relevance propagation in place of derivatives (RelP: Rezaei Jafari et al., 2025, arXiv 2508.21258)."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import GradientRule, Modified, RuleOptions, share


def rule(options: RuleOptions) -> GradientRule:
    """Relevance at the run edited. Raises InputError for a metric without gradient there."""
    return Modified("relevance", options.at(options.edited), Relevance, in_mlp=True)


class Relevance:
    """Layer-wise relevance propagation as a gradient (Rezaei Jafari et al., 2025, arXiv 2508.21258).

    LN-rule: a norm's scale is a constant. Identity rule: an activation f(x) counts as x times the
    constant f(x) / x. Half rule: each factor of a gated MLP gets half of the gradient. 0-rule: all
    linear maps keep their derivative. Attention rule, if asked for: the pattern is a constant, so
    that queries and keys get no relevance and all their edges score 0.
    """

    def __init__(self, attention: bool = False) -> None:
        self.attention = attention
        self._before: dict[int, Tensor] = {}

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        """The value, its gradient as the rules have it."""
        if name == "norm_scale" or (name == "pattern" and self.attention):
            return value.detach()
        if name == "gate":
            # Where x is 0, f(x) / x is taken as the limit from a tiny x.
            tiny = torch.finfo(value.dtype).tiny ** 0.5
            self._before[layer] = value.where(value != 0, tiny)
        if name == "activation":
            before = self._before.pop(layer)
            return before * (value / before).detach()
        if name == "product":
            return share(value, 0.5)
        return value
