"""The report as a file: whole, closed to the network and to what labels say, and honest."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import circuits_for_tests as by_hand
import pytest
import synthetic
from click.testing import CliRunner

from wiremap.circuits import Circuit, CircuitEdge, Faithfulness
from wiremap.circuits.result.evidence import Evidence
from wiremap.cli import main
from wiremap.edges import InputError
from wiremap.edges.names.vocabulary import BUDGET, TARGET
from wiremap.exporters import View, read_circuit, write_circuit
from wiremap.exporters.pages.rebuilt_command import rebuilt_command
from wiremap.exporters.pages.report import TABLED, to_report, warnings

EMPTY = Circuit.build(by_hand.SHAPE, [])
EVIDENCE: dict[str, Any] = {
    "bound": {"largest": 0.25, "confidence": 0.99, "statement": "No unverified edge is above 0.25."},
    "curve": by_hand.CURVE,
    "stability": {"resamples": 1000, "jaccard": 0.875},
    "removed": {"not verified": 1234, "on no path": 3},
    "tests": [
        {"name": "equivalence", "statistic": 0.125, "p_value": 0.25, "n": 8, "null": "as the model",
         "small_p": "above or below the model", "details": {}},
    ],
    "random": {"random_faithfulness": [0.0, 0.25, 0.5]},
    "completeness": {"largest": 1.5, "largest_without": ["m0->logits"], "knockouts": [{}], "full": 4},
    "minimality": {"least_needed": "input->m0"},
}  # fmt: skip
FOUND: dict[str, Any] = {
    "model": {"name": "ioi-mini", "dtype": "float32", "bos": True, "kv": "grouped"},
    "task": {
        "task": "ioi", "corruption": "abc", "seed": 0, "n_pairs": 64, "held_out": {"n_pairs": 64},
    },
    "method": {
        "metric": "logit_diff", "direction": "noising", "gradient": "relevance", "steps": 10,
        "schedule": "midpoint", "reader": "linear", "budget": 200, "target": 0.9, "threshold": None,
        "size": None, "batch_size": None, "edges_verified": 40,
    },
}  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def words(circuit: Circuit) -> str:
    body = to_report(circuit).partition("<body>")[2]
    return " ".join(Page(re.sub(r"<style>.*?</style>", "", body, flags=re.DOTALL)).text.split())


CIRCUITS = {
    "plain": by_hand.circuit(),
    "evidence": by_hand.circuit(evidence=EVIDENCE),
    "hostile": synthetic.hostile(),
    "extreme": by_hand.extreme(),
    "grouped": by_hand.grouped(),
    "empty": EMPTY,
}


@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_the_page_is_closed(circuit: Circuit) -> None:
    page = to_report(circuit)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digests = [hashlib.sha256(style.encode()).digest() for style in styles]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy == (
        f"default-src 'none'; style-src {hashes}; base-uri 'none'; form-action 'none'"
    )
    assert set(re.findall(r"[a-z]+://[^\"'\s]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"url\((?!#)|@import", page)
    for tag, attributes in Page(page).elements:
        assert tag not in ("a", "script", "link", "img", "iframe", "object", "base"), tag
        assert not {"src", "srcset", "href", "action", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert page == to_report(circuit)


def test_labels_stay_text() -> None:
    hostile = synthetic.HOSTILE
    evidence = {
        "bound": {"statement": hostile},
        "curve": {**by_hand.CURVE, "ranked_by": hostile},
        "removed": {hostile: 3},
        "tests": [{"name": hostile, "p_value": 0.5, "null": hostile, "small_p": hostile}],
        "minimality": {"least_needed": hostile},
        "completeness": {"largest_without": [hostile]},
    }
    circuit = replace(synthetic.hostile(), evidence=Evidence.from_document(evidence))
    page = to_report(circuit, View(groups={hostile: ["m0"]}), command=hostile)
    kinds = {tag for tag, _ in Page(to_report(by_hand.circuit(evidence=EVIDENCE))).elements}
    assert {tag for tag, _ in Page(page).elements} <= kinds | {"tspan", "circle", "pre"}
    assert "<script" not in page
    assert "<img" not in page
    assert Page(page).text.count("<img src=x onerror=window.ran=2>") > 10
    assert not [char for char in page if char != "\n" and not char.isprintable()]


def test_evidence_is_told() -> None:
    told = words(by_hand.circuit(evidence=EVIDENCE, **FOUND))
    for expected in (
        "Which connections between the parts of ioi-mini carry logit_diff on ioi?",
        "6 of 46 edges (13.04%)", "0.800 faithfulness over 8 pairs", "0.812 CPR", "0.138 CMD",
        "0.875 stability: mean Jaccard of circuits over 1,000 resamples",
        "What may have been missed. No unverified edge is above 0.25.",
        "scored by relevance gradient, linear reader", "path patching, the 40 best of 46 edges",
        "a search for few edges that are together as faithful as the target asks (0.9)",
        "m0->logits +3.5 ± 0.5 +2 8",
        "a0.h0->a1.h1<q> \u22120.75 ± 0.25 [\u22121.25, +0.125] \u22120.125 62% \u22120.5 8",
        "not verified 1,234", "Faithfulness of the best edges alone",
        "equivalence 0.125 0.25 8 as the model above or below the model",
        "random faithfulness 0.25 on average, from 0 to 0.5 (3 of them)",
        "largest 1.5 largest without m0->logits", "least needed input->m0",
        "wiremap discover --model ioi-mini --task ioi --corruption abc --bos --metric logit_diff --gr",
    ):  # fmt: skip
        assert expected in told, expected


def test_without_evidence_nothing_is_claimed() -> None:
    told = words(by_hand.circuit())
    for absent in ("CPR", "CMD", "stability", "Tests", "left out", "Completeness", "by size"):
        assert absent not in told
    assert "Nothing is said of edges outside the circuit." in told
    assert "does not say by which command" in told
    told = words(by_hand.circuit(method={"edges_verified": 40}))
    assert "6 edges were not verified, and no bound on their effects was computed" in told
    told = words(by_hand.circuit(evidence={"bound": {"largest": 0.5, "confidence": 0.99}}))
    assert "has an effect above +0.5 (confidence 0.99)" in told


def test_a_sample_comes_before_the_bound_on_the_largest() -> None:
    sample = {"statement": "At most 1 % <b>are</b> above."}
    told = words(by_hand.circuit(evidence={"sample": sample}))
    assert "At most 1 % <b>are</b> above." in told
    assert "No edge that was not verified" not in told
    told = words(by_hand.circuit(evidence={"sample": sample, "bound": {"largest": 0.5}}))
    assert "are</b> above. No edge that was not verified has an effect above +0.5." in told


@pytest.mark.parametrize("junk", [3, True, "text", [3], [[]], 10**400])
def test_evidence_of_another_kind_is_refused_by_name(junk: Any) -> None:
    for name in EVIDENCE:
        with pytest.raises(InputError, match=f"evidence.{name}.*: expected"):
            by_hand.circuit(evidence={name: junk})


@pytest.mark.parametrize("junk", [None, {}, {"a": {}}, {"a": 10**400}])
def test_evidence_that_says_nothing_is_left_out(junk: Any) -> None:
    names = EVIDENCE.keys() - {"removed", "tests"}  # in which any name is one that is known
    circuit = by_hand.circuit(evidence=dict.fromkeys(names, junk))
    assert words(circuit) == words(by_hand.circuit())


def test_warnings() -> None:
    def told(circuit: Circuit) -> str:
        return " ".join(warnings(circuit))

    assert told(EMPTY) == (
        "The circuit has no edges: no path from input to logits was kept. "
        "The circuit was not evaluated: its faithfulness is not known."
    )
    found = told(by_hand.circuit(method={"target": 0.9}))
    assert "Faithfulness 0.800 is below the target of 0.9." in found
    assert "Scored, not verified: 1 edge (a0.h0->a1.h1<k>)." in found
    assert "interval of the effect has 0 in it: 1 edge (a0.h0->a1.h1<q>)." in found
    assert "In less than half of the circuits of resampled pairs: 1 edge (a0.h0->a1.h1<k>)" in found
    assert "single pair" not in found
    edge = CircuitEdge("input", "logits", effect=1.0, n_pairs=1)
    single = Circuit.build(by_hand.SHAPE, [edge], faithfulness=Faithfulness(1.0, 0.0, 1.0, 1))
    assert told(single) == (
        "Effects were measured on a single pair: nothing is known of their error."
    )
    assert "and 495 more)" in told(synthetic.circuit(2000))
    clean = replace(by_hand.EDGES[0])
    assert not told(
        Circuit.build(by_hand.SHAPE, [clean], faithfulness=Faithfulness(1.0, 0.0, 1.0, 8))
    )


def test_an_empty_circuit_is_a_report() -> None:
    told = words(EMPTY)
    assert "0 of 46 edges (0.00%)" in told
    assert "Edges There are none." in told
    assert "<svg" not in to_report(EMPTY)


def test_huge_circuits_are_told_in_part_and_say_so(tmp_path: Path) -> None:
    circuit = synthetic.circuit(2000)
    page = to_report(circuit)
    assert page.count('<th scope="row"') == TABLED == 500
    assert "The table has the 500 largest of 2,000 edges; all are in circuit.json" in page
    assert page.count('data-edge="') == 2000
    assert len(page.encode()) < 1_000_000


def test_it_can_be_printed() -> None:
    page = to_report(by_hand.circuit(evidence=EVIDENCE))
    printed = page.partition("  @page { size: A4;")[2]
    for rule in ("thead { display: table-header-group; }", "break-inside: avoid"):
        assert rule in printed
    assert page.count("prefers-color-scheme: dark") == page.count(
        "@media screen and (prefers-color-scheme: dark)"
    )


# ---- the command


def test_the_command_is_rebuilt_from_what_the_circuit_says() -> None:
    def command(**changes: dict[str, Any]) -> str:
        parts = {name: {**FOUND[name], **changes.get(name, {})} for name in FOUND}
        return rebuilt_command(by_hand.circuit(**parts)) or ""

    start = "wiremap discover --model ioi-mini --task ioi --corruption abc"
    assert command() == f"{start} --bos --metric logit_diff --gradient relevance"
    changed = command(
        model={"bos": False, "dtype": "bfloat16", "kv": "per-query"},
        task={"seed": 3, "n_pairs": 32},
        method={
            "direction": "denoising", "gradient": "integrated", "schedule": "left", "budget": 10,
            "target": None, "size": 5, "prune": "greedy", "batch_size": 8, "reader": "exact",
        },
    )  # fmt: skip
    assert changed == (
        f"{start} --n-pairs 32 --seed 3 --no-bos --dtype bfloat16 --kv per-query --metric "
        "logit_diff --direction denoising --gradient integrated --steps 10 --schedule left "
        "--reader exact --budget 10 --size 5 --prune greedy --batch-size 8"
    )
    own = replace(by_hand.circuit(**FOUND), task={"pairs": "my pairs.jsonl", "n_pairs": 8})
    assert "--pairs 'my pairs.jsonl' --held-out 0 --bos" in (rebuilt_command(own) or "")
    judged: dict[str, dict[str, Any]] = {
        "--pairs 'my pairs.jsonl' --bos": {"set_aside": 0.25, "held_out": {"n_pairs": 2}},
        "--pairs 'my pairs.jsonl' --held-out 0.5 --bos": {"set_aside": 0.5, "held_out": {}},
        "--pairs 'my pairs.jsonl' --held-out others.csv": {"held_out": {"pairs": "others.csv"}},
    }
    for expected, of_task in judged.items():
        assert expected in (rebuilt_command(replace(own, task={**own.task, **of_task})) or "")
    few = replace(own, task={"pairs": "my pairs.jsonl", "n_pairs": 7})
    assert "--held-out" not in (rebuilt_command(few) or "")
    kl = replace(by_hand.circuit(**FOUND), method={**FOUND["method"], "faithful_to": "kl"})
    assert (rebuilt_command(kl) or "").endswith(" --faithful-to kl")
    weak = replace(by_hand.circuit(**FOUND), faithfulness=Faithfulness(0.0, 1.0, 0.5, 8))
    assert (rebuilt_command(weak) or "").endswith(" --allow-weak")
    assert rebuilt_command(by_hand.circuit()) is None
    assert rebuilt_command(replace(own, model={})) is None
    assert (BUDGET["cpu"], TARGET) == (200, 0.9)


def test_the_command_gives_the_circuit_again(tmp_path: Path) -> None:
    options = ["--n-pairs", "4", "--seed", "2", "--budget", "20", "--size", "8"]
    runs = [tmp_path / "one", tmp_path / "other"]
    asked = ["discover", "--model", "ioi-mini", *options, "--direction", "denoising", "--quiet"]
    assert CliRunner().invoke(main, [*asked, "-o", str(runs[0])]).exit_code == 0
    command = rebuilt_command(read_circuit(runs[0] / "circuit.json"))
    program, *again = shlex.split(command or "")
    assert program == "wiremap"
    assert CliRunner().invoke(main, [*again, "--quiet", "-o", str(runs[1])]).exit_code == 0
    for name in ("circuit.json", "report.html"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()
    before = (runs[0] / "report.html").read_bytes()
    resumed = CliRunner().invoke(main, [*again, "--quiet", "-o", str(runs[0]), "--resume"])
    assert resumed.exit_code == 0
    assert (runs[0] / "report.html").read_bytes() == before


def test_export_writes_it_beside_the_circuit(tmp_path: Path) -> None:
    write_circuit(by_hand.circuit(), tmp_path / "circuit.json")
    result = CliRunner().invoke(main, ["export", str(tmp_path / "circuit.json"), "--to", "report"])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "circuit.report.html").read_text()
    assert page == to_report(by_hand.circuit())
    assert 'content="wiremap circuit report"' in page
    with pytest.raises(InputError, match="no node of this model"):
        to_report(by_hand.circuit(), View(groups={"movers": ["a9.h9"]}))
