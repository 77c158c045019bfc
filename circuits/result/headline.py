"""What is said of a circuit first: how large it is, and what it is worth on prompts it has not seen. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from .circuit import Circuit
from .evidence import HeldOutEvidence

_FAR_APART = 0.2
"""How far the three measures may lie apart before the words say so."""


def headline(circuit: Circuit) -> str:
    """One sentence: edges, held-out faithfulness with its interval, share of the KL, accuracy.

    It begins with what was not reached, where a target was not.
    """
    n_edges = len(circuit.edges)
    in_model = circuit.method.get("edges_in_model")
    size = f"{n_edges:,} edges" + (f" of {in_model:,}" if isinstance(in_model, int) else "")
    held_out = circuit.evidence.held_out
    if held_out is None:
        found = circuit.faithfulness
        worth = "" if found is None else f": faithfulness {found.faithfulness:.2f}"
        missed = _missed(circuit, None if found is None else found.faithfulness)
        unseen = " on the pairs it was found on (none held out)" if worth else ""
        return f"{missed}{size}{worth}{unseen}"
    missed = _missed(circuit, held_out.faithfulness)
    return f"{missed}{size}: {_worth(held_out)} ({held_out.n_pairs} held-out pairs)"


def remarks(circuit: Circuit) -> Iterator[str]:
    """What the figures of the headline do not agree in, and what to do where a target was missed."""
    held_out = circuit.evidence.held_out
    if held_out is not None:
        yield from _disagreements(held_out)
    search = circuit.evidence.search
    if search is not None and _target_missed(circuit, _judged(circuit)):
        advice = "give more pairs (--n-pairs)"
        if search.reached:
            advice = "the pairs of the search are not enough to tell: " + advice
        else:
            advice += ", or a lower target (--target); circuit.json has the best of every size"
        yield advice


def _judged(circuit: Circuit) -> float | None:
    held_out, found = circuit.evidence.held_out, circuit.faithfulness
    if held_out is not None:
        return held_out.faithfulness
    return None if found is None else found.faithfulness


def _target_missed(circuit: Circuit, faithfulness: float | None) -> bool:
    search = circuit.evidence.search
    if search is None or search.least is None or search.greatest is None or faithfulness is None:
        return False
    # As the figures are shown, so that none contradicts the words.
    return not search.least <= round(faithfulness, 2) <= search.greatest


def _missed(circuit: Circuit, faithfulness: float | None) -> str:
    search = circuit.evidence.search
    if search is None or not _target_missed(circuit, faithfulness):
        return ""
    return f"target of {search.least:g} to {search.greatest:g} not reached: "


def _worth(held_out: HeldOutEvidence) -> str:
    words = [f"held-out faithfulness {held_out.faithfulness:.2f}"]
    if held_out.interval is not None:
        low, high = held_out.interval
        words[0] += f" ({100 * (held_out.confidence or 0):g} % interval {low:.2f} to {high:.2f})"
    if held_out.kl_share is not None and held_out.metric != "kl":
        words.append(f"{held_out.kl_share:.2f} of the KL recovered")
    if held_out.accuracy is not None:
        words.append(f"accuracy {held_out.accuracy:.2f} (model {held_out.model_accuracy or 0:.2f})")
    return ", ".join(words)


def _disagreements(held_out: HeldOutEvidence) -> Iterator[str]:
    """Where the circuit does the behaviour by one measure and not by another."""
    share, faithful = held_out.kl_share, held_out.faithfulness
    if share is not None and held_out.metric != "kl" and share < faithful - _FAR_APART:
        yield (
            f"it moves the {held_out.metric} as the model does, but not all that the model would "
            f"say: {share:.2f} of the KL is recovered (--faithful-to kl asks for that)"
        )
    accuracy, of_model = held_out.accuracy, held_out.model_accuracy
    if accuracy is not None and of_model is not None and accuracy < of_model - _FAR_APART:
        yield (
            f"its most likely token is an answer on {accuracy:.0%} of the prompts, the model's on "
            f"{of_model:.0%}"
        )
