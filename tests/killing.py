"""Processes to kill, forked from a process that has imported torch and all: that takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tiny
import torch

from wiremap.circuits import discover
from wiremap.cli import main
from wiremap.edges import PromptPairs

# As tests have: another number of threads changes last digits.
torch.set_num_threads(1)


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls ``target``, a function of this module, with these arguments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def command(*arguments: str) -> None:
    """The command of these arguments."""
    main(arguments)


def discover_until(
    tokens: Path, stage: str, calls: int, out: Path, options: dict[str, Any]
) -> None:
    """A discover that kills itself when a stage has said so many times how far it is."""
    left = calls

    def report(reached: str, done: int, total: int) -> None:
        nonlocal left
        left -= reached == stage
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    pairs = PromptPairs(*torch.load(tokens, weights_only=True))
    discover(tiny.model("gpt2"), pairs, out, **options, progress=report)
