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
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from string import Template
from typing import Any, cast

from ...circuits.result.circuit import Circuit, CircuitEdge
from ...edges.names.vocabulary import BUDGET, DIRECTION, GROUPED, PRUNE, READER, TARGET
from ..pictures.drawing import drawing, style
from ..pictures.labels import escaped, interval_text, printable, title, unit
from ..pictures.shown import View, check_groups
from .measured import faithfulness_curve, figure, part
from .viewer import policy, template

TABLED = 500
"""The most edges in the table, the largest; more fill pages that no one reads."""


_NAMED = 5  # edges in a warning


_NO_VIEW = View()


_EDGE = re.compile(r"[\w.]+-&gt;[\w.]+(&lt;[qkv]&gt;)?")


_UNBROKEN = r'<span class="edge">\g<0></span>'  # lines would be broken after the hyphen


_MINUS = str.maketrans("-", "\u2212")


_DEFAULTS: Mapping[str, Any] = {
    "direction": DIRECTION,
    "reader": READER,
    "budget": BUDGET["cpu"],
    "target": TARGET,
    "prune": PRUNE[0],
    "tests": False,
}
"""Options of ``wiremap discover`` that are the same for all models and tasks, left out of a command."""


_RULES = {
    "target": "few that reach a faithfulness of {}",
    "threshold": "effect of at least {} {unit}",
    "alpha": "significant at a false discovery rate of {}",
    "size": "{} edges",
    "acdc": "ACDC, tau {}",
}


_FURTHER = {
    "random": "Circuits of random paths, of as many edges.",
    "completeness": "How far the metrics of the circuit and of the model are apart, in {unit}, when "
    "the same of the circuit's edges are taken from both; 0 if the circuit breaks as the model does.",
    "minimality": "How much the circuit's metric changes, in {unit}, when an edge is taken from it, "
    "at most over the sets of edges taken with it; 0 if the edge is not needed.",
}


_TOLD_ELSEWHERE = ("seed", "full", "empty", "n_pairs")


