"""Conversations: cut a long recording into windows of several turns, with real speaker changes and endpoints.

`write_conversations` does this for any manifest of turns (cuts, or recordings and supervisions). The steps, in order:

1. **Overlapping turns of one speaker** are joined (inexact times in the corpus; the label schema allows one turn of a
   speaker at a time).
2. **Endpoints** are found by punctuation or by pauses (`ConversationOptions.endpoints`). A window with an endpoint that
   a pause decided is marked ``label_source: {"endp": "machine:pause"}``, because a rule made the label.
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
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    get_args,
)

from lhotse import RecordingSet, SupervisionSet
from lhotse.audio import Recording
from lhotse.cut import Cut, MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.base.errors import CONTROL, UserError
from tokenverse_pp.base.files import is_finite
from tokenverse_pp.base.languages import checked_language
from tokenverse_pp.data.corpora.common import LeftOut, Say, stem, write_checked_files
from tokenverse_pp.data.labels import LABEL_SOURCE, MACHINE, TOLERANCE, type_problems
from tokenverse_pp.data.manifests import check_output, load_kind, read_cuts, shortened
from tokenverse_pp.data.normalise import NORMALISERS
from tokenverse_pp.tasks.punct import is_complete
from tokenverse_pp.tasks.registry import REGISTRY

MILLISECOND = 0.001  # windows begin and end on whole milliseconds
BY_PAUSE = f"{MACHINE}pause"  # the label source of endpoints that the transcript does not mark
UNKNOWN_WORDS = "its words are not known"
OF_TEXT = ("entities", "written")  # custom fields of a supervision that label its text
ORIGINAL_TEXT = "original_text"  # custom field of a supervision: its text before normalisation
NO_WORDS = "no words are left of its text"
BESIDE_UNKNOWN = "it overlaps a turn whose words are not known"
OVERLAP = "two speakers talk at once"
TOO_LONG = "speech without a place to cut is longer than a window"
OUTSIDE = "it does not lie inside its recording"
EndpointRule = Literal["auto", "punctuation", "pause"]
OverlapRule = Literal["keep", "drop"]


@dataclass(frozen=True)
class ConversationOptions:
    """Options for making windows; times in seconds. See the module's docstring. Raises UserError for a wrong value."""

    max_seconds: float = 30.0
    """Longest window in seconds."""
    max_gap: float = 2.0
    """A longer silence (s) begins a new window."""
    margin: float = 0.2
    """Silence (s) kept before and after a window, at most half of each silence."""
    endpoints: EndpointRule = "auto"
    """Rule for semantic endpoints. punctuation: the text of the turn ends in . ? ! or such a mark of another script,
    not in a comma, colon or dash. pause: after the turn the speaker is silent for --pause seconds, or another speaker
    begins first. auto: punctuation if the text ends in a mark, otherwise pause."""
    pause: float = 0.5
    """Pause in seconds for --endpoints."""
    overlaps: OverlapRule = "keep"
    """Overlapping speakers: keep the turns, written one after the other by start time, or drop this part."""

    def __post_init__(self) -> None:
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
class Track:
    """One channel of a recording and its turns (times from the recording's start).

    Attributes:
        prefix: the beginning of the ids of its cuts.
        custom: further custom fields of its cuts.
        tasks: that all its cuts are labelled for, if they say so.
    """

    prefix: str
    recording: Recording
    channel: int
    turns: Sequence[SupervisionSegment]
    custom: Dict[str, Any] = field(default_factory=dict)
    tasks: FrozenSet[str] = frozenset()


@dataclass(frozen=True)
class TurnWords:
    """The words of a turn.

    Attributes:
        text: its plain words; None if not known.
        complete: whether its transcript marks a complete sentence; None if not known, as there is no sign.
        entities: spans in ``text``, as in the label schema; None if not labelled.
        written: the words with punctuation and capitals, to label them for punct; None if not known.
    """

    text: Optional[str]
    complete: Optional[bool] = None
    entities: Optional[Sequence[Dict[str, Any]]] = None
    written: Optional[str] = None


