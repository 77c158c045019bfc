"""A circuit as a report: one HTML page to read and to print, which needs no script and no network.

It says what was asked, what came out, how far that can be trusted, and how to get it again: the
circuit's figures and its evidence (``Circuit.evidence``), as far as there is any, with the drawing
of ``drawing.py``. Its content security policy (https://www.w3.org/TR/CSP3/) lets in the page's own
style sheets, known by their hashes, and nothing else; labels are escaped.

Keeps, to be read by people: the question, figures of edges, evidence. Loses: edges beyond TABLED in
the table and beyond ``drawing.DRAWN`` in the drawing, both of which say so; details of the evidence
(single knockouts, random circuits one by one). Not read back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from string import Template
from typing import Any

from ...circuits.result.circuit import Circuit, CircuitEdge
from ..format import Format
from ..pictures.drawing import drawing, style
from ..pictures.labels import escaped, interval_text, title, unit
from ..pictures.shown import View, check_groups
from .blocks import Table, count, headline_of, listed, rounded, section, signed, with_minus
from .curve_figure import faithfulness_curve
from .rebuilt_command import rebuilt_command
from .viewer import policy, template

TABLED = 500
"""The most edges in the table, the largest; more fill pages that no one reads."""


_NAMED = 5  # edges in a warning


_NO_VIEW = View()


# An edge's name as it stands in escaped text.
_EDGE = re.compile(r"[\w.]+-&gt;[\w.]+(&lt;[qkv]&gt;)?")


_UNBROKEN = r'<span class="edge">\g<0></span>'  # lines would be broken after the hyphen


_RULES = {
    "target": "a search for few edges that are together as faithful as the target asks ({})",
    "threshold": "effect of at least {} {unit}",
    "alpha": "significant at a false discovery rate of {}",
    "size": "{} edges",
    "acdc": "ACDC, tau {}",
}


_LEADS = {
    "Random circuits": "Circuits of random paths, of as many edges.",
    "Completeness": "How far the metrics of the circuit and of the model are apart, in {unit}, when "
    "the same of the circuit's edges are taken from both; 0 if the circuit breaks as the model does.",
    "Minimality": "How much the circuit's metric changes, in {unit}, when an edge is taken from it, "
    "at most over the sets of edges taken with it; 0 if the edge is not needed.",
}


_READING = """An edge goes from the output of its source to an input of its target: <i>q</i>,
<i>k</i> and <i>v</i> are the query, key and value of a head. Its <b>score</b> is an estimate, its
<b>effect</b> was measured by path patching: the metric with the edge&#x27;s clean value less the
metric with its corrupted value. Positive carries the behaviour, negative opposes it. <b>s.e.</b> is
the standard error over pairs. Its <b>loss</b> was measured, too: the metric of the circuit alone
less that of the circuit without the edge. <b>Faithfulness</b> is (m(circuit) &minus; m(empty)) / (m(full)
&minus; m(empty)), m being the metric with everything outside the circuit patched; on other pairs
than the circuit was found on it is often lower."""


def to_report(circuit: Circuit, view: View = _NO_VIEW, command: str | None = None) -> str:
    """The circuit as an HTML page to read, the same bytes every time.

    Args:
        view: its ``groups`` are the roles that nodes of the drawing are marked by.
        command: that gives the circuit again; None takes what the circuit says of itself.

    Raises:
        InputError: as ``check_groups``.
    """
    check_groups(circuit, view)
    css, curve = template("page.css") + template("report.css"), faithfulness_curve(circuit)
    # The policy lets in these style sheets alone: the list has to follow what the sections hold.
    styles = [css, *([style()] if circuit.edges else []), *([curve.style] if curve else [])]
    sections = [
        _answer(circuit),
        _warned(list(warnings(circuit))),
        section("Question", listed(_question(circuit))),
        section("Circuit", _drawing(circuit, view)),
        section("Edges", _edges(circuit)),
        section("Edges left out", _removed(circuit)),
        section("Faithfulness by size", curve.figure if curve else ""),
        section("Tests", _tests(circuit)),
        *_further(circuit),
        section("Get it again", _again(command or rebuilt_command(circuit), circuit)),
    ]
    # ``substitute`` fails where template and names do not agree; ``safe_substitute`` would not.
    return Template(template("report.html")).substitute(
        policy=policy(styles),
        title=escaped(title(circuit)) or "circuit",
        style=css,
        headline=headline_of(circuit),
        question=_asked(circuit),
        sections="\n".join(filter(None, sections)),
        footer=f"<p>{_READING}</p>",
    )


def _asked(circuit: Circuit) -> str:
    model = escaped(str(circuit.model.get("name", "the model")))
    task = circuit.task.get("task") or circuit.task.get("pairs") or "the prompts"
    metric = escaped(str(circuit.method.get("metric", "the metric")))
    return (
        f"Which connections between the parts of <bdi>{model}</bdi> carry <bdi>{metric}</bdi> on "
        f"<bdi>{escaped(str(task))}</bdi>?"
    )


def _question(circuit: Circuit) -> Iterator[tuple[str, str]]:
    model, task, method = circuit.model, circuit.task, circuit.method
    yield "model", _stated(model, "name", "architecture", "quantization", "dtype", "device")
    yield "task", _stated(task, "task", "pairs")
    yield "corruption", _stated(task, "corruption")
    yield "prompts", "in the chat template" if task.get("chat") else ""
    seed = f", seed {task['seed']}" if task.get("seed") is not None else ""
    left_out: Mapping[str, Any] = task.get("left_out") or {}
    without = f" ({left_out.get('n_pairs')} of {left_out.get('of')} left out)" if left_out else ""
    yield "pairs", f"{task['n_pairs']}{seed}{without}" if "n_pairs" in task else ""
    yield "metric", _stated(method, "metric")
    yield "direction", _stated(method, "direction")
    yield "scored by", _rule_of_scores(circuit)
    verified, in_model = method.get("edges_verified"), circuit.shape.n_edges
    if verified is not None:
        yield "verified by", f"path patching, the {verified} best of {in_model:,} edges"
    yield (
        "kept by",
        ", ".join(
            rule.format(method[name], unit=unit(circuit))
            for name, rule in _RULES.items()
            if method.get(name) is not None
        ),
    )


def _rule_of_scores(circuit: Circuit) -> str:
    rule, reader = circuit.method.get("gradient"), circuit.method.get("reader")
    if isinstance(given := circuit.method.get("scores"), dict):
        return f"scores of {given.get('source')}"
    return ", ".join(
        f"{name} {what}" for name, what in ((rule, "gradient"), (reader, "reader")) if name
    )


def _stated(found: Mapping[str, Any], *names: str) -> str:
    return ", ".join(str(found[name]) for name in names if found.get(name) is not None)


def _answer(circuit: Circuit) -> str:
    tiles = "".join(
        f"<li><b>{value}</b><span>{meaning}</span></li>" for value, meaning in _figures(circuit)
    )
    lines = [f'<ul class="figures">{tiles}</ul>']
    measured = circuit.faithfulness
    if measured is not None:
        lines.append(
            f"<p>{rounded(measured.full)} {escaped(unit(circuit))} with the whole model, "
            f"{rounded(measured.empty)} with every edge patched, {rounded(measured.circuit)} with "
            "the circuit alone.</p>"
        )
    lines.append(f"<p><b>What may have been missed.</b> {_missed(circuit)}</p>")
    return f'<section class="answer">{"".join(lines)}</section>'


def _figures(circuit: Circuit) -> Iterator[tuple[str, str]]:
    """The figures at the top, and what each means."""
    n_edges, in_model = len(circuit.edges), circuit.shape.n_edges
    yield f"{n_edges:,}", f"of {in_model:,} edges ({n_edges / in_model:.2%})"
    measured, curve, stability = (
        circuit.faithfulness,
        circuit.evidence.curve,
        circuit.evidence.stability,
    )
    held_out = circuit.evidence.held_out
    if held_out is not None:
        pairs = count(held_out.n_pairs, "held-out pair")
        yield rounded(held_out.faithfulness), f"faithfulness over {pairs}"
    if measured is not None:
        seen = "" if held_out is None else " it was found on"
        pairs = count(measured.n_pairs, "pair")
        yield rounded(measured.faithfulness), f"faithfulness over {pairs}{seen}"
    if curve is not None and curve.cpr is not None:
        yield rounded(curve.cpr), "CPR: area under the faithfulness curve"
    if curve is not None and curve.cmd is not None:
        yield rounded(curve.cmd), "CMD: area between that curve and 1"
    if stability is not None and stability.jaccard is not None:
        resamples = stability.resamples
        over = "" if resamples is None else f" over {resamples:,} resamples"
        yield rounded(stability.jaccard), f"stability: mean Jaccard of circuits{over}"


def _missed(circuit: Circuit) -> str:
    sample = circuit.evidence.sample
    if sample is not None and sample.statement is not None:
        # Of the largest effect a sample says nothing: that is what a bound, if there is one, adds.
        also = "" if circuit.evidence.bound is None else " " + _bounded(circuit)
        return escaped(sample.statement) + also
    return _bounded(circuit)


def _bounded(circuit: Circuit) -> str:
    # What says most comes first: the bound in its own words, its figure, what was left out.
    bound = circuit.evidence.bound
    if bound is not None and bound.statement is not None:
        return escaped(bound.statement)
    if bound is not None and bound.largest is not None:
        sure = "" if bound.confidence is None else f" (confidence {bound.confidence:.6g})"
        return f"No edge that was not verified has an effect above {signed(bound.largest)}{sure}."
    verified = circuit.method.get("edges_verified")
    if isinstance(verified, int) and verified < circuit.shape.n_edges:
        return (
            f"{circuit.shape.n_edges - verified:,} edges were not verified, and no bound on their "
            "effects was computed: they are known by their scores alone."
        )
    return "Nothing is said of edges outside the circuit."


def warnings(circuit: Circuit) -> Iterator[str]:
    """What a reader of the circuit's figures has to know, in a sentence each."""
    measured, target = circuit.faithfulness, _target(circuit)
    if not circuit.edges:
        yield "The circuit has no edges: no path from input to logits was kept."
    if measured is None:
        yield "The circuit was not evaluated: its faithfulness is not known."
    # Of a search the headline says it. ``not >=`` warns of a faithfulness that is nan, too.
    elif (
        circuit.evidence.search is None
        and target is not None
        and not measured.faithfulness >= target
    ):
        yield f"Faithfulness {measured.faithfulness:.3f} is below the target of {target:g}."
    yield from _warnings_of_edges(circuit)


