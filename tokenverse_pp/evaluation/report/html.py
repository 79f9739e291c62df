"""Writing HTML: everything that comes from outside is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any, Iterable, Optional, Sequence


def tag(name: str, *content: str, **attributes: Any) -> str:
    """An element around content that is HTML already.

    Attributes are escaped; ``class_`` and ``data_t`` become ``class`` and ``data-t``; one that is None or False is
    left out, True gives one without a value.

    >>> tag("p", text("a < b"), class_="x", hidden=True, title=None)
    '<p class="x" hidden>a &lt; b</p>'
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{text(value)}"')
    return f"<{' '.join(parts)}>{''.join(content)}</{name}>"


def text(value: Any) -> str:
    """Anything as escaped text; halves of surrogate pairs, which JSON can hold and no file can, become ``?``."""
    return escape(str(value).encode("utf-8", "replace").decode())


def percent(fraction: float) -> str:
    """0.1234 -> 12.3."""
    return f"{100 * fraction:.1f}"


def cell(value: Any, shown: Optional[str] = None, **attributes: Any) -> str:
    """A table cell with a number: ``data-value`` holds it in full, the text as ``shown``."""
    return tag("td", text(value if shown is None else shown), data_value=value, **attributes)


def table(head: Sequence[str], rows: Iterable[str], **attributes: Any) -> str:
    """A table in a box that scrolls by itself; rows are HTML."""
    columns = "".join(tag("th", text(name), scope="col") for name in head)
    inner = tag("thead", tag("tr", columns)) + tag("tbody", *rows)
    return tag("div", tag("table", inner, **attributes), class_="scroll")


def row(name: str, *cells: str, **attributes: Any) -> str:
    """A row with a name; cells are HTML."""
    return tag("tr", tag("th", text(name), scope="row"), *cells, **attributes)


def section(title: str, *content: str, **attributes: Any) -> str:
    """A section with a heading; nothing at all if there is no content."""
    inside = "".join(content)
    return tag("section", tag("h2", text(title)), inside, **attributes) if inside else ""
