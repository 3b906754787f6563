"""Light, steady load on every service of the recipe.

usage: load.py WORKDIR PORT REQUESTS_PER_SECOND

One request at a time at fixed times, in a mix drawn from a fixed seed.  Every five seconds it
rewrites WORKDIR/load.json: requests and errors so far, median and longest time of the last window.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis

REPORT_S = 5.0
WORDS = ("object", "name", "class", "value", "list", "function", "type", "string", "number")


def http_call(port: int, method: str, path: str) -> None:
    """One request to the edge server; anything but 200 is an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status}")


def redis_call(client: redis.Redis, rng: random.Random) -> None:
    """Read one session and write it back with a fresh token."""
    key = f"session:{rng.randrange(3000)}"
    session = json.loads(client.get(key) or "{}")
    session["token"] = rng.randbytes(96).hex()
    client.set(key, json.dumps(session))


Kind = tuple[str, int, Callable[[], None]]


def popular_first(rng: random.Random, n_products: int) -> Callable[[], int]:
    """A draw of product numbers from 1 on: a few are popular, most are not."""
    return lambda: 1 + int(n_products * rng.random() ** 3)


def shop_kinds(
    workdir: Path, port: int, rng: random.Random, number: Callable[[], int], tenant: str
) -> list[Kind]:
    """Requests to one tenant's shop and cache: name, weight, call."""
    web = f"/{tenant}/web"
    cache = redis.Redis(unix_socket_path=str(workdir / "run" / f"cache-{tenant}" / "socket"))
    return [
        (f"page-{tenant}", 4, lambda: http_call(port, "GET", f"{web}/product/{number()}")),
        (f"order-{tenant}", 2, lambda: http_call(port, "POST", f"{web}/order/{number()}")),
        (f"session-{tenant}", 3, lambda: redis_call(cache, rng)),
    ]


def api_kinds(port: int, rng: random.Random, number: Callable[[], int], tenant: str) -> list[Kind]:
    """Requests to one tenant's price and cart service."""
    api = f"/{tenant}/api"

    def cart() -> None:
        http_call(port, "POST", f"{api}/cart/{number()}/{rng.randrange(300)}")

    return [
        (f"price-{tenant}", 3, lambda: http_call(port, "GET", f"{api}/price/{number()}")),
        (f"cart-{tenant}", 2, cart),
    ]


def search_kinds(port: int, rng: random.Random, tenant: str) -> list[Kind]:
    """Requests to one tenant's search service."""

    def search() -> None:
        http_call(port, "GET", f"/{tenant}/search/?q={'+'.join(rng.sample(WORDS, 2))}")

    return [(f"search-{tenant}", 2, search)]


def all_kinds(workdir: Path, port: int, rng: random.Random) -> list[Kind]:
    """Every kind of request of the mix."""
    files = sorted(path.name for path in (workdir / "files").iterdir())
    with (workdir / "app" / "catalogue.tsv").open() as catalogue:
        number = popular_first(rng, sum(1 for _ in catalogue))
    kinds: list[Kind] = []
    for tenant in ("acme", "birch", "cedar"):
        kinds += shop_kinds(workdir, port, rng, number, tenant)
    for tenant in ("acme", "birch"):
        kinds += api_kinds(port, rng, number, tenant)
    for tenant in ("acme", "cedar"):
        kinds += search_kinds(port, rng, tenant)
    return [
        *kinds,
        ("files-cedar", 2, lambda: http_call(port, "GET", f"/cedar/files/{rng.choice(files)}")),
        ("metrics", 1, lambda: http_call(port, "GET", "/metrics")),
    ]


def main(workdir: Path, port: int, rate: float) -> None:
    """Ask until killed."""
    rng = random.Random(1)
    kinds = all_kinds(workdir, port, rng)
    weights = [weight for _, weight, _ in kinds]
    done = {name: 0 for name, _, _ in kinds}
    errors: dict[str, str] = {}
    n_errors = 0
    window: list[float] = []
    due = time.monotonic()
    report_due = due + REPORT_S
    while True:
        due = max(due + 1 / rate, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
        name, _, call = rng.choices(kinds, weights)[0]
        begun = time.monotonic()
        try:
            call()
            done[name] += 1
        except (OSError, RuntimeError, http.client.HTTPException, redis.RedisError) as error:
            n_errors += 1
            errors[name] = str(error)
        window.append(time.monotonic() - begun)
        if time.monotonic() >= report_due:
            report = {
                "requests": sum(done.values()),
                "errors": n_errors,
                "p50_ms": round(1000 * statistics.median(window), 2),
                "max_ms": round(1000 * max(window), 2),
                "by_kind": done,
                "last_error_by_kind": errors,
            }
            aside = workdir / "load.json.new"
            aside.write_text(json.dumps(report, indent=1) + "\n")
            os.replace(aside, workdir / "load.json")
            window = []
            report_due += REPORT_S


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