@dataclass(frozen=True)
class SpokenTurn:
    """A supervision with its words.

    Attributes:
        joined: the ids of other supervisions that were joined to it.
        unknown: the reason, if its words are not known.
    """

    turn: SupervisionSegment
    words: TurnWords
    joined: Tuple[str, ...] = ()
    unknown: str = UNKNOWN_WORDS

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
    """Turns that cannot be separated, in the order of their starts."""

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
    track: Track, options: ConversationOptions, read_words: ReadWords, leave_out: NoteLeftOut, custom: Dict[str, Any]
) -> Iterator[MonoCut]:
    """The windows of one track, in time order, as labelled cuts.

    Args:
        track: each of its turns needs a speaker.
        leave_out: called with each turn that is in no window, and the reason.
        custom: custom fields of every cut, ``tasks`` among them; punct is added to a cut whose turns all have a
            written text.
    """
    recording, custom = track.recording, {**track.custom, **custom}
    turns = join_same_speaker(spoken_turns(recording, track.turns, read_words, leave_out))
    ends, by_pause = find_endpoints(turns, options)
    blocks = find_blocks(turns)
    for number, (first, last) in enumerate(find_windows(blocks, options, leave_out)):
        members = [turn for block in blocks[first : last + 1] for turn in block.turns]
        start, end = _with_margins(blocks, first, last, options.margin, recording.duration)
        own = dict(custom)
        if all(turn.words.written is not None for turn in members) and "punct" not in own["tasks"]:
            own["tasks"] = [*own["tasks"], "punct"]
        if "endp" in custom["tasks"] and any(turn.turn.id in by_pause for turn in members):
            own[LABEL_SOURCE] = {**custom.get(LABEL_SOURCE, {}), "endp": BY_PAUSE}
        yield MonoCut(
            id=f"{track.prefix}-{number:04d}",
            start=start,
            duration=round(end - start, 8),
            channel=track.channel,
            recording=recording,
            supervisions=[
                _supervision(turn, ends[turn.turn.id], start, end, recording, track.channel)
                for turn in members
                if turn.words.text
            ],
            custom=own,
        )


def spoken_turns(
    recording: Recording, turns: Sequence[SupervisionSegment], read_words: ReadWords, leave_out: NoteLeftOut
) -> List[SpokenTurn]:
    """Turns with their words, in time order. Those without words (a laugh) are left out; unknown words stay.

    Of a turn that extends beyond the recording, only part is in the audio: its words count as unknown.
    """
    spoken = []
    for turn in sorted(turns, key=lambda turn: (turn.start, turn.end, turn.id)):
        if not turn.speaker:
            raise UserError(f"supervision {turn.id}, field 'speaker': expected a name, found {turn.speaker!r}")
        words = read_words(turn)
        if words.text == "":
            leave_out(turn, NO_WORDS)
        elif turn.duration <= 0 or turn.start < -TOLERANCE or turn.end > recording.duration + TOLERANCE:
            start, end = max(turn.start, 0.0), min(turn.end, recording.duration)
            if start < end:
                inside = fastcopy(turn, start=start, duration=round(end - start, 8))
                spoken.append(SpokenTurn(inside, TurnWords(None), unknown=OUTSIDE))
            else:
                leave_out(turn, OUTSIDE)
        else:
            spoken.append(SpokenTurn(turn, words))
    return spoken


def join_same_speaker(turns: Sequence[SpokenTurn]) -> List[SpokenTurn]:
    """Join overlapping turns of one speaker into one turn with the words of both (unknown if either is)."""
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


def _both(first: Optional[str], second: Optional[str]) -> Optional[str]:
    return None if first is None or second is None else f"{first} {second}"


