"""A metrics exporter on the standard library: /metrics gives load, memory and its own history.

usage: metrics.py PORT
"""

from __future__ import annotations

import collections
import http.server
import sys
import time
from pathlib import Path

HISTORY: collections.deque[tuple[float, dict[str, int]]] = collections.deque(maxlen=600)


def sample() -> dict[str, int]:
    """The fields of /proc/meminfo, in kB."""
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":", 1)
        fields[name] = int(value.split()[0])
    HISTORY.append((time.time(), fields))
    return fields


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves /metrics and /health."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the Prometheus text format."""
        load = Path("/proc/loadavg").read_text().split()[0]
        lines = [f"node_load1 {load}", f"samples {len(HISTORY)}"]
        lines += [f"node_memory_{name} {value}" for name, value in sample().items()]
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep no access log."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
