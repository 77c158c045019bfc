"""Files of prompt pairs on the command line: what is shown, refused, left out and found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import done, refused, told, wiremap
from tokens_for_tests import spelling

from wiremap.circuits.tasks.ioi import IOI
from wiremap.circuits.tasks.task import sample_records, spelled
from wiremap.cli.asked import Asked
from wiremap.cli.loading import read_pairs
from wiremap.edges import Model, SpaceWarning
from wiremap.exporters import read_circuit
from wiremap.exporters.pages.rebuilt_command import rebuilt_command

OWN = ("clean", "corrupted", "answer", "wrong_answer")


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    tokenizer = Model.load("ioi-mini", device="cpu").require_tokenizer()
    found = sample_records(spelled(IOI, tokenizer), "s2-flip", 20, seed=1)
    return [{name: record[name] for name in OWN} for record in found]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> Path:
    """Twelve pairs, two of which cannot be used, and a broken line."""
    rows = [dict(record) for record in records[:12]]
    rows[2]["answer"] = " Zebra"
    rows[5]["clean"] = "While Mary"
    path = write(tmp_path_factory.mktemp("pairs") / "bad.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n")
    return path


FEW = ("--budget", "10", "--no-bound", "--size", "5")


@pytest.fixture(scope="module")
def run(bad: Path) -> Path:
    out = bad.parent / "run"
    result = done("discover", "--pairs", bad, "--skip-bad-pairs", *FEW, "-o", out)
    assert "note: 3 of 13 pairs are left out" in result.stderr
    return out


def test_pairs_that_cannot_be_used_end_a_command_before_it_writes(
    bad: Path, tmp_path: Path
) -> None:
    error = refused("discover", "--pairs", bad, *FEW, "-o", tmp_path / "out")
    assert "3 of 13 pairs cannot be used: - expected every answer" in error
    assert "in row 6; row 6 has 3 clean and" in error
    assert "no JSON in row 13" in error
    assert error.endswith("or leave such pairs out (--skip-bad-pairs, skip_bad=True)")
    assert not (tmp_path / "out").exists()


def test_pairs_left_out_are_recorded_and_left_out_again(run: Path, bad: Path) -> None:
    task = json.loads((run / "run.json").read_text())["question"]["task"]
    assert (task["left_out"]["n_pairs"], task["left_out"]["of"]) == (3, 13)
    rows = [row for rows in task["left_out"]["rows"].values() for row in rows]
    assert sorted(rows) == [3, 6, 13]
    assert task["set_aside_of"] == 10
    circuit = read_circuit(run / "circuit.json")
    assert circuit.task["left_out"] == task["left_out"]
    assert "(3 of 13 left out)" in (run / "report.html").read_text()
    assert " --skip-bad-pairs" in str(rebuilt_command(circuit))
    # Found again by its hash, without the option; gone on with, only with it.
    assert told("evaluate", run)["n_pairs"] == task["n_pairs"]
    done("discover", "--pairs", bad, "--skip-bad-pairs", *FEW, "-o", run, "--resume")
    assert "3 of 13 pairs cannot be used" in refused(
        "discover", "--pairs", bad, *FEW, "-o", run, "--resume"
    )
    done("verify", run, "-o", run.parent / "e.jsonl", "--top-k", "1")


def test_held_out_pairs_may_be_left_out_too(
    tmp_path: Path, records: list[dict[str, Any]], bad: Path
) -> None:
    good = write(tmp_path / "good.jsonl", records[12:])
    asked = ("discover", "--pairs", good, *FEW, "--held-out", bad, "-o", tmp_path / "run")
    assert "3 of 13 pairs cannot be used" in refused(*asked)
    done(*asked, "--skip-bad-pairs")
    circuit = read_circuit(tmp_path / "run" / "circuit.json")
    assert "left_out" not in circuit.task
    assert circuit.task["held_out"]["left_out"]["n_pairs"] == 3
    assert " --skip-bad-pairs" in str(rebuilt_command(circuit))
    of_task = ("discover", "--n-pairs", "6", *FEW, "--held-out", bad, "-o", tmp_path / "other")
    done(*of_task, "--skip-bad-pairs")


def test_other_pairs_of_a_circuit_may_be_left_out(run: Path, bad: Path) -> None:
    assert "3 of 13 pairs cannot be used" in refused("evaluate", run, "--pairs", bad)
    assert told("evaluate", run, "--pairs", bad, "--skip-bad-pairs")["n_pairs"] == 10
    assert "--skip-bad-pairs is of a file" in refused("evaluate", run, "--skip-bad-pairs")


def test_skipping_needs_a_file() -> None:
    assert "--skip-bad-pairs is of a file of pairs" in refused("discover", "--skip-bad-pairs")


# ---- validate


def test_validate_lists_every_bad_pair(bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "bad.jsonl"
    result = wiremap("validate", bad, "--model", "ioi-mini", "-o", out)
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "row 3 (line 3)", "row 6 (line 6)", "row 13 (line 13)",
    ]  # fmt: skip
    assert f"3 of 13 pairs cannot be used; they are in {out}" in " ".join(result.stderr.split())
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in written] == [3, 6, 13]
    assert written[0]["record"]["answer"] == " Zebra"
    as_json = wiremap("validate", bad, "--model", "ioi-mini", "--json")
    assert json.loads(as_json.stdout)[0]["bad"] == written


def test_validate_good_pairs(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "good.jsonl", records)
    assert done("validate", path, "--model", "ioi-mini").stdout.endswith("pairs, 20 of 20\n")
    assert told("validate", path, "--model", "ioi-mini")[0]["bad"] == []
    assert "holds prompt pairs; say which model they are for (--model)" in refused("validate", path)
    document = tmp_path / "good.json"
    document.write_text(json.dumps({"prompts": records}))
    assert "holds prompt pairs" in refused("validate", document)
    assert "are of prompt pairs; say of which --model" in refused("validate", path, "-o", path)


# ---- what is shown


def test_answers_without_a_space_are_not_told_of_if_meant_so(tmp_path: Path) -> None:
    record = {"clean": "a book to", "corrupted": "a girl to", "answer": "Mary"}
    path = write(tmp_path / "p.jsonl", [record])
    with pytest.warns(SpaceWarning, match="--as-written silences this"):
        read_pairs(spelling(), path, Asked())  # pyright: ignore[reportArgumentType]
    read_pairs(spelling(), path, Asked(as_written=True))  # pyright: ignore[reportArgumentType]


def test_info_shows_the_first_pair_as_tokens(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    first = {**records[0], "clean": f"<s>{records[0]['clean']}"}
    shown = told("info", "--model", "ioi-mini", "--pairs", write(tmp_path / "p.jsonl", [first]))
    assert shown["first prompt"].startswith("<s>|")
    assert shown["first prompt"].count("<s>") == 1
    assert shown["corrupted"].split("|") != shown["first prompt"].split("|")
    assert repr(records[0]["wrong_answer"].strip()) == shown["wrong answer"]


def test_tasks_show_their_first_prompts_as_tokens() -> None:
    rows = {row["name"]: row for row in told("tasks", "--model", "tasks-mini")}
    assert rows["greater-than"]["first prompt"].startswith("<s>|")
    assert rows["greater-than"]["first answer"].endswith(" more")
    assert "first prompt" not in rows["ioi"]  # it has too few of its words
    text = done("tasks", "--model", "tasks-mini").stdout
    assert "\ninduction: <s>|" in text


def test_a_document_of_another_tool_is_understood(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    prompts = [
        {"clean": r["clean"], "corrupt": r["corrupted"], "answers": [r["answer"]], "wrong_answers": [r["wrong_answer"]]}
        for r in records[:4]
    ]  # fmt: skip
    path, table = tmp_path / "auto.json", tmp_path / "p.csv"
    path.write_text(json.dumps({"prompts": prompts}, indent=2))
    rows = [";".join(OWN), *(";".join(f'"{r[name]}"' for name in OWN) for r in records[:4])]
    table.write_text("\n".join(rows))
    for file, note in ((path, "under 'prompts'"), (table, "parted by semicolons")):
        result = done(
            "score", "edges", "--pairs", file, "-o", tmp_path / f"{file.stem}.safetensors"
        )
        assert note in " ".join(result.stderr.split())
