"""A circuit as one HTML page to look through: filters, a drawing, a table, and the question asked.

The page works from disk without a network. It holds the circuit's JSON document (the same that
``circuit.json`` holds, so it can be had back from the page) and the drawing of ``drawing.py``, whose
nodes are marked by their roles if ``View.groups`` names such.
Its content security policy (https://www.w3.org/TR/CSP3/) lets run the page's own script, known by
its hash, and nothing else; what labels say is escaped, and is text wherever it is shown.

Keeps: everything. Loses: nothing but, in the drawing, edges beyond ``drawing.DRAWN``, which the
table and the files saved from the page have. Not read back as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from ...circuits.result.circuit import Circuit
from ...circuits.result.document import dumps, to_document
from ...circuits.result.headline import headline, remarks
from ..format import Format
from ..pictures.drawing import DRAWN, drawing, style, to_svg
from ..pictures.labels import NOT_SCORED, escaped, printable, title, unit
from ..pictures.shown import View, check_groups
from .blocks import headline_of
from .curve_figure import faithfulness_curve

_COLUMNS = {
    "rank": "#",
    "name": "edge",
    "effect": "effect",
    "error": "s.e.",
    "interval": "95 % interval",
    "loss": "loss",
    "score": "score",
    "pairs": "pairs",
}


_SIGNS = {"positive": "carries", "negative": "opposes"}


_EVIDENCE = {"verified": "verified", "weighed": "in the circuit", "scored": "scored only"}


MARK = '<meta name="generator" content="wiremap circuit viewer">'
"""What every page has in its head, so that a page can be told from other files."""


_NO_VIEW = View()


def to_html(circuit: Circuit, view: View = _NO_VIEW) -> str:
    """The circuit as an HTML page, the same bytes every time.

    Args:
        view: its ``groups`` are the roles that nodes are marked by.

    Raises:
        InputError: as ``check_groups``.
    """
    check_groups(circuit, view)
    css, script = template("page.css") + template("viewer.css"), template("viewer.js")
    curve = faithfulness_curve(circuit)
    return Template(template("viewer.html")).substitute(
        # Three style sheets, each allowed by its hash: the page's, the curve's and the drawing's.
        policy=policy([css, *([curve.style] if curve else []), style()], [script]),
        title=escaped(title(circuit)),
        unit=escaped(unit(circuit)),
        file=_file_name(title(circuit)),
        style=css,
        headline=headline_of(circuit),
        facts="".join(_facts(circuit)),
        signs="".join(_boxes(_named(circuit, _SIGNS), _signs(circuit))),
        slots="".join(
            _boxes({"q": "q", "k": "k", "v": "v", "none": "MLP, logits"}, _slots(circuit))
        ),
        evidence="".join(_boxes(_named(circuit, _EVIDENCE), _evidence(circuit))),
        groupings="".join(_groupings(bool(view.groups))),
        notice=_notice(circuit),
        curve=f"<details><summary>faithfulness by size</summary>{curve.figure}</details>"
        if curve
        else "",
        drawing=drawing(circuit, view.groups),
        columns="".join(_columns(circuit)),
        # No end tag, comment or other markup can begin without this character.
        circuit=dumps(to_document(circuit)).replace("<", "\\u003c"),
        script=script,
    )


@dataclass(frozen=True)
class Viewer:
    """The page as a cell of a notebook shows it: in a frame of its own.

    Args:
        height: of the frame, in pixels.
    """

    circuit: Circuit
    height: int = 700

    def _repr_html_(self) -> str:
        # Escaped once more, as the page becomes an attribute. In its frame its script runs, but
        # reaches nothing of the notebook: the sandbox lacks allow-same-origin.
        page = html.escape(to_html(self.circuit))
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{page}" width="100%" '
            f'height="{self.height}" title="{escaped(title(self.circuit))}"></iframe>'
        )


def display(circuit: Circuit) -> dict[str, str]:
    """What a notebook shows for a circuit: its drawing, or its headline where there are no pictures."""
    lines = [f"Circuit of {title(circuit)}: {headline(circuit)}", *remarks(circuit)]
    text = "\n".join(printable(line) for line in lines)
    return {"image/svg+xml": to_svg(circuit), "text/plain": text}


def template(name: str) -> str:
    """The text of a template."""
    return files("wiremap.exporters").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def policy(styles: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """The content security policy of a page: its own styles and scripts, by hash, nothing else."""
    directives = {
        "default-src": ["'none'"],
        "script-src": [_hash(text) for text in scripts],
        "style-src": [_hash(text) for text in styles],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    # A page without scripts says nothing of them: the default forbids them.
    return "; ".join(
        f"{name} {' '.join(allowed)}" for name, allowed in directives.items() if allowed
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _file_name(text: str) -> str:
    """A name for the files that are saved from the page."""
    return re.sub("[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "circuit"


def _facts(circuit: Circuit) -> Iterator[str]:
    """What was asked, how, and what came out, as the items of a list."""
    measured = circuit.faithfulness
    if measured is not None:
        name = escaped(unit(circuit))
        seen = "" if circuit.evidence.held_out is None else ", on the pairs it was found on"
        yield _fact(
            f"faithfulness{seen}",
            f"<b>{measured.faithfulness:.3f}</b> = {_less(measured.circuit, measured.empty)} / "
            f"{_less(measured.full, measured.empty)} {name}, over {measured.n_pairs:,} pairs",
        )
    yield _fact("kept", f"<b>{len(circuit.edges):,}</b> of {circuit.shape.n_edges:,} edges")
    named = {
        "model": circuit.model.get("name"),
        "task": circuit.task.get("task") or circuit.task.get("pairs"),
        "corruption": circuit.task.get("corruption"),
        **{
            name: circuit.method.get(name)
            for name in ("metric", "direction", "gradient", "reader", "target", "threshold", "size")
        },
        "verified": circuit.method.get("edges_verified"),
    }
    for name, value in named.items():
        if value is not None:
            yield _fact(name, f"<bdi>{escaped(str(value))}</bdi>")


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _less(value: float, other: float) -> str:
    """A difference, spelled out."""
    # 2 + 1, not 2 - -1.
    minus = f"{value:.3g} {'+' if other < 0 else '-'} {abs(other):.3g}"
    return f"({minus.replace('-', '&minus;')})"


def _signs(circuit: Circuit) -> Counter[str]:
    return Counter(edge.sign for edge in circuit.edges)


def _named(circuit: Circuit, names: dict[str, str]) -> dict[str, str]:
    """The names of kinds of edges; that there are edges without a score is said where there are."""
    without = any(edge.sign == "unscored" for edge in circuit.edges)
    return names | ({"unscored": NOT_SCORED} if without else {})


def _slots(circuit: Circuit) -> Counter[str]:
    return Counter(edge.slot or "none" for edge in circuit.edges)


def _evidence(circuit: Circuit) -> Counter[str]:
    return Counter(edge.known_by for edge in circuit.edges)


def _boxes(names: dict[str, str], counts: Counter[str]) -> Iterator[str]:
    """A box to tick for each kind of edge, with how many there are."""
    for kind, name in names.items():
        disabled = "" if counts[kind] else " disabled"
        yield (
            f'<label><input type="checkbox" name="kind" value="{kind}" checked{disabled}> '
            f"{name} <small>{counts[kind]:,}</small></label>"
        )


def _groupings(with_roles: bool) -> Iterator[str]:
    """What nodes can be drawn as one by."""
    for by in ("none", "layer", "role"):
        disabled = " disabled" if by == "role" and not with_roles else ""
        yield f"<option{disabled}>{by}</option>"


def _notice(circuit: Circuit) -> str:
    if len(circuit.edges) <= DRAWN:
        return ""
    which = "first" if circuit.unscored else "largest"
    return (
        f'<p class="notice">Drawn are the {DRAWN:,} {which} of {len(circuit.edges):,} edges; '
        "counts, table, JSON and CSV have all.</p>"
    )


def _columns(circuit: Circuit) -> Iterator[str]:
    with_intervals = any(edge.interval for edge in circuit.edges)
    with_losses = any(edge.loss is not None for edge in circuit.edges)
    for column, label in _COLUMNS.items():
        if (column, False) in (("interval", with_intervals), ("loss", with_losses)):
            continue
        words = ' class="words"' if column == "name" else ""
        yield (
            f'<th scope="col" data-column="{column}"{words}>'
            f'<button type="button">{label}</button></th>'
        )


FORMATS = (
    Format(
        "html",
        ".html",
        "viewer for any browser",
        encode=lambda circuit, view: to_html(circuit, view).encode(),
        signs=lambda content: "<html" in content.start.lower() and content.start.startswith("<"),
        called="a web page",
        shows=("groups",),
    ),
)
