"""Audio or encoder output -> hypotheses: search methods, task constraints, times and confidences."""

from tokenverse_pp.search.automaton import Constraints, Filter, compile_filters
from tokenverse_pp.search.entry import SearchModel, search
from tokenverse_pp.search.filters import constraints_for
from tokenverse_pp.search.frames import search_frames
from tokenverse_pp.search.hotwords import Bonus, bonus_for, read_hotwords
from tokenverse_pp.search.hypothesis import Hypothesis, TimedWord
from tokenverse_pp.search.options import SearchOptions

__all__ = [
    "Bonus",
    "Constraints",
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