def _warnings_of_edges(circuit: Circuit) -> Iterator[str]:
    if scored := [edge for edge in circuit.edges if edge.known_by == "scored"]:
        yield f"Scored, not verified: {_edge_names(scored)}. Scores are estimates."
    if unscored := [edge for edge in circuit.edges if edge.known_by == "unscored"]:
        yield (
            f"Not scored: {_edge_names(unscored)}. They are in the circuit; what each is worth, and "
            "whether it carries the behaviour or opposes it, is not known."
        )
    if weighed := [edge for edge in circuit.edges if edge.known_by == "weighed"]:
        yield (
            f"Verified in the circuit (its loss), not in the model: {_edge_names(weighed)}. Their "
            "effects are estimates."
        )
    numbers = [edge.n_pairs for edge in circuit.edges]
    if circuit.faithfulness is not None:
        numbers.append(circuit.faithfulness.n_pairs)
    if 1 in numbers:
        yield "Effects were measured on a single pair: nothing is known of their error."
    if crossing := [edge for edge in circuit.edges if _crosses_zero(edge)]:
        yield f"The 95 % interval of the effect has 0 in it: {_edge_names(crossing)}."
    if rare := [edge for edge in circuit.edges if _rare(edge)]:
        yield f"In less than half of the circuits of resampled pairs: {_edge_names(rare)}."


