"""Conversations: cut a long recording into windows of several turns, with real speaker changes and endpoints.

The steps, in this order:

1. **Overlapping turns of one speaker** are joined (inexact times in the corpus; the label schema allows one turn of a
   speaker at a time).
2. **Endpoints.** In a punctuated corpus a turn ends in a semantic endpoint if its transcript ends in ``. ? !``, but
   not if it ends in a comma, a dash or nothing. Without punctuation, a turn ends in an endpoint if the speaker is
   silent for ``pause`` seconds or another speaker begins first. A window with such an endpoint is marked
   ``label_source: {"endp": "machine:pause"}``, because a rule made the label.
3. **Blocks.** Turns that overlap in time cannot be separated: audio cut between them would contain speech that is not
   in the text. A block is a run of turns without a silence or a clean change of speakers inside.
4. **Overlapping speech** is serialised: turns are written one after the other by start time (serialised output
   training, Kanda et al., 2020). ``overlaps="drop"`` leaves out blocks in which two speakers talk at once.
5. **Windows.** Consecutive blocks are joined up to ``max_seconds``; a silence longer than ``max_gap`` starts a new
   window. Longer blocks, and blocks with a turn of unknown words, are left out. A window includes up to ``margin``
   seconds of the silence on each side, at most half of it.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Sequence, Set, Tuple, get_args

from lhotse.audio import Recording
from lhotse.cut import MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.labels import LABEL_SOURCE, MACHINE, TOLERANCE

MILLISECOND = 0.001  # windows begin and end on whole ones
BY_PAUSE = f"{MACHINE}pause"  # the maker of endpoints that no transcript marks
UNKNOWN_WORDS = "its words are not known"
NO_WORDS = "no words are left of its text"
BESIDE_UNKNOWN = "it overlaps a turn whose words are not known"
OVERLAP = "two speakers talk at once"
TOO_LONG = "speech without a place to cut is longer than a window"
OUTSIDE = "it does not lie inside its recording"
EndpointRule = Literal["auto", "punctuation", "pause"]
OverlapRule = Literal["keep", "drop"]


@dataclass(frozen=True)
class ConversationOptions:
    """Options for making windows; times in seconds. See the module's docstring."""

    max_seconds: float = 30.0
    """Longest window in seconds."""
    max_gap: float = 2.0
    """A longer silence (s) begins a new window."""
    margin: float = 0.2
    """Silence (s) kept before and after a window, at most half of what there is."""
    endpoints: EndpointRule = "auto"
    """Where a turn ends in a semantic endpoint. punctuation: where its transcript ends in . ? !; pause: where the
    speaker then says nothing for --pause seconds or another speaker begins before that; auto: by punctuation where the
    transcript has any, otherwise by pause."""
    pause: float = 0.5
    """See --endpoints; seconds."""
    overlaps: OverlapRule = "keep"
    """Where two speak at once: keep both, written one after the other by start time, or drop the stretch."""

    def check(self) -> None:
        """Check the values (raises UserError naming the option)."""
        if not self.max_seconds > 2 * self.margin >= 0:
            raise UserError(f"--max-seconds {self.max_seconds:g}: expected more than two margins of {self.margin:g} s")
        for name, value, allowed in (
            ("endpoints", self.endpoints, get_args(EndpointRule)),
            ("overlaps", self.overlaps, get_args(OverlapRule)),
        ):
            if value not in allowed:
                raise UserError(f"--{name} {value}: expected one of {', '.join(allowed)}")


DEFAULT_OPTIONS = ConversationOptions()


@dataclass(frozen=True)
class TurnWords:
    """The words of a turn.

    Attributes:
        text: its plain words; None: not known.
        complete: whether its transcript marks a complete sentence; None: it has no sign, so that nothing is known.
        entities: spans in ``text``, as in the label schema; None: not labelled.
    """

    text: Optional[str]
    complete: Optional[bool] = None
    entities: Optional[Sequence[Dict[str, Any]]] = None


@dataclass(frozen=True)
class SpokenTurn:
    """A supervision with its words; ``joined`` are the ids of further supervisions that it took in."""

    turn: SupervisionSegment
    words: TurnWords
    joined: Tuple[str, ...] = ()

    @property
    def start(self) -> float:
        """Seconds from the start of the recording."""
        return self.turn.start

    @property
    def end(self) -> float:
        """Seconds from the start of the recording."""
        return self.turn.end


@dataclass
class Block:
    """Turns that cannot be separated."""

    turns: List[SpokenTurn] = field(default_factory=list)

    @property
    def start(self) -> float:
        """The start of the first turn."""
        return self.turns[0].start

    @property
    def end(self) -> float:
        """The end of the turn that ends last."""
        return max(turn.end for turn in self.turns)


