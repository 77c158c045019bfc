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

import safetensors
import safetensors.torch
import torch

from ..edges.atpstar import NodeScores
from ..edges.attribution import EdgeScores, existing_edges
from ..edges.crossing import Crossings
from ..edges.errors import InputError
from ..edges.files import read_text, write_atomically
from ..edges.graph import ModelGraph
from ..edges.nodes import NodeSet
from ..edges.refinement import SplitScores
from .document import check_version, field, loads, shape_from

_RUN_FORMAT = "wiremap-run"
_SCORES_FORMAT = "wiremap-scores"
VERSION = "1.0"
SCORES_FILE = "scores.safetensors"
EFFECTS_FILE = "effects.jsonl"


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
                f"{self.path} is not empty and holds no wiremap run; choose another directory (-o)"
            )
        if not resume:
            raise InputError(
                f"{self.path} already holds a run; go on with it (--resume), or choose another "
                "directory (-o)"
            )
        found = read_run(self._run_file)
        wanted, there = self.record["question"], found["question"]
        changed = list(_differences(there, wanted))
        if changed:
            raise InputError(
                f"{self.path} holds the run of another question: {'; '.join(changed[:6])}. "
                "Ask the same again, or choose another directory (-o)"
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
        one, other = cast("dict[str, Any]", there), cast("dict[str, Any]", wanted)
        for key in sorted({*one, *other}):
            if f"{where}.{key}" in (".model.name", ".task.pairs"):
                continue  # the same content may lie elsewhere: sha256 tells
            yield from _differences(one.get(key), other.get(key), f"{where}.{key}")
    elif there != wanted:
        yield f"{where[1:]} was {there!r:.80}, now {wanted!r:.80}"


# ---- scores.safetensors


def write_scores(
    path: Path,
    question: Mapping[str, Any],
    *scores: NodeScores | EdgeScores | SplitScores | Crossings,
) -> None:
    """Scores of nodes, edges or parts, with what names their axes and the question they answer."""
    described: dict[str, Any] = {
        "format": _SCORES_FORMAT,
        "schema_version": VERSION,
        "question": question,
    }
    tensors: dict[str, torch.Tensor] = {}
    for table in scores:
        if isinstance(table, NodeScores):
            nodes = table.nodes
            described["shape"] = nodes.graph.as_dict()
            described["nodes"] = {
                "families": nodes.families,
                "d_mlp": nodes.d_mlp,
                "n_pos": nodes.n_pos,
                "method": table.method,
                "gradient": table.gradient,
                "unsigned": table.unsigned,
            }
            tensors["node_scores"] = table.scores.cpu()
            tensors["node_contributions"] = table.contributions.cpu()
        elif isinstance(table, SplitScores):
            described.setdefault("splits", {})[table.node] = table.parts
            tensors[f"{table.node}_outgoing"] = table.outgoing.cpu()
            tensors[f"{table.node}_incoming"] = table.incoming.cpu()
        elif isinstance(table, Crossings):
            described["crossings"] = table.edges
            tensors["crossings"] = table.scores.cpu()
        else:
            described["shape"] = table.graph.as_dict()
            described["edges"] = {
                "gradient": table.gradient,
                "reader": table.reader,
                "unsigned": table.unsigned,
                "positions": table.positions,
            }
            if table.by_position is not None:
                tensors["edge_scores_by_position"] = table.by_position.cpu()
            if table.exact is not None:
                tensors["edge_scores_exact"] = table.exact.cpu()
            described["writers"] = [writer.name for writer in table.graph.writers]
            described["readers"] = [reader.name for reader in table.graph.readers]
            tensors["edge_scores"] = table.scores.cpu()
    # One entry only: safetensors does not keep the order of several.
    metadata = {"wiremap": json.dumps(described, allow_nan=False)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def read_scores(path: Path) -> tuple[NodeScores | None, EdgeScores | None, dict[str, Any]]:
    """What ``write_scores`` wrote. Raises InputError if it is something else."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    except (OSError, safetensors.SafetensorError) as error:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        raise InputError(f"{path}: cannot be read as scores: {error}") from None
    try:
        described = loads(metadata.get("wiremap", "null"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(described, dict) or described.get("format") != _SCORES_FORMAT:
        raise InputError(
            f"{path}: expected scores written by wiremap, got another safetensors file"
        )
    try:
        check_version(field(described, "schema_version", str), VERSION)
        graph = shape_from(field(described, "shape", dict))
        question = field(described, "question", dict)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    nodes = edges = None
    try:
        if "edge_scores" in tensors:
            edges = _read_edges(graph, described, tensors)
        if "node_scores" in tensors:
            told = field(described, "nodes", dict)
            n_pos, d_mlp = told.get("n_pos"), field(told, "d_mlp", int, "nodes")
            families = tuple(map(str, field(told, "families", list, "nodes")))
            node_set = NodeSet(graph, d_mlp, families, None if n_pos is None else int(n_pos))
            every = torch.ones(len(node_set), dtype=torch.bool)
            nodes = NodeScores(
                node_set,
                _checked(tensors, "node_scores", every),
                _checked(tensors, "node_contributions", every),
                field(told, "method", str, "nodes"),
                field(told, "gradient", str, "nodes"),
                field(told, "unsigned", bool, "nodes"),
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return nodes, edges, cast("dict[str, Any]", question)


def _read_edges(
    graph: ModelGraph, described: dict[str, Any], tensors: Mapping[str, torch.Tensor]
) -> EdgeScores:
    exists = existing_edges(graph)
    told = field(described, "edges", dict)
    positions = tuple(map(str, field(told, "positions", list, "edges")))
    by_position = None
    if positions:
        wanted = exists.expand(len(positions), *exists.shape)
        by_position = _checked(tensors, "edge_scores_by_position", wanted)
    exact = tensors.get("edge_scores_exact")
    if exact is not None and (exact.dtype, exact.shape) != (torch.bool, exists.shape):
        raise InputError(
            f"expected edge_scores_exact as booleans of shape {tuple(exists.shape)}, got "
            f"{exact.dtype} of shape {tuple(exact.shape)}"
        )
    return EdgeScores(
        graph,
        _checked(tensors, "edge_scores", exists),
        by_position=by_position,
        positions=positions,
        unsigned=field(told, "unsigned", bool, "edges"),
        gradient=field(told, "gradient", str, "edges"),
        reader=field(told, "reader", str, "edges"),
        exact=exact,
    )


def _checked(tensors: Mapping[str, torch.Tensor], name: str, exists: torch.Tensor) -> torch.Tensor:
    """A table of scores: finite where something exists, nan elsewhere. Raises InputError if not."""
    if name not in tensors or tensors[name].shape != exists.shape:
        came = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise InputError(f"expected {name} of shape {tuple(exists.shape)}, got {came}")
    table = tensors[name]
    if not bool(table[exists].isfinite().all()) or not bool(table[~exists].isnan().all()):
        raise InputError(f"expected finite {name}, and nan where no edge is")
    return table
