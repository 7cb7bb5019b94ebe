"""On one thread; the package of the micro run, made once; images in every format."""

from __future__ import annotations

from tests.inference.conftest import micro, one_thread, package  # noqa: F401
from tests.inference.test_predict_cli import btinet, images  # noqa: F401
