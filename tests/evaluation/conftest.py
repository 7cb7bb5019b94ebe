"""On one thread."""

from tests.training.micro import one_thread  # noqa: F401
