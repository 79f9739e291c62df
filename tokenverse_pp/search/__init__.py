"""Audio or encoder output -> hypotheses: search methods, task constraints, times and confidences.

What is named here is imported when it is asked for, so that `tokenverse_pp.runtime` can use the modules of this room
that need no torch (options, filters, hypothesis, records) where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenverse_pp.search.automaton import Constraints, Filter, compile_filters
    from tokenverse_pp.search.bonuses import Earnings, bonus_for
    from tokenverse_pp.search.entry import SearchModel, search
    from tokenverse_pp.search.filters import constraints_for
    from tokenverse_pp.search.frames import search_frames
    from tokenverse_pp.search.hotwords import Bonus, read_hotwords
    from tokenverse_pp.search.hypothesis import Hypothesis, TimedWord
    from tokenverse_pp.search.options import SearchOptions

MODULES = {
    "automaton": ("Constraints", "Filter", "compile_filters"),
    "bonuses": ("Earnings", "bonus_for"),
    "entry": ("SearchModel", "search"),
    "filters": ("constraints_for",),
    "frames": ("search_frames",),
    "hotwords": ("Bonus", "read_hotwords"),
    "hypothesis": ("Hypothesis", "TimedWord"),
    "options": ("SearchOptions",),
}

__all__ = [
    "Bonus",
    "Constraints",
    "Earnings",
    "Filter",
    "Hypothesis",
    "SearchModel",
    "SearchOptions",
    "TimedWord",
    "bonus_for",
    "compile_filters",
    "constraints_for",
    "read_hotwords",
    "search",
    "search_frames",
]


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
