"""Help texts of options: the docstrings under the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Dict


@functools.cache
def option_help(cls: type) -> Dict[str, str]:
    """Return docstrings (string literals under the fields) by field name; fields without one are omitted."""
    from docstring_parser import parse_from_object

    found = {
        p.arg_name: " ".join((p.description or "").replace("``", "").split()) for p in parse_from_object(cls).params
    }
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if found.get(f.name)}


def nested_option_help(section: Any, prefix: str = "") -> Dict[str, str]:
    """Return help by dotted option name, for a dataclass instance whose fields may be dataclasses."""
    found = {prefix + name: text for name, text in option_help(section.__class__).items()}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found.update(nested_option_help(value, f"{prefix}{field.name}."))
    return found
