"""The vocabulary: what it lists is what the library takes, and nothing of it stands elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from wiremap.circuits import TASKS, load_task
from wiremap.circuits.choice.rules import Rules
from wiremap.circuits.evidence import evaluation
from wiremap.circuits.result.hypothesis import check_settings
from wiremap.circuits.zoo import build_tokenizer
from wiremap.cli.main import COMMANDS, main
from wiremap.edges import EdgeScores, InputError, Model, Tokenizer, patch_edges, score_edges
from wiremap.edges.names import vocabulary as words
from wiremap.edges.names.nodes import FAMILIES
from wiremap.edges.question import metrics
from wiremap.edges.question.question import check_direction
from wiremap.edges.question.source import Source
from wiremap.edges.question.spans import position_labels
from wiremap.edges.scores import node_scores
from wiremap.edges.scores.baselines import rank_nodes
from wiremap.edges.scores.edge_scores import check_reader
from wiremap.edges.scores.reader_rules import READER_RULES
from wiremap.edges.scores.rules.integrated import Integrated
from wiremap.edges.scores.rules.registry import resolve_gradient
from wiremap.exporters import View

MODEL = tiny.model("gpt2")
PAIRS = tiny.pairs(2, 4)
TOKENIZER = Tokenizer(build_tokenizer([TASKS["induction"]]), bos=True)
SPANNED = replace(PAIRS, features=({"spans": {"a": [0, 2]}},) * 2)


def aggregated(aggregate: str) -> Any:
    scores = score_edges(MODEL, PAIRS, gradient="clean", positions="each")
    assert isinstance(scores, EdgeScores)
    return scores.top(1, aggregate=aggregate)


def of_nodes(**options: Any) -> Any:
    return node_scores.score_nodes(MODEL, PAIRS, "mlps", **options)


LISTS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "directions": (words.DIRECTIONS, check_direction),
    "metrics": (words.METRICS, lambda word: metrics.resolve_metric(word, True)),
    "gradients": (
        tuple(words.GRADIENTS),
        lambda word: resolve_gradient(word, direction="noising", metric="logit_diff"),
    ),
    "schedules": (words.SCHEDULES, lambda word: Integrated(2, word)),
    "readers": (words.READERS, lambda word: check_reader(word, None, MODEL.graph)),
    "positions": (words.POSITIONS, lambda word: position_labels(SPANNED, word)),
    "positions of nodes": (words.NODE_POSITIONS, lambda word: of_nodes(positions=word)),
    "aggregates of edges": (words.EDGE_AGGREGATES, aggregated),
    "aggregates of nodes": (words.NODE_AGGREGATES, lambda word: of_nodes().top(aggregate=word)),
    "methods": (words.METHODS, lambda word: of_nodes(method=word)),
    "baselines": (
        words.BASELINES,
        lambda word: rank_nodes(MODEL, PAIRS, "mlps", method=word, n_samples=8, probability=0.5),
    ),
    "parts": (words.PARTS, lambda word: load_task("induction", TOKENIZER, 2, part=word)),
    "kv": (words.KV, lambda word: Model(tiny.bridge(tiny.hf_model("llama-gqa")), kv=word)),
    "frozen": (words.FROZEN, lambda word: patch_edges(MODEL, PAIRS, ["m0->logits"], frozen=word)),
    "sources": (words.PATCH_KINDS, Source),
    "prune": (words.PRUNE, lambda word: Rules(size=1, prune=word).check()),
    "schemes": (words.SCHEMES, lambda word: check_settings(word, "any", 1, None)),
    "others": (
        (*words.OTHERS, f"{words.FEATURE}column"),
        lambda word: check_settings("together", word, 1, None),
    ),
    "qkv": (words.QKV, lambda word: View(qkv=word)),
    "collapse": (words.COLLAPSE, lambda word: View(collapse=word, groups={"role": ["m0"]})),
    "families": (words.NODES, lambda word: node_scores.score_nodes(MODEL, PAIRS, word)),
}


def test_every_reader_rule_has_its_word() -> None:
    assert tuple(READER_RULES) == words.READERS


@pytest.mark.parametrize("name", LISTS)
def test_every_word_is_taken_and_no_other(name: str) -> None:
    listed, taken_by = LISTS[name]
    assert len(set(listed)) == len(listed) > 1
    for word in listed:
        taken_by(word)
    with pytest.raises(InputError, match=r"nonsense'?"):
        taken_by("nonsense")


def test_registries_have_the_words_of_the_vocabulary() -> None:
    assert tuple(metrics.METRICS) == words.METRICS
    assert tuple(node_scores.METHODS) == words.METHODS
    assert set(words.NODES) <= set(FAMILIES)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in words.DTYPES)
    for name in words.DOCUMENTS:
        assert files("wiremap.circuits").joinpath(f"{name}.schema.json").is_file()
    for name in evaluation.SECTIONS:
        assert callable(getattr(evaluation.Evaluation, name))


def test_every_name_of_a_column_is_in_the_documentation() -> None:
    told = Path(__file__).parent.parent.joinpath("docs", "pairs.md").read_text()
    listed = {**words.PROMPT_COLUMNS, **words.WRONG_BESIDE, **words.WRONG_IDS_BESIDE}
    names = {name for names in listed.values() for name in names} | {*listed}
    for name in {*names, *words.RECORDS_UNDER, *words.SEPARATORS.values(), *words.BOS_TEXTS}:
        assert name in told, name


def test_what_stands_without_a_word_is_one_of_them() -> None:
    for usual, listed in (
        (words.DTYPE, words.DTYPES), (words.DEVICE, words.DEVICES), (words.GROUPED, words.KV),
        (words.METRIC, words.METRICS), (words.DIRECTION, words.DIRECTIONS),
        (words.SCHEDULE, words.SCHEDULES), (words.READER, words.READERS),
        (words.SUMMED, words.NODE_POSITIONS), (words.EDGE_AGGREGATE, words.EDGE_AGGREGATES),
        (words.NODE_AGGREGATE, words.NODE_AGGREGATES), (words.BASELINE, words.BASELINES),
        (words.NOTHING, words.FROZEN), (words.OTHER_RUN, words.PATCH_KINDS),
        (words.SCHEME, words.SCHEMES), (words.OTHER, words.OTHERS), (words.PART, words.PARTS),
        (words.HELD_OUT, words.PARTS),
    ):  # fmt: skip
        assert usual in listed


# ---- nothing of it stands elsewhere

OPTIONS = {
    "metric", "direction", "steps", "schedule", "reader", "kv", "frozen", "positions", "scheme",
    "other", "repeats", "n_pairs", "n_samples", "confidence", "noise_scale", "noise_seeds", "target",
    "max_tree", "device",
}  # fmt: skip


def modules(floor: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(Path(str(files(f"wiremap.{floor}"))).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def defaults(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Parameters and fields with what stands if they are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            places = [*node.args.posonlyargs, *node.args.args]
            last = places[len(places) - len(node.args.defaults) :]
            yield from zip((each.arg for each in last), node.args.defaults, strict=True)
            for each, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                if value is not None:
                    yield each.arg, value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


@pytest.mark.parametrize("floor", ["edges", "circuits", "exporters"])
def test_defaults_of_the_library_are_the_vocabularys(floor: str) -> None:
    for path, tree in modules(floor):
        if path.name == "zoo.py":  # recipes of the bundled models have numbers of their own
            continue
        for name, value in defaults(tree):
            literal = isinstance(value, ast.Constant) and type(value.value) in (str, int, float)
            assert not (name in OPTIONS and literal), f"{path}: {name} = {ast.unparse(value)}"


def literals(tree: ast.Module) -> Iterator[str]:
    """Lists of choices and defaults that are written out in a module of commands."""
    shown = [
        text
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for text in ast.walk(node)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            choice = ast.unparse(node.func).endswith(("Choice", "choice"))
            for argument in node.args:
                if choice and isinstance(argument, ast.List | ast.Tuple):
                    yield from (ast.unparse(word) for word in argument.elts if is_word(word))
            yield from (
                ast.unparse(word.value)
                for word in node.keywords
                if word.arg == "default" and is_word(word.value)
            )
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and node not in shown:
            yield from (ast.unparse(value) for value in node.values if is_default(value))


def is_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is not None


def is_default(node: ast.expr) -> bool:
    """A number, or a word of the vocabulary's lists."""
    if not isinstance(node, ast.Constant):
        return False
    known = {word for listed, _ in LISTS.values() for word in listed}
    return node.value in known or (isinstance(node.value, int | float) and node.value != 0)


def test_no_list_and_no_default_is_written_out_in_a_command() -> None:
    found = {path.name: [*literals(tree)] for path, tree in modules("cli")}
    assert {name: words for name, words in found.items() if words} == {}


def test_the_test_above_sees_literals() -> None:
    code = """
@click.option("--a", type=click.Choice(["x", "y"]), default="x")
@options.choice("--b", ("z", *MORE))
def command(a, b):
    return a or 10, b or "noising"
"""
    assert [*literals(ast.parse(code))] == ["'x'", "'z'", "10", "'noising'", "'x'", "'y'"]


def test_every_command_is_there_under_its_name() -> None:
    assert list(main.commands) == list(COMMANDS)
