"""Honest measurements: interleaved repeats, peak memory of a process's own, results with context."""

from __future__ import annotations

import datetime
import gc
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"

_HEADER = """# Results of the benchmarks

Sections say on what kind of device they were measured. Where one is not marked CUDA, that code has
not yet been run on a GPU.
"""


def interleaved_seconds(
    functions: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Wall seconds of each function, run in turn A B A B so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            gc.collect()
            _synchronize(device)
            start = time.perf_counter()
            function()
            _synchronize(device)
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over repeats of one / other, pair by pair."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """What the function needs above what is allocated before it.

    On CUDA the allocator's peak; on Linux the peak resident size of this process, which the kernel
    resets on request.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    function()
    return _status_bytes("VmHWM") - before


def memory_alone(script: str, what: str, device: str) -> int:
    """Peak bytes that ``script --memory-of what`` prints: a process where nothing else was allocated."""
    command = [sys.executable, "-W", "ignore", script, "--device", device, "--memory-of", what]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    )


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}: this needs Linux")
    return 1024 * int(found[1])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Machine, versions and date, in a line."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{_cpu()}, {torch.get_num_threads()} threads"
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "transformer_lens")
    )
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{where}; Python {platform.python_version()}, {packages}; {date}"


def _cpu() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return names[0].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def write_section(title: str, device: torch.device, text: str) -> None:
    """Puts a section into RESULTS.md, in place of the one of that title on that kind of device."""
    heading = f"## {title} ({device.type.upper()})"
    section = f"{heading}\n\n{machine(device)}\n\n{text.strip()}\n\n"
    old = (RESULTS.read_text() if RESULTS.exists() else _HEADER).rstrip() + "\n\n"
    pattern = re.compile(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else old + section
    RESULTS.write_text(new.rstrip() + "\n")
    print(section)
