"""Processes forked from one that has imported torch and all, which takes seconds: to kill, or to
have a terminal of their own."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import termios
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

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
    # Python 3.11 gives the server no path, without which it silently preloads nothing.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
    return process


def command(*arguments: str) -> None:
    """The command of these arguments."""
    main(arguments)


def command_in_terminal(
    terminal: str, environment: Mapping[str, str], arguments: tuple[str, ...]
) -> None:
    """The command on a terminal, the one whose Ctrl-C reaches it."""
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    for standard in range(3):
        os.dup2(descriptor, standard)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(standard, mode, closefd=False) for standard, mode in enumerate("rww")
    )
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
