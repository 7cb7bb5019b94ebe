"""The Prefect server that a flow starts for itself. (What signals and cancellations do: tests/integration.)"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from btinet.errors import JobError
from flows.process import prefect_api


def test_server_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'table flow already exists' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(JobError, match=r"ended with status 3; (.|\n)*table flow already exists"), prefect_api():
        pass
