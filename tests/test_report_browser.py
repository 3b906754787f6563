"""Opens the report from disk in a real browser with the network cut, and looks at it.

The pictures that docs/ shows are taken here from a real run; PLANNER_ACCEPT=1 keeps new ones.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import planner
from planner.details import details_of
from planner.report import render_html
from planner.report.charts import charts
from tests.report_data import make_details, make_result, make_validation
from tests.report_fleet_data import make_fleet, make_sweep

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/images"
MAX_IMAGE_BYTES = 200_000
CHARTS = list(charts(make_result(), details=make_details()))
#: Picture: sections shown, size, and what the browser is told.
PICTURES = {
    "report-light.png": (("verdict", "warnings", "strategies"), (1200, 980), ()),
    "report-dark.png": (("savings",), (1200, 1220), ("preferredColorScheme=0",)),
    "report-waterfall.png": (("waterfall",), (1200, 850), ()),
    "report-print.png": (("sharing", "time", "unmerge"), (1080, 1180), ()),
}


def browse(page: Path, *arguments: str, settings: tuple[str, ...] = ()) -> tuple[str, str]:
    """What the browser prints, and its log, after 8 seconds of its own time on the page."""
    assert BROWSER is not None
    looks = [f"--blink-settings={','.join(settings)}"] if settings else []
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--hide-scrollbars", f"--user-data-dir={page.parent / 'profile'}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
         "--virtual-time-budget=8000", *looks, *arguments, page.as_uri()],
        check=True, text=True, capture_output=True, timeout=180)
    return done.stdout, done.stderr


def opened(html: str, folder: Path) -> tuple[dict[str, str], str]:
    """The charts of the page after its scripts ran (markup by id), and the browser's log."""
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    dom, log = browse(page, "--dump-dom")
    figures = re.findall(r'<figure class="[^"]*" id="([^"]+)">(.*?)</figure>', dom, re.DOTALL)
    return dict(figures), log


def is_drawn(figure: str) -> bool:
    drawn = re.search(r'<div class="chart[^"]*".*?<svg[^>]*>.*?<path', figure, re.DOTALL)
    return drawn is not None and re.search(r'class="chart-note" hidden=""', figure) is not None


def complaints(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


def at_end(html: str, more: str) -> str:
    """The page with `more` at the end of its body (its scripts may name that tag, too)."""
    before, tag, after = html.rpartition("</body>")
    return before + more + tag + after


def test_all_charts_draw_from_disk_without_a_network(tmp_path: Path) -> None:
    html = render_html(make_result(), make_details(), validation=[make_validation()])
    figures, log = opened(html, tmp_path)
    assert {name: is_drawn(figure) for name, figure in figures.items()} == dict.fromkeys(
        CHARTS, True)
    assert "chart-error" not in "".join(figures.values())
    assert complaints(log) == []


def test_all_charts_of_a_fleet_draw_from_disk_without_a_network(tmp_path: Path) -> None:
    result = make_fleet()
    figures, log = opened(render_html(result, sweep=make_sweep(result)), tmp_path)
    assert {name: is_drawn(figure) for name, figure in figures.items()} == dict.fromkeys(
        charts(result), True)
    assert "chart-error" not in "".join(figures.values())
    assert complaints(log) == []


def test_a_broken_chart_says_so_and_leaves_the_others_alone(tmp_path: Path) -> None:
    html = render_html(make_result())
    broken = html.replace('"type":"line"', '"type":"no-such-mark"', 1)
    assert broken != html
    figures, _ = opened(broken, tmp_path)
    assert [name for name, figure in figures.items() if not is_drawn(figure)] == ["over-time"]
    assert "This chart could not be drawn" in figures["over-time"]
    assert "chart-error" in figures["over-time"]
    assert "chart-error" not in "".join(
        figure for name, figure in figures.items() if name != "over-time")


def test_the_browser_itself_refuses_the_network(tmp_path: Path) -> None:
    html = render_html(make_result())
    _, log = opened(at_end(html, '<img src="https://example.org/x.png">'), tmp_path)
    assert any("Content Security Policy" in line for line in complaints(log))


def test_a_static_page_opens_without_complaint(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    figures, log = opened(render_html(make_result(), make_details(), is_static=True), tmp_path)
    assert list(figures) == CHARTS
    assert all("<svg" in figure for figure in figures.values())
    assert complaints(log) == []


@pytest.fixture(scope="module")
def real_page() -> str:
    """The report of the quickstart, run here."""
    result = planner.run(ROOT / "scenarios/quickstart.yaml")
    return render_html(result, details_of(result))


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def test_pictures_in_light_dark_and_print_are_taken_from_a_real_run(
        real_page: str, tmp_path: Path) -> None:
    taken: dict[str, bytes] = {}
    for name, (sections, size, settings) in PICTURES.items():
        shown = ", ".join(f"#{section}" for section in sections)
        hidden = f"<style>main > section:not({shown}) {{ display: none }}" + (
            "" if "verdict" in sections else "header { display: none }") + "</style></head>"
        html = real_page.replace("</head>", hidden, 1)
        if name == "report-print.png":
            assert html.count("@media print") == 1
            html = html.replace("@media print", "@media screen")
        page = tmp_path / f"{name}.html"
        page.write_text(at_end(
            html,
            "<script>document.title = getComputedStyle(document.body).backgroundColor</script>"))
        picture = tmp_path / name
        _, log = browse(page, f"--screenshot={picture}", f"--window-size={size[0]},{size[1]}",
                        settings=settings)
        assert complaints(log) == []
        if settings:
            dom, _ = browse(page, "--dump-dom", settings=settings)
            assert "<title>rgb(21, 24, 28)</title>" in dom
        taken[name] = picture.read_bytes()
        assert size_of(taken[name]) == size
        assert 20_000 < len(taken[name]) <= MAX_IMAGE_BYTES
        if os.environ.get("PLANNER_ACCEPT"):
            IMAGES.mkdir(exist_ok=True)
            (IMAGES / name).write_bytes(taken[name])

def test_the_page_prints(real_page: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(real_page)
    _, log = browse(page, f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    assert complaints(log) == []
    printed = (tmp_path / "report.pdf").read_bytes()
    # A4 landscape, and no page that holds a chart alone.
    assert re.search(rb"/MediaBox \[0 0 84[12][.\d]* 59[45][.\d]*\]", printed)
    assert 5 <= len(re.findall(rb"/Type /Page\b", printed)) <= 12


def test_the_pictures_in_the_docs_are_all_there_and_small() -> None:
    shown = set(re.findall(r"\(images/([\w.-]+)\)", (ROOT / "docs/report.md").read_text()))
    assert shown == set(PICTURES) == {path.name for path in IMAGES.glob("report-*.png")}
    for name, (_, size, _) in PICTURES.items():
        picture = (IMAGES / name).read_bytes()
        assert size_of(picture) == size
        assert len(picture) <= MAX_IMAGE_BYTES
