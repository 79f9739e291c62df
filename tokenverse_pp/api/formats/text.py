"""Plain text, a page for a browser, JSON, and NIST's formats: RTTM (turns), STM (turns with text), CTM (words).

NIST's tools, lhotse and `manifest import` read the NIST formats. The model detects speaker changes, not identities: the
"speakers" are ``turn1``, ``turn2``, .., and a person who speaks twice has two names.

Times have milliseconds and lie within the audio. ASCII blanks separate the fields, so a word keeps its no-break spaces;
a word with other blanks is written as several words. The formats have no escapes: a word that looks like NIST notation
(``{``, ``%uh``, ``(yes)``) is written unchanged, and `manifest import --nist-notation keep` reads it back.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tokenverse_pp.tasks.punct import gap
from tokenverse_pp.tasks.result import Entity, Transcript, Turn, Word

if TYPE_CHECKING:
    from tokenverse_pp.evaluation.report.utterance import PlayerSource

UNSURE = 0.5  # words below this confidence are underlined
CHARACTERS = 400  # of a paragraph
SILENCE = 10.0  # seconds without a word that end a paragraph


def to_text(transcript: Transcript, times: Optional[bool] = None) -> str:
    """Return the words, one line per paragraph (`paragraphs`), with punctuation and case if decoded.

    Args:
        times: begin each line with its time. None: only if there are several lines, so that a short recording is plain
            text.
    """
    parts = paragraphs(transcript)
    if times is None:
        times = len(parts) > 1
    texts = [transcript.written_text(part.first, part.stop) for part in parts]
    return "".join(f"{clock_time(p.start)}  {text}\n" if times else f"{text}\n" for p, text in zip(parts, texts))


def paragraphs(transcript: Transcript) -> List[Turn]:
    """Return the turns, with those of over 400 characters split into parts; a part has the number of its turn.

    A turn is split at silences of 10 s and more. Parts that are still too long are split at endpoints, and if these are
    too far apart, at the widest pause in the middle half. Only a speaker change splits an entity.
    """
    words = transcript.words
    inside = {at for entity in transcript.entities for at in range(entity.first + 1, entity.stop)}
    ends = [mark.position for mark in transcript.marks if mark.text == "[ENDP]" and mark.position not in inside]
    gaps = [0.0, *(after.start - before.end for before, after in zip(words, words[1:]))]  # before each word
    silent = [at for at, gap in enumerate(gaps) if gap >= SILENCE and at not in inside]
    size = [0, *accumulate(len(word.text) + 1 for word in words)]  # characters before each word

    def divided(first: int, stop: int) -> Iterator[int]:
        """Yield where a stretch without endpoints is split: at its widest pause, recursively."""
        if size[stop] - size[first] <= CHARACTERS:
            return
        quarter, middle = (size[stop] - size[first]) / 4, (size[stop] + size[first]) / 2
        inner = [at for at in range(first + 1, stop) if at not in inside]
        central = [at for at in inner if abs(size[at] - middle) <= quarter] or inner
        if central:
            best = min(central, key=lambda at: (-gaps[at], abs(size[at] - middle)))
            yield from (*divided(first, best), best, *divided(best, stop))

    found: List[Turn] = []
    for turn in transcript.spans():
        for first, stop in _pairs(_between(silent, turn.first, turn.stop)):
            sentences = _between(ends, first, stop)
            kept = [first]
            for before, after in zip(sentences, sentences[1:]):  # as many sentences as fit
                if before > kept[-1] and size[after] - size[kept[-1]] > CHARACTERS:
                    kept.append(before)
                kept.extend(divided(kept[-1], after))
            for a, b in _pairs([*kept, stop]):
                text = " ".join(word.text for word in words[a:b])
                found.append(Turn(turn.number, text, words[a].start, words[b - 1].end, a, b))
    return found


def _between(places: Sequence[int], first: int, stop: int) -> List[int]:
    """Return ``first``, the places (in order) between it and ``stop``, and ``stop``."""
    return list(dict.fromkeys([first, *places[bisect_left(places, first + 1) : bisect_left(places, stop)], stop]))


def _pairs(places: Sequence[int]) -> List[Tuple[int, int]]:
    return list(zip(places, places[1:]))


class SpelledWord(NamedTuple):
    """A word, how it is spelled, and what stands between it and the word before."""

    word: Word
    text: str
    gap: str


def parts_of(transcript: Transcript, turn: Turn) -> Iterator[Tuple[List[SpelledWord], Optional[Entity], bool]]:
    """Yield the entities of a paragraph and its other words: words, entity or None, whether an endpoint follows."""
    spelled = transcript.spelled
    ends = {mark.position for mark in transcript.marks if mark.text == "[ENDP]"}
    opened = {entity.first: entity for entity in transcript.entities}
    gaps = [" "] * len(spelled)
    if "punct" in transcript.tasks:
        gaps[1:] = [" " if i in ends else gap(*spelled[i - 1 : i + 1]) for i in range(1, len(spelled))]
    words = [SpelledWord(*word) for word in zip(transcript.words, spelled, gaps)]
    at = turn.first
    while at < turn.stop:
        entity = opened.get(at)
        stop = min(entity.stop, turn.stop) if entity is not None else at + 1
        yield words[at:stop], entity, stop in ends
        at = stop


def clock_time(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if there are any.

    >>> clock_time(2.74), clock_time(59.96), clock_time(3723)
    ('0:02.7', '1:00.0', '1:02:03.0')
    """
    minutes, tenths = divmod(round(10 * seconds), 600)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{tenths // 10:02d}.{tenths % 10}"


def to_html(transcript: Transcript, source: Optional[PlayerSource] = None, times: Optional[bool] = None) -> str:
    """Return a page: text with entities, endpoints and turns, a time line, the audio. It loads only linked audio.

    Args:
        source: its audio (`evaluation.report.utterance.source_of`), put into the page or linked.
        times: False: show paragraphs without times.
    """
    # This imports lhotse and torch; the other formats need neither.
    from tokenverse_pp.evaluation.report.tables import render

    about = [f"{transcript.duration:.1f} s", f"tasks: {', '.join(transcript.tasks)}"]
    if transcript.language is not None:
        sure = f" ({transcript.language_confidence:.0%})" if transcript.language_confidence is not None else ""
        about.insert(0, f"language {transcript.language}{sure}")
    if transcript.confidence is not None:
        about.append(f"mean confidence {transcript.confidence:.2f}")
    return render(
        "api/formats/transcript.html.j2",
        title=transcript.name,
        about=about,
        turns=[
            {"number": turn.number, "at": clock_time(turn.start), "parts": parts_of(transcript, turn)}
            for turn in paragraphs(transcript)
        ],
        timed=times is not False,
        unsure=UNSURE,
        utterance=_card(transcript, source),
    )


def _card(transcript: Transcript, source: Optional[PlayerSource]) -> Dict[str, Any]:
    """The report's time line and words, with a player."""
    from lhotse import MonoCut

    from tokenverse_pp.evaluation.report.utterance import card, utterance_of
    from tokenverse_pp.tasks.registry import tasks_for_tokens

    record = transcript.to_record()
    if "scd" in transcript.tasks:  # where the words of the next turn start
        record["speaker_changes"] = [turn.start for turn in transcript.turns[1:]]
    if "endp" in transcript.tasks:
        record["endpoints"] = list(transcript.endpoints)
    cut = MonoCut(transcript.name, start=0, duration=max(transcript.duration, 0.001), channel=0)
    tasks = tasks_for_tokens([mark.text for mark in transcript.marks])
    return card(utterance_of(cut, record, None), tasks, source)


def to_raw(transcript: Transcript) -> str:
    """Words and task tokens, as the model wrote them, on one line."""
    return transcript.raw + "\n"


def to_json(transcript: Transcript) -> str:
    """`Transcript.to_json`, indented."""
    return transcript.to_json(indent=2) + "\n"


def to_json_line(transcript: Transcript) -> str:
    """`Transcript.to_json`, on one line."""
    return transcript.to_json() + "\n"


_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]|^;|%(?=[0-9A-Fa-f]{2})")
NEUTRAL_LABEL = "<o>"  # before a text whose first word would be read as the label


