"""Audio or encoder output -> hypotheses: search methods, task constraints, times and confidences."""

from tokenverse_pp.search.automaton import Constraints, Filter, compile_filters
from tokenverse_pp.search.entry import SearchModel, search
from tokenverse_pp.search.filters import constraints_for
from tokenverse_pp.search.frames import search_frames
from tokenverse_pp.search.hypothesis import Hypothesis, TimedWord
from tokenverse_pp.search.options import SearchOptions

__all__ = [
    "Constraints",
    "Filter",
    "Hypothesis",
    "SearchModel",
    "SearchOptions",
    "TimedWord",
    "compile_filters",
    "constraints_for",
    "search",
    "search_frames",
]
