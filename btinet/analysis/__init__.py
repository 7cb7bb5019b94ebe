"""Per-sample predictions in, the paper's tables out (Arrow in, Arrow out).

A table is one small function; :func:`btinet.analysis.tables.analyse` lists them.
"""

from btinet.analysis.runs import load_predictions
from btinet.analysis.tables import analyse

__all__ = ["analyse", "load_predictions"]