def _joined(first: SpokenTurn, second: SpokenTurn) -> SpokenTurn:
    entities: Optional[List[Dict[str, Any]]] = None
    if first.words.entities is not None and second.words.entities is not None:
        shift = len(first.words.text or "") + 1
        moved = [{**e, "start": e["start"] + shift, "end": e["end"] + shift} for e in second.words.entities]
        entities = [*first.words.entities, *moved]
    ours, theirs = first.turn.custom or {}, second.turn.custom or {}
    # A label that only one of them has does not hold for both.
    custom = {k: v for k, v in {**theirs, **ours}.items() if k not in OF_TEXT or (k in ours and k in theirs)}
    if "written" in custom:
        custom["written"] = f"{ours['written']} {theirs['written']}"
    turn = fastcopy(
        first.turn,
        duration=round(max(first.end, second.end) - first.start, 8),
        text=f"{first.turn.text} {second.turn.text}",
        custom=custom,
    )
    words = TurnWords(
        _both(first.words.text, second.words.text),
        (second if second.end >= first.end else first).words.complete,
        entities,
        _both(first.words.written, second.words.written),
    )
    reasons = {spoken.unknown for spoken in (first, second) if spoken.words.text is None}
    unknown = OUTSIDE if OUTSIDE in reasons else UNKNOWN_WORDS
    ids = (*first.joined, second.turn.id, *second.joined)
    return replace(first, turn=turn, words=words, joined=ids, unknown=unknown)


def find_endpoints(turns: Sequence[SpokenTurn], options: ConversationOptions) -> Tuple[Dict[str, bool], Set[str]]:
    """Return by id whether each turn ends in a semantic endpoint, and the turns for which pauses decided this."""
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


def _stops(spoken: SpokenTurn, starts: Dict[str, List[float]], pause: float) -> bool:
    speaker = spoken.turn.speaker
    own = _next_start(starts[speaker], spoken.end)
    others = min((_next_start(times, spoken.end) for who, times in starts.items() if who != speaker), default=math.inf)
    return own - spoken.end >= pause or others < own


def _next_start(starts: Sequence[float], time: float) -> float:
    place = bisect.bisect_left(starts, time - TOLERANCE)
    return starts[place] if place < len(starts) else math.inf


def find_blocks(turns: Sequence[SpokenTurn]) -> List[Block]:
    """Group turns in time order into blocks; see the module."""
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
    """Yield windows as (first, last) index in ``blocks``."""
    longest = options.max_seconds - 2 * options.margin - 2 * MILLISECOND
    first: Optional[int] = None
    for place, block in enumerate(blocks):
        reason = _why_not(block, longest, options)
        if reason:
            for spoken in block.turns:
                why = spoken.unknown if spoken.words.text is None else reason
                leave_out(spoken.turn, why)
                for other in spoken.joined:  # the turn it was joined to includes its time
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
    if spoken.words.written is not None:
        custom["written"] = spoken.words.written
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
    """A supervision's custom fields, with the text before normalisation (`ORIGINAL_TEXT`) where it differs."""
    return {**(custom or {}), **({} if text == normalised else {ORIGINAL_TEXT: text})}


def tracks_of_cuts(cuts: Iterable[Cut], where: str) -> Iterator[Track]:
    """The turns of consecutive cuts that share recording and channel, with times from the recording's start.

    Raises:
        UserError: for a cut that is not one channel of one recording, cuts of one recording that are not consecutive,
            and supervisions with the same id.
    """
    seen: Set[Tuple[str, int]] = set()
    for (recording_id, channel), group in groupby(_mono(cuts, where), key=lambda cut: (cut.recording.id, cut.channel)):
        if (recording_id, channel) in seen:
            raise UserError(f"{where}: the cuts of recording {recording_id} do not follow one another: sort them")
        seen.add((recording_id, channel))
        turns: List[SupervisionSegment] = []
        first = next(group)
        recording, custom = first.recording, {**(first.custom or {})}  # what all cuts share
        tasks = _named_tasks(custom)
        for cut in chain([first], group):
            if recording.sources != cut.recording.sources:
                raise UserError(
                    f"{where}: cut {cut.id}: its recording {recording_id!r} differs from the recording of that id in "
                    "the cut before it: give each recording its own id"
                )
            here = cut.custom or {}
            if custom.get(LABEL_SOURCE) != here.get(LABEL_SOURCE):
                raise UserError(f"{where}: cut {cut.id}, field 'custom.{LABEL_SOURCE}': not that of the cut before it")
            custom = {key: x for key, x in custom.items() if key != "tasks" and key in here and here[key] == x}
            recording, tasks = cut.recording, tasks & _named_tasks(here)
            turns += [fastcopy(turn, start=round(cut.start + turn.start, 8)) for turn in cut.supervisions]
        yield replace(_track(recording, channel, turns, where), custom=custom, tasks=tasks)


