"""What the two searches of streams have in common: tokens, and the interface of a search that is carried on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, List, NamedTuple, Protocol, Sequence

if TYPE_CHECKING:  # `tokenverse_pp.runtime` uses the tokens without torch
    from tokenverse_pp.search.automaton import Rules
    from tokenverse_pp.search.scorer import Scorer


class Token(NamedTuple):
    """A token of the vocabulary, the frame of the stream at which it was written, its log-probability there."""

    id: int
    frame: int
    log_prob: float


class Ran(NamedTuple):
    """What became of one stream.

    memory: to go on with. settled: tokens that have become final. used: frames that were decoded; not all of them where
    an endpoint came first, after which the search starts anew.
    """

    memory: Any
    settled: List[Token]
    used: int


class Method(Protocol):
    """A search that can be carried on. A memory is never changed, so a step that fails leaves a stream as it was."""

    def start(self, scorer: Scorer, state: int) -> Any:
        """The memory of a stream of which nothing is decoded; ``state`` is the first one of its rules."""

    def run(
        self, scorer: Scorer, lengths: Sequence[int], rules: Rules, memories: Sequence[Any], first: Sequence[int]
    ) -> List[Ran]:
        """Decode the scorer's frames.

        Args:
            scorer: over the frames (T, N, J) of N streams, the longest first.
            lengths: of each, at least one frame.
            rules: of all, with the first state of each.
            memories: of each.
            first: the number of each stream's first frame.
        """

    def open(self, memory: Any) -> List[Token]:
        """The tokens of the best hypothesis behind those that are final."""

    def translate(self, memory: Any, translation: Callable[[int], int]) -> Any:
        """The memory with other states of the rules."""
