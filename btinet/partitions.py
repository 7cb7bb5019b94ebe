"""Result tables in storage: a file a run, in hive folders by dataset and method.

``results/<kind>/dataset=<d>/method=<m>/<name>.parquet``. As hive readers (pandas, DuckDB, Spark, pyarrow) expect, the
two partition columns are in the folders' names and not in the files.
"""

from __future__ import annotations

import pyarrow as pa

from btinet.config import Run
from btinet.storage import Storage

COLUMNS = ("dataset", "method")


def partition_file(root: Storage, kind: str, run: Run, name: str) -> Storage:
    """Where the table ``name`` about ``run`` lies; kind is ``predictions``, ``epochs`` or ``runs``."""
    return root / "results" / kind / f"dataset={run.dataset.name}" / f"method={run.method}" / f"{name}.parquet"


def write_partition(file: Storage, table: pa.Table) -> None:
    """Write a table, without its partition columns; replaces this file and touches no other."""
    file.write_table(table.drop_columns(COLUMNS))


def read_partition(file: Storage) -> pa.Table:
    """Read a table, with its partition columns in front."""
    values = dict(part.split("=", 1) for part in file.path.split("/")[-3:-1])
    table = file.read_table()
    for field in (pa.field(column, pa.string(), nullable=False) for column in reversed(COLUMNS)):
        table = table.add_column(0, field, pa.array([values[field.name]] * len(table)))
    return table
