"""Equations between dollars become MathML, which browsers draw without a script (and GitHub draws them as they are)."""

from __future__ import annotations

import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

CODE = re.compile(r"(`[^`\n]+`)")
EQUATION = re.compile(r"\$([^$\n]+)\$")
PAGES = ("model.md",)
"""Elsewhere a dollar is a shell's."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri not in PAGES:
        return markdown
    parts = CODE.split(markdown)
    parts[::2] = [EQUATION.sub(lambda match: convert(match[1]), text) for text in parts[::2]]
    return "".join(parts)
