"""Figures of the code itself: sizes, parameters, complexity, comments, repeats, and name parses.

    make figures, or python benchmarks/house.py [--no-run] [DIRECTORY]

prints a table of the product's code (the four folders), or of an older checkout's in DIRECTORY. A
*parameter* is any argument but ``self`` and ``cls``. *Complexity* is McCabe's (1976): one, and one
for each if, loop, except, comprehension, conditional expression, match case, and for each further
term of ``and`` and ``or``. A *repeat* is a pair of places, each of six or more lines that say the
same but for names, strings and numbers; blank lines, comments, imports and lone punctuation do not
count, and what stands in more than eight places is no longer a repeat but a custom.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

FLOORS = ("edges", "circuits", "exporters", "cli")
_LIBRARY = FLOORS[:3]
_RUN, _PLACES = 6, 8
_PRAGMA = re.compile(r"#\s*(noqa|pyright|type|fmt|ruff)\b")
_BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.match_case,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Function:
    """A function of the product, and what is counted of it."""

    where: str
    n_parameters: int
    complexity: int
    n_lines: int


def functions(path: Path) -> Iterator[Function]:
    """All functions of a file, those inside of others and of classes among them."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            every += [more for more in (arguments.vararg, arguments.kwarg) if more]
            yield Function(
                f"{path}:{node.lineno} {node.name}",
                sum(argument.arg not in ("self", "cls") for argument in every),
                1 + sum(_branches(child) for child in _own(node)),
                (node.end_lineno or node.lineno) - node.lineno + 1,
            )


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function that are not of a function inside of it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, _FUNCTIONS):
            yield child
            yield from _own(child)


def _branches(node: ast.AST) -> int:
    return len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, _BRANCHES)


def comment_share(paths: Sequence[Path]) -> float:
    """Lines with a comment that speaks to readers, for each line of code; docstrings are neither."""
    comments = code = 0
    for path in paths:
        text = path.read_text()
        docstrings = _docstring_lines(ast.parse(text))
        speaking, coded = set[int](), set[int]()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and not _PRAGMA.match(token.string):
                speaking.add(token.start[0])
            elif token.string.strip() and token.type != tokenize.COMMENT:
                coded |= set(range(token.start[0], token.end[0] + 1)) - docstrings
        comments, code = comments + len(speaking), code + len(coded)
    return comments / code


def _docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def shapes(path: Path) -> list[tuple[str, int]]:
    """The lines of a file that count, with names, strings and numbers taken out; and their places."""
    text = path.read_text()
    docstrings = _docstring_lines(ast.parse(text))
    words: dict[int, list[str]] = defaultdict(list)
    keywords = re.compile(r"^(and|as|else|except|finally|for|if|in|is|not|or|raise|return|with)$")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            words[token.start[0]].append(token.string if keywords.match(token.string) else "n")
        elif token.type in (tokenize.STRING, tokenize.NUMBER):
            words[token.start[0]].append("c")
        elif token.type == tokenize.OP:
            words[token.start[0]].append(token.string)
    lines = text.splitlines()
    return [
        (" ".join(words[number]), number)
        for number in sorted(words)
        if number not in docstrings
        and not re.match(r"\s*(import|from)\b", lines[number - 1])
        and any(word not in "()[]{},:" for word in words[number])
    ]


def repeats(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Pairs of places that repeat each other; of two files, the first such pair alone."""
    counted = {path: shapes(path) for path in paths}
    windows: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, lines in counted.items():
        for start in range(len(lines) - _RUN + 1):
            key = tuple(shape for shape, _ in lines[start : start + _RUN])
            if len(set(key)) > _RUN // 2:  # a list of like lines is a list
                windows[key].append((path, start))
    matched: set[tuple[Path, int, Path, int]] = set()
    for places in windows.values():
        if 1 < len(places) <= _PLACES:
            for (a, i), (b, j) in combinations(places, 2):
                if a != b or abs(i - j) >= _RUN:
                    matched.add((a, i, b, j))
    of_files: dict[tuple[Path, Path], tuple[str, str]] = {}
    for a, i, b, j in sorted(matched):
        of_files.setdefault((a, b), (f"{a}:{counted[a][i][1]}", f"{b}:{counted[b][j][1]}"))
    return list(of_files.values())


def loops_over_pairs(paths: Sequence[Path]) -> list[str]:
    """Where a loop over the batches of pairs runs a model; training's own (zoo.py) does not count."""
    loops: list[str] = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.For) and ast.unparse(node.iter).endswith(".batches()"):
                names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                if path.name != "zoo.py" and "model" in names | _attributes(node):
                    loops.append(f"{path}:{node.lineno}")
    return loops


def _attributes(node: ast.AST) -> set[str]:
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def name_parses() -> int:
    """How often one ``discover`` on ioi-mini (479 edges, 16 pairs) looks an edge's name up."""
    from wiremap.circuits import discover, load_task
    from wiremap.edges import Model
    from wiremap.edges.names.graph import ModelGraph

    count, parse = 0, ModelGraph.edge

    def counting(self: ModelGraph, name: str) -> object:
        nonlocal count
        count += 1
        return parse(self, name)

    model = Model.load("ioi-mini")
    pairs = load_task("ioi", model, n_pairs=16)
    ModelGraph.edge = counting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        discover(model, pairs)
    finally:
        ModelGraph.edge = parse
    return count


def rows(root: Path, run: bool) -> Iterator[tuple[str, str, str]]:
    """What is counted, what came out, and what it shall be."""
    of_floor = {floor: sorted((root / floor).rglob("*.py")) for floor in FLOORS}
    every = [path for paths in of_floor.values() for path in paths]
    measured = {
        floor: [one for path in paths for one in functions(path)]
        for floor, paths in of_floor.items()
    }
    library = [one for floor in _LIBRARY for one in measured[floor]]
    command = measured["cli"]
    for name, part, limit in (("library", library, 3), ("cli", command, 8)):
        share = 100 * sum(one.n_parameters > 5 for one in part) / len(part)
        yield (
            f"functions of {name} with more than five parameters",
            f"{share:.1f} %",
            f"< {limit} %",
        )
    hardest = max([*library, *command], key=lambda one: one.complexity)
    yield "largest complexity", f"{hardest.complexity} ({hardest.where})", "<= 20"
    longest = max(command, key=lambda one: one.n_lines)
    yield "longest function of cli", f"{longest.n_lines} lines ({longest.where})", ""
    n_lines = sum(len(path.read_text().splitlines()) for path in of_floor["cli"])
    share = 1e4 * len(repeats(of_floor["cli"])) / n_lines
    yield "repeats in cli, per 10,000 lines", f"{share:.0f}", "< 15"
    loops = loops_over_pairs(every)
    yield "loops over batches of pairs", f"{len(loops)} ({', '.join(loops)})", "1"
    yield "comment lines per line of code", f"{100 * comment_share(every):.1f} %", "3 to 6 %"
    largest = max(every, key=lambda path: len(path.read_text().splitlines()))
    yield "longest file", f"{len(largest.read_text().splitlines())} lines ({largest})", ""
    if run:
        yield "names of edges parsed in one discover", f"{name_parses():,}", "< 1,000"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", nargs="?", default=".", type=Path)
    parser.add_argument("--no-run", action="store_true", help="read files, run nothing")
    options = parser.parse_args()
    print("| | is | shall be |\n|---|---|---|")
    for row in rows(options.directory, not options.no_run):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    sys.exit(main())
