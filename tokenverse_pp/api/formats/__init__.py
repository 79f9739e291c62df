"""Output formats of a transcript. Only ``html`` needs torch or lhotse.

>>> from tokenverse_pp.tasks.result import Transcript, Word
>>> heard = Transcript("call", 2.0, words=(Word("hello", 0.4, 0.8, 0.9), Word("there", 0.8, 1.2, 0.7)))
>>> print(render(heard, "ctm"), end="")
call 1 0.400 0.400 hello 0.900000
call 1 0.800 0.400 there 0.700000
>>> print(render(heard, "srt"), end="")
1
00:00:00,400 --> 00:00:01,700
hello there
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional

from tokenverse_pp.api.formats.subtitles import to_srt, to_vtt
from tokenverse_pp.api.formats.text import to_ctm, to_html, to_json, to_json_line, to_raw, to_rttm, to_stm, to_text
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks.result import Transcript


class Format(NamedTuple):
    """How a transcript is written.

    ``ending``: of a file's name. ``write``: returns the content of a file. ``joined``: returns the part of one
    recording in a stream of several; None if a stream can have only one.
    """

    ending: str
    write: Callable[[Transcript], str]
    joined: Optional[Callable[[Transcript], str]]


FORMATS: Dict[str, Format] = {
    "text": Format(".txt", to_text, to_text),
    "raw": Format(".raw.txt", to_raw, to_raw),
    "json": Format(".json", to_json, to_json_line),
    "srt": Format(".srt", to_srt, None),
    "vtt": Format(".vtt", to_vtt, None),
    "rttm": Format(".rttm", to_rttm, to_rttm),
    "stm": Format(".stm", to_stm, to_stm),
    "ctm": Format(".ctm", to_ctm, to_ctm),
    "html": Format(".html", to_html, None),
}


def render(transcript: Transcript, format: str) -> str:
    """Return a transcript as the content of a file (raises UserError for an unknown format)."""
    if format not in FORMATS:
        raise UserError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[format].write(transcript)
