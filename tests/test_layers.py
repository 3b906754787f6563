"""Imports point one way, and third-party packages have one door each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "planner"

#: Each module or package may import only what its line names (and itself).
LAYERS: dict[str, set[str]] = {
    "cli": {"runner", "report", "capture", "doctor", "importers", "scenario", "trace", "traceinfo",
            "backtest", "counters", "inventory", "compare", "details", "explain", "exporters",
            "sql", "suggest", "live", "validations", "ksm", "apply", "partitions", "sitekey",
            "results", "metrics", "cases", "forecast", "planning", "errors", "escape", "units"},
    "apply": {"capture", "partitions", "trace", "errors"},
    "explain": {"runner", "engine", "fleet", "ksm", "policies", "metrics", "results", "scenario",
            "errors"},
    "details": {"explain", "runner", "sharing", "traceinfo", "metrics", "errors"},
    "sharing": {"fleet", "scenario"},
    "compare": {"measures", "metrics", "planning"},
    "exporters": {"metrics", "results", "policies", "scenario", "units", "errors", "escape"},
    "sql": {"metrics", "errors"},
    "runner": {"arrivals", "cases", "engine", "executor", "fleet", "forecast", "ksm", "policies",
            "planning", "metrics", "results", "scenario", "trace", "inventory", "errors", "units"},
    "engine": {"fleet", "policies", "ksm", "metrics", "scenario", "tables", "timeline", "errors"},
    "ksm": {"kernels", "errors"},
    "report": {"measures", "metrics", "units", "errors", "escape"},
    "results": {"metrics", "scenario", "tables", "errors"},
    "planning": {"measures", "metrics", "scenario", "timeline", "errors", "units"},
    "metrics": {"tables", "units", "errors"},
    "policies": {"fleet", "scenario", "units", "errors"},
    "population": {"fleet", "scenario", "trace", "timeline", "policies", "kernels", "units",
                   "errors"},
    "fleet": {"scenario", "trace", "errors", "units"},
    "suggest": {"search", "forecast", "fleet", "ksm", "scenario", "errors", "escape"},
    "search": {"fleet", "policies", "kernels", "ksm", "units", "errors"},
    "doctor": {"capture", "diagnosis", "errors", "units"},
    "capture": {"kernels", "diagnosis", "sitekey", "trace", "tables", "units", "errors", "counters",
            "inventory"},
    "importers": {"kernels", "sitekey", "trace", "tables", "units", "errors", "inventory",
            "counters", "arrivals"},
    "live": {"capture", "fleet", "ksm", "scenario", "trace", "sitekey", "validations", "errors"},
    "validations": {"errors"},
    "backtest": {"counters", "metrics", "errors"},
    "counters": {"inventory", "tables", "errors"},
    "inventory": {"tables", "errors"},
    "timeline": {"arrivals", "fleet", "kernels", "scenario", "units", "errors"},
    "arrivals": {"inventory", "tables", "units", "errors"},
    "traceinfo": {"trace", "diagnosis", "kernels", "units", "errors"},
    "diagnosis": {"trace"},
    "scenario": {"measures", "units", "errors", "escape"},
    "trace": {"tables", "units", "errors"},
    "tables": {"errors"},
    "agent": set(),
    "partitions": {"errors"},
    "forecast": {"arrivals", "cases", "engine", "executor", "fleet", "ksm", "metrics", "planning",
            "policies", "population", "sampling", "scenario", "timeline", "trace", "units",
            "errors"},
    "sampling": {"fleet", "kernels", "ksm", "metrics", "policies", "scenario", "tables"},
    "executor": {"cases", "errors"},
    "cases": {"errors"},
    "sitekey": {"errors"},
    "kernels": set(),
    "escape": set(),
    "measures": set(),
    "units": set(),
    "errors": set(),
    "__init__": {"runner", "results", "trace", "metrics", "errors", "scenario"},
    "__main__": {"cli"},
}
#: Where each third-party package may be imported; elsewhere only the standard library and numpy.
DOORS: dict[str, tuple[str, ...]] = {
    "simpy": ("engine/", "timeline/clock.py"),
    "numba": ("kernels/jit.py",),
    "pyarrow": ("tables.py", "trace/", "metrics.py", "report/", "importers/",
            "inventory.py", "counters.py", "cases.py", "arrivals.py",
            "forecast/", "planning/"),
    "typer": ("cli/",),
    "rich": ("cli/", "report/"),
    "ruamel": ("scenario/nodes.py",),
    "pydantic": ("scenario/load.py", "scenario/schema"),
    "jinja2": ("report/",),
    "duckdb": ("sql.py",),
    "distributed": ("executor.py",),
    "vl_convert": ("report/static.py",),
}


def imports_of(source: str) -> list[str]:
    """Every module name that `source` imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def violations(place: str, source: str) -> list[str]:
    """What `source`, standing at `place` below planner/, imports against the rules."""
    layer = place.split("/")[0].removesuffix(".py")
    wrong = []
    for name in imports_of(source):
        top, _, rest = name.partition(".")
        if top == "planner":
            target = rest.split(".")[0]
            known = target in LAYERS
            if known and target != layer and target not in LAYERS[layer]:
                wrong.append(f"{place} imports planner.{target}")
        elif top in DOORS and not place.startswith(DOORS[top]):
            wrong.append(f"{place} imports {top}")
    return wrong


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        assert place.split("/")[0].removesuffix(".py") in LAYERS, f"{place}: no layer named"
        wrong += violations(place, path.read_text())
    assert wrong == []


@pytest.mark.parametrize(("place", "source"), [
    ("kernels/dedup.py", "from planner.report import html"),
    ("fleet.py", "import simpy"),
    ("engine.py", "from planner.capture.session import capture"),
    ("capture/session.py", "from planner.doctor import examine"),
    ("metrics.py", "def f():\n    from numba import njit"),
    ("scenario/spec.py", "import pydantic"),
    ("trace/reader.py", "import planner.kernels.dedup"),
])
def test_the_layer_check_sees_a_violation(place: str, source: str) -> None:
    assert violations(place, source) != []


def test_help_imports_only_typer() -> None:
    code = ("import sys; from planner.cli import main; main(['--help']); "
            "print(sorted(m for m in sys.modules if m.split('.')[0] in "
            "('numba', 'numpy', 'pyarrow', 'scipy', 'pydantic', 'ruamel', 'jinja2', 'simpy') "
            "or m.startswith('rich.progress')), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True)
    assert done.stderr.strip() == "[]"
    assert "capture" in done.stdout
