"""What several tests of pages look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import synthetic
from wiremap.exporters import write_circuit
write_circuit(synthetic.circuit(2100), sys.argv[2])
"""


@pytest.fixture(scope="session")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 2,100 edges. Made by a process of its own, where annotations are not checked."""
    path = tmp_path_factory.mktemp("large") / "large.html"
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", _CODE, tests, str(path)], check=True)
    return path
