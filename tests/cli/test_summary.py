"""What more than one command says of a circuit."""

from __future__ import annotations

from wiremap.circuits.result.evidence import SampleEvidence, ShareEvidence
from wiremap.cli.summary import missed


def test_a_sample_in_lines() -> None:
    shares = (ShareEvidence(above=0.03, found=4, share=0.024), ShareEvidence(above=0.3, share=0.01))
    sample = SampleEvidence(
        n_edges=70_451, drawn=500, confidence=0.99, shares=shares, largest=-0.12,
        largest_edge="m3->m5",
    )  # fmt: skip
    shown, largest = missed(sample)
    assert shown == (
        "missed: of the 70,451 unverified edges at most 2.4 % above 0.03, 1 % above 0.3 (|effect|, "
        "with 99 % confidence together, by 500 drawn at random and verified)"
    )
    assert largest == "the largest of those drawn: -0.12, m3->m5"
    assert list(missed(SampleEvidence())) == []
