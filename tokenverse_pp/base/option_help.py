"""Help texts of options: the docstrings under the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Dict


@functools.cache
def option_help(cls: type) -> Dict[str, str]:
    """Field name -> its docstring (a string literal under the field); fields without one are missing."""
    from docstring_parser import parse_from_object

    found = {
        p.arg_name: " ".join((p.description or "").replace("``", "").split()) for p in parse_from_object(cls).params
    }
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if found.get(f.name)}


def nested_option_help(section: Any, prefix: str = "") -> Dict[str, str]:
    """Dotted option name -> description, of a dataclass instance whose fields may be dataclasses."""
    found = {prefix + name: text for name, text in option_help(section.__class__).items()}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found.update(nested_option_help(value, f"{prefix}{field.name}."))
    return found
