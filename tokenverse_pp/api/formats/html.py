"""One page for a browser: the text with its entities, endpoints and turns, a time line, and the audio."""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from tokenverse_pp.tasks.result import Transcript, Turn, Word

if TYPE_CHECKING:
    from tokenverse_pp.evaluation.report.utterance import PlayerSource

STYLE = """
.transcript { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .4rem 1rem; }
.transcript p { margin: .5rem 0; padding-left: 3.2rem; text-indent: -3.2rem; }
.transcript .at { display: inline-block; width: 3.2rem; text-indent: 0; color: var(--soft); font-size: .8rem; }
.transcript mark { background: var(--entity); color: inherit; border-radius: .25rem; padding: 0 .2rem; }
.transcript mark small { color: var(--soft); margin-left: .3rem; }
.transcript .unsure { text-decoration: underline dotted var(--sub); }
.transcript .stop { color: var(--accent); font-size: .7rem; margin-left: .15rem; }
"""
UNSURE = 0.5  # words below this confidence are underlined


def to_html(transcript: Transcript, source: Optional[PlayerSource] = None) -> str:
    """A page that asks for nothing from anywhere else.

    Args:
        transcript: what was heard.
        source: its audio (`report_page.audio.source_of`), put into the page or linked.
    """
    # lhotse and torch come along: the other formats need neither.
    from tokenverse_pp.evaluation.report.page import HERE
    from tokenverse_pp.evaluation.report.tables import section, tag, text

    about = [f"{transcript.duration:.1f} s", f"tasks: {', '.join(transcript.tasks)}"]
    if transcript.language is not None:
        sure = f" ({transcript.language_confidence:.0%})" if transcript.language_confidence is not None else ""
        about.insert(0, f"language {transcript.language}{sure}")
    if transcript.confidence is not None:
        about.append(f"mean confidence {transcript.confidence:.2f}")
    paragraphs = [_paragraph(transcript, turn) for turn in transcript.spans()] or [tag("p", text("nothing was heard"))]
    body = [
        tag("p", *(tag("span", text(part)) for part in about), class_="meta"),
        section("Transcript", tag("div", *paragraphs, class_="transcript", dir="auto")),
        section("Time line", _card(transcript, source)),
    ]
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=text(transcript.name),
        style=(HERE / "page.css").read_text(encoding="utf-8") + STYLE,
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        body="\n".join(body),
    )


def _paragraph(transcript: Transcript, turn: Turn) -> str:
    """A turn, its entities marked, its endpoints shown."""
    from tokenverse_pp.evaluation.report.tables import tag, text

    ends = {mark.position for mark in transcript.marks if mark.text == "[ENDP]"}
    opened = {entity.first: entity for entity in transcript.entities}
    parts: List[str] = [tag("span", text(f"{int(turn.start) // 60}:{turn.start % 60:04.1f}"), class_="at")]
    at = turn.first
    while at < turn.stop:
        entity = opened.get(at)
        stop = min(entity.stop, turn.stop) if entity is not None else at + 1
        words = " ".join(_word(word) for word in transcript.words[at:stop])
        if entity is not None:
            kind = tag("small", text(entity.type)) if entity.type else ""
            words = tag("mark", words, kind, title=f"entity, confidence {entity.confidence:.2f}")
        parts.append(words + (tag("span", "◆", class_="stop", title="endpoint") if stop in ends else ""))
        at = stop
    return tag("p", " ".join(parts), title=f"turn {turn.number}")


def _word(word: Word) -> str:
    from tokenverse_pp.evaluation.report.tables import tag, text

    title = f"{word.start:.2f} s, confidence {word.confidence:.2f}"
    return tag("span", text(word.text), title=title, class_="unsure" if word.confidence < UNSURE else None)


def _card(transcript: Transcript, source: Optional[PlayerSource]) -> str:
    """The report's time line and words, with a player."""
    from lhotse import MonoCut

    from tokenverse_pp.evaluation.report.utterance import card, utterance_of
    from tokenverse_pp.tasks.result import tasks_for_tokens

    record = record_of(transcript)
    cut = MonoCut(transcript.name, start=0, duration=max(transcript.duration, 0.001), channel=0)
    tasks = tasks_for_tokens([mark.text for mark in transcript.marks])
    return card(utterance_of(cut, record, None), tasks, source)


def record_of(transcript: Transcript) -> Dict[str, Any]:
    """The transcript as a line of hyps.jsonl."""
    words: List[Dict[str, Any]] = []
    at = 0
    for mark in transcript.marks:
        words += [_entry(word) for word in transcript.words[at : mark.position]]
        words.append({"text": mark.text, "start": mark.time, "end": mark.time, "confidence": mark.confidence})
        at = mark.position
    words += [_entry(word) for word in transcript.words[at:]]
    record: Dict[str, Any] = {
        "id": transcript.name,
        "text": transcript.raw,
        "tasks": list(transcript.tasks),
        "words": words,
    }
    if "scd" in transcript.tasks:
        record["turns"] = [{"text": t.text, "start": t.start, "end": t.end} for t in transcript.turns]
        record["speaker_changes"] = [turn.start for turn in transcript.turns[1:]]
    if "endp" in transcript.tasks:
        record["endpoints"] = list(transcript.endpoints)
    if "ner" in transcript.tasks:
        record["entities"] = [
            {"text": e.text, "start": e.start, "end": e.end, "type": e.type} for e in transcript.entities
        ]
    if "lid" in transcript.tasks:
        record["language"] = transcript.language
    return record


def _entry(word: Word) -> Dict[str, Any]:
    return {"text": word.text, "start": word.start, "end": word.end, "confidence": word.confidence}
