"""The page, in one piece: its only script and styles are in it, and its policy allows a browser no others."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple

from btinet.report.templates import render_template
from btinet.serving.answer import Description


class Page(NamedTuple):
    html: str
    policy: str
    """Its Content-Security-Policy."""


def render_page(description: Description) -> Page:
    """The page for a model."""
    data = description.model_dump_json().replace("<", "\\u003c")
    html = render_template("serve.html.j2", "btinet.serving", model=description, data=data)
    policy = {
        "default-src": "'none'",
        "script-src": _hashes("script", html),
        "style-src": _hashes("style", html),
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(html, "; ".join(f"{name} {value}" for name, value in policy.items()))


def _hashes(tag: str, html: str) -> str:
    """Of the elements that are styles, or scripts that run."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
