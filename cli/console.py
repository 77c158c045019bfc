"""What the terminal shows: progress and notes on stderr, results on stdout.

Nothing that goes wrong on stderr ends a command: it may be closed, a pipe without a reader, or a
terminal that cannot be drawn on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

Report = Callable[[str, int, int], None]
"""Called with (stage, steps finished since the last call, steps in all)."""

_UNITS = {
    "score all nodes": "pair",
    "score all edges": "pair",
    "split": "pair",
    "scrub": "pair",
    "verify edges": "edge",
    "verify nodes": "node",
    "verify a sample": "edge",
    "weigh edges": "edge",
    "ACDC": "edge",
}
_TICK = 0.25  # seconds between two drawings
_WIDE = 80  # columns that a bar and all figures need


def show_json(value: Any) -> None:
    """The value as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def show_text(text: str, piped: int | None = None) -> None:
    """Sentences on stdout: in a terminal, lines are wrapped between words to its width.

    Args:
        piped: the width when stdout is no terminal; None leaves lines as they are.
    """
    click.echo(_wrapped(text, sys.stdout, piped))


def show_note(text: str) -> None:
    """A note on stderr, wrapped as ``show_text`` does."""
    click.echo(_wrapped(f"note: {text}", sys.stderr), err=True)


def _wrapped(text: str, stream: TextIO, piped: int | None = None) -> str:
    # Scripts read lines as they are; only a terminal would break them, and in the middle of words.
    width = shutil.get_terminal_size().columns if _is_terminal(stream) else piped
    if width is None:
        return text
    # Names of edges and files stay whole, to be copied: they are not parted at hyphens either.
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns after the first are aligned to the right if they hold numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numbers = all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", no_wrap=numbers)
    for row in rows:
        table.add_row(*row)
    console = _console(width=None if _is_terminal(sys.stdout) else 110)
    console.print(title, style="bold")
    console.print(table)


def _console(**options: Any) -> Console:
    from rich.console import Console

    # Without TERM nothing is known of the terminal. Of a dumb one rich does not ask the width.
    environment = {**os.environ, "TERM": os.environ.get("TERM") or "dumb"}
    console = Console(_environ=environment, highlight=False, **options)
    if console.is_dumb_terminal:
        console.size = shutil.get_terminal_size()
    return console


def _is_number(text: str) -> bool:
    return not text or text[0] in "+-0123456789"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):  # closed
        return False


# ---- a stderr that may be broken


