"""The main job when things go wrong: killed, the disk full. ``--resume`` gives the same bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from command import done, wiremap
from killing import command, start

from wiremap.circuits.record.effects_file import CHUNK, read_effects
from wiremap.edges.effects.edge_effects import effects_of_edges
from wiremap.edges.scores.edge_scores import edge_scores

LONG = ["discover", "--model", "induction-mini", "--n-pairs", "6", "--all", "--size", "30"]
SHORT = [
    "discover", "--model", "induction-mini", "--n-pairs", "4", "--no-bound", "--budget", "100",
    "--size", "20",
]  # fmt: skip

Files = dict[str, bytes | dict[str, Any]]


def files(run: Path) -> Files:
    """All files of a run directory, run.json without its times."""
    found: Files = {path.name: path.read_bytes() for path in run.iterdir()}
    record = json.loads((run / "run.json").read_text())
    found["run.json"] = {**record, "started": 0, "stages": sorted(record["stages"])}
    return found


def unbroken(asked: list[str], out: Path) -> Path:
    done(*asked, "-o", out)
    return out


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unbroken(LONG, tmp_path_factory.mktemp("long") / "run")


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unbroken(SHORT, tmp_path_factory.mktemp("short") / "run")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often edges are scored, and how many are measured, from here on."""
    done = {"scored": 0, "measured": 0}

    def scored(*arguments: Any, **options: Any) -> Any:
        done["scored"] += 1
        return edge_scores(*arguments, **options)

    def measured(model: Any, question: Any, names: Any, *more: Any) -> Any:
        done["measured"] += len(names)
        return effects_of_edges(model, question, names, *more)

    monkeypatch.setattr("wiremap.circuits.discovery.edge_scores", scored)
    monkeypatch.setattr("wiremap.circuits.evidence.verification.effects_of_edges", measured)
    return done


# ---- kill -9


def _size(run: Path) -> int:
    return sum(path.stat().st_size for path in run.glob("[!.]*")) if run.exists() else 0


def _moments(run: Path) -> Iterator[tuple[str, Callable[[Path, float], bool]]]:
    """When to kill: what is on disk, and the seconds since anything was, tell."""
    dice = random.Random(9)
    effects, everything = (run / "effects.jsonl").stat().st_size, _size(run)
    stages = json.loads((run / "run.json").read_text())["stages"]
    seconds = sum(stage["seconds"] for stage in stages.values())
    for size in (0, dice.randrange(1, effects), dice.randrange(effects)):
        yield (
            f"effects of more than {size} bytes",
            lambda out, _, size=size: (
                (out / "effects.jsonl").exists() and (out / "effects.jsonl").stat().st_size > size
            ),
        )
    late = dice.randrange(effects, everything)
    yield f"{late} bytes of any kind", lambda out, _: _size(out) >= late
    at = dice.uniform(0, seconds)
    yield f"after {at:.2f} s", lambda _, since: since >= at


def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(
    long_run: Path, tmp_path: Path, work: dict[str, int]
) -> None:
    waiting: dict[Path, tuple[Callable[[Path, float], bool], BaseProcess]] = {}
    for place, (_, due) in enumerate(_moments(long_run)):
        out = tmp_path / str(place)
        waiting[out] = due, start(command, *LONG, "-o", str(out), "--quiet")
    outs, began, ends = list(waiting), dict[Path, float](), list[int | None]()
    deadline = time.monotonic() + 200
    while waiting and time.monotonic() < deadline:
        for out, (due, process) in list(waiting.items()):
            if (out / "run.json").exists():
                began.setdefault(out, time.monotonic())
            since = time.monotonic() - began.get(out, time.monotonic())
            if process.exitcode is not None or due(out, since):
                process.kill()
                process.join()
                ends.append(process.exitcode)
                del waiting[out]
        time.sleep(0.0005)
    assert not waiting
    assert set(ends) <= {0, -9}
    assert ends.count(-9) >= 4  # the one at a time may come too late
    whole = (long_run / "effects.jsonl").read_bytes()
    for out in outs:
        effects = out / "effects.jsonl"
        before = effects.read_bytes() if effects.exists() else b""
        assert whole.startswith(before)
        kept = before.count(b"\n") if before == whole else before.count(b"\n") // CHUNK * CHUNK
        scores = (out / "scores.safetensors").exists()
        work.update(scored=0, measured=0)
        result = wiremap(*LONG, "-o", out, "--resume")
        assert result.exit_code == 0, result.output
        assert ("ends within a line" in result.stderr) == (before[-1:] not in (b"", b"\n"))
        assert work == {"scored": int(not scores), "measured": whole.count(b"\n") - kept}
        assert files(out) == files(long_run), out


def test_a_kill_between_scores_and_their_note_changes_nothing(
    short_run: Path, tmp_path: Path
) -> None:
    out = unbroken(SHORT, tmp_path / "run")
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "stages": {}}))
    assert wiremap(*SHORT, "-o", out, "--resume").exit_code == 0
    assert files(out) == files(short_run)


def test_a_line_cut_in_the_middle_is_told_of_and_measured_again(
    short_run: Path, tmp_path: Path
) -> None:
    out = unbroken(SHORT, tmp_path / "run")
    effects = out / "effects.jsonl"
    effects.write_bytes(effects.read_bytes()[:-100])
    result = wiremap(*SHORT, "-o", out, "--resume")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("note: ") == 1
    assert result.stderr.startswith(f"note: {effects} ends within a line, as what is killed")
    assert "follows its first 64 effects is dropped and measured again" in result.stderr
    assert files(out) == files(short_run)


