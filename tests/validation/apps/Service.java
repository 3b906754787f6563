import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

/** A small service: a catalogue in memory, an index over it, requests against a cache. */
public final class Service {
    public static void main(String[] words) throws Exception {
        Random random = new Random(Long.parseLong(words[0]));
        double rate = Double.parseDouble(words[1]);
        List<String> names = new ArrayList<>();
        Map<String, BitSet> index = new HashMap<>();
        for (int i = 0; i < 80000; i++) {
            names.add("item " + i + " of " + i % 89);
            index.computeIfAbsent("t" + i % 97, key -> new BitSet()).set(i);
        }
        byte[][] text = new byte[256][];
        for (int i = 0; i < text.length; i++) {
            text[i] = ("page " + i + " ").repeat(2000).getBytes();
        }
        System.gc();
        Thread.sleep(1500);
        System.out.println("ready");
        Map<String, String> cache = new LinkedHashMap<>();
        while (true) {
            Thread.sleep(rate > 0 ? (long) (1000 / rate) : 3600000L);
            BitSet found = index.get("t" + random.nextInt(97));
            cache.put("q" + random.nextInt(300), found.toString().substring(0, 200));
            text[random.nextInt(16)][random.nextInt(4096)]++;
        }
    }
}
