"""The HTML templates of the reports, which lie beside this file."""

from __future__ import annotations

import jinja2


def template(name: str) -> jinja2.Template:
    """A template by its file name. Text is escaped; a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("osteojax.evaluation.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["zip"] = zip
    return environment.get_template(name)