# ---- the disk is full

WRITTEN = [
    "run.json", "scores.safetensors", "effects.jsonl", "losses.jsonl", "circuit.json",
    "faithfulness.json", "faithfulness.svg", "report.html", "circuit.html", "circuit.dot",
    "circuit.graphml", "circuit.svg",
]  # fmt: skip


def _complete(out: Path, short_run: Path) -> None:
    """Nothing half written lies in the directory: what is there is as in the unbroken run."""
    wanted = files(short_run)
    for path in out.iterdir():
        assert path.name in wanted, path
        if path.name in ("effects.jsonl", "losses.jsonl"):
            n_effects = path.read_bytes().count(b"\n")
            wanted_lines = (short_run / path.name).read_bytes().count(b"\n")
            assert n_effects % CHUNK == 0 or n_effects == wanted_lines
            assert (short_run / path.name).read_bytes().startswith(path.read_bytes())
        elif path.name != "run.json":
            assert path.read_bytes() == wanted[path.name]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_leaves_nothing_half_written_and_the_run_can_go_on(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name not in files(short_run):
        pytest.skip("needs the dot program of Graphviz")
    out = tmp_path / "run"
    sync, times = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal times
        here = os.fstat(descriptor).st_ino
        written = next(path for path in out.iterdir() if path.stat().st_ino == here)
        if written.name in (name, f".{name}.{os.getpid()}.tmp"):
            times += 1
            if name != "effects.jsonl" or times == 2:  # the second chunk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = wiremap(*SHORT, "-o", out)
    monkeypatch.undo()
    assert result.exit_code == 2
    assert f"cannot write {out / name}: No space left on device" in result.stderr
    assert "make room" in result.stderr
    _complete(out, short_run)
    assert len(list(out.iterdir())) == (
        0
        if name == "run.json"
        else WRITTEN.index(name) + (name in ("effects.jsonl", "losses.jsonl"))
    )
    resume = [] if name == "run.json" else ["--resume"]
    assert wiremap(*SHORT, "-o", out, *resume).exit_code == 0
    assert files(out) == files(short_run)


def test_a_file_that_may_not_grow_keeps_its_whole_chunks(short_run: Path, tmp_path: Path) -> None:
    """The second chunk is really half written here, before it is taken off again."""
    out = tmp_path / "run"
    chunk = b"".join((short_run / "effects.jsonl").read_bytes().splitlines(True)[:CHUNK])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(chunk) + 1000, before[1]))
    try:
        result = wiremap(*SHORT, "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 2
    assert f"cannot write {out / 'effects.jsonl'}: File too large; make room" in result.stderr
    assert (out / "effects.jsonl").read_bytes() == chunk
    again = wiremap(*SHORT, "-o", out, "--resume")
    assert (again.exit_code, again.stderr) == (0, "")
    assert files(out) == files(short_run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system in memory, of so many KiB; called again it is made larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def of_size(kib: int) -> Path:
        how = f"size={kib}k" + (",remount" if place.is_mount() else "")
        mount = ["mount", "-t", "tmpfs", "-o", how, "none", str(place)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        return place

    yield of_size
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kib", [4, 16, 36, 100])  # from the scores to the drawings
def test_a_run_on_a_small_disk_goes_on_when_there_is_room(
    short_run: Path, small_disk: Callable[[int], Path], kib: int
) -> None:
    out = small_disk(kib) / "run"
    result = wiremap(*SHORT, "-o", out)
    assert result.exit_code == 2
    assert f"cannot write {out}/" in result.stderr
    assert "No space left on device; " in result.stderr
    assert "make room" in result.stderr
    _complete(out, short_run)
    small_disk(4096)
    again = wiremap(*SHORT, "-o", out, "--resume")
    assert (again.exit_code, again.stderr) == (0, "")
    assert files(out) == files(short_run)


# ---- another question


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--model", "ioi-mini"], r"model.sha256 was "),
        (["--n-pairs", "5"], "task.n_pairs was 4, now 5"),
        (["--seed", "1"], "task.seed was 0, now 1"),
        (["--metric", "log_prob"], "method.metric was 'logit_diff', now 'log_prob'"),
        (["--direction", "denoising"], "method.direction was 'noising', now 'denoising'"),
        (["--budget", "99"], "method.budget was 100, now 99"),
        (["--tests"], "method.tests was False, now True"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_resuming_another_question_is_refused_and_says_which(
    short_run: Path, change: list[str], told: str
) -> None:
    before = files(short_run)
    task = ["--task", "ioi"] if "--model" in change else []
    result = wiremap(*SHORT, *change, *task, "-o", short_run, "--resume")
    assert result.exit_code == 2
    assert "holds the run of another question: " in result.stderr
    assert told in result.stderr
    assert files(short_run) == before


# ---- very little


def test_a_budget_below_one_chunk_and_an_empty_circuit_go_through(tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = [*SHORT[:-4], "--budget", "1", "--threshold", "1000", "-o", out]
    result = wiremap(*asked, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["edges"] == []
    assert found["faithfulness"]["faithfulness"] == 0
    assert len(read_effects(out / "effects.jsonl")) == 1
    assert result.stderr.count("note: the circuit has no edges") == 1
    assert "a faithfulness of 0; keep more edges" in result.stderr
    before = files(out)
    assert wiremap(*asked, "--resume").exit_code == 0
    assert files(out) == before
