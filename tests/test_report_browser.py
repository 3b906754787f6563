"""Opens the report from disk in a real browser with the network cut."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from planner.report import render_html
from tests.report_data import make_result

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")


def opened(html: str, folder: Path) -> tuple[dict[str, str], str]:
    """The charts of the page after its scripts ran (markup by id), and the browser's log."""
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={folder / 'profile'}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
         "--virtual-time-budget=8000", "--dump-dom", page.as_uri()],
        check=True, text=True, capture_output=True, timeout=60)
    figures = re.findall(r'<figure class="[^"]*" id="([^"]+)">(.*?)</figure>', done.stdout,
                         re.DOTALL)
    return dict(figures), done.stderr


def is_drawn(figure: str) -> bool:
    drawn = re.search(r'<div class="chart[^"]*".*?<svg[^>]*>.*?<path', figure, re.DOTALL)
    return drawn is not None and re.search(r'class="chart-note" hidden=""', figure) is not None


def test_all_charts_draw_from_disk_without_a_network(tmp_path: Path) -> None:
    figures, log = opened(render_html(make_result()), tmp_path)
    assert {name: is_drawn(figure) for name, figure in figures.items()} == {
        "over-time": True, "exposure": True, "where": True}
    assert "chart-error" not in "".join(figures.values())
    assert not [line for line in log.splitlines() if "CONSOLE" in line]


def test_a_broken_chart_says_so_and_leaves_the_others_alone(tmp_path: Path) -> None:
    html = render_html(make_result())
    broken = html.replace('"type":"line"', '"type":"no-such-mark"', 1)
    assert broken != html
    figures, _ = opened(broken, tmp_path)
    assert {name: is_drawn(figure) for name, figure in figures.items()} == {
        "over-time": False, "exposure": True, "where": True}
    assert "This chart could not be drawn" in figures["over-time"]
    assert "chart-error" in figures["over-time"]
    assert "chart-error" not in figures["exposure"] + figures["where"]