def _named_tasks(custom: Mapping[str, Any]) -> FrozenSet[str]:
    """The names among a cut's tasks, which were not checked."""
    named = custom.get("tasks")
    return frozenset(name for name in named if isinstance(name, str)) if isinstance(named, list) else frozenset()


def tracks_of_supervisions(recordings: RecordingSet, supervisions: SupervisionSet, where: str) -> Iterator[Track]:
    """The turns of each recording and channel, in the order of the recordings.

    Raises:
        UserError: for a supervision of an unknown recording or of several channels, and for two with the same id.
    """
    by_place: Dict[Tuple[str, int], List[SupervisionSegment]] = {}
    known: Dict[str, Recording] = {}
    for recording in recordings:
        if known.setdefault(recording.id, recording) is not recording:
            raise UserError(f"{where}: two recordings have the id {recording.id}")
    for turn in supervisions:
        if turn.recording_id not in known:
            raise UserError(f"{where}: supervision {turn.id}: no recording {turn.recording_id!r}")
        channels = turn.channel if isinstance(turn.channel, list) else [turn.channel]
        if len(channels) != 1:
            raise UserError(f"{where}: supervision {turn.id}, field 'channel': expected one, found {channels}")
        _check_fields(known[turn.recording_id], channels[0], [turn], where)
        by_place.setdefault((turn.recording_id, channels[0]), []).append(turn)
    for recording_id, recording in known.items():
        for channel in recording.channel_ids or [0]:
            if (recording_id, channel) in by_place:
                yield _track(recording, channel, by_place[recording_id, channel], where)


def _mono(cuts: Iterable[Cut], where: str) -> Iterator[MonoCut]:
    for cut in cuts:
        here = f"{where}: cut {cut.id}"
        if not isinstance(cut, MonoCut) or cut.recording is None:
            raise UserError(f"{here}: expected one channel of one recording, found a {type(cut).__name__}")
        if not is_finite(cut.start):
            raise UserError(f"{here}: field 'start': expected seconds, found {shortened(repr(cut.start), 80)}")
        _check_fields(cut.recording, cut.channel, cut.supervisions, here)
        yield cut


