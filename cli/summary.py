"""What is said of a circuit by more than one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..circuits.result.circuit import Faithfulness


def summary(metric: str, carried: Faithfulness) -> str:
    """What a circuit carries by itself, in two lines."""
    return (
        f"{metric}: {carried.full:.3f} on clean prompts, {carried.empty:.3f} on corrupted ones, "
        f"{carried.circuit:.3f} with the circuit alone ({carried.n_pairs} pairs)\n"
        f"faithfulness {carried.faithfulness:.3f}"
    )
