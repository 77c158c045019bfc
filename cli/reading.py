"""The circuit of a file that a command is given, whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..edges.names.vocabulary import GROUPED
from .asked import Asked
from .console import show_note
from .loading import load_model

if TYPE_CHECKING:
    from ..edges.names.graph import ModelGraph
    from ..exporters.hypotheses import Claim


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file from elsewhere is read; see ``read_claim`` and ``Claim.flipped``."""

    weight: str | None = None
    flip_signs: bool = False


def read(path: Path, reading: Reading, quiet: bool = False, *, signed: bool = True) -> Claim:
    """The circuit, hypothesis or table of a file or a run directory; what it leaves open is noted.

    Args:
        signed: the signs of scores matter.
    """
    from ..circuits.result.edge_table import EdgeTable
    from ..exporters.hypotheses import read_claim

    claim = read_claim(path, reading.weight)
    if reading.flip_signs:
        claim = claim.flipped()
    elif signed and claim.sign_unsaid and not quiet:
        show_note(
            f"{path}: {_THE[claim.format]} does not say what the sign of a score means. A positive "
            "score is taken to carry the behaviour, as in wiremap; where a negative one does (scores "
            "of a loss), turn them (--flip-signs)"
        )
    table = claim.stated
    if isinstance(table, EdgeTable) and not quiet:
        scored = f"scores are its {table.weight!r}" if table.weight else "without scores"
        unread = f"; not read: {', '.join(table.unread)} (--weight)" if table.unread else ""
        show_note(f"{path}: a table of {len(table.edges)} edges, {scored}{unread}")
    return claim


_THE = {"eap-ig": "the format of EAP-IG", "table of edges": "a table of edges"}


def shape_of(asked: Asked, *claims: Claim) -> ModelGraph | None:
    """The shape of the model that tables among the claims are of.

    That of ``--model``, else that which another of the claims says; None if nothing does.
    """
    from ..circuits.result.edge_table import EdgeTable

    known = [claim.known.shape for claim in claims if claim.known is not None]
    if asked.model is None or len(known) == len(claims):
        return next(iter(known), None)
    named = [claim.stated.kv for claim in claims if isinstance(claim.stated, EdgeTable)]
    kv = asked.kv or next((kv for kv in named if kv), GROUPED)
    return load_model(replace(asked, device="cpu", kv=kv)).graph