_READING = """An edge goes from the output of its source to an input of its target: <i>q</i>,
<i>k</i> and <i>v</i> are the query, key and value of a head. Its <b>score</b> is an estimate, its
<b>effect</b> was measured by path patching: the metric with the edge&#x27;s clean value less the
metric with its corrupted value. Positive carries the behaviour, negative opposes it. <b>s.e.</b> is
the standard error over pairs. <b>Faithfulness</b> is (m(circuit) &minus; m(empty)) / (m(full)
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
    styles = [css, *([style()] if circuit.edges else []), *([curve.style] if curve else [])]
    sections = [
        _answer(circuit),
        _warned(list(warnings(circuit))),
        _section("Question", _list(_question(circuit))),
        _section("Circuit", _drawing(circuit, view)),
        _section("Edges", _edges(circuit)),
        _section("Edges left out", _removed(circuit)),
        _section("Faithfulness by size", curve.figure if curve else ""),
        _section("Tests", _tests(circuit)),
        *(_further(circuit, name) for name in _FURTHER),
        _section("Get it again", _again(command or rebuilt_command(circuit), circuit)),
    ]
    return Template(template("report.html")).substitute(
        policy=policy(styles),
        title=escaped(title(circuit)) or "circuit",
        style=css,
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
    yield "model", _told(model, "name", "architecture", "dtype", "device")
    yield "task", _told(task, "task", "pairs")
    yield "corruption", _told(task, "corruption")
    seed = f", seed {task['seed']}" if task.get("seed") is not None else ""
    yield "pairs", f"{task['n_pairs']}{seed}" if "n_pairs" in task else ""
    yield "metric", _told(method, "metric")
    yield "direction", _told(method, "direction")
    yield "scored by", _rule_of_scores(circuit)
    verified, in_model = method.get("edges_verified"), circuit.shape.n_edges
    if verified is not None:
        yield "verified by", f"path patching, the {verified} best of {in_model:,} edges"
    yield (
        "kept by",
        ", ".join(
            told.format(method[name], unit=unit(circuit))
            for name, told in _RULES.items()
            if method.get(name) is not None
        ),
    )


def _rule_of_scores(circuit: Circuit) -> str:
    rule, reader = circuit.method.get("gradient"), circuit.method.get("reader")
    return ", ".join(
        f"{name} {what}" for name, what in ((rule, "gradient"), (reader, "reader")) if name
    )


def _told(found: Mapping[str, Any], *names: str) -> str:
    return ", ".join(str(found[name]) for name in names if found.get(name) is not None)


def _answer(circuit: Circuit) -> str:
    found, curve, stability = (
        circuit.faithfulness,
        part(circuit, "curve"),
        part(circuit, "stability"),
    )
    n_edges, in_model = len(circuit.edges), circuit.shape.n_edges
    figures = [(f"{n_edges:,}", f"of {in_model:,} edges ({n_edges / in_model:.2%})")]
    if found is not None:
        figures.append((_rounded(found.faithfulness), f"faithfulness over {found.n_pairs:,} pairs"))
    for name, told in (
        ("cpr", "CPR: area under the faithfulness curve"),
        ("cmd", "CMD: area between that curve and 1"),
    ):
        value = figure(curve, name)
        if value is not None:
            figures.append((_rounded(value), told))
    jaccard = figure(stability, "jaccard", "mean_pairwise_jaccard")
    resamples = figure(stability, "resamples", "n_resamples")
    if jaccard is not None:
        over = "" if resamples is None else f" over {resamples:,.0f} resamples"
        figures.append((_rounded(jaccard), f"stability: mean Jaccard of circuits{over}"))
    tiles = "".join(f"<li><b>{value}</b><span>{told}</span></li>" for value, told in figures)
    lines = [f'<ul class="figures">{tiles}</ul>']
    if found is not None:
        lines.append(
            f"<p>{_rounded(found.full)} {escaped(unit(circuit))} with the whole model, "
            f"{_rounded(found.empty)} with every edge patched, {_rounded(found.circuit)} with the "
            "circuit alone.</p>"
        )
    lines.append(f"<p><b>What may have been missed.</b> {_missed(circuit)}</p>")
    return f'<section class="answer">{"".join(lines)}</section>'


def _missed(circuit: Circuit) -> str:
    bound = part(circuit, "bound")
    if isinstance(bound.get("statement"), str):
        return escaped(bound["statement"])
    largest, confidence = figure(bound, "largest"), figure(bound, "confidence")
    if largest is not None:
        sure = "" if confidence is None else f" (confidence {confidence:.6g})"
        return f"No edge that was not verified has an effect above {_number(largest)}{sure}."
    verified = circuit.method.get("edges_verified")
    if isinstance(verified, int) and verified < circuit.shape.n_edges:
        return (
            f"{circuit.shape.n_edges - verified:,} edges were not verified, and no bound on their "
            "effects was computed: they are known by their scores alone."
        )
    return "Nothing is said of edges outside the circuit."


def warnings(circuit: Circuit) -> Iterator[str]:
    """What a reader of the circuit's figures has to know, in a sentence each."""
    found, target = circuit.faithfulness, figure(circuit.method, "target")
    if not circuit.edges:
        yield "The circuit has no edges: no path from input to logits was kept."
    if found is None:
        yield "The circuit was not evaluated: its faithfulness is not known."
    elif target is not None and not found.faithfulness >= target:
        yield f"Faithfulness {found.faithfulness:.3f} is below the target of {target:g}."
    scored = [edge for edge in circuit.edges if not edge.verified]
    if scored:
        yield f"Scored, not verified: {_names(scored)}. Scores are estimates."
    if (found and found.n_pairs == 1) or any(edge.n_pairs == 1 for edge in circuit.edges):
        yield "Effects were measured on a single pair: nothing is known of their error."
    crossing = [edge for edge in circuit.edges if edge.interval and _crosses(edge.interval)]
    if crossing:
        yield f"The 95 % interval of the effect has 0 in it: {_names(crossing)}."
    rare = [edge for edge in circuit.edges if edge.inclusion is not None and edge.inclusion < 0.5]
    if rare:
        yield f"In less than half of the circuits of resampled pairs: {_names(rare)}."


