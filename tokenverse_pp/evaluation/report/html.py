"""HTML from Jinja2 templates (``*.html.j2`` beside the modules that fill them in), which escape all values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PACKAGE = Path(__file__).parents[2]


def render(template: str, **values: Any) -> str:
    """Fill in a template of the package.

    Halves of surrogate pairs, possible in JSON but not in a file, become ``?``.

    Args:
        template: its path within the package, with slashes.
        values: its variables; a missing one is an error.
    """
    return environment().get_template(template).render(values).encode("utf-8", "replace").decode()


@cache
def environment() -> Environment:
    """The templates of the package, with the filter ``percent`` and the function ``asset``."""
    found = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = percent
    found.globals["asset"] = asset
    return found


def asset(name: str) -> Markup:
    """A style or script of the package, which is not escaped."""
    return Markup((PACKAGE / name).read_text(encoding="utf-8").strip())


def percent(fraction: float) -> str:
    """A fraction in percent.

    >>> percent(0.1234)
    '12.3'
    """
    return f"{100 * fraction:.1f}"
