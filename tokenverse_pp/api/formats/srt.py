"""SubRip subtitles."""

from __future__ import annotations

import re

from tokenverse_pp.api.formats.cues import Cue, clock, cues_of, with_escaped_dashes
from tokenverse_pp.api.transcript import Transcript

# What a reader may take for a tag, a character reference, an override of ASS, or the line of times of another cue.
# SubRip has no escapes of its own: players show character references as what they stand for, or as they are, so that
# only what needs one gets one.
_MARKUP = re.compile(r"&(?=#?\w+;)|<(?=[^<>]*>|[/A-Za-z0-9])|\{(?=\\)|(?<=[-=\u2010-\u2015])>|>(?=\s*[0-9])")
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;"}


def to_srt(transcript: Transcript) -> str:
    """Numbered cues (`cues_of`)."""
    return "\n".join(
        f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{_text(cue)}\n"
        for number, cue in enumerate(cues_of(transcript), start=1)
    )


def _text(cue: Cue) -> str:
    escaped = _MARKUP.sub(lambda match: _REFERENCES[match[0]], "\n".join(cue.lines))
    return with_escaped_dashes(escaped, cue.has_dash)
