"""Budgets in edges and in time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import tiny

from wiremap.circuits import discover
from wiremap.circuits.choice.budget import Deadline, parse_budget
from wiremap.circuits.record.effects_file import read_effects
from wiremap.edges import InputError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("200", 200),
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("1h30m", timedelta(hours=1.5)),
        ("1.5m", timedelta(seconds=90)),
        ("1h0.5s", timedelta(seconds=3600.5)),
    ],
)
def test_a_budget_is_a_number_of_edges_or_a_time(text: str, budget: int | timedelta) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "five", "5 m", "m5", "5d", "-5", "0s", "1m1h", "1.5", "nan"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a number of edges, such as 200, or a time"):
        parse_budget(text)


def test_a_deadline_without_a_time_never_comes() -> None:
    assert Deadline(None).left() == float("inf")
    assert Deadline(0.001, start=0.0).left() < 0


def test_a_run_in_time_verifies_what_it_can_and_resumes(tmp_path: Path) -> None:
    model = tiny.model("gpt2")
    pairs = tiny.able(model, tiny.pairs(6))
    out = tmp_path / "run"
    circuit = discover(model, pairs, out, budget=timedelta(seconds=1), target=0.5)
    assert circuit.method["budget"] == "1s"
    n_verified = circuit.method["edges_verified"]
    assert n_verified == len(read_effects(out / "effects.jsonl")) >= 8
    assert any(edge.loss is not None for edge in circuit.edges)
    before = (out / "circuit.json").read_bytes()
    again = discover(model, pairs, out, budget=timedelta(seconds=1), target=0.5, resume=True)
    assert again == circuit
    assert (out / "circuit.json").read_bytes() == before
    with pytest.raises(InputError, match="expected a budget of some time"):
        discover(model, pairs, budget=timedelta(0))
