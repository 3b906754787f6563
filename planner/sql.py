"""SQL over the tables of a result, with DuckDB (the extra `sql`)."""

from __future__ import annotations

from typing import Any

from planner.errors import MachineError, UsageError
from planner.metrics import Result

__all__ = ["TABLES", "query"]

#: Names of the tables, as those of the files in a results folder.
TABLES = ("summary", "hosts", "partitions", "events", "replicates", "series")


def query(result: Result, statement: str) -> Any:
    """The answer of one SQL statement as an Arrow table.

    The tables are `summary`, `hosts`, `partitions`, `events`, `replicates` and `series`. Files and
    the network are out of reach. Raises MachineError where DuckDB is not installed, UsageError for
    a statement that it refuses.
    """
    try:
        import duckdb
    except ImportError:
        raise MachineError("DuckDB is not installed", where="planner sql", instead="pip install "
                           "'ksm-planner[sql]', or use a duckdb of your own: duckdb -c \"from "
                           "'results/NAME-DIGEST/summary.parquet'\"") from None
    connection = duckdb.connect(":memory:", config={"enable_external_access": "false"})
    try:
        for name in TABLES:
            connection.register(name, getattr(result, name))
        relation = connection.sql(statement)
        if relation is None:
            raise UsageError("the statement gives no rows", where="planner sql",
                             instead="write a select; nothing can be changed here")
        return relation.to_arrow_table()
    except duckdb.Error as error:
        what = " ".join(str(error).split("\n\n")[0].split())
        raise UsageError(what, where="planner sql", instead=f"the tables are {', '.join(TABLES)}; "
                         "\"describe summary\" lists columns") from None
    finally:
        connection.close()
