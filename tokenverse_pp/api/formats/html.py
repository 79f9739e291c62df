"""One page for a browser: the text with its entities, endpoints and turns, a time line, and the audio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional

from tokenverse_pp.api.formats.text import UNSURE, clock_time, paragraphs, parts_of
from tokenverse_pp.tasks.result import Transcript

if TYPE_CHECKING:
    from tokenverse_pp.evaluation.report.utterance import PlayerSource


def to_html(transcript: Transcript, source: Optional[PlayerSource] = None, times: Optional[bool] = None) -> str:
    """Return a page that loads nothing from elsewhere, except linked audio.

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
