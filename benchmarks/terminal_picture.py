"""A picture of ``wiremap discover`` in a terminal of 80 columns.

    python benchmarks/terminal_picture.py [-o docs/terminal.svg]

Runs the command of ``make demo`` in tmux, waits until it has ended, and draws what then stands on
the screen, as rich exports it, below the command's own line. Needs tmux.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = "discover --out out/demo"
COLUMNS = 80
ROWS = 48
ROOT = Path(__file__).parent.parent


def on_screen(directory: Path, seconds: float = 600) -> str:
    """The screen, with its colours as control sequences, after ``wiremap discover``."""
    tmux = ["tmux", "-L", f"wiremap-{os.getpid()}", "-f", os.devnull]
    ended = directory / "ended"
    command = f"{sys.executable} -m wiremap.cli {COMMAND}; touch {ended}; sleep 600"
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    subprocess.run([*tmux, "new-session", "-d", *size, "-c", str(directory), command], check=True)
    try:
        end = time.monotonic() + seconds
        while not ended.exists():
            if time.monotonic() > end:
                raise SystemExit(f"the command has not ended within {seconds:.0f} s")
            time.sleep(0.2)
        screen = [*tmux, "capture-pane", "-e", "-p", "-S", "-"]
        return subprocess.run(screen, check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "terminal.svg")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as directory:
        shown = on_screen(Path(directory)).rstrip()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(f"[bold green]$[/] wiremap {COMMAND}", highlight=False)
    console.print(Text.from_ansi(shown))
    # The class names would otherwise hang on a random number.
    out.write_text(console.export_svg(title="wiremap", unique_id="terminal"))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
