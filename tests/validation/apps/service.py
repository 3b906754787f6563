"""A small service: libraries, sqlite in memory, text in pages, requests that change a cache."""

import asyncio
import decimal
import email
import http.client
import json
import mmap
import pathlib
import random
import sqlite3
import sys
import time
import xml.dom

kind, seed, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
text = b"".join(sorted(p.read_bytes() for p in pathlib.Path(json.__file__).parent.glob("*.py")))
text *= 12
held = mmap.mmap(-1, (len(text) // 4096 + 1) * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.write(text)
random_pages = bytearray(random.Random(seed).randbytes(4 << 20))
zeros = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for offset in range(0, 1 << 20, 4096):
    zeros[offset] = 0
if kind == "sql":
    base = sqlite3.connect(":memory:")
    base.execute("create table t (a, b)")
    base.executemany("insert into t values (?, ?)", ((i, f"row {i}") for i in range(60000)))
else:
    rows = [{"id": i, "name": f"row {i}"} for i in range(40000)]
used = (asyncio, decimal, email, http.client, xml.dom)
print("ready", flush=True)
draw = random.Random(seed + 1000)
while True:
    # Requests: a few rows change, and a few pages are written, some with what others hold.
    time.sleep(1 / rate if rate else 3600)
    if kind == "sql":
        base.execute("update t set b = ? where a = ?", (f"new {draw.random()}",
                                                         draw.randrange(2000)))
    else:
        rows[draw.randrange(2000)]["name"] = f"new {draw.random()}"
    at = draw.randrange(64) * 4096
    random_pages[at:at + 8] = draw.randbytes(8)