def _crosses(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _names(edges: Sequence[CircuitEdge]) -> str:
    named = ", ".join(edge.name for edge in edges[:_NAMED])
    more = len(edges) - _NAMED
    return f"{_count(len(edges), 'edge')} ({named}{f' and {more:,} more' if more > 0 else ''})"


def _warned(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{_EDGE.sub(_UNBROKEN, escaped(one))}</li>" for one in sentences)
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
    ranked = sorted(circuit.edges, key=lambda edge: -abs(edge.worth or 0.0))[:TABLED]
    columns = {
        "effect": (_effect, any(edge.verified for edge in ranked)),
        "s.e.": (_error, any(edge.standard_error is not None for edge in ranked)),
        "95 % interval": (_interval, any(edge.interval for edge in ranked)),
        "included": (_inclusion, any(edge.inclusion is not None for edge in ranked)),
        "score": (_score, any(edge.score is not None for edge in ranked)),
        "pairs": (_pairs, any(edge.n_pairs is not None for edge in ranked)),
    }
    shown = {name: cell for name, (cell, known) in columns.items() if known}
    rows = [
        [str(rank), edge.name, *(cell(edge) for cell in shown.values())]
        for rank, edge in enumerate(ranked, start=1)
    ]
    told = [f"Largest first, in {unit(circuit)}."]
    if rule := _rule_of_scores(circuit):
        told.append(f"Scores: {rule}.")
    if "included" in shown:
        told.append("Included: share of the circuits of resampled pairs that have the edge.")
    if len(ranked) < len(circuit.edges):
        told.append(
            f"The table has the {len(ranked):,} largest of {len(circuit.edges):,} edges; all are "
            "in circuit.json and in the viewer."
        )
    signs = ["opposes" if (edge.worth or 0.0) < 0 else "carries" for edge in ranked]
    return _table(["#", "edge", *shown], rows, " ".join(told), signs)


def _effect(edge: CircuitEdge) -> str:
    return "" if edge.effect is None else _number(edge.effect)


def _error(edge: CircuitEdge) -> str:
    return "" if edge.standard_error is None else f"\u00b1 {edge.standard_error:.2g}"


def _interval(edge: CircuitEdge) -> str:
    return interval_text(edge).translate(_MINUS)


def _inclusion(edge: CircuitEdge) -> str:
    return "" if edge.inclusion is None else f"{edge.inclusion:.0%}"


def _score(edge: CircuitEdge) -> str:
    return "" if edge.score is None else _number(edge.score)


def _pairs(edge: CircuitEdge) -> str:
    return "" if edge.n_pairs is None else f"{edge.n_pairs:,}"


def _removed(circuit: Circuit) -> str:
    found = part(circuit, "removed")
    counts = {rule: figure(found, rule) for rule in found}
    rows = [[str(rule), f"{count:,.0f}"] for rule, count in counts.items() if count is not None]
    return _table(["rule", "edges"], rows, narrow=True, words=(0,)) if rows else ""


def _tests(circuit: Circuit) -> str:
    found: Any = circuit.evidence.get("tests")
    if isinstance(found, Mapping):
        found = cast("Mapping[str, Any]", found).get("tests")
    rows: list[list[str]] = []
    for one in cast("list[Any]", found) if isinstance(found, list) else []:
        told = cast("Mapping[str, Any]", one if isinstance(one, Mapping) else {})
        p_value, statistic, n = (figure(told, name) for name in ("p_value", "statistic", "n"))
        if p_value is None:
            continue
        rows.append(
            [
                str(told.get("name", "")),
                "" if statistic is None else f"{statistic:.3g}",
                f"{p_value:.3g}",
                "" if n is None else f"{n:,.0f}",
                str(told.get("null", "")),
                str(told.get("small_p", "")),
            ]
        )
    if not rows:
        return ""
    columns = ["test", "statistic", "p", "n", "null hypothesis", "a small p means"]
    return _table(columns, rows, words=(0, 4, 5))


def _further(circuit: Circuit, name: str) -> str:
    told = _list(_plain(part(circuit, name)))
    lead = escaped(_FURTHER[name].format(unit=unit(circuit)))
    heading = "Random circuits" if name == "random" else name.capitalize()
    return _section(heading, f"<p>{lead}</p>{told}" if told else "")


def _plain(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures and words of a part of the evidence, and what its lists come to."""
    for name, value in found.items():
        label, number = str(name).replace("_", " "), figure(found, name)
        if name in _TOLD_ELSEWHERE:
            continue
        if number is not None:
            yield label, f"{number:.4g}".translate(_MINUS)
        elif isinstance(value, str):
            yield label, value
        elif isinstance(value, list):
            several = cast("list[Any]", value)
            numbers = [figure({"": one}, "") for one in several]
            known = [one for one in numbers if one is not None]
            if several and len(known) == len(several):
                mean = sum(one / len(known) for one in known)
                told = f"{mean:.4g} on average, from {min(known):.4g} to {max(known):.4g}"
                yield label, f"{told} ({len(known):,} of them)".translate(_MINUS)
            elif several and all(isinstance(one, str) for one in several):
                more = f" and {len(several) - _NAMED:,} more" if len(several) > _NAMED else ""
                yield label, ", ".join(several[:_NAMED]) + more


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    signs: Sequence[str] = (),
    narrow: bool = False,
    words: Sequence[int] = (1,),
) -> str:
    """Cells are text. ``words``: columns of words; the first of them names the row."""

    def kind(column: int, sign: str) -> str:
        found = "words" if column in words else sign if columns[column] == "effect" else ""
        return f' class="{found}"' if found else ""

    head = "".join(
        f'<th scope="col"{kind(place, "")}>{escaped(name)}</th>'
        for place, name in enumerate(columns)
    )
    lines: list[str] = []
    for row, sign in zip(rows, signs or [""] * len(rows), strict=True):
        cells = [
            f'<th scope="row"{kind(place, sign)}><bdi>{escaped(text)}</bdi></th>'
            if place == words[0]
            else f"<td{kind(place, sign)}>{escaped(text)}</td>"
            for place, text in enumerate(row)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    told = f"<caption>{escaped(caption)}</caption>" if caption else ""
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table{" class=narrow" if narrow else ""}>{told}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def rebuilt_command(circuit: Circuit) -> str | None:
    """The ``wiremap discover`` that finds the circuit again; None if the circuit does not say.

    What depends on the model or the task (metric, gradient, corruption, BOS) is always named, other
    options where they differ from the default.
    """
    model, task, method = circuit.model, circuit.task, circuit.method
    if not model.get("name") or "budget" not in method or not (task.get("task") or "pairs" in task):
        return None
    given: dict[str, Any] = {"model": model["name"]}
    if "pairs" in task:
        given["pairs"] = task["pairs"]
    else:
        given |= {"task": task["task"], "corruption": task.get("corruption")}
        given |= {
            name: task.get(name)
            for name, default in (("n_pairs", 64), ("seed", 0))
            if task.get(name) != default
        }
    if model.get("bos") is not None:
        given["bos" if model["bos"] else "no-bos"] = True
    if model.get("dtype") != "float32":
        given["dtype"] = model.get("dtype")
    if model.get("tf32"):
        given["tf32"] = True
    if model.get("kv") != GROUPED:
        given["kv"] = model.get("kv")
    names = ["metric", "direction", "gradient", "reader", "budget", "until_bound"]
    names += [*_RULES, "prune", "tests", "batch_size"]
    if method.get("gradient") == "integrated":
        names[3:3] = ["steps", "schedule"]
    for name in names:
        if method.get(name) != _DEFAULTS.get(name):
            given[name] = method.get(name)
    found, empty = (
        (circuit.faithfulness.full, circuit.faithfulness.empty)
        if circuit.faithfulness
        else (1.0, 0.0)
    )
    given["allow_weak"] = found <= empty or None
    words = ["wiremap", "discover"]
    for name, value in given.items():
        if value is not None:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return shlex.join(words)


def _again(command: str | None, circuit: Circuit) -> str:
    lines = [
        "<p>The circuit does not say by which command it was found.</p>"
        if command is None
        else f"<pre>{escaped(command)}</pre>"
    ]
    hashes = {
        "weights, sha256": _told(circuit.model, "sha256"),
        "tokens of the pairs, sha256": _told(circuit.task, "sha256"),
        "report written by": f"wiremap {version('wiremap')}",
    }
    lines.append(_list(hashes.items()))
    if command is not None:
        lines.append(
            '<p class="note">run.json in the run directory has the versions of Python, torch and '
            "the libraries it was found with.</p>"
        )
    return "".join(lines)


def _section(name: str, content: str) -> str:
    return f"<section><h2>{name}</h2>{content}</section>" if content else ""


def _list(items: Iterable[tuple[str, str]]) -> str:
    """Names with their values, which are text; those without a value are left out."""
    lines = [
        f"<dt>{escaped(name)}</dt><dd><bdi>{escaped(value)}</bdi></dd>"
        for name, value in items
        if printable(value)
    ]
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    """Signed, to three digits."""
    return f"{value:+.3g}".translate(_MINUS)


def _rounded(value: float) -> str:
    return (f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}").translate(_MINUS)
