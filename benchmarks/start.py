"""How long the command and its lightest imports take to start: half a second at most is wanted.

usage: python benchmarks/start.py
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "wiremap --help": ["-m", "wiremap.cli", "--help"],
    "import wiremap.exporters": ["-c", "import wiremap.exporters"],
    "(Python alone)": ["-c", ""],
}
N_STARTS = 10


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    for name, command in COMMANDS.items():
        print(f"{name:<26}{min(seconds(command) for _ in range(N_STARTS)):6.3f} s")


if __name__ == "__main__":
    main()
