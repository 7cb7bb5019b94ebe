"""The pages' templates, all with one look (style.html.j2) and one way to lay out a table (table.html.j2)."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render_template(name: str, room: str = "btinet.report", /, **values: Any) -> str:
    """The page that the template ``name`` of a room makes of these values; text in them is escaped.

    Templates of other rooms may include this one's.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(place, ".") for place in dict.fromkeys((room, "btinet.report"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(values)
