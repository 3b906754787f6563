"""The command line: parse, call the library, print, exit with a code.

Only this package prints and only `main` turns errors into exit codes. Everything but typer is
imported inside the command bodies, so that `planner --help` is quick.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from planner.cli import (
    agent,
    apply,
    arrivals,
    calibrate,
    capture,
    compare,
    counters,
    doctor,
    explain,
    export,
    imports,
    init,
    inventory,
    report,
    run,
    scenario,
    sql,
    suggest,
    trace,
    validate,
)
from planner.cli.output import say
from planner.escape import printable

__all__ = ["app", "main", "printable"]

#: Exit code after Ctrl-C.
INTERRUPTED = 130

app = typer.Typer(
    name="planner", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True,
    help="Capacity planner for Linux memory deduplication: what would KSM, or Selective KSM with "
         "merge partitions, save on these guests, at what CPU cost, and what would it expose?",
    epilog="Example: planner run scenarios/quickstart.yaml",
    context_settings={"help_option_names": ["-h", "--help"]})

#: Headings of the help, in the order of the work.
_DATA, _SIMULATE, _RESULTS, _HOSTS = "Get data", "Simulate", "Use results", "Hold against hosts"
app.command("doctor", rich_help_panel=_DATA)(doctor.doctor)
app.command("capture", rich_help_panel=_DATA)(capture.capture)
app.add_typer(trace.app, name="trace", rich_help_panel=_DATA)
app.add_typer(inventory.app, name="import", rich_help_panel=_DATA)
app.command("init", rich_help_panel=_SIMULATE)(init.init)
app.command("check", rich_help_panel=_SIMULATE)(scenario.check)
app.command("schema", rich_help_panel=_SIMULATE)(scenario.schema)
app.command("run", rich_help_panel=_SIMULATE)(run.run)
app.command("suggest", rich_help_panel=_SIMULATE)(suggest.suggest)
app.command("report", rich_help_panel=_RESULTS)(report.report)
app.command("explain", rich_help_panel=_RESULTS)(explain.explain)
app.command("compare", rich_help_panel=_RESULTS)(compare.compare)
app.command("sql", rich_help_panel=_RESULTS)(sql.sql)
app.add_typer(export.app, name="export", rich_help_panel=_RESULTS)
app.add_typer(counters.app, name="validate", rich_help_panel=_HOSTS)
app.command("calibrate", rich_help_panel=_HOSTS)(calibrate.calibrate)
app.command("apply", rich_help_panel=_HOSTS)(apply.apply)
counters.app.command("live")(validate.live)
counters.app.command("plan")(apply.validate_plan)
inventory.app.command("arrivals")(arrivals.arrivals)
trace.app.command("import")(imports.import_trace)
trace.app.command("join")(agent.join)


def _print_version(value: bool) -> None:
    if value:
        from planner import __version__

        say(f"planner {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option(
        "--version", callback=_print_version, is_eager=True,
        help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option(
        "--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del version, debug  # both are looked at before any command runs


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (product-wide codes: see planner.errors)."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    from planner.errors import PlannerError

    try:
        result = app(args=arguments, prog_name="planner", standalone_mode=False)
        if result == INTERRUPTED:
            # The parser turns Ctrl-C into its code and stays silent.
            _complain("interrupted; nothing was written")
        return result if isinstance(result, int) else 0
    except PlannerError as error:
        if debug:
            raise
        _complain(str(error))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted; nothing was written")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`planner ... | head`): not an error of ours.
        sys.stderr.close()
        return 0
    except SystemExit as error:
        # The parser leaves by itself after --show-completion.
        return error.code if isinstance(error.code, int) else 0
    except OSError as error:
        if debug or error.filename is None:
            return _bug(error, debug)
        _complain(f"{error.filename}: {error.strerror or error}; check the path and its "
                  "permissions")
        return 3
    except Exception as error:
        code = _usage_error(error)
        if code is not None:
            return code
        return _bug(error, debug)


def _bug(error: Exception, debug: bool) -> int:
    """Tell an error that no part of the program expected."""
    if debug:
        raise error
    _complain(f"internal error: {type(error).__name__}: {error}; run again with --debug and "
              "report it")
    return 1


def _usage_error(error: Exception) -> int | None:
    """Show an error of the command line parser; None when it is not one."""
    show = getattr(error, "show", None)
    code = getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        shown = io.StringIO()
        show(file=shown)
        sys.stderr.write("".join(f"{printable(line)}\n" for line in shown.getvalue().splitlines()))
        return code
    return None


def _complain(text: str) -> None:
    lines = text.splitlines() or [text]
    # Scenario problems carry `file:line:col: error:` themselves, for editors to find.
    prefix = "" if ": error: " in lines[0] else "error: "
    sys.stderr.write(prefix + "\n".join(printable(line) for line in lines) + "\n")