def _target(circuit: Circuit) -> float | None:
    """The faithfulness to reach, if the method says one that is a number of reasonable size."""
    target = circuit.method.get("target")
    return target if isinstance(target, (int, float)) and abs(target) < 1e300 else None


def _crosses_zero(edge: CircuitEdge) -> bool:
    return edge.interval is not None and edge.interval[0] <= 0 <= edge.interval[1]


def _rare(edge: CircuitEdge) -> bool:
    return edge.inclusion is not None and edge.inclusion < 0.5


def _edge_names(edges: Sequence[CircuitEdge]) -> str:
    return f"{count(len(edges), 'edge')} ({_named([edge.name for edge in edges])})"


def _warned(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{_EDGE.sub(_UNBROKEN, escaped(sentence))}</li>" for sentence in sentences)
    return (
        f'<section class="warnings" aria-label="Warnings"><b>Warnings</b><ul>{items}</ul></section>'
    )


def _drawing(circuit: Circuit, view: View) -> str:
    if not circuit.edges:
        return ""
    return f'<div id="paper">{drawing(circuit, view.groups)}</div>'


def _edges(circuit: Circuit) -> str:
    if not circuit.edges:
        return "<p>There are none.</p>"
    ranked = sorted(circuit.edges, key=lambda edge: -edge.size)[:TABLED]
    cells = {name: [cell(edge) for edge in ranked] for name, cell in _CELLS.items()}
    # A column of which no edge knows anything is left out.
    shown = {name: column for name, column in cells.items() if any(column)}
    rows = [
        [str(rank), edge.name, *values]
        for rank, (edge, *values) in enumerate(zip(ranked, *shown.values(), strict=True), start=1)
    ]
    signs = [_SIGNS[edge.sign] for edge in ranked]
    caption = " ".join(_caption(circuit, len(ranked), shown))
    return Table(columns=["#", "edge", *shown], rows=rows, caption=caption, signs=signs).html()


def _caption(circuit: Circuit, n_shown: int, columns: Collection[str]) -> Iterator[str]:
    if circuit.unscored:
        yield "In the order of computation. Not scored: it is not said what an edge is worth."
    else:
        yield f"Largest first, in {unit(circuit)}."
    if rule := _rule_of_scores(circuit):
        yield f"Scores: {rule}."
    if "loss" in columns:
        yield "Loss: the metric of the circuit alone less that of the circuit without the edge."
    if "included" in columns:
        yield "Included: share of the circuits of resampled pairs that have the edge."
    if n_shown < len(circuit.edges):
        yield (
            f"The table has the {n_shown:,} {'first' if circuit.unscored else 'largest'} of "
            f"{len(circuit.edges):,} edges; all are "
            "in circuit.json and in the viewer."
        )


_SIGNS = {"positive": "carries", "negative": "opposes", "unscored": ""}
"""The class of an edge's effect in the table."""


_CELLS: Mapping[str, Callable[[CircuitEdge], str]] = {
    "effect": lambda edge: "" if edge.effect is None else signed(edge.effect),
    "s.e.": lambda edge: "" if edge.standard_error is None else f"\u00b1 {edge.standard_error:.2g}",
    "95 % interval": lambda edge: with_minus(interval_text(edge)),
    "loss": lambda edge: "" if edge.loss is None else signed(edge.loss),
    "included": lambda edge: "" if edge.inclusion is None else f"{edge.inclusion:.0%}",
    "score": lambda edge: "" if edge.score is None else signed(edge.score),
    "pairs": lambda edge: "" if edge.n_pairs is None else f"{edge.n_pairs:,}",
}
"""Columns of the table of edges; those of which nothing is known are left out."""


def _removed(circuit: Circuit) -> str:
    rows = [[rule, f"{n_edges:,}"] for rule, n_edges in (circuit.evidence.removed or {}).items()]
    table = Table(columns=["rule", "edges"], rows=rows, narrow=True, words=(0,))
    return table.html() if rows else ""


def _tests(circuit: Circuit) -> str:
    rows = [
        [
            test.name,
            "" if test.statistic is None else f"{test.statistic:.3g}",
            f"{test.p_value:.3g}",
            "" if test.n is None else f"{test.n:,}",
            test.null or "",
            test.small_p or "",
        ]
        for test in circuit.evidence.tests or ()
    ]
    columns = ["test", "statistic", "p", "n", "null hypothesis", "a small p means"]
    return Table(columns=columns, rows=rows, words=(0, 4, 5)).html() if rows else ""


def _further(circuit: Circuit) -> Iterator[str]:
    """What else was measured, a section each."""
    evidence = circuit.evidence
    if (random := evidence.random) is not None:
        spread = _spread(random.random_faithfulness or ())
        yield _led(circuit, "Random circuits", ("random faithfulness", spread))
    if (whole := evidence.completeness) is not None:
        yield _led(
            circuit,
            "Completeness",
            ("largest", _figure(whole.largest)),
            ("largest without", _named(whole.largest_without or ())),
            ("mean", _figure(whole.mean)),
        )
    if (need := evidence.minimality) is not None:
        yield _led(
            circuit,
            "Minimality",
            ("least", _figure(need.least)),
            ("least needed", need.least_needed or ""),
        )


def _led(circuit: Circuit, heading: str, *figures: tuple[str, str]) -> str:
    """A section of figures that begins with what they mean."""
    items, lead = listed(figures), escaped(_LEADS[heading].format(unit=unit(circuit)))
    return section(heading, f"<p>{lead}</p>{items}" if items else "")


def _figure(value: float | None) -> str:
    return "" if value is None else with_minus(f"{value:.4g}")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    # Divided first: the sum of large values could overflow.
    mean = sum(value / len(values) for value in values)
    spread = f"{mean:.4g} on average, from {min(values):.4g} to {max(values):.4g}"
    return with_minus(f"{spread} ({len(values):,} of them)")


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _again(command: str | None, circuit: Circuit) -> str:
    lines = [
        "<p>The circuit does not say by which command it was found.</p>"
        if command is None
        else f"<pre>{escaped(command)}</pre>"
    ]
    hashes = {
        "weights, sha256": _stated(circuit.model, "sha256"),
        "tokens of the pairs, sha256": _stated(circuit.task, "sha256"),
        "report written by": f"wiremap {version('wiremap')}",
    }
    lines.append(listed(hashes.items()))
    if command is not None:
        lines.append(
            '<p class="note">run.json in the run directory has the versions of Python, torch and '
            "the libraries it was found with.</p>"
        )
    return "".join(lines)


FORMATS = (
    Format(
        "report",
        ".report.html",
        "report to read and to print",
        encode=lambda circuit, view: to_report(circuit, view).encode(),
        shows=("groups",),
    ),
)
