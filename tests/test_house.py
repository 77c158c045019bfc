"""The house: imports go down the floors, exporters stay light, what is exported is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

FLOORS = ("edges", "circuits", "exporters", "cli")  # lowest first


def sources(floor: str) -> list[Path]:
    directory = Path(str(files(f"wiremap.{floor}")))
    return sorted(directory.rglob("*.py"))


def depth(path: Path) -> int:
    """How many dots an import needs to stay in the module's floor at most: one, and one a room."""
    directory = path.parent
    dots = 1
    while directory.name not in FLOORS:
        directory, dots = directory.parent, dots + 1
    return dots


def floors_imported(path: Path) -> set[str]:
    """The floors a module imports from, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            if node.level > depth(path):  # out of its own floor
                found |= {name.lstrip(".").split(".")[0] for name in names}
            elif module.split(".")[0] == "wiremap":
                found |= {name.split(".")[1] for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("wiremap.")}
    return found


DOOR = "circuits/result/upward.py"
"""Where modules are imported by name from a floor above: circuits show themselves, and are drawn."""
REGISTRIES = {
    "edges/scores/rules/registry.py": ["import_module(f'.{gradient}', __package__)"],
    "circuits/tasks/builtin.py": ["import_module(f'.{name}', __package__)"],
    "exporters/registry.py": ["import_module(f'.{name}', __package__)"],
    "cli/main.py": ["import_module(f'.{_module}', __package__)"],
}
"""Where they are, from the registry's own package, so that a new one is a file and a line."""


def imports_by_name(path: Path) -> list[str]:
    """Calls that import a module by a name; not those of a public face from its own rooms."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    by_name = [
        ast.unparse(call)
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] in ("import_module", "__import__")
    ]
    own = "import_module(f'.{module}', __name__)"
    return [call for call in by_name if not (path.name == "__init__.py" and call == own)]


def test_there_is_one_door_upwards() -> None:
    """It can fetch anything of the exporters, and nothing else is imported by name anywhere."""
    found = {
        f"{floor}/{path.relative_to(str(files(f'wiremap.{floor}'))).as_posix()}": calls
        for floor in FLOORS
        for path in sources(floor)
        if (calls := imports_by_name(path))
    }
    door = {DOOR: ["import_module(f'wiremap.exporters.{module}')"]}
    assert {where: sorted(calls) for where, calls in found.items()} == door | REGISTRIES


def test_the_door_test_sees_imports_by_name(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    for call in (
        "import_module('wiremap.cli')",
        "importlib.import_module(name)",
        "__import__('torch')",
        "import_module(f'.{module}', __name__)",
    ):
        module.write_text(f"def f():\n    return {call}\n")
        assert imports_by_name(module) == [call]


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down_the_floors(floor: str) -> None:
    below = set(FLOORS[: FLOORS.index(floor)])
    modules = sources(floor)
    assert len(modules) >= 12
    for module in modules:
        above = floors_imported(module) - below - {floor}
        assert not above, f"{floor}/{module.name} imports from {above}"


ROOMS = {  # each from those before it alone
    "edges": ("", "names", "model", "question", "runs", "effects", "scores"),
    "circuits": ("result", "tasks", "record", "choice", "evidence", ""),
    "exporters": ("pictures", "formats", "pages", ""),
}
ALLOWED = {
    # A circuit evaluates itself, if it is asked to.
    "circuits/result/circuit.py": {"evidence"},
    # What a circuit is described by belongs to every room.
    "circuits/evidence": {""},
    "circuits/tasks": {""},
    # What a format is (``format.py``).
    "exporters/formats": {""},
    "exporters/pictures": {""},
    "exporters/pages": {""},
}


def rooms_imported(path: Path, floor: str) -> set[str]:
    """The rooms of its own floor that a module imports from; "" for modules in none."""
    root = Path(str(files(f"wiremap.{floor}")))
    here = path.relative_to(root).parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not 0 < node.level <= len(here) + 1:
            continue
        base = here[: len(here) - node.level + 1]
        target = (*base, *(node.module or "").split("."))
        target = tuple(part for part in target if part)
        room = target[0] if target and (root / target[0]).is_dir() else ""
        if not target:  # from . import something
            found |= {n.name if (root / n.name).is_dir() else "" for n in node.names}
        else:
            found.add(room)
    return found


@pytest.mark.parametrize("floor", ROOMS)
def test_rooms_stand_on_those_before_them(floor: str) -> None:
    root, order = Path(str(files(f"wiremap.{floor}"))), ROOMS[floor]
    assert {path.parent.name for path in root.rglob("*.py")} >= set(order) - {""}
    seen = 0
    for path in sources(floor):
        where = path.relative_to(root)
        if path.name == "__init__.py" or not where.parts[:-1]:
            continue
        room = where.parts[0]
        below = {*order[: order.index(room) + 1]}
        allowed = ALLOWED.get(f"{floor}/{where.as_posix()}", set()) | ALLOWED.get(
            f"{floor}/{room}", set()
        )
        above = rooms_imported(path, floor) - below - allowed
        assert not above, f"{floor}/{where} imports from {above}"
        seen += 1
    assert seen > 10


def test_the_floor_test_sees_imports() -> None:
    """Guards the test above: these imports are known to be there."""
    (discovery,) = [path for path in sources("circuits") if path.name == "discovery.py"]
    assert floors_imported(discovery) == {"edges"}
    (loading,) = [path for path in sources("cli") if path.name == "loading.py"]
    assert floors_imported(loading) == {"edges", "circuits", "exporters"}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("start", "needed"),
    [
        ("import wiremap.edges", set[str]()),
        ("import wiremap.circuits", set[str]()),
        ("import wiremap.exporters", {"graphviz"}),
        ("import wiremap.cli", {"click"}),
        ("import wiremap.cli; wiremap.cli.main(['--help'], standalone_mode=False)", {"click"}),
    ],
)
def test_starting_stays_light(start: str, needed: set[str]) -> None:
    """Half a second is what little is loaded takes at most: see ``benchmarks/start.py``."""
    code = f"import sys; before = set(sys.modules); {start}; print(*({{*sys.modules}} - before))"
    loaded = run(code).splitlines()[-1].split()
    packages = {module.partition(".")[0] for module in loaded} - sys.stdlib_module_names
    assert packages == {"wiremap"} | needed
    assert len(loaded) < 300


def test_writing_and_reading_circuits_needs_no_torch(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    code = f"""
import sys
sys.path.insert(0, {str(tests)!r})
import circuits_for_tests
from wiremap.exporters import FORMATS, read_circuit, write_circuit
circuit = circuits_for_tests.circuit(model={{"d_model": 8}})
for name, known in FORMATS.items():
    if name not in ("svg", "png", "pdf"):
        write_circuit(circuit, {str(tmp_path / "circuit")!r}, name)
        if known.loses is not None:
            read_circuit({str(tmp_path / "circuit")!r}).graph
print(*sys.modules)
"""
    assert not {"torch", "transformers", "transformer_lens"} & set(run(code).split())


@pytest.mark.parametrize("package", ["wiremap.edges", "wiremap.circuits", "wiremap.exporters"])
def test_exported_names_are_there(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_are_typed(floor: str) -> None:
    assert files(f"wiremap.{floor}").joinpath("py.typed").is_file()


def test_no_pickle_and_no_assert() -> None:
    """No pickled files are read, and no input is checked by a statement that -O removes."""
    for floor in FLOORS:
        for path in sources(floor):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}"
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    called = f"{node.value.id}.{node.attr}"
                    assert called not in ("torch.load", "pickle.load", "pickle.loads"), path.name
