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
from wiremap.circuits.record.scores_file import read_scores, write_scores
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


def test_a_table_becomes_a_circuit_of_its_model(tmp_path: Path) -> None:
    path, out = tables(tmp_path)["csv"], tmp_path / "out.eap-ig.json"
    done("export", path, "--to", "eap-ig", "-o", out, "--model", "ioi-mini")
    assert json.loads(out.read_text())["cfg"]["d_model"] == 64
    done("export", path, "--to", "json", "-o", tmp_path / "out.json", "--model", "ioi-mini")
    assert read_circuit(tmp_path / "out.json").model["name"] == "ioi-mini"
    assert told("evaluate", tmp_path / "out.json", *ON_IOI[2:])["edges"] == 2


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
        CircuitEdge("input", "a0.h0", "q", 1.0),
        CircuitEdge("input", "a0.h0", "v", -2.0),
        CircuitEdge("a0.h0", "logits", None, 0.5),
    ]
    made = Circuit.build(shape, edges)
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


# ---- scores alone


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same scores of ioi-mini's edges as wiremap, MIB and a table have them."""
    directory = tmp_path_factory.mktemp("scores")
    own = directory / "own.safetensors"
    done("score", "edges", *ON_IOI, "-o", own, "--importances")
    mib = directory / "own.importances.json"
    edges = json.loads(mib.read_text())["edges"]
    table = directory / "all.csv"
    rows = []
    for name, entry in edges.items():
        source, _, target = name.partition("->")
        node, slot = ends(target)
        rows.append(f"{source},{node},{slot or ''},{entry['score']}")
    table.write_text("\n".join(["source,target,slot,score", *rows, ""]))
    folder = directory / "run"
    folder.mkdir()
    (folder / "scores.safetensors").write_bytes(own.read_bytes())
    return {"own": own, "mib": mib, "table": table, "directory": folder}


def test_scores_alone_are_ranked(scored: dict[str, Path]) -> None:
    curves = {
        name: told("evaluate", path, "--curve", *ON_IOI)["curve"] for name, path in scored.items()
    }
    for name in ("mib", "table", "directory"):
        for of in ("cpr", "cmd"):
            assert curves[name][of] == pytest.approx(curves["own"][of], rel=1e-6)
    # wiremap's own says which model and pairs it is of.
    assert told("evaluate", scored["own"], "--curve")["curve"] == curves["own"]
    shown = done("evaluate", scored["mib"], "--curve", *ON_IOI)
    assert "scores of 479 of 479 edges" in shown.stdout
    assert "CPR" in shown.stdout


