"""A circuit as a causal-scrubbing hypothesis, and how it is to be tested: a JSON document.

The document is described by ``scrub.schema.json`` (JSON Schema 2020-12) beside this file. It holds
data alone, never code: other prompts are drawn by label or by a column of the pairs file. What a
document may say but wiremap does not do (samplers of single nodes, positions, other baselines) is
refused by name. A newer minor version may add fields, which are ignored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ...edges.errors import InputError
from ...edges.names.vocabulary import FEATURE, METRIC, OTHER, OTHERS, REPEATS, SCHEME, SCHEMES, SEED
from .circuit import Circuit
from .document import check_version, dumps, edge_from, shape_from, to_document
from .values import field, number

FORMAT = "wiremap-scrub"


SCHEMA_VERSION = "1.1"


@dataclass(frozen=True)
class Hypothesis:
    """A circuit, and how the claim that only its edges matter is to be tested.

    Attributes:
        scheme, other, repeats, seed: see ``wiremap.circuits.scrub``.
        min_recovered: the claim holds if at least this fraction is recovered (see
            ``pruning.reaches``); None claims nothing.

    Raises:
        InputError: an unknown scheme or sampler, less than one repeat, a claim that is no number.
    """

    circuit: Circuit
    scheme: str = SCHEME
    other: str = OTHER
    repeats: int = REPEATS
    seed: int = SEED
    min_recovered: float | None = None

    def __post_init__(self) -> None:
        check_settings(self.scheme, self.other, self.repeats, self.min_recovered)


def check_settings(scheme: str, other: str, repeats: int, min_recovered: float | None) -> None:
    """Raises InputError for what there is not."""
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    if other not in OTHERS and other.removeprefix(FEATURE) in ("", other):
        raise InputError(
            f"unknown other prompts {other!r}; there are {', '.join(OTHERS)} and {FEATURE}COLUMN"
        )
    if repeats < 1:
        raise InputError(f"expected at least 1 repeat, got {repeats}")
    if min_recovered is not None and not math.isfinite(min_recovered):
        raise InputError(f"expected a finite fraction to be recovered, got {min_recovered}")


def to_hypothesis_document(hypothesis: Hypothesis) -> dict[str, Any]:
    """The hypothesis as plain JSON data."""
    circuit = hypothesis.circuit
    document = to_document(circuit)
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "generator": {"name": "wiremap", "version": version("wiremap")},
        "source_circuit": {"sha256": hashlib.sha256(dumps(document).encode()).hexdigest()},
        "shape": document["shape"],
        "model": {**circuit.model, "layernorm": "recompute"},
        "granularity": {"nodes": "head+mlp", "slots": ["q", "k", "v"], "positions": None},
        "root": "logits",
        "inputs": ["input"],
        "nodes": [{"id": node.name, "sampler": {"kind": "exact"}} for node in circuit.nodes],
        "edges": document["edges"],
        "other_inputs": {"sampler": hypothesis.other, "scheme": hypothesis.scheme},
        "dataset": {
            **circuit.task,
            "fields": {"prompt": "clean", "label": "answer", "paired": "corrupted"},
        },
        "metric": {
            "name": str(circuit.method.get("metric", METRIC)),
            "direction": "higher",
            "positions": "last",
        },
        "baselines": {"original": "identity", "random": random_baseline(hypothesis.other)},
        "settings": {"repeats": hypothesis.repeats, "seed": hypothesis.seed},
        "claim": {"min_recovered": hypothesis.min_recovered},
    }


def random_baseline(other: str) -> str:
    """What recovered 0 stands for: an unrelated prompt, or with ``paired`` the corrupted one."""
    return "corrupted" if other == "paired" else "unconditional"


def from_hypothesis_document(document: Any) -> Hypothesis:
    """The hypothesis of a JSON document.

    Raises:
        InputError: anything the document lacks, contradicts or asks for that wiremap does not do;
            the place is named.
    """
    top = field({"document": document}, "document", dict)
    if top.get("format") != FORMAT:
        raise InputError(
            f"expected a document with format {FORMAT!r}, got {top.get('format')!r:.60}"
        )
    check_version(field(top, "schema_version", str), SCHEMA_VERSION)
    other, settings = field(top, "other_inputs", dict), field(top, "settings", dict)
    sampler = field(other, "sampler", str, "other_inputs")
    _refuse_other_hypotheses(top, sampler)
    # Keyed by their places, which is what errors name.
    edges = {f"edges[{index}]": item for index, item in enumerate(field(top, "edges", list))}
    model, dataset = field(top, "model", dict), field(top, "dataset", dict)
    circuit = Circuit.build(
        shape_from(field(top, "shape", dict)),
        [edge_from(field(edges, where, dict), where) for where in edges],
        model={key: value for key, value in model.items() if key != "layernorm"},
        task={key: value for key, value in dataset.items() if key != "fields"},
        method={"metric": field(field(top, "metric", dict), "name", str, "metric")},
    )
    return Hypothesis(
        circuit,
        scheme=field(other, "scheme", str, "other_inputs"),
        other=sampler,
        repeats=field(settings, "repeats", int, "settings"),
        seed=field(settings, "seed", int, "settings"),
        min_recovered=number(field(top, "claim", dict), "min_recovered", "claim"),
    )


def _refuse_other_hypotheses(top: Mapping[str, Any], other: str) -> None:
    """Raises InputError where the document asks for what wiremap does not do."""
    expected = {
        ("granularity", "positions"): None,
        ("model", "layernorm"): "recompute",
        ("baselines", "original"): "identity",
        ("baselines", "random"): random_baseline(other),
        ("metric", "direction"): "higher",
    }
    for (part, name), value in expected.items():
        found = field(top, part, dict)
        if name in found and found[name] != value:
            raise InputError(
                f"{part}.{name}: wiremap scrubs with {value!r} only, got {found[name]!r:.60}"
            )
    nodes = {f"nodes[{index}]": item for index, item in enumerate(field(top, "nodes", list))}
    for where in nodes:
        kind = field(field(field(nodes, where, dict), "sampler", dict, where), "kind", str, where)
        if kind != "exact":
            raise InputError(
                f"{where}.sampler.kind: wiremap leaves kept nodes on the prompt itself ('exact'), "
                f"got {kind!r:.60}"
            )
