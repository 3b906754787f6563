"""A background worker: every few seconds it sums up orders, restocks and keeps a local log.

Environment: TENANT, DATABASE (socket directory), CACHE (redis socket), PERIOD (seconds).
"""

from __future__ import annotations

import collections
import os
import sqlite3
import time
from pathlib import Path

import psycopg2
import redis

HISTORY_MAX = 2000


def main() -> None:
    """Work until killed; the file ``ready`` appears after the first pass."""
    connection = psycopg2.connect(host=os.environ["DATABASE"], dbname="postgres", user="postgres")
    connection.autocommit = True
    cache = redis.Redis(unix_socket_path=os.environ["CACHE"])
    local = sqlite3.connect(":memory:")
    local.execute("CREATE TABLE passes (at real, orders integer, restocked integer)")
    history: collections.deque[tuple[float, int]] = collections.deque(maxlen=HISTORY_MAX)
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, name, category, text FROM products")
        words = collections.Counter(
            word for row in cursor.fetchall() for word in f"{row[1]} {row[3]}".lower().split()
        )
    while True:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM orders")
            (n_orders,) = cursor.fetchone() or (0,)
            cursor.execute("UPDATE products SET stock = stock + 50 WHERE stock < 100")
            n_restocked = cursor.rowcount
        local.execute("INSERT INTO passes VALUES (?, ?, ?)", (time.time(), n_orders, n_restocked))
        history.append((time.time(), n_orders))
        cache.hset("report", mapping={"orders": n_orders, "words": len(words)})
        Path("ready").touch()
        time.sleep(float(os.environ["PERIOD"]))


if __name__ == "__main__":
    main()
