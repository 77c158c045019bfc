"""Rules that change how gradients pass through a block: relevance and GIM."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.parts import See


def _share(value: Tensor, part: float) -> Tensor:
    """The value itself, a part of the gradient."""
    return value * part + value.detach() * (1 - part)


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
            return _share(value, 0.5)
        return value


def gim(temperature: float = 2.0) -> See:
    """Gradient interaction modifications (Edin et al., 2025, arXiv 2505.17630).

    Backwards the softmax is one of a higher temperature, p_T (g - sum p_T g), without the 1/T of
    its derivative, as its authors' code has it; queries and keys get a quarter of their gradient,
    values half of it; the scales of norms are constants. (Later versions of that code also halve
    the gradient into both factors of a gated MLP; not done here.)
    """
    scores: dict[int, Tensor] = {}
    parts = {"q": 0.25, "k": 0.25, "v": 0.5}

    def see(name: str, layer: int, value: Tensor) -> Tensor:
        if name == "norm_scale":
            return value.detach()
        if name in parts:
            return _share(value, parts[name])
        if name == "scores":
            scores[layer] = value
        if name == "pattern":
            soft = temperature * (scores.pop(layer) / temperature).softmax(-1)
            return value.detach() + (soft - soft.detach()).to(value.dtype)
        return value

    return see
