"""The circuit of a file that a command is given, whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..edges.errors import InputError
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
    from ..exporters.hypotheses import TABLE, read_claim

    claim = _scores(path) if _is_scores(path) else read_claim(path, reading.weight)
    if reading.flip_signs:
        claim = claim.flipped()
    elif signed and claim.sign_unsaid and not quiet:
        show_note(
            f"{path}: {_THE[claim.format]} does not say what the sign of a score means. A positive "
            "score is taken to carry the behaviour, as in wiremap; where a negative one does (scores "
            "of a loss), turn them (--flip-signs)"
        )
    table = claim.stated
    if claim.format == TABLE and isinstance(table, EdgeTable) and not quiet:
        scored = f"scores are its {table.weight!r}" if table.weight else "without scores"
        unread = f"; not read: {', '.join(table.unread)} (--weight)" if table.unread else ""
        show_note(f"{path}: a table of {len(table.edges)} edges, {scored}{unread}")
    return claim


def _is_scores(path: Path) -> bool:
    """Whether it is a file of wiremap's scores, or a directory of those and no circuit."""
    from ..exporters.binary import is_safetensors

    if path.is_dir():
        return not (path / "circuit.json").exists() and (path / _SCORES).is_file()
    return is_safetensors(path)


def scores_of(path: Path) -> Path:
    """The scores of a run directory, or the file itself."""
    return path / _SCORES if (path / _SCORES).is_file() else path


def _scores(path: Path) -> Claim:
    """Scores that wiremap wrote: all edges, of which no circuit was chosen."""
    from ..circuits.record.scores_file import read_scores
    from ..circuits.result.circuit import CircuitEdge
    from ..circuits.result.edge_table import EdgeTable
    from ..exporters.hypotheses import Claim

    path = scores_of(path)
    _, scores, question = read_scores(path)
    if scores is None:
        raise InputError(f"{path}: expected scores of edges, the file has those of nodes alone")
    writers, readers = scores.graph.writers, scores.graph.readers
    edges = tuple(
        CircuitEdge(writers[edge.writer].name, end.node, end.slot, scores.scores[edge].item())
        for edge in scores.graph.edges()
        for end in [readers[edge.reader]]
    )
    model, task, method = (dict(question.get(name) or {}) for name in ("model", "task", "method"))
    metric = method.get("metric")
    table = EdgeTable(
        edges,
        "score",
        alone=True,
        shape=scores.graph,
        model=model,
        task=task,
        metric=None if metric is None else str(metric),
    )
    return Claim(path, _SCORES, table)


_SCORES = "scores.safetensors"


_THE = {"eap-ig": "the format of EAP-IG", "table of edges": "a table of edges"}


def shape_of(asked: Asked, *claims: Claim) -> ModelGraph | None:
    """The shape of the model that tables among the claims are of; see ``of_model``."""
    return of_model(asked, *claims)[0]


def of_model(asked: Asked, *claims: Claim) -> tuple[ModelGraph | None, dict[str, Any]]:
    """The shape of the model that tables among the claims are of, and what a circuit says of it.

    That of ``--model``, else that which another of the claims says; None if nothing does.
    """
    known = [claim.shape for claim in claims if claim.shape is not None]
    if asked.model is None or len(known) == len(claims):
        return next(iter(known), None), {}
    kv = asked.kv or next((claim.kv for claim in claims if claim.kv), GROUPED)
    model = load_model(replace(asked, device="cpu", kv=kv))
    return model.graph, {"name": model.name, "d_model": model.d_model, "kv": model.kv}
