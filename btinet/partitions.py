"""Result tables in storage: a file a run, in hive folders by dataset and method.

``results/<kind>/dataset=<d>/method=<m>/<name>.parquet``, and ``results/images/dataset=<d>/<name>.parquet`` for what
all methods see. As hive readers (pandas, DuckDB, Spark, pyarrow) expect, the partition columns are in the folders'
names and not in the files.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from btinet.config import Run
from btinet.storage import Storage


def partition_file(root: Storage, kind: str, run: Run, name: str) -> Storage:
    """Where the table ``name`` about ``run`` lies; kind is ``predictions``, ``epochs`` or ``runs``."""
    return root / "results" / kind / f"dataset={run.dataset.name}" / f"method={run.method}" / f"{name}.parquet"


def write_partition(file: Storage, table: pa.Table) -> None:
    """Write a table, without its partition columns; replaces this file and touches no other."""
    file.write_table(table.drop_columns(list(_partition(file))))


def read_partition(file: Storage) -> pa.Table:
    """Read a table, with its partition columns in front."""
    table = file.read_table()
    for column, value in reversed(_partition(file).items()):
        field = pa.field(column, pa.string(), nullable=False)
        table = table.add_column(0, field, pa.array([value] * len(table), pa.string()))
    return table


def read_partitions(files: Iterable[Storage], schema: pa.Schema) -> pa.Table:
    """Read tables one after the other, with at least the columns of ``schema``; a column that some of them lack, as
    those of earlier versions may, is null there."""
    tables = [read_partition(file) for file in files]
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="default")


def _partition(file: Storage) -> dict[str, str]:
    """Partition columns and their values, from the names of the folders that ``file`` lies in."""
    return dict(part.split("=", 1) for part in file.path.split("/")[-3:-1] if "=" in part)
