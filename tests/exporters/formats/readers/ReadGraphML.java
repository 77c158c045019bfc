import java.io.FileReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.jgrapht.Graph;
import org.jgrapht.graph.DefaultWeightedEdge;
import org.jgrapht.graph.DirectedWeightedPseudograph;
import org.jgrapht.nio.Attribute;
import org.jgrapht.nio.ImportException;
import org.jgrapht.nio.graphml.SimpleGraphMLImporter;

/**
 * Prints what JGraphT reads: a line of JSON for each GraphML file, values as [type, text]. By the
 * simple importer, because GraphMLImporter tells neither the ids of edges nor the graph's own data.
 */
class ReadGraphML {
    public static void main(String[] files) throws Exception {
        for (String file : files) {
            try {
                System.out.println(json(read(file)));
            } catch (ImportException error) {
                System.out.println(json(Map.of("refused", String.valueOf(error.getCause()))));
            }
        }
    }

    static Map<String, Object> read(String file) throws Exception {
        Graph<String, DefaultWeightedEdge> graph =
            new DirectedWeightedPseudograph<>(DefaultWeightedEdge.class);
        Map<String, Object> about = new LinkedHashMap<>();
        Map<Object, Map<String, Object>> values = new LinkedHashMap<>();
        var importer = new SimpleGraphMLImporter<String, DefaultWeightedEdge>();
        importer.setSchemaValidation(true);
        importer.setVertexFactory(id -> id);
        importer.addGraphAttributeConsumer((name, value) -> about.put(name, typed(value)));
        importer.addVertexAttributeConsumer((at, value) -> values
            .computeIfAbsent(at.getFirst(), node -> new LinkedHashMap<>())
            .put(at.getSecond(), typed(value)));
        importer.addEdgeAttributeConsumer((at, value) -> values
            .computeIfAbsent(at.getFirst(), edge -> new LinkedHashMap<>())
            .put(at.getSecond(), typed(value)));
        importer.importGraph(graph, new FileReader(file, StandardCharsets.UTF_8));
        List<Object> nodes = new ArrayList<>();
        for (String node : graph.vertexSet()) {
            values.get(node).keySet().removeAll(List.of("ID", "id"));
            nodes.add(List.of(node, values.get(node)));
        }
        List<Object> edges = new ArrayList<>();
        for (DefaultWeightedEdge edge : graph.edgeSet()) {
            Map<String, Object> row = values.get(edge);
            Object id = ((List<?>) row.get("id")).get(1);
            row.keySet().removeAll(List.of("id", "source", "target"));
            edges.add(List.of(id, graph.getEdgeSource(edge), graph.getEdgeTarget(edge), row));
        }
        return Map.of("about", about, "nodes", nodes, "edges", edges);
    }

    static List<String> typed(Attribute value) {
        return List.of(value.getType().toString(), value.getValue());
    }

    static String json(Object value) {
        if (value instanceof Map<?, ?> map) {
            return map.entrySet().stream()
                .map(entry -> json(entry.getKey()) + ":" + json(entry.getValue()))
                .collect(Collectors.joining(",", "{", "}"));
        }
        if (value instanceof List<?> list) {
            return list.stream().map(ReadGraphML::json).collect(Collectors.joining(",", "[", "]"));
        }
        return value.toString().chars()
            .mapToObj(c -> c < 32 || c > 126 || c == '"' || c == '\\'
                ? String.format("\\u%04x", c) : String.valueOf((char) c))
            .collect(Collectors.joining("", "\"", "\""));
    }
}
