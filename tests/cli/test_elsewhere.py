"""Files of circuits and graphs that come from elsewhere, in every command that takes a circuit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx
import pytest
from command import done, refused, told, wiremap

from wiremap.circuits import Circuit, CircuitEdge, load_task
from wiremap.edges import InputError, Model, ModelGraph, patch_edges
from wiremap.exporters import read_circuit, write_circuit
from wiremap.exporters.hypotheses import read_claim

PER_QUERY = ModelGraph(4, 8, 8)  # of tasks-mini, whose 8 query heads share 4 keys and values
GROUPED = ModelGraph(4, 8, 4)
ON_TASKS = ("--model", "tasks-mini", "--task", "induction", "--n-pairs", "8")
ON_IOI = ("--model", "ioi-mini", "--task", "ioi", "--n-pairs", "8")
FAST = ("--repeats", "1", "--random-circuits", "0", "--leave-out")
EDGES = (
    CircuitEdge("input", "a0.h5", "v", 0.5),
    CircuitEdge("a0.h5", "a1.h3", "k", -0.25),
    CircuitEdge("input", "m0", None, 2.0),
    CircuitEdge("a1.h3", "logits", None, 1.5),
)


# ---- circuits of models whose query heads share keys and values


def of_eap_ig(path: Path, **cfg: Any) -> Path:
    """As EAP-IG writes it; a cfg may say more."""
    write_circuit(Circuit.build(PER_QUERY, EDGES, model={"d_model": 128}), path, "eap-ig")
    document = json.loads(path.read_text())
    document["cfg"] |= cfg
    path.write_text(json.dumps(document))
    return path


def of_csv(path: Path) -> Path:
    write_circuit(Circuit.build(PER_QUERY, EDGES), path, "edges-csv")
    return path


def of_own_csv(path: Path) -> Path:
    rows = [f"{edge.source},{edge.target},{edge.slot or ''}" for edge in EDGES]
    path.write_text("\n".join(["source,target,slot", *rows, ""]))
    return path


PER_QUERY_FILES: dict[str, Callable[[Path], Path]] = {
    "EAP-IG, cfg of older versions": of_eap_ig,
    "EAP-IG, cfg with groups": lambda path: of_eap_ig(
        path, n_key_value_heads=4, ungroup_grouped_query_attention=True
    ),
    "edges-csv": of_csv,
    "a table": of_own_csv,
}


@pytest.mark.parametrize("kind", PER_QUERY_FILES)
def test_circuits_with_a_reader_for_each_query_head_are_evaluated(
    kind: str, tmp_path: Path
) -> None:
    path = PER_QUERY_FILES[kind](tmp_path / "circuit.x")
    found = told("evaluate", path, *ON_TASKS)
    assert found["edges_in_model"] == PER_QUERY.n_edges
    assert found == told("evaluate", path, *ON_TASKS, "--kv", "per-query")
    assert told("scrub", path, *ON_TASKS, *FAST)["edges_in_model"] == PER_QUERY.n_edges
    error = refused("evaluate", path, *ON_TASKS, "--kv", "grouped")
    assert "--kv per-query" in error
    assert "--kv per-query" in refused("scrub", path, *ON_TASKS, *FAST, "--kv", "grouped")


def test_circuits_with_a_reader_for_each_key_value_head_are_as_before(tmp_path: Path) -> None:
    edges = (CircuitEdge("input", "a0.kv1", "v", 1.0), CircuitEdge("a0.h2", "logits", None, 1.0))
    path, table = tmp_path / "circuit.json", tmp_path / "own.csv"
    write_circuit(Circuit.build(GROUPED, edges), path)
    table.write_text("source,target\ninput,a0.kv1<v>\na0.h2,logits\n")
    for file in (path, table):
        assert told("evaluate", file, *ON_TASKS)["edges_in_model"] == GROUPED.n_edges
        assert "--kv grouped" in refused("evaluate", file, *ON_TASKS, "--kv", "per-query")
    both = of_csv(tmp_path / "other.csv")
    assert "(--kv per-query), the other for each" in refused("compare", path, both)


def test_a_table_of_both_names_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("source,target\ninput,a0.kv1<v>\ninput,a0.h2<k>\n")
    error = refused("evaluate", table, *ON_TASKS)
    assert "got both: input->a0.kv1<v> and input->a0.h2<k>" in error


def test_groups_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = of_eap_ig(tmp_path / "circuit.json", n_key_value_heads=3)
    assert "expected a divisor of n_heads, which is 8, got 3" in refused(
        "evaluate", path, *ON_TASKS
    )


@pytest.mark.parametrize(
    ("shape", "name", "kv"),
    [(GROUPED, "input->a0.h1<k>", "per-query"), (PER_QUERY, "input->a0.kv1<v>", "grouped")],
)
def test_names_of_the_other_kv_are_explained(shape: ModelGraph, name: str, kv: str) -> None:
    with pytest.raises(InputError, match=f"--kv {kv}"):
        shape.edge(name)


# ---- tables and graphs that other programs wrote

NUMBERED: dict[str, str] = {"input": "n0", "a0.h3": "n1", "logits": "n2"}


def graph(weight: str = "weight", numbered: bool = False) -> networkx.DiGraph[str]:
    """Two edges with a weight of either sign; nodes named, or numbered with names as labels."""
    made: networkx.DiGraph[str] = networkx.DiGraph()
    ids = NUMBERED if numbered else {name: name for name in NUMBERED}
    for name, key in ids.items():
        made.add_node(key, label=name)
    made.add_edge(ids["input"], ids["a0.h3"], slot="v", **{weight: 2.0})
    made.add_edge(ids["a0.h3"], ids["logits"], slot="", **{weight: -1.5})
    return made


def parallel() -> networkx.MultiDiGraph[str]:
    """Slots as the keys of a multigraph, and whole numbers as weights."""
    made: networkx.MultiDiGraph[str] = networkx.MultiDiGraph()
    made.add_edge("input", "a0.h3", key="v", weight=2)
    made.add_edge("a0.h3", "logits", key="", weight=-3)
    return made


def node_link(made: Any, path: Path, **edges: str) -> None:
    path.write_text(json.dumps(networkx.node_link_data(made, **edges)))


def cytoscape(made: Any, path: Path) -> None:
    path.write_text(json.dumps(networkx.cytoscape_data(made)))


def records(made: Any, path: Path) -> None:
    rows = [{"source": a, "target": b, **data} for a, b, data in made.edges(data=True)]
    path.write_text(json.dumps(rows))


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "graphml": networkx.write_graphml,
    "gexf": networkx.write_gexf,
    "node-link": lambda made, path: node_link(made, path, edges="edges"),
    "links": lambda made, path: node_link(made, path, edges="links"),
    "cytoscape": cytoscape,
}
GRAPHS: dict[str, Callable[[], Any]] = {
    "named": graph,
    "numbered": lambda: graph(numbered=True),
    "by attribution": lambda: graph("attribution"),
    "parallel": parallel,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_of_networkx_are_tables_of_edges(writer: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "own.x"
    made = GRAPHS[kind]()
    WRITERS[writer](made, path)
    found = read_claim(path).circuit(ModelGraph(4, 4, 4))
    assert [edge.name for edge in found.edges] == ["input->a0.h3<v>", "a0.h3->logits"]
    assert [edge.score for edge in found.edges] == ([2, -3] if kind == "parallel" else [2.0, -1.5])


def tables(directory: Path) -> dict[str, Path]:
    """The same two edges as CSV, TSV, records, GraphML and GEXF."""
    header, rows = ("source", "target", "slot", "weight"), [
        ("input", "a0.h3", "v", "2.0"),
        ("a0.h3", "logits", "", "-1.5"),
    ]  # fmt: skip
    paths = {name: directory / f"own.{name}" for name in ("csv", "tsv", "json", "graphml", "gexf")}
    for name, separator in (("csv", ","), ("tsv", "\t")):
        lines = (separator.join(row) for row in (header, *rows))
        paths[name].write_text("\n".join(lines) + "\n")
    records(graph(), paths["json"])
    networkx.write_graphml(graph(), paths["graphml"])
    networkx.write_gexf(graph(), paths["gexf"])
    return paths


def test_every_command_takes_every_table(tmp_path: Path) -> None:
    paths = tables(tmp_path)
    evaluated, scrubbed, exported = [], [], []
    for name, path in paths.items():
        evaluated.append(told("evaluate", path, *ON_IOI))
        scrubbed.append(told("scrub", path, *ON_IOI, *FAST))
        out = tmp_path / f"of-{name}.json"
        done("export", path, "--to", "json", "-o", out, "--model", "ioi-mini")
        exported.append(read_circuit(out))
        same = told("compare", out, path)
        assert (same["jaccard"], same["weighted_jaccard"]) == (1.0, 1.0)
        done("view", path, "--model", "ioi-mini", "--no-open", "-o", tmp_path / f"{name}.html")
    for results in (evaluated, scrubbed, exported):
        assert all(result == results[0] for result in results)
    assert [edge.score for edge in exported[0].edges] == [2.0, -1.5]
    assert evaluated[0]["edges"] == 2


def test_what_a_table_is_read_as_is_said(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("source,target,saliency,p\ninput,m0,2,0.5\nm0,logits,-3,0.25\n")
    note = done("evaluate", path, *ON_IOI).stderr
    assert "a table of 2 edges, without scores; not read: saliency, p (--weight)" in note
    out = tmp_path / "circuit.json"
    asked = ("--to", "json", "-o", out, "--model", "ioi-mini", "--weight", "Saliency")
    assert "scores are its 'saliency'" in done("export", path, *asked).stderr
    assert [edge.score for edge in read_circuit(out).edges] == [2.0, -3.0]
    assert "got source, target, saliency, p" in refused(
        "export", path, *asked[:-1], "loss", "--force"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,target,weight,importance\ninput,m0,1,2\n", "got weight and importance"),
        ("source,target,slot\ninput,a0.h3,\n", "expected a slot, q, k or v"),
        ("source,target\nResid Start,m0\n", "expected nodes named like input"),
        ("source,target,weight\ninput,m0,nan\n", "line 2 (input->m0): expected weight to be a fi"),
        ("source,target\ninput,m9\n", "unknown reader 'm9'"),
    ],
)
def test_tables_with_something_missing_say_what(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    for command in (("evaluate", *ON_IOI), ("export", "--to", "json", "--model", "ioi-mini")):
        error = refused(command[0], path, *command[1:])
        assert message in error.partition("Error: ")[2]
        assert str(path) in error


@pytest.mark.parametrize("writer", WRITERS)
def test_graphs_without_a_direction_or_edges_are_refused(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "own.x"
    WRITERS[writer](networkx.Graph(graph()), path)
    with pytest.raises(InputError, match="write a DiGraph"):
        read_claim(path)
    WRITERS[writer](networkx.DiGraph(), path)
    with pytest.raises(InputError, match="expected a graph with edges, got none"):
        read_claim(path)


def test_weights_that_are_no_numbers_are_named_by_edge(tmp_path: Path) -> None:
    made = graph()
    made["input"]["a0.h3"]["weight"] = float("nan")
    path = tmp_path / "own.graphml"
    networkx.write_graphml(made, path)
    with pytest.raises(InputError, match="edge input->a0.h3: expected weight to be a finite"):
        read_claim(path)


def test_a_circuit_that_gephi_saved_is_a_table(tmp_path: Path) -> None:
    """Gephi drops what the whole graph says; the edges say what is needed."""
    shape, path = ModelGraph(2, 2, 2), tmp_path / "circuit.graphml"
    edges = [
        CircuitEdge("input", "a0.h0", slot, score)
        for slot, score in zip("qv", (1.0, -2.0), strict=True)
    ]
    made = Circuit.build(shape, [*edges, CircuitEdge("a0.h0", "logits", None, 0.5)])
    write_circuit(made, path)
    path.write_text(path.read_text().replace('attr.name="shape"', 'attr.name="shade"'))
    assert read_claim(path).circuit(shape).edges == made.edges


def test_a_table_without_a_model_says_so(tmp_path: Path) -> None:
    path = tables(tmp_path)["graphml"]
    for command in (("export", path, "--to", "svg"), ("compare", path, path), ("view", path)):
        result = wiremap(*command)
        assert result.exit_code == 2
        assert "name the model (--model)" in " ".join(result.stderr.split())


# ---- signs that a format does not explain


def signed(directory: Path, sign: int) -> dict[str, Path]:
    """Edges of ioi-mini with their measured effects, times a sign, as files that do not say whose."""
    model = Model.load("ioi-mini")
    names = ["input->a0.h3<v>", "a0.h3->logits", "input->a3.h0<v>", "a3.h0->logits"]
    effects = patch_edges(model, load_task("ioi", model, 8), names).effects.mean(1).tolist()
    edges = [
        CircuitEdge(source, *ends(target), score=sign * effect)
        for (source, _, target), effect in zip(
            (name.partition("->") for name in names), effects, strict=True
        )
    ]
    circuit = Circuit.build(model.graph, edges, {"input": 1.0}, model={"d_model": 64})
    made: Any = networkx.MultiDiGraph()
    for edge in edges:
        made.add_edge(edge.source, edge.target, key=edge.slot or "", weight=edge.score)
    paths = {name: directory / f"{name}-{sign}.x" for name in ("eap-ig", "graphml")}
    write_circuit(circuit, paths["eap-ig"], "eap-ig")
    networkx.write_graphml(made, paths["graphml"])
    return paths


def ends(target: str) -> tuple[str, Any]:
    node, _, slot = target.partition("<")
    return node, slot.removesuffix(">") or None


def test_signs_are_said_to_be_unsaid_and_are_checked(tmp_path: Path) -> None:
    right, wrong = (signed(tmp_path, sign) for sign in (1, -1))
    for kind in right:
        good = done("evaluate", right[kind], *ON_IOI).stderr
        assert "does not say what the sign of a score means" in good
        assert "contradict" not in good
        bad = done("evaluate", wrong[kind], *ON_IOI).stderr
        assert "contradict what was measured: of the 4 largest 4 have" in bad
        assert "turn them (--flip-signs)" in bad
        turned = done("evaluate", wrong[kind], *ON_IOI, "--flip-signs").stderr
        assert "contradict" not in turned
        assert "does not say" not in turned
        document = told("evaluate", wrong[kind], *ON_IOI)
        assert (document["signs"]["agree"], document["signs"]["opposite"]) == (False, 4)
        back = done("evaluate", right[kind], *ON_IOI, "--flip-signs").stderr
        assert "leave --flip-signs out" in back


def test_signs_are_turned_in_every_command(tmp_path: Path) -> None:
    path = signed(tmp_path, -1)["eap-ig"]
    out = tmp_path / "circuit.json"
    done("export", path, "--to", "json", "-o", out, "--flip-signs")
    turned, before = read_circuit(out), read_circuit(path)
    assert [edge.score for edge in turned.edges] == [-(e.score or 0) for e in before.edges]
    assert [node.score for node in turned.nodes][:2] == [-1.0, None]
    same = told("compare", path, path, "--flip-signs")
    assert same["sign_flips"] == []
    assert len(told("compare", path, out)["sign_flips"]) == len(before.edges)


def test_measured_effects_and_sets_keep_their_signs(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    edge = CircuitEdge("input", "m0", None, 1.0, effect=1.0, n_pairs=2)
    write_circuit(Circuit.build(PER_QUERY, [edge]), path)
    error = refused("export", path, "--to", "svg", "--flip-signs")
    assert "here effects were measured, such as that of input->m0" in error
    write_circuit(Circuit.build(PER_QUERY, [CircuitEdge("input", "m0")]), path)
    assert "no edge has any" in refused("export", path, "--to", "svg", "--flip-signs")
