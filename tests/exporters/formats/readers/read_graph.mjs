// Prints what graphology reads: a line of JSON for each GraphML or GEXF file, values as [type, text].
import { readFileSync } from "node:fs";
import Graph from "graphology";
import { parse as parseGexf } from "graphology-gexf";
import { parse as parseGraphml } from "graphology-graphml";

// JSON has no -0.
const text = (value) => (Object.is(value, -0) ? "-0" : String(value));
const typed = (row) =>
  Object.fromEntries(Object.entries(row).map(([name, value]) => [name, [typeof value, text(value)]]));

function read(file) {
  const parse = file.endsWith(".gexf") ? parseGexf : parseGraphml;
  const graph = parse(Graph, readFileSync(file, "utf8"));
  return {
    about: typed(graph.getAttributes()),
    nodes: graph.mapNodes((id, row) => [id, typed(row)]),
    edges: graph.mapEdges((id, row, source, target) => [id, source, target, typed(row)]),
  };
}

for (const file of process.argv.slice(2)) {
  let found;
  try {
    found = read(file);
  } catch (error) {
    found = { refused: String(error) };
  }
  console.log(JSON.stringify(found));
}
