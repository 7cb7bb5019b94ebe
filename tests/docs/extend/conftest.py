"""The extensions of docs/extend.md: as if their files lay where the page says, their lines stood in the registries."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "docs/examples/extend"
PAGE = (REPOSITORY / "docs/extend.md").read_text()

BLOCKS: dict[str, str] = dict(re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
"""What the page shows, by the path that it gives."""
FILES = [path for path in BLOCKS if (EXAMPLES / Path(path).name).exists()]
REGISTRIES = [path for path, text in BLOCKS.items() if re.search(r"^\+", text, re.MULTILINE)]


def module_name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


for shown in FILES:  # before the tests that import them are collected
    spec = spec_from_file_location(module_name(shown), EXAMPLES / Path(shown).name)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each registry with the line that the page adds to it."""
    for path in REGISTRIES:
        added = [line[1:] for line in BLOCKS[path].splitlines() if line.startswith("+")]
        (registry,) = re.findall(r"^ (\w+)(?:: .*)? = {$", BLOCKS[path], re.MULTILINE)
        module = import_module(module_name(path))
        names = dict(vars(module))
        *imported, entry = added
        exec("\n".join(imported), names)
        for name, value in eval(f"{{{entry}}}", names).items():
            monkeypatch.setitem(getattr(module, registry), name, value)
