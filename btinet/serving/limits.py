"""What a server takes, and how it says no."""

from __future__ import annotations

import math
from typing import NamedTuple

MEGA = 1_000_000


class Limits(NamedTuple):
    """What a server takes."""

    max_bytes: int = 20 * MEGA
    """Of a request's body."""
    max_pixels: int = 25 * MEGA
    """Of an image, decoded."""
    seconds: float = 30.0
    """A request may take, its upload and its wait included."""
    waiting: int = 8
    """Requests that may wait while one is being predicted."""


class Refused(Exception):
    """A request that is not answered with a prediction.

    Args:
        status: of HTTP.
        detail: what is wrong and what to do, for people.
        retry_after: seconds after which trying again makes sense; None where it does not.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
