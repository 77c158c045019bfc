"""Commands in a terminal: what is shown, that nothing of it ends a run, and what Ctrl-C leaves."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import random
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rich.progress
from click.testing import CliRunner
from killing import command_in_terminal, start

from wiremap.circuits.record.effects_file import read_effects
from wiremap.cli import main
from wiremap.cli.console import Pace, if_stopped, progress, show_note, show_text

ASKED = ["--model", "induction-mini", "--n-pairs", "4"]
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@dataclass(frozen=True)
class Ended:
    """What came to the terminal, how the command ended, and the terminal's state around it."""

    output: str
    status: int
    before: list[Any]
    after: list[Any]

    @property
    def text(self) -> str:
        """Without control sequences, blanks squeezed."""
        return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output).split())


def environment(term: str | None) -> dict[str, str]:
    hidden = ("TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept if term is None else {**kept, "TERM": term}


def in_terminal(
    *arguments: str | Path,
    term: str | None = "xterm-256color",
    columns: int = 80,
    stop_at: str | None = None,
    seconds: float = 300,
) -> Ended:
    """Runs a command under a pseudo-terminal of this width; Ctrl-C once ``stop_at`` is shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, bytes([25, 0, columns, 0, 0, 0, 0, 0]))
    before = termios.tcgetattr(theirs)
    words = tuple(map(str, arguments))
    command = start(command_in_terminal, os.ttyname(theirs), environment(term), words)
    shown = b""
    end = time.monotonic() + seconds
    try:
        while True:
            ended = command.exitcode is not None
            while select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 65536)
                if stop_at is not None and stop_at.encode() in shown:
                    os.write(ours, b"\x03")
                    stop_at = None
            if ended:
                break
            assert time.monotonic() < end, shown.decode()
        status = command.exitcode
        assert status is not None
        return Ended(shown.decode(), status, before, termios.tcgetattr(theirs))
    finally:
        command.kill()
        command.join()
        os.close(ours)
        os.close(theirs)


def check_left_as_it_was(ended: Ended) -> None:
    assert ended.after == ended.before
    assert ended.output.rfind(SHOW) >= ended.output.rfind(HIDE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    result = CliRunner().invoke(
        main, ["discover", *ASKED, "--budget", "20", "-o", str(out), "--quiet"]
    )
    assert result.exit_code == 0, result.output
    return out


# ---- every long command, in terminals of all kinds


@pytest.mark.parametrize(
    ("term", "columns"),
    [("xterm-256color", 80), ("screen", 40), ("dumb", 40), (None, 80)],
)
def test_discover_runs_in_any_terminal(term: str | None, columns: int, tmp_path: Path) -> None:
    asked = ["discover", *ASKED, "--budget", "110", "-o", tmp_path / "run"]
    ended = in_terminal(*asked, term=term, columns=columns)
    assert ended.status == 0, ended.output
    assert (tmp_path / "run" / "circuit.json").is_file()
    check_left_as_it_was(ended)
    assert "verify edges" in ended.text
    assert "largest of" in ended.text
    if term in (None, "dumb"):
        assert "\x1b" not in ended.output, "nothing that such a terminal does not know"
    else:
        assert HIDE in ended.output
    if columns == 80:
        assert re.search(r"verify edges \W+ 110/110 [\d.,]+ edges/s", ended.text)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", ended.output))
    assert max(len(line) for line in lines if "verify edges" in line) <= columns


@pytest.mark.parametrize(
    ("asked", "stage"),
    [
        (["score", "edges", *ASKED, "-o", "OUT/s.safetensors"], "score all edges"),
        (["score", "nodes", *ASKED, "-o", "OUT/s.safetensors"], "score all nodes"),
        (["verify", "RUN", "--budget", "20", "-o", "OUT/e.jsonl"], "verify edges"),
        (["evaluate", "RUN", "--curve"], "evaluate the circuit"),
        (["scrub", "RUN", "--repeats", "2", "--leave-out"], "scrub"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_every_long_command_runs_in_a_terminal(
    asked: list[str], stage: str, run: Path, tmp_path: Path
) -> None:
    named = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path)) for word in asked]
    ended = in_terminal(*named)
    assert ended.status == 0, ended.output
    assert stage in ended.text
    assert "no progress is shown" not in ended.text
    check_left_as_it_was(ended)


# ---- Ctrl-C


def test_ctrl_c_keeps_what_discover_measured(tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = ["--n-pairs", "64", "--batch-size", "1"]
    asked = ["discover", "--model", "induction-mini", *slow, "--budget", "110", "-o", out]
    ended = in_terminal(*asked, stop_at="verify edges")
    assert ended.status == 1
    assert "stopped; what was measured is kept in" in ended.text
    assert "the same command with --resume goes on" in ended.text
    assert "Traceback" not in ended.text
    check_left_as_it_was(ended)
    assert 64 <= len(read_effects(out / "effects.jsonl")) < 110
    assert not (out / "circuit.json").exists()


def test_ctrl_c_keeps_what_verify_measured(tmp_path: Path) -> None:
    scores, out = tmp_path / "s.safetensors", tmp_path / "e.jsonl"
    asked = ["score", "edges", "--model", "induction-mini", "--n-pairs", "64"]
    assert CliRunner().invoke(main, [*asked, "-o", str(scores), "--quiet"]).exit_code == 0
    verify = ["verify", scores, "--all", "-o", out]
    ended = in_terminal(*verify, "--batch-size", "1", stop_at="verify edges")
    assert ended.status == 1
    assert "what was measured is kept in" in ended.text
    assert "the same command with --resume goes on" in ended.text
    check_left_as_it_was(ended)
    known = out.read_bytes()
    assert len(read_effects(out)) < 110
    again = CliRunner().invoke(main, [*map(str, verify), "--resume", "--quiet"])
    assert again.exit_code == 0, again.output
    assert out.read_bytes().startswith(known)
    assert len(read_effects(out)) == 110


def test_a_command_that_keeps_nothing_says_so(run: Path) -> None:
    slow = ["--task", "induction", "--n-pairs", "256", "--batch-size", "1"]
    ended = in_terminal("evaluate", run, *slow, stop_at="evaluate the circuit")
    assert ended.status == 1
    assert "stopped; nothing is kept: the same command begins anew" in ended.text
    check_left_as_it_was(ended)


def test_nothing_is_kept_before_anything_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), if_stopped(tmp_path / "never made"):
        raise KeyboardInterrupt
    assert "nothing is kept" in capsys.readouterr().err


# ---- a stderr that is broken


def with_stderr(how: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command with its stderr as the shell is told, such as ``2>&-``."""
    words = [sys.executable, "-m", "wiremap.cli", *map(str, arguments)]
    shell = ["sh", "-c", f'exec "$@" {how}', "sh", *words]
    return subprocess.run(shell, stdout=subprocess.PIPE, text=True, check=False)


def test_commands_run_with_stderr_closed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = with_stderr("2>&-", "discover", *ASKED, "--budget", "20", "-o", out)
    assert ended.returncode == 0, ended.stdout
    assert f"written to {out}" in ended.stdout
    for line in (out / "effects.jsonl").read_text().splitlines():
        json.loads(line)
    assert with_stderr("2>&-", "export", tmp_path / "nothing", "--to", "dot").returncode == 2


def test_a_stderr_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    # 2 edges do not reach this target, which a note says on stderr.
    asked = ["discover", *ASKED, "--budget", "2", "--target", "1.0", "-o", tmp_path / "run"]
    ended = with_stderr("2>/dev/full", *asked)
    assert ended.returncode == 0, ended.stdout
    assert "written to" in ended.stdout
    assert with_stderr("2>/dev/full", "export", tmp_path / "none", "--to", "dot").returncode == 2


def test_a_pipe_that_nobody_reads_ends_nothing(run: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    # What this format loses is a note on stderr.
    asked = ["export", str(run), "--to", "eap-ig", "-o", str(tmp_path / "out.json")]
    words = [sys.executable, "-m", "wiremap.cli", *asked]
    try:
        ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=writing, check=False)
    finally:
        os.close(writing)
    assert ended.returncode == 0
    assert (tmp_path / "out.json").is_file()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("method", ["start", "refresh", "add_task", "advance", "stop"])
def test_a_display_that_raises_is_noted_once_and_the_work_goes_on(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("cannot draw")

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(rich.progress.Progress, method, fail)
    with progress(quiet=False) as report:
        for _ in range(3):
            report("verify edges", 1, 3)
            time.sleep(0.3)
    assert stderr.getvalue().count("note: no progress is shown (cannot draw)") == 1
    assert sys.stderr is stderr, "not left redirected"


def test_the_rate_may_fail_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Pace) -> str:
        raise TypeError("unsupported format string passed to NoneType.__format__")

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(Pace, "__str__", fail)
    with progress(quiet=False) as report:
        for _ in range(3):
            report("verify edges", 1, 3)
    assert stderr.getvalue().count("no progress is shown") == 1
    assert stderr.getvalue().rfind(SHOW) > stderr.getvalue().rfind(HIDE)


# ---- rate and time left


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


Profile = tuple[list[int], Callable[[int], float]]
"""Steps of each report, and the seconds that a step takes."""

uneven = random.Random(0)
PROFILES: dict[str, Profile] = {
    "constant": ([1] * 100, lambda step: 1.0),
    "fast": ([8] * 200, lambda step: 0.001),
    "slow": ([1] * 20, lambda step: 300.0),
    "slow start": ([1] * 100, lambda step: 5.0 if step < 10 else 1.0),
    "first step waits": ([1] * 50, lambda step: 60.0 if step == 0 else 1.0),
    "chunks": (chunks(1000, 64), lambda step: 0.5),
    "chunks, the first slow": (chunks(640, 64), lambda step: 5.0 if step < 64 else 1.0),
    "resumed": ([300, *chunks(700, 64)], lambda step: 0.0 if step < 300 else 2.0),
    "uneven": ([1] * 100, lambda step: uneven.uniform(0.5, 1.5)),
}


def moments(profile: Profile) -> Iterator[tuple[int, float, float]]:
    """For each report: steps done by then, its time, and that of the last."""
    steps, seconds = profile
    times, done = [0.0], 0
    for size in steps:
        times.append(times[-1] + sum(seconds(step) for step in range(done, done + size)))
        done += size
    for index, time_of in enumerate(times[1:]):
        yield sum(steps[: index + 1]), time_of, times[-1]


@pytest.mark.parametrize("name", PROFILES)
def test_rate_and_time_left_are_right_from_a_fifth_on(name: str) -> None:
    steps = PROFILES[name][0]
    total, clock = sum(steps), Clock()
    pace = Pace("edge", total, clock)
    at = list(moments(PROFILES[name]))
    known = 0
    for size, (done, now, end), (_, following, _) in zip(steps, at, [*at[1:], at[-1]], strict=True):
        clock.now = 1000 + now
        pace.report(size)
        rate = pace.rate
        if done < total / 5 or rate is None or done == total:
            continue
        known += 1
        rest = end - now
        assert (total - done) / rest / 1.5 < rate < 1.5 * (total - done) / rest
        for share in (0.0, 0.5, 0.9):  # also while the next report is awaited
            clock.now = 1000 + now + share * (following - now)
            left = pace.seconds_left
            assert left is not None
            truly = 1000 + end - clock.now
            step = rest / (total - done)
            assert truly / 1.5 - step <= left <= 1.5 * truly + step
    assert known >= 0.7 * sum(done >= total / 5 for done, _, _ in at) - 1
    assert pace.seconds_left is None, "all is done"


def words(steps: Sequence[int], seconds: float, total: int, unit: str = "edge") -> str:
    clock = Clock()
    pace = Pace(unit, total, clock)
    for size in steps:
        pace.report(size)
        clock.now += seconds
    clock.now -= seconds
    return str(pace)


def test_rate_and_time_left_in_words() -> None:
    assert words([1], 1, 10) == "", "not known yet"
    assert words([1, 1], 0, 10) == "", "no time has passed"
    assert words([1, 31], 10, 400) == "3.1 edges/s, 2.0 min left"
    assert words([1, 1000], 0.5, 1001, "run") == "2,000 runs/s"
    assert words([1, 1], 12, 6) == "12 s/edge, 48 s left"
    assert words([1, 1], 300, 6, "pair") == "5.0 min/pair, 20 min left"
    assert words([1, 1], 3600, 100) == "60 min/edge, 98 h left"


def test_sentences_break_between_words_in_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = "a10.h11->a20.h0<q>"
    sentence = f"the verified edges do not reach it; the largest is {edge}, verify more (--budget)"
    show_note(sentence)
    show_text(sentence)
    assert capsys.readouterr() == (f"{sentence}\n", f"note: {sentence}\n")
    monkeypatch.setattr("wiremap.cli.console._is_terminal", bool)
    monkeypatch.setenv("COLUMNS", "40")
    show_note(sentence)
    show_text(sentence)
    out, err = capsys.readouterr()
    for shown, text in ((out, sentence), (err, f"note: {sentence}")):
        assert shown.split() == text.split()
        assert len(shown.splitlines()) > 1
        assert all(len(line) <= 40 for line in shown.splitlines())
