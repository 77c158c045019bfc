"""``scores.safetensors``: scores of nodes, edges and parts, with what names their axes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch

from ...edges.errors import InputError
from ...edges.files import write_atomically
from ...edges.names.graph import Edge, ModelGraph
from ...edges.names.nodes import NodeSet
from ...edges.runs.masks import full_mask
from ...edges.scores.crossing import Crossings
from ...edges.scores.edge_scores import EdgeScores
from ...edges.scores.node_scores import NodeScores
from ...edges.scores.refinement import SplitScores
from ..result.document import check_version, loads, shape_from
from ..result.values import field
from .run_directory import VERSION

_SCORES_FORMAT = "wiremap-scores"


SCORES_FILE = "scores.safetensors"


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
            # The axes by name, for other readers of the file; wiremap makes them from the shape.
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
            section = field(described, "nodes", dict)
            n_pos, d_mlp = section.get("n_pos"), field(section, "d_mlp", int, "nodes")
            families = tuple(map(str, field(section, "families", list, "nodes")))
            node_set = NodeSet(graph, d_mlp, families, None if n_pos is None else int(n_pos))
            # Every node has a score; in a table of writers and readers not every entry is an edge.
            every = torch.ones(len(node_set), dtype=torch.bool)
            nodes = NodeScores(
                node_set,
                _checked(tensors, "node_scores", every),
                _checked(tensors, "node_contributions", every),
                field(section, "method", str, "nodes"),
                field(section, "gradient", str, "nodes"),
                field(section, "unsigned", bool, "nodes"),
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return nodes, edges, cast("dict[str, Any]", question)


def _read_edges(
    graph: ModelGraph, described: dict[str, Any], tensors: Mapping[str, torch.Tensor]
) -> EdgeScores:
    exists = full_mask(graph)
    section = field(described, "edges", dict)
    positions = tuple(map(str, field(section, "positions", list, "edges")))
    by_position = None
    if positions:
        # [writer reader] -> [position writer reader]
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
        _checked(tensors, "edge_scores", exists, graph),
        by_position=by_position,
        positions=positions,
        unsigned=field(section, "unsigned", bool, "edges"),
        gradient=field(section, "gradient", str, "edges"),
        reader=field(section, "reader", str, "edges"),
        exact=exact,
    )


def _checked(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    exists: torch.Tensor,
    graph: ModelGraph | None = None,
) -> torch.Tensor:
    """A table of scores: finite where something exists, nan elsewhere. Raises InputError if not.

    Args:
        graph: names the edge in the error, where the table is of edges.
    """
    if name not in tensors or tensors[name].shape != exists.shape:
        came = tuple(tensors[name].shape) if name in tensors else "nothing"
        raise InputError(f"expected {name} of shape {tuple(exists.shape)}, got {came}")
    table = tensors[name]
    strange = (exists & ~table.isfinite()).nonzero().tolist()
    if strange and graph is not None:
        edge = Edge(*strange[0])
        raise InputError(
            f"expected finite {name}, got {table[edge].item()} for {graph.edge_name(edge)}"
            + (f" and {len(strange) - 1:,} more" if len(strange) > 1 else "")
        )
    if not bool(table[exists].isfinite().all()) or not bool(table[~exists].isnan().all()):
        raise InputError(f"expected finite {name}, and nan where no edge is")
    return table
