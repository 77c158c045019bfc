"""Whether annotations are checked, and the fixtures; nothing touches the network."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Several processes share the processors: threads that wait for others must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from annotations import begin_anew, check_annotations

# Sums in another order round in other ways; what tests compare must not hang on it (see .ci/run).
torch.set_num_threads(int(os.environ.get("WIREMAP_TEST_THREADS", "1")))

EDGES = Path(__file__).resolve().parent / "edges"


def pytest_configure(config: pytest.Config) -> None:
    """Checks shapes and types of a sample of calls where tests of edges are run.

    So ``make test`` runs these in a process of their own. The rest comes after it is decided,
    since it imports what is to be checked.
    """
    chosen = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    ignored = [Path(path).resolve() for path in config.getoption("ignore") or ()]
    if EDGES not in ignored and any(
        path.is_relative_to(EDGES) or EDGES.is_relative_to(path) for path in chosen
    ):
        if "wiremap" in sys.modules:
            raise pytest.UsageError("a conftest.py imports wiremap: too early to check annotations")
        check_annotations("wiremap")
    config.pluginmanager.import_plugin("twins")


def pytest_runtest_setup() -> None:
    """So that each test checks the calls that it makes."""
    begin_anew()


def pytest_collection_finish() -> None:
    """What was imported stays: the collector, which memory that runs out calls, need not look."""
    gc.freeze()