class _Forgiving:
    """A stream whose writing never fails: what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def forgiving_stderr() -> Generator[None]:
    """Within, writing to stderr never fails, and no file opened later stands in for a closed one."""
    # What is closed before Python began (``2>&-``) is None. Each takes the lowest number that is free,
    # which is its own; else a result's file would get it, with all that a library writes there.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    stderr = sys.stderr
    sys.stderr = cast(TextIO, _Forgiving(stderr))
    try:
        yield
    finally:
        sys.stderr = stderr


@contextmanager
def if_stopped(kept: Path | None = None) -> Generator[None]:
    """Says after Ctrl-C what is kept, and how to go on.

    Args:
        kept: what ``--resume`` goes on with, if it is there by then; None for a command that keeps
            nothing of what it did not finish.
    """
    try:
        yield
    except KeyboardInterrupt:
        if kept is not None and kept.exists():
            words = f"what was measured is kept in {kept}: the same command with --resume goes on"
        else:
            words = "nothing is kept: the same command begins anew"
        click.echo(_wrapped(f"stopped; {words}", sys.stderr), err=True)
        raise


# ---- progress


class Pace:
    """How fast a stage goes and how long it will take, as words: ``3.1 edges/s, 2 min left``.

    The rate is that of the newer half of the steps done, so a slow start is forgotten. Steps of the
    first report do not count: they may come from an earlier run, or have had to wait. So nothing is
    known, and the words are empty, before the second.
    """

    def __init__(self, unit: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._unit, self._total, self._clock = unit, total, clock
        self._done: list[int] = []  # after each report
        self._times: list[float] = []  # of each report

    def report(self, steps: int) -> None:
        """So many steps were finished since the last report."""
        self._done.append(steps + (self._done[-1] if self._done else 0))
        self._times.append(self._clock())

    @property
    def rate(self) -> float | None:
        """Steps a second; None while it is not known."""
        if len(self._done) < 2:
            return None
        start = max(bisect_right(self._done, self._done[-1] / 2) - 1, 0)
        seconds = self._times[-1] - self._times[start]
        steps = self._done[-1] - self._done[start]
        return steps / seconds if seconds > 0 and steps > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """From now on; None while it is not known, and when all is done."""
        rate = self.rate
        if rate is None or self._done[-1] >= self._total:
            return None
        since = self._clock() - self._times[-1]
        return max((self._total - self._done[-1]) / rate - since, 0.0)

    @property
    def left(self) -> str:
        """The time left, in words."""
        seconds = self.seconds_left
        return "" if seconds is None else f"{_duration(seconds)} left"

    def __str__(self) -> str:
        rate = self.rate
        if rate is None:
            return ""
        speed = (
            f"{_figure(rate)} {self._unit}s/s"
            if rate >= 1
            else f"{_duration(1 / rate)}/{self._unit}"
        )
        return ", ".join(filter(None, (speed, self.left)))


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """In the unit that leaves a figure of one or two digits: at most a fifth is rounded away."""
    if seconds < 99.5:
        return f"{_figure(seconds)} s"
    if seconds < 99.5 * 60:
        return f"{_figure(seconds / 60)} min"
    return f"{_figure(seconds / 3600)} h"


@contextmanager
def progress(quiet: bool) -> Generator[Report]:
    """Progress bars, one a stage, with rate and time left; none when stderr is no terminal.

    Gives the function to report to. If the display fails, a note says so and the work goes on.
    """
    if quiet or not _is_terminal(sys.stderr):
        yield lambda stage, done, total: None
        return
    bars = _Bars()
    try:
        bars.start()
        yield bars.report
    finally:
        bars.stop()


class _Bars:
    """Bars on stderr, drawn by a thread of its own between reports; failures end the bars only."""

    def __init__(self) -> None:
        self._shown: Any = None  # rich's Progress while it is drawn
        self._bars: dict[str, tuple[Any, Pace]] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._streams = sys.stdout, sys.stderr  # in whose places rich puts its own meanwhile

    def start(self) -> None:
        self._try(self._open)
        threading.Thread(target=self._tick, daemon=True).start()

    def report(self, stage: str, done: int, total: int) -> None:
        self._try(lambda: self._advance(stage, done, total))

    def stop(self) -> None:
        """Draws a last time; leaves the terminal as it was."""
        self._try(self._close)

    def _try(self, draw: Callable[[], Any]) -> None:
        with self._lock:
            if self._over.is_set():
                return
            try:
                draw()
            except Exception as error:  # noqa: BLE001 whatever it is, the work goes on
                with suppress(Exception):
                    self._close()
                show_note(f"no progress is shown ({error}); the work goes on")

    def _close(self) -> None:
        self._over.set()
        try:
            if self._shown is not None:
                self._shown.stop()  # also shows the cursor again
        finally:
            sys.stdout, sys.stderr = self._streams

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            self._try(lambda: self._shown.refresh())

    def _open(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = _console(stderr=True)
        columns = [TextColumn("{task.description}")]
        if console.width < _WIDE:
            columns += [
                TextColumn("{task.percentage:.0f} %"),
                TextColumn("{task.fields[pace].left}"),
            ]
        else:
            pace = TextColumn("{task.fields[pace]}")
            columns += [BarColumn(bar_width=16), MofNCompleteColumn(), pace]
        self._shown = Progress(*columns, console=console, auto_refresh=False)
        self._shown.start()

    def _advance(self, stage: str, done: int, total: int) -> None:
        if stage not in self._bars:
            unit = _UNITS.get(stage) or _UNITS.get(stage.partition(" ")[0], "run")
            pace = Pace(unit, total)
            self._bars[stage] = self._shown.add_task(stage, total=total, pace=pace), pace
        bar, pace = self._bars[stage]
        pace.report(done)
        self._shown.advance(bar, done)
