"""Analysis tables and results -> the report: one self-contained HTML page."""

from btinet.report.page import ResultTables, render, write

__all__ = ["ResultTables", "render", "write"]
