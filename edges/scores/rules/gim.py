"""A softer softmax, and gradients shared among factors (GIM: Edin et al., 2025, arXiv 2505.17630)."""

from __future__ import annotations

from torch import Tensor

from ...model.parts import See
from .rule import GradientRule, Modified, RuleOptions, share


def rule(options: RuleOptions) -> GradientRule:
    """GIM at the run edited. Raises InputError for a metric without gradient there."""
    return Modified("gim", options.at(options.edited), gim)


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
            return share(value, parts[name])
        if name == "scores":
            scores[layer] = value
        if name == "pattern":
            # The values of the pattern, the gradient of the softer softmax; the temperature in front
            # takes away the 1/T of its derivative.
            soft = temperature * (scores.pop(layer) / temperature).softmax(-1)
            return value.detach() + (soft - soft.detach()).to(value.dtype)
        return value

    return see
