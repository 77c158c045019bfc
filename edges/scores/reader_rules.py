"""Reader rules: how what reads an edge is taken to react to it.

    linear            by the derivative at what it reads: EAP and its relatives
    exact             computed anew from each writer's other value; then the gradient from its output on
    exact-attention   queries and keys through the exact softmax, all else linear (the QK fix alone)

A new way of combining the two readers is an entry in ``READER_RULES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .exact import OUTPUTS, REACTIONS
from .linear import INPUTS


@dataclass(frozen=True)
class ReaderRule:
    """Which readers score an edge.

    Attributes:
        linear: the linear reader scores every edge.
        exact: the exact reader's scores then take their place,
        attention_only: but of queries and keys alone.
    """

    linear: bool = False
    exact: bool = False
    attention_only: bool = False

    @property
    def by(self) -> tuple[str, ...]:
        """The activations whose gradients are needed: what is read, what readers put out, or both."""
        return (*(INPUTS if self.linear else ()), *(OUTPUTS if self.exact else ()))

    @property
    def keeps(self) -> tuple[str, ...]:
        """The activations that both runs keep, besides what writers write."""
        return REACTIONS if self.exact else ()


READER_RULES: Mapping[str, ReaderRule] = {
    "linear": ReaderRule(linear=True),
    "exact": ReaderRule(exact=True),
    "exact-attention": ReaderRule(linear=True, exact=True, attention_only=True),
}
"""By the names in ``names.vocabulary.READERS``."""
