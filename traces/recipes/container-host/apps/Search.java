import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Executors;

/** Full text search over the catalogue: an inverted index in memory, asked over HTTP. */
public final class Search {
    private static final int CACHE_ENTRIES_MAX = 300;

    private final List<String> names = new ArrayList<>();
    private final Map<String, BitSet> index = new HashMap<>();
    private final Map<String, String> cache =
            new LinkedHashMap<>(64, 0.75f, true) {
                @Override
                protected boolean removeEldestEntry(Map.Entry<String, String> eldest) {
                    return size() > CACHE_ENTRIES_MAX;
                }
            };

    private Search(Path catalogue) throws IOException {
        for (String line : Files.readAllLines(catalogue)) {
            String[] cells = line.split("\t");
            int number = names.size();
            names.add(cells[1] + " " + cells[2]);
            for (String word : cells[5].toLowerCase(Locale.ROOT).split("[^a-z]+")) {
                index.computeIfAbsent(word, key -> new BitSet()).set(number);
            }
        }
    }

    private synchronized String find(String query) {
        return cache.computeIfAbsent(query, this::compute);
    }

    private String compute(String query) {
        BitSet hits = null;
        for (String word : query.toLowerCase(Locale.ROOT).split(" ")) {
            BitSet found = index.getOrDefault(word, new BitSet());
            if (hits == null) {
                hits = (BitSet) found.clone();
            } else {
                hits.and(found);
            }
        }
        StringBuilder text = new StringBuilder();
        text.append(hits.cardinality()).append(" hits\n");
        hits.stream().limit(20).forEach(n -> text.append(names.get(n)).append('\n'));
        return text.toString();
    }

    private void handle(HttpExchange exchange) throws IOException {
        String raw = exchange.getRequestURI().getRawQuery();
        String query = raw == null ? "" : URLDecoder.decode(raw, StandardCharsets.UTF_8);
        byte[] body = find(query.replaceFirst("^q=", "")).getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    public static void main(String[] args) throws IOException {
        Search search = new Search(Path.of(args[1]));
        InetSocketAddress address =
                new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(args[0]));
        HttpServer server = HttpServer.create(address, 16);
        server.createContext("/", search::handle);
        server.setExecutor(Executors.newFixedThreadPool(2));
        server.start();
    }
}
