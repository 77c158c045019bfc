"""The recipes of CONTRIBUTING.md, followed to the letter on a copy of the product."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
FLOORS = ("edges", "circuits", "exporters", "cli")
ADDED = r"```python\n# (\S+), in (\w+), after \"([^\"]+)\"\n(.*?)```"
NEW = r"```python\n# new file: (\S+)\n(.*?)```"

CHECKS = {
    "A gradient rule": """
from wiremap.circuits import load_task
from wiremap.edges import Model, score_edges
model = Model.load("induction-mini")
pairs = load_task("induction", model, n_pairs=2)
once, twice = (score_edges(model, pairs, gradient=name).scores for name in ("clean", "twice"))
assert once.nan_to_num().abs().max() > 0 and twice.nan_to_num().allclose(2 * once.nan_to_num())
from wiremap.cli.main import main
assert "twice" in main.commands["score"].commands["edges"].params[[p.name for p in main.commands["score"].commands["edges"].params].index("gradient")].type.choices
""",
    "A file format": """
import circuits_for_tests
from pathlib import Path
from wiremap.exporters import write_circuit
circuit = circuits_for_tests.circuit()
write_circuit(circuit, "some.arrows")
assert len(Path("some.arrows").read_text().splitlines()) == len(circuit.edges) > 0
""",
    "A task": """
import tokens_for_tests
from wiremap.circuits import load_task, TASKS
from wiremap.edges import Model
assert "colours" in TASKS
from wiremap.circuits.tasks.task import sample_records
import random
task = TASKS["colours"]
record = task.sample(task.templates[0], task.words, random.Random(0), "colour")
assert record["clean"] != record["corrupted"] and record["answer"] != record["wrong_answer"]
""",
    "A command": """
from click.testing import CliRunner
from wiremap.cli import main
assert CliRunner().invoke(main, ["hello"]).output == "hello\\n"
""",
}


def recipe(name: str) -> str:
    """The section of that name."""
    return TEXT.partition(f"### {name}\n")[2].partition("\n### ")[0]


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A copy of the product's folders, importable from here."""
    for floor in FLOORS:
        source = Path(str(files(f"wiremap.{floor}")))
        shutil.copytree(
            source, tmp_path / "wiremap" / floor, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


@pytest.mark.parametrize("name", CHECKS)
def test_a_recipe_is_one_file_and_one_line(product: Path, name: str) -> None:
    ((path, content),) = re.findall(NEW, recipe(name), re.DOTALL)
    ((registry, table, after, line),) = re.findall(ADDED, recipe(name), re.DOTALL)
    assert line.count("\n") == 1
    assert not (product / "wiremap" / path).exists()
    (product / "wiremap" / path).write_text(content)
    text = (product / "wiremap" / registry).read_text()
    start = text.index(f"{table}: ") if f"{table}: " in text else text.index(f"{table} = ")
    entry = re.compile(rf'^    "{re.escape(after)}".*\n', re.MULTILINE).search(text, start)
    assert entry is not None
    text = text[: entry.end()] + line + text[entry.end() :]
    (product / "wiremap" / registry).write_text(text)
    code = f"import wiremap.cli\nassert {str(product)!r} in wiremap.cli.__file__\n{CHECKS[name]}"
    tests = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(product), tests])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=product, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_line_of_an_architecture_is_one_there_is() -> None:
    ((path, line),) = re.findall(
        r"```python\n# (\S+), in SUPPORTED\n(.*?)```", recipe("An architecture"), re.DOTALL
    )
    floor, _, rest = path.partition("/")
    assert line in Path(str(files(f"wiremap.{floor}"))).joinpath(rest).read_text()
