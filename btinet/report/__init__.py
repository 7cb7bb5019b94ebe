"""Analysis tables -> one self-contained HTML page."""

from btinet.report.page import render, write

__all__ = ["render", "write"]
