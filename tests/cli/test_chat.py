"""Chat templates on the command line: put into prompts, recorded, and found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import done, refused, told

from wiremap.edges.model.loading import bundled_path
from wiremap.exporters import read_circuit
from wiremap.exporters.pages.rebuilt_command import rebuilt_command

# In the words of the bundled model, which answers where its prompt ends.
TEMPLATE = "<s>It was a cold day. {{ messages[0].content }}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a chat template."""
    path = tmp_path_factory.mktemp("chat") / "chatty"
    shutil.copytree(bundled_path("ioi-mini"), path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def run(model: Path) -> Path:
    out = model.parent / "run"
    done("discover", *asked(model), "--chat", "-o", out)
    return out


def asked(model: Path) -> tuple[str | Path, ...]:
    few = ("--n-pairs", "6", "--budget", "30", "--no-bound", "--size", "10")
    return "--model", model, "--task", "ioi", *few


def test_a_run_says_chat_and_goes_on_with_it_alone(model: Path, run: Path) -> None:
    task = json.loads((run / "run.json").read_text())["question"]["task"]
    assert task["chat"] is True
    done("discover", *asked(model), "--chat", "-o", run, "--resume")
    error = refused("discover", *asked(model), "-o", run, "--resume")
    assert "task.chat was True, now None" in error
    rebuilt = rebuilt_command(read_circuit(run / "circuit.json"))
    assert rebuilt is not None
    assert " --chat" in rebuilt
    assert "in the chat template" in (run / "report.html").read_text()


def test_a_circuit_is_evaluated_in_its_template(run: Path) -> None:
    said = json.loads((run / "faithfulness.json").read_text())
    again = told("evaluate", run)
    assert again["faithfulness"] == pytest.approx(said["faithfulness"], rel=1e-5)
    # Pairs of its task, named, are put as its own were; unless it is said that they are not.
    assert told("evaluate", run, "--task", "ioi")["faithfulness"] == again["faithfulness"]
    plain = told("evaluate", run, "--task", "ioi", "--no-chat")
    assert plain["faithfulness"] != pytest.approx(again["faithfulness"], rel=1e-5)
    assert "--chat go with --task" in refused("evaluate", run, "--chat")


def test_scores_are_verified_on_the_same_prompts(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    record = {
        "clean": "When Mary and John reached the school, John gave a book to",
        "corrupted": "When Mary and John reached the school, Mary gave a book to",
        "answer": " Mary",
        "wrong_answer": " John",
    }
    pairs.write_text(json.dumps(record))
    scores = tmp_path / "scores"
    said = told("info", "--model", model, "--pairs", pairs, "--chat")
    assert said["first prompt"].startswith("<s>|It|was|a|cold|day|.|When|Mary|and|John|")
    done(
        "score", "edges", "--model", model, "--pairs", pairs, "--chat", "--allow-weak", "-o", scores
    )
    done("verify", scores, "-o", tmp_path / "effects.jsonl", "--top-k", "2")


def test_a_model_without_a_template_is_refused() -> None:
    error = refused("score", "nodes", "--chat", "--task", "ioi")
    assert "expected a tokenizer with a chat template, got one without" in error