ReadWords = Callable[[SupervisionSegment], TurnWords]
NoteLeftOut = Callable[[SupervisionSegment, str], None]


def conversation_cuts(
    recording: Recording,
    turns: Sequence[SupervisionSegment],
    options: ConversationOptions,
    read_words: ReadWords,
    leave_out: NoteLeftOut,
    custom: Dict[str, Any],
    channel: int = 0,
    prefix: str = "",
) -> Iterator[MonoCut]:
    """The windows of one recording, in time order, as labelled cuts.

    Args:
        turns: supervisions of the recording, times from its start, each with a speaker.
        read_words: the words of a turn.
        leave_out: told of each turn that is in no window, and why.
        custom: what every cut says, ``tasks`` among it.
        channel: of the recording.
        prefix: what the ids of the cuts begin with; the recording's id by default.
    """
    spoken = spoken_turns(recording, turns, read_words, leave_out)
    spoken = join_same_speaker(spoken)
    ends, by_pause = find_endpoints(spoken, options)
    blocks = find_blocks(spoken)
    for number, (first, last) in enumerate(find_windows(blocks, options, leave_out)):
        members = [turn for block in blocks[first : last + 1] for turn in block.turns]
        start, end = _with_margins(blocks, first, last, options.margin, recording.duration)
        yield MonoCut(
            id=f"{prefix or recording.id}-{number:04d}",
            start=start,
            duration=round(end - start, 8),
            channel=channel,
            recording=recording,
            supervisions=[
                _supervision(turn, ends[turn.turn.id], start, end, recording, channel)
                for turn in members
                if turn.words.text
            ],
            custom=_with_source(custom, any(turn.turn.id in by_pause for turn in members)),
        )


def spoken_turns(
    recording: Recording, turns: Sequence[SupervisionSegment], read_words: ReadWords, leave_out: NoteLeftOut
) -> List[SpokenTurn]:
    """Turns with their words, in time order; those without words (a laugh) are left out, those not understood stay."""
    spoken = []
    for turn in sorted(turns, key=lambda turn: (turn.start, turn.end, turn.id)):
        if not turn.speaker:
            raise UserError(f"supervision {turn.id}, field 'speaker': expected a name, found {turn.speaker!r}")
        if turn.duration <= 0 or turn.start < -TOLERANCE or turn.end > recording.duration + TOLERANCE:
            leave_out(turn, OUTSIDE)
            continue
        words = read_words(turn)
        if words.text == "":
            leave_out(turn, NO_WORDS)
            continue
        spoken.append(SpokenTurn(turn, words))
    return spoken


def join_same_speaker(turns: Sequence[SpokenTurn]) -> List[SpokenTurn]:
    """Turns of one speaker that overlap, as one turn with the words of both (unknown if either is)."""
    joined: List[SpokenTurn] = []
    last_of: Dict[str, int] = {}
    for spoken in turns:
        place = last_of.get(spoken.turn.speaker)
        if place is not None and spoken.start < joined[place].end - TOLERANCE:
            joined[place] = _joined(joined[place], spoken)
        else:
            last_of[spoken.turn.speaker] = len(joined)
            joined.append(spoken)
    return joined


def _joined(first: SpokenTurn, second: SpokenTurn) -> SpokenTurn:
    known = first.words.text is not None and second.words.text is not None
    text = f"{first.words.text} {second.words.text}" if known else None
    complete = (second if second.end >= first.end else first).words.complete
    turn = fastcopy(
        first.turn,
        duration=round(max(first.end, second.end) - first.start, 8),
        text=f"{first.turn.text} {second.turn.text}",
        custom={**(second.turn.custom or {}), **(first.turn.custom or {})},
    )
    words = TurnWords(text, complete, _joined_entities(first.words, second.words))
    return replace(first, turn=turn, words=words, joined=(*first.joined, second.turn.id, *second.joined))


def _joined_entities(first: TurnWords, second: TurnWords) -> Optional[List[Dict[str, Any]]]:
    if first.entities is None or second.entities is None:
        return None
    shift = len(first.text or "") + 1
    moved = [{**item, "start": item["start"] + shift, "end": item["end"] + shift} for item in second.entities]
    return [*first.entities, *moved]


def find_endpoints(turns: Sequence[SpokenTurn], options: ConversationOptions) -> Tuple[Dict[str, bool], Set[str]]:
    """For each turn, by id, whether it ends in a semantic endpoint, and the turns for which pauses decided it."""
    starts: Dict[str, List[float]] = {}
    for spoken in turns:
        starts.setdefault(spoken.turn.speaker, []).append(spoken.start)
    result: Dict[str, bool] = {}
    by_pause: Set[str] = set()
    for spoken in turns:
        complete = spoken.words.complete
        if options.endpoints == "pause" or (options.endpoints == "auto" and complete is None):
            complete = _stops(spoken, starts, options.pause)
            by_pause.add(spoken.turn.id)
        result[spoken.turn.id] = bool(complete)
    return result, by_pause


