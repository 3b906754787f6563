"""Fill one tenant's database and cache.

usage: seed.py TENANT DATABASE_SOCKET_DIRECTORY REDIS_SOCKET CATALOGUE_JSON

The catalogue is the same for every tenant; prices, stock and sessions are the tenant's own.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import psycopg2
import psycopg2.extras
import redis

N_SESSIONS = 3000

SCHEMA = """
CREATE TABLE products (
    id integer PRIMARY KEY, sku text NOT NULL, name text NOT NULL, category text NOT NULL,
    price_cents integer NOT NULL, stock integer NOT NULL, text text NOT NULL);
CREATE INDEX products_category ON products (category);
CREATE TABLE orders (
    id bigserial PRIMARY KEY, product_id integer NOT NULL REFERENCES products (id),
    quantity integer NOT NULL, made_at timestamptz NOT NULL DEFAULT now());
"""


def main(tenant: str, database: str, socket: str, catalogue: str) -> None:
    """Create the tables, copy the catalogue into both stores, add the tenant's own rows."""
    rng = random.Random(tenant)
    rows = json.loads(Path(catalogue).read_text())
    margin = rng.uniform(0.9, 1.4)
    connection = psycopg2.connect(host=database, dbname="postgres", user="postgres")
    with connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        psycopg2.extras.execute_values(
            cursor,
            "INSERT INTO products VALUES %s",
            [
                (
                    row["id"],
                    row["sku"],
                    row["name"],
                    row["category"],
                    int(row["price_cents"] * margin),
                    rng.randrange(100, 10000),
                    row["text"],
                )
                for row in rows
            ],
        )
    connection.close()
    pipe = redis.Redis(unix_socket_path=socket).pipeline(transaction=False)
    for row in rows:
        pipe.set(f"product:{row['id']}", json.dumps(row))
    for number in range(N_SESSIONS):
        session = {"user": rng.randrange(10**6), "token": rng.randbytes(96).hex(), "cart": []}
        pipe.set(f"session:{number}", json.dumps(session))
    pipe.execute()


if __name__ == "__main__":
    main(*sys.argv[1:5])
