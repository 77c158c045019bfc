"""Draws docs/rooms.svg: the rooms of the four floors, and which imports from which.

    python docs/draw_rooms.py

What a room needs stands below it. Arrows that follow from others are left out; the thick ones say
that a floor imports from all those below it.
Needs the ``dot`` program of Graphviz.
"""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import networkx

ROOT = Path(__file__).parent.parent
FLOORS = ("edges", "circuits", "exporters", "cli")
_COLOURS = {"edges": "#e4ecf7", "circuits": "#dcf1e6", "exporters": "#fbe6d4", "cli": "#f3e4f5"}


def modules() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every module of the product, with its dotted path."""
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            yield path, path.relative_to(ROOT).with_suffix("").parts


def room(module: tuple[str, ...]) -> str:
    """The room a module stands in; the floor itself for those in none."""
    floor, *inside = module
    return f"{floor}.{inside[0]}" if len(inside) > 1 else floor


def imports(path: Path, module: tuple[str, ...]) -> set[str]:
    """The rooms a module imports from, its own left out."""
    known = {parts for _, parts in modules()}
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module[: len(module) - node.level]
            target = base + tuple((node.module or "").split(".")) if node.module else base
            for name in node.names:
                full = (*target, name.name)
                rooms.add(room(full if full in known else target if target in known else full))
    return rooms - {room(module)}


def arrows() -> Counter[tuple[str, str]]:
    """How many modules of one room import from another."""
    return Counter(
        (room(module), target)
        for path, module in modules()
        if path.name != "__init__.py"  # the faces name what every room gives
        for target in imports(path, module)
    )


def dot() -> str:
    """The picture as Graphviz source: inside a floor what cannot be inferred, between floors one arrow."""
    names = {floor: sorted({room(m) for _, m in modules() if m[0] == floor}) for floor in FLOORS}
    imported = networkx.DiGraph(arrows().keys())
    lines = [
        "digraph rooms {",
        "  compound=true; newrank=true; nodesep=0.35; ranksep=0.35; bgcolor=white;",
        '  fontname="Helvetica"; fontsize=13;',
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=11, color="#666666"];',
        '  edge [color="#555555", arrowsize=0.7];',
    ]
    for floor in reversed(FLOORS):
        lines.append(
            f'  subgraph "cluster_{floor}" {{ label="{floor}/"; labeljust=l; style=rounded;'
        )
        inside = imported.subgraph(names[floor])
        for name in names[floor]:
            label = name.partition(".")[2] or ", ".join(own_modules(floor))
            lines.append(f'    "{name}" [label="{label}", fillcolor="{_COLOURS[floor]}"];')
        shown = (
            networkx.transitive_reduction(inside)
            if networkx.is_directed_acyclic_graph(inside)
            else inside
        )
        lines += [f'    "{source}" -> "{target}";' for source, target in sorted(shown.edges)]
        lines.append("  }")
    for lower, upper in pairwise(FLOORS):
        # From a room at the bottom of the upper floor to one at the top of the lower.
        source = min(
            names[upper],
            key=lambda name: (
                imported.subgraph(names[upper]).out_degree(name) if name in imported else 0
            ),
        )
        target = min(
            names[lower],
            key=lambda name: (
                imported.subgraph(names[lower]).in_degree(name) if name in imported else 0
            ),
        )
        lines.append(
            f'  "{source}" -> "{target}" [ltail="cluster_{upper}", lhead="cluster_{lower}", '
            'penwidth=2.5, color="#333333"];'
        )
    return "\n".join([*lines, "}", ""])


def own_modules(floor: str) -> list[str]:
    """The modules that stand in no room of their floor."""
    return [
        path.stem for path in sorted((ROOT / floor).glob("*.py")) if not path.stem.startswith("_")
    ]


def main() -> None:
    picture = subprocess.run(
        ["dot", "-Tsvg"], input=dot(), capture_output=True, text=True, check=True
    )
    (ROOT / "docs" / "rooms.svg").write_text(picture.stdout)
    print("docs/rooms.svg")


if __name__ == "__main__":
    main()