def test_the_largest_scores_are_a_circuit(scored: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for name, path in scored.items():
        out = tmp_path / f"{name}.json"
        asked = ("--model", "ioi-mini") if name == "table" else ()
        done("export", path, "--to", "json", "--top", "12", "-o", out, *asked)
        found[name] = read_circuit(out)
        done("export", path, "--to", "dot", "--top", "12", "-o", tmp_path / f"{name}.dot", *asked)
    names = {name: [edge.name for edge in circuit.edges] for name, circuit in found.items()}
    assert all(each == names["own"] for each in names.values())
    assert len(names["own"]) == 12
    assert told("evaluate", tmp_path / "own.json")["edges"] == 12  # it says what it is of


def test_a_search_begins_with_scores_that_are_there(
    scored: dict[str, Path], tmp_path: Path
) -> None:
    asked = (*ON_IOI, "--size", "8", "--budget", "12", "--no-bound")
    found = {}
    for name, path in scored.items():
        out = tmp_path / name
        done("discover", "--scores", path, *asked, "-o", out)
        found[name] = read_circuit(out / "circuit.json")
        assert found[name].method["scores"]["source"].startswith(str(path))
        assert f"scores of {path}" in (out / "report.html").read_text()
        assert f"--scores {path}" in (out / "report.html").read_text()
    assert all(circuit.edges == found["own"].edges for circuit in found.values())
    done("discover", *asked, "-o", tmp_path / "made")  # which scores anew, by the same rule
    made = read_circuit(tmp_path / "made" / "circuit.json")
    assert [edge.name for edge in made.edges] == [edge.name for edge in found["own"].edges]
    done("discover", "--scores", scored["mib"], *asked, "-o", tmp_path / "mib", "--resume")
    again = done("discover", "--scores", tmp_path / "made", *asked, "-o", tmp_path / "again")
    assert "does not say" not in again.stderr


def test_signs_of_scores_alone_are_checked(scored: dict[str, Path], tmp_path: Path) -> None:
    turned = tmp_path / "importances.json"
    document = json.loads(scored["mib"].read_text())
    for entry in document["edges"].values():
        entry["score"] *= -1
    turned.write_text(json.dumps(document))
    assert "contradict" in done("evaluate", turned, "--curve", *ON_IOI).stderr
    asked = (*ON_IOI, "--size", "8", "--budget", "12", "--no-bound")
    noted = done("discover", "--scores", turned, *asked, "-o", tmp_path / "run").stderr
    assert "contradict what was measured" in noted
    right = done("discover", "--scores", turned, "--flip-signs", *asked, "-o", tmp_path / "right")
    assert "contradict" not in right.stderr


@pytest.mark.parametrize("kind", ["own", "mib"])
def test_scores_alone_are_no_circuit(kind: str, scored: dict[str, Path], tmp_path: Path) -> None:
    path, out = scored[kind], tmp_path / "out.svg"
    for command in (
        ("evaluate", path, *ON_IOI),
        ("scrub", path, *ON_IOI),
        ("export", path, "--to", "svg", "-o", out),
        ("compare", path, path),
        ("view", path, "--no-open"),
    ):
        result = wiremap(*command)
        assert result.exit_code == 2
        assert "scores only" in result.stderr
        assert "export --top N" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_scores_that_are_no_numbers_are_named_by_edge(
    word: str, scored: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "importances.json"
    content = scored["mib"].read_text()
    start = content.index('"score": ', content.index('"a0.h3->logits"')) + len('"score": ')
    path.write_text(content[:start] + word + content[content.index(",", start) :])
    asked = ("--curve", *ON_IOI)
    message = f"edges.a0.h3->logits.score: expected JSON numbers, got {word}"
    assert message in refused("evaluate", path, *asked)
    table = tmp_path / "all.csv"
    line = next(x for x in scored["table"].read_text().splitlines() if x.startswith("a0.h3,logits"))
    table.write_text(scored["table"].read_text().replace(line, f"a0.h3,logits,,{word}"))
    assert "(a0.h3->logits): expected score to be a finite" in refused("evaluate", table, *asked)
    _, scores, question = read_scores(scored["own"])
    assert scores is not None
    scores.scores[scores.graph.edge("a0.h3->logits")] = float(word)
    own = tmp_path / "own.safetensors"
    write_scores(own, question, scores)
    error = refused("evaluate", own, *asked)
    assert f"expected finite edge_scores, got {float(word)} for a0.h3->logits" in error


def test_scores_that_lack_edges_or_are_of_another_model_are_refused(
    scored: dict[str, Path], tmp_path: Path
) -> None:
    lines = scored["table"].read_text().splitlines(keepends=True)
    table = tmp_path / "some.csv"
    table.write_text("".join(lines[:-2]))
    asked = (*ON_IOI, "-o", tmp_path / "run")
    error = wiremap("discover", "--scores", table, *asked).stderr
    assert "expected a score of every one of 479 edges, 2 have none" in " ".join(error.split())
    other = wiremap("discover", "--scores", scored["mib"], *ON_TASKS, "-o", tmp_path / "run").stderr
    assert "choose a model of the same shape" in " ".join(other.split())
    error = refused("discover", "--scores", scored["own"], *asked, "--gradient", "clean")
    assert "leave --gradient out" in error
    assert "goes with --scores" in refused("discover", *asked, "--flip-signs")


def test_scores_by_query_head_load_the_model_so(tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    done("score", "edges", *ON_TASKS, "--kv", "per-query", "-o", own, "--importances")
    mib = tmp_path / "own.importances.json"
    curves = [told("evaluate", path, "--curve", *ON_TASKS) for path in (own, mib)]
    assert {each["edges_in_model"] for each in curves} == {PER_QUERY.n_edges}
    asked = (*ON_TASKS, "--size", "4", "--budget", "4", "--no-bound", "-o", tmp_path / "run")
    done("discover", "--scores", mib, *asked)
    assert read_circuit(tmp_path / "run" / "circuit.json").shape == PER_QUERY
    error = wiremap("discover", "--scores", mib, "--kv", "grouped", *asked).stderr
    assert "--kv per-query" in error
