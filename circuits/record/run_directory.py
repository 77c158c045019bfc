"""A run directory: what was asked, and every result as soon as it is there.

Files are written under another name and then renamed, so none is ever seen half written;
``effects.jsonl`` alone grows by whole chunks, and what a kill left of one is dropped on resuming.
Times stand in ``run.json`` and nowhere else: all other files of a resumed run are those of an
unbroken one, byte for byte.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from ...edges.errors import InputError
from ...edges.files import read_text, write_atomically
from ..result.document import check_version, loads
from ..result.values import field

_RUN_FORMAT = "wiremap-run"


VERSION = "1.0"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device of this process."""
    packages = ("wiremap", "torch", "transformer_lens", "transformers")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


class RunDirectory:
    """A directory that belongs to one question.

    Args:
        question: all that determines the results, as plain JSON data.
        resume: go on with a run of the same question, if there is one.

    Raises:
        InputError: the directory holds something already, and ``resume`` is not set; it holds
            another question (the differences are named); it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        question: Mapping[str, Any],
        device: torch.device,
        resume: bool = False,
    ) -> None:
        self.path = path
        self._run_file = path / "run.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            # A kill in the very first write leaves its temporary file alone.
            occupied = any(not file.match(".run.json.*.tmp") for file in path.iterdir())
        except OSError as error:
            raise InputError(
                f"cannot make run directory {path}: {error.strerror}; choose another (-o)"
            ) from error
        self.record: dict[str, Any] = {
            "format": _RUN_FORMAT,
            "schema_version": VERSION,
            # As it reads back: a tuple and the list it became are no difference.
            "question": json.loads(json.dumps(question)),
            "environment": environment(device),
            "started": time.time(),
            "stages": {},
        }
        if occupied:
            self._take_over(resume)
        for leftover in self.path.glob(".*.tmp"):  # of writes that were killed
            leftover.unlink()
        self._write()

    def _take_over(self, resume: bool) -> None:
        if not self._run_file.is_file():
            raise InputError(
                f"{self.path} is not empty and holds no wiremap run; choose another "
                "directory (-o, out=)"
            )
        if not resume:
            raise InputError(
                f"{self.path} already holds a run; go on with it (--resume, resume=True), or "
                "choose another directory (-o, out=)"
            )
        found = read_run(self._run_file)
        wanted, there = self.record["question"], found["question"]
        changed = list(_differences(there, wanted))
        if changed:
            raise InputError(
                f"{self.path} holds the run of another question: {'; '.join(changed[:6])}. "
                "Ask the same again, or choose another "
                "directory (-o, out=)"
            )
        self.record["started"] = found["started"]
        self.record["stages"] = found["stages"]

    def _write(self) -> None:
        write_atomically(self._run_file, json.dumps(self.record, indent=2, allow_nan=False) + "\n")

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Notes in run.json that a stage was finished, and how long it took."""
        start = time.perf_counter()
        yield
        self.record["stages"][name] = {"seconds": round(time.perf_counter() - start, 3)}
        self._write()

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file of the directory, whole or not at all."""
        write_atomically(self.path / name, content)


def read_run(path: Path) -> dict[str, Any]:
    """The content of a run.json. Raises InputError if it is none."""
    try:
        return check_run(loads(read_text(path)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_run(found: Any) -> dict[str, Any]:
    """The data of a run.json, if it is that. Raises InputError if not."""
    if not isinstance(found, dict) or cast("dict[str, Any]", found).get("format") != _RUN_FORMAT:
        raise InputError(f"expected the run.json of a wiremap run (format {_RUN_FORMAT!r})")
    record = cast("dict[str, Any]", found)
    check_version(field(record, "schema_version", str), VERSION)
    for key, kind in (("question", dict), ("stages", dict), ("started", float)):
        field(record, key, kind)
    return record


def _differences(there: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """``model.name was 'a', now 'b'`` for every leaf that differs."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        before, now = cast("dict[str, Any]", there), cast("dict[str, Any]", wanted)
        for key in sorted({*before, *now}):
            if f"{where}.{key}" in (".model.name", ".task.pairs"):
                continue  # the same content may lie elsewhere: sha256 tells
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}")
    elif there != wanted:
        yield f"{where[1:]} was {there!r:.80}, now {wanted!r:.80}"
