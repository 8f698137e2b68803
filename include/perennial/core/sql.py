"""SQL text for DuckDB: quoted identifiers, literals, and a connection that may open nothing."""

from __future__ import annotations

from pathlib import Path

import duckdb


def quoted(name: str) -> str:
    """A name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def connect(*folders: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own that reads and writes in ``folders`` alone; what does not fit in memory goes to the first."""
    connection = duckdb.connect(
        config={"threads": 2, "autoinstall_known_extensions": False, "autoload_known_extensions": False}
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET memory_limit = '512MB'")
    if folders:
        connection.execute(f"SET temp_directory = {literal(str(folders[0] / 'duckdb'))}")
        connection.execute(f"SET allowed_directories = [{', '.join(literal(str(folder)) for folder in folders)}]")
    connection.execute("SET enable_external_access = false")
    return connection