def to_rttm(transcript: Transcript) -> str:
    """``SPEAKER recording 1 start duration <NA> <NA> turnN <NA> <NA>``, one line per turn."""
    name = recording_id(transcript.name)
    return "".join(
        f"SPEAKER {name} 1 {_seconds(start)} {_seconds(end - start)} <NA> <NA> turn{turn.number} <NA> <NA>\n"
        for turn, start, end in _turns(transcript)
    )


def to_stm(transcript: Transcript) -> str:
    """``recording 1 turnN start end <label> text``, one line per turn; the label is the language, if there is one."""
    name = recording_id(transcript.name)
    lines = []
    for turn, start, end in _turns(transcript):
        text = _BLANKS.sub(" ", turn.text).strip(" ")
        label = f"<{transcript.language}> " if transcript.language else ""
        if not label and text.startswith("<"):
            label = f"{NEUTRAL_LABEL} "
        lines.append(f"{name} 1 turn{turn.number} {_seconds(start)} {_seconds(end)} {label}{text}\n")
    return "".join(lines)


def to_ctm(transcript: Transcript) -> str:
    """``recording 1 start duration word confidence``, one line per word; unknown confidences are omitted."""
    name = recording_id(transcript.name)
    lines = []
    for word, (start, end) in zip(transcript.words, word_spans(transcript)):
        parts = [part for part in _BLANKS.split(word.text) if part]
        sure = "" if word.confidence is None else f" {word.confidence:.6f}"
        for i, part in enumerate(parts):
            a, b = (start + (end - start) * k // len(parts) for k in (i, i + 1))
            lines.append(f"{name} 1 {_seconds(a)} {_seconds(max(b - a, 1))} {part}{sure}\n")
    return "".join(lines)


def recording_id(name: str) -> str:
    """Return a name as a field of these formats: invalid characters are percent-encoded, as in URLs (UTF-8).

    `manifest import` finds the recording ``my call`` for ``my%20call``.

    >>> recording_id("my call;1"), recording_id(";; x"), recording_id("50%"), recording_id("a%20b"), recording_id("")
    ('my%20call;1', '%3B;%20x', '50%', 'a%2520b', 'audio')
    """
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name) or "audio"


def word_spans(transcript: Transcript) -> List[Tuple[int, int]]:
    """Return each word's start and end in milliseconds: 1 ms or more, within the audio if its length is known."""
    limit = int(1000 * transcript.duration + 1e-6)
    spans = []
    for word in transcript.words:
        start, end = round(1000 * word.start), round(1000 * word.end)
        if limit:
            start, end = min(start, limit - 1), min(end, limit)
        start = max(start, 0)
        spans.append((start, max(end, start + 1)))
    return spans


def _turns(transcript: Transcript) -> Iterator[Tuple[Turn, int, int]]:
    """Yield the turns with their times in milliseconds: from the start of the first word to the end of the last one."""
    spans = word_spans(transcript)
    for turn in transcript.spans():
        start = spans[turn.first][0]
        yield turn, start, max(spans[turn.stop - 1][1], start + 1)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"
