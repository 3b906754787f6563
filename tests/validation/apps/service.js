// A small service: a catalogue in memory, an index over it, requests against a cache.
const [seed, rate] = process.argv.slice(2).map(Number);
let state = seed + 1;
const random = () => { state = (state * 1103515245 + 12345) % 2147483648; return state / 2147483648; };
const items = [];
for (let i = 0; i < 60000; i++) {
  items.push({ id: i, name: `item ${i}`, tags: [`t${i % 97}`, `u${i % 31}`], price: i * 1.25 });
}
const index = new Map();
for (const item of items) for (const tag of item.tags) {
  if (!index.has(tag)) index.set(tag, []);
  index.get(tag).push(item.id);
}
const blob = Buffer.alloc(8 << 20);
for (let i = 0; i < blob.length; i += 8) blob.writeUInt32LE((i * 2654435761) >>> 0, i);
const cache = new Map();
const serve = () => {
  const tag = `t${Math.floor(random() * 97)}`;
  const found = index.get(tag).slice(0, 20).map((id) => items[id]);
  cache.set(tag + Math.floor(random() * 50), JSON.stringify(found));
  if (cache.size > 300) cache.delete(cache.keys().next().value);
};
setTimeout(() => { console.log('ready'); }, 1500);
if (rate) setInterval(serve, 1000 / rate); else setInterval(() => {}, 1 << 30);
