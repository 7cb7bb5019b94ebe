"""How much TIM proposes to change the class vector, as a signal of failure: the more, the less it is to be trusted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from btinet.analysis.resampling import Floats


def tim_change(rows: pa.Table, level: int) -> Floats:
    """Root mean square of the change at a level (0 for D1), [n]; NaN where the method has no TIM."""
    return np.asarray(pc.list_element(rows["tim_dclf_l2"], level).cast(pa.float64()).to_numpy())
