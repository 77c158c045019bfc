"""What is said of a circuit by more than one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..circuits.result.circuit import Faithfulness
    from ..circuits.result.evidence import SampleEvidence


def summary(metric: str, carried: Faithfulness) -> str:
    """What a circuit carries by itself, in two lines."""
    return (
        f"{metric}: {carried.full:.3f} on clean prompts, {carried.empty:.3f} on corrupted ones, "
        f"{carried.circuit:.3f} with the circuit alone ({carried.n_pairs} pairs)\n"
        f"faithfulness {carried.faithfulness:.3f}"
    )


def missed(sample: SampleEvidence) -> Iterator[str]:
    """What a sample says of edges that were not verified, in lines."""
    shares = ", ".join(
        f"{100 * share.share:.2g} % above {share.above:.3g}" for share in sample.shares or ()
    )
    if shares and sample.n_edges is not None:
        yield (
            f"missed: of the {sample.n_edges:,} unverified edges at most {shares} (|effect|, with "
            f"{100 * (sample.confidence or 0):g} % confidence together, by {sample.drawn or 0:,} "
            "drawn at random and verified)"
        )
    if sample.largest is not None:
        yield f"the largest of those drawn: {sample.largest:+.3g}, {sample.largest_edge}"