def _check_fields(recording: Recording, channel: Any, turns: Iterable[SupervisionSegment], where: str) -> None:
    """Check the types of fields, which lhotse does not check (raises UserError)."""
    problems = []
    if not _is_name(recording.id):
        problems.append(f"field 'recording.id': expected a name, found {recording.id!r}")
    if not is_finite(recording.duration):
        problems.append(f"field 'recording.duration': expected seconds, found {recording.duration!r}")
    if not isinstance(recording.channel_ids, list) or type(channel) is not int:
        problems.append(f"field 'channel': expected a number, found {channel!r} of {recording.channel_ids!r}")
    for turn in turns:
        if not _is_name(turn.id):
            problems.append(f"supervision {turn.id!r}: field 'id': expected a name")
        problems += type_problems(f"supervision {turn.id}", turn)
        entities = turn.custom.get("entities") if isinstance(turn.custom, dict) else None
        if entities is not None and not (isinstance(entities, list) and all(isinstance(e, dict) for e in entities)):
            problems.append(f"supervision {turn.id}, field 'custom.entities': expected a list, found {entities!r}")
    if problems:
        raise UserError(f"{where}: {shortened(problems[0])}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and not CONTROL.search(value)


def _track(recording: Recording, channel: int, turns: Sequence[SupervisionSegment], where: str) -> Track:
    ids = [turn.id for turn in turns]
    if len(set(ids)) < len(ids):
        double = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{where}: recording {recording.id}: two supervisions have the id {double}")
    prefix = recording.id if recording.num_channels == 1 else f"{recording.id}-{channel}"
    return Track(prefix, recording, channel, turns)


def read_tracks(turns: Path, recordings: Optional[Path] = None) -> Iterator[Track]:
    """Tracks of a manifest of cuts or, with ``recordings``, of supervisions (raises UserError if it is none)."""
    if recordings is None:
        return tracks_of_cuts(read_cuts(turns), str(turns))
    return tracks_of_supervisions(_load(recordings, RecordingSet), _load(turns, SupervisionSet), str(turns))


def _load(path: Path, kind: type):  # type: ignore[no-untyped-def]  # RecordingSet or SupervisionSet, by ``kind``
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a {kind.__name__}")
    return load_kind(path, kind, str(path), f"a {kind.__name__}")


def read_words(turn: SupervisionSegment, normaliser: str) -> TurnWords:
    """Return the words of a turn. Its label ``endpoint``, or else the mark at its end, tells if it is complete.

    A turn without the field ``text`` was not transcribed: its words are unknown. An empty text says that it has none.
    """
    if turn.text is None:
        return TurnWords(None)
    custom = turn.custom or {}
    try:
        text = NORMALISERS[normaliser](turn.text, turn.language)
    except UserError as error:
        raise UserError(f"supervision {turn.id}: --normaliser {normaliser}: {error}") from None
    if custom.get("entities") and text != turn.text:
        raise UserError(f"supervision {turn.id}: --normaliser {normaliser} would move its entities")
    endpoint = custom.get("endpoint")
    complete = endpoint if isinstance(endpoint, bool) else is_complete(turn.text)
    return TurnWords(text, complete, custom.get("entities"))


def write_conversations(
    turns: Path,
    output: Path,
    recordings: Optional[Path] = None,
    tasks: Sequence[str] = ("asr", "scd", "endp"),
    options: ConversationOptions = DEFAULT_OPTIONS,
    normaliser: str = "none",
    language: Optional[str] = None,
    say: Say = print,
) -> None:
    """Write windows of all turns to ``output``, and a list of turns left out to ``<its name>.left_out.jsonl``.

    Args:
        turns: cuts (whole recordings, or a cut per turn), or supervisions.
        tasks: the tasks that the turns are labelled for; endp is labelled here.
        language: the language of turns that name none.

    Raises:
        UserError: naming file and supervision. Nothing is written then.
    """
    check_output(output)
    unknown = [name for name in tasks if name not in REGISTRY]
    if unknown:
        raise UserError(f"--tasks: unknown task {unknown[0]!r}, expected some of {', '.join(REGISTRY)}")
    language = checked_language(language, "--language") if language else None
    words = partial(read_words, normaliser=normaliser)
    left_out = LeftOut()
    dropped: Set[str] = set()

    def cuts() -> Iterator[MonoCut]:
        for track in read_tracks(turns, recordings):
            dropped.update(track.tasks.difference(tasks))
            spoken = [fastcopy(turn, language=turn.language or language) for turn in track.turns]
            track = replace(track, turns=spoken)
            yield from conversation_cuts(track, options, words, left_out.add, {"tasks": list(tasks)})

    write_checked_files({output: (cuts(), left_out)}, output.with_name(f"{stem(output)}.left_out.jsonl"), say)
    if dropped:
        say(f"{turns}: labelled for {', '.join(sorted(dropped))} too, which --tasks leaves out")
