"""On one thread; the micro run and its package, made once."""

from tests.inference.conftest import micro, one_thread, package  # noqa: F401