def _with_source(custom: Dict[str, Any], by_pause: bool) -> Dict[str, Any]:
    """A cut's custom fields, saying so where a rule and no transcriber set an endpoint."""
    if not by_pause or "endp" not in custom["tasks"]:
        return dict(custom)
    return {**custom, LABEL_SOURCE: {**custom.get(LABEL_SOURCE, {}), "endp": BY_PAUSE}}


def _stops(spoken: SpokenTurn, starts: Dict[str, List[float]], pause: float) -> bool:
    speaker = spoken.turn.speaker
    own = _next_start(starts[speaker], spoken.end)
    others = min((_next_start(times, spoken.end) for who, times in starts.items() if who != speaker), default=math.inf)
    return own - spoken.end >= pause or others < own


def _next_start(starts: Sequence[float], time: float) -> float:
    place = bisect.bisect_left(starts, time - TOLERANCE)
    return starts[place] if place < len(starts) else math.inf


def find_blocks(turns: Sequence[SpokenTurn]) -> List[Block]:
    """Turns in time order -> blocks; see the module."""
    blocks: List[Block] = []
    end = -math.inf
    for spoken in turns:
        if spoken.start >= end - TOLERANCE:
            blocks.append(Block())
        blocks[-1].turns.append(spoken)
        end = max(end, spoken.end)
    return blocks


def find_windows(
    blocks: Sequence[Block], options: ConversationOptions, leave_out: NoteLeftOut
) -> Iterator[Tuple[int, int]]:
    """Windows as (first, last) place in ``blocks``."""
    longest = options.max_seconds - 2 * options.margin - 2 * MILLISECOND
    first: Optional[int] = None
    for place, block in enumerate(blocks):
        reason = _why_not(block, longest, options)
        if reason:
            for spoken in block.turns:
                why = UNKNOWN_WORDS if spoken.words.text is None else reason
                leave_out(spoken.turn, why)
                for other in spoken.joined:  # its time is in that of the turn that took it in
                    leave_out(fastcopy(spoken.turn, id=other, duration=0.0), why)
        if first is not None:
            gap = block.start - blocks[place - 1].end
            if reason or gap > options.max_gap or block.end - blocks[first].start > longest:
                yield first, place - 1
                first = None
        if first is None and not reason:
            first = place
    if first is not None:
        yield first, len(blocks) - 1


def _why_not(block: Block, longest: float, options: ConversationOptions) -> str:
    if any(spoken.words.text is None for spoken in block.turns):
        return BESIDE_UNKNOWN
    if block.end - block.start > longest:
        return TOO_LONG
    if options.overlaps == "drop" and len(block.turns) > 1:
        return OVERLAP
    return ""


def _with_margins(
    blocks: Sequence[Block], first: int, last: int, margin: float, duration: float
) -> Tuple[float, float]:
    """Start and end of a window in seconds, on whole milliseconds, inside the recording."""
    before = blocks[first].start - (blocks[first - 1].end if first else 0.0)
    after = (blocks[last + 1].start if last + 1 < len(blocks) else duration) - blocks[last].end
    left = margin if not first else min(margin, max(before, 0.0) / 2)
    right = margin if last + 1 == len(blocks) else min(margin, max(after, 0.0) / 2)
    start = max(0.0, math.floor((blocks[first].start - left) * 1000 + 1e-6) / 1000)
    end = min(duration, math.ceil((blocks[last].end + right) * 1000 - 1e-6) / 1000)
    return start, end


def _supervision(
    spoken: SpokenTurn, endpoint: bool, start: float, end: float, recording: Recording, channel: int
) -> SupervisionSegment:
    turn = spoken.turn
    custom = {**with_original(turn.custom, turn.text, spoken.words.text), "endpoint": endpoint}
    if spoken.words.entities is not None:
        custom["entities"] = list(spoken.words.entities)
    if spoken.joined:
        custom["joined"] = list(spoken.joined)
    offset = max(0.0, turn.start - start)
    return fastcopy(
        turn,
        recording_id=recording.id,
        start=round(offset, 8),
        duration=round(min(turn.end, end) - start - offset, 8),
        channel=channel,
        text=spoken.words.text,
        custom=custom,
        alignment=None,
    )


def with_original(custom: Optional[Dict[str, Any]], text: Optional[str], normalised: Optional[str]) -> Dict[str, Any]:
    """A supervision's custom fields, with the text before normalisation as ``original_text`` where it differs."""
    return {**(custom or {}), **({} if text == normalised else {"original_text": text})}
