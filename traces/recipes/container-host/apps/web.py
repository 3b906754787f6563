"""The shop: a Flask application that gunicorn runs in prefork workers.

Environment: TENANT, DATABASE (socket directory), CACHE (redis socket), CATALOGUE (json file).
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import flask
import psycopg2
import redis

TENANT = os.environ["TENANT"]
RAW = Path(os.environ["CATALOGUE"]).read_bytes()
PACKED = gzip.compress(RAW, mtime=0)
PRODUCTS = {row["id"]: row for row in json.loads(RAW)}
PAGE = """<!doctype html><title>{{ product.name }} - {{ tenant }}</title>
<h1>{{ product.name }}</h1><p>{{ product.sku }} in {{ product.category }}</p>
<p>{{ product.text }}</p><p>{{ "%.2f"|format(price / 100) }}, {{ stock }} left, seen {{ seen }}
times</p><ul>{% for other in others %}<li>{{ other.name }}</li>{% endfor %}</ul>"""
CACHE_ENTRIES_MAX = 400

app = flask.Flask(__name__)
cache = redis.Redis(unix_socket_path=os.environ["CACHE"])
rendered: dict[int, str] = {}


def database() -> psycopg2.extensions.connection:
    """The connection of this worker, opened on first use, after the fork."""
    connection = app.config.get("connection")
    if connection is None:
        connection = psycopg2.connect(
            host=os.environ["DATABASE"], dbname="postgres", user="postgres"
        )
        connection.autocommit = True
        app.config["connection"] = connection
    return connection


@app.get("/health")
def health() -> str:
    """Answer only when both stores answer."""
    with database().cursor() as cursor:
        cursor.execute("SELECT count(*) FROM products")
        (count,) = cursor.fetchone() or (0,)
    return f"{TENANT} {count} {cache.ping()}"


@app.get("/product/<int:number>")
def product(number: int) -> str:
    """One product, rendered from the catalogue, the database and the cache."""
    row = PRODUCTS.get(number)
    if row is None:
        flask.abort(404)
    with database().cursor() as cursor:
        cursor.execute("SELECT price_cents, stock FROM products WHERE id = %s", (number,))
        price, stock = cursor.fetchone() or (0, 0)
    others = [PRODUCTS[n] for n in range(number + 1, number + 6) if n in PRODUCTS]
    text = flask.render_template_string(
        PAGE,
        product=row,
        tenant=TENANT,
        price=price,
        stock=stock,
        seen=cache.incr(f"seen:{number}"),
        others=others,
    )
    if len(rendered) >= CACHE_ENTRIES_MAX:
        rendered.pop(next(iter(rendered)))
    rendered[number] = text
    return text


@app.post("/order/<int:number>")
def order(number: int) -> str:
    """Order one piece."""
    # Statements sent in one message are one transaction.
    with database().cursor() as cursor:
        cursor.execute(
            "INSERT INTO orders (product_id, quantity) VALUES (%s, 1);"
            "UPDATE products SET stock = stock - 1 WHERE id = %s",
            (number, number),
        )
    cache.lpush("recent", number)
    cache.ltrim("recent", 0, 99)
    return "ordered\n"


@app.get("/catalogue")
def catalogue() -> flask.Response:
    """The whole catalogue, kept packed in memory."""
    return flask.Response(PACKED, mimetype="application/json", headers={"Content-Encoding": "gzip"})
