"""Words and task tokens with times -> `Transcript`. Neither torch nor lhotse is imported."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from tokenverse_pp.api.transcript import FIELDS, Entity, Mark, Transcript, Turn, Word
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.text import tasks_for_tokens
from tokenverse_pp.tasks.transcript import Mark as PlainMark
from tokenverse_pp.tasks.transcript import Transcript as Answers
from tokenverse_pp.tasks.transcript import is_task_token


def transcript_of_record(record: Mapping[str, Any], tasks: TaskSet, duration: float, name: str) -> Transcript:
    """A line of hyps.jsonl, as `search.records.to_record` makes it -> transcript.

    Args:
        record: with ``words`` and ``tasks``.
        tasks: those of the model, at least.
        duration: of the audio in seconds; times are kept within it.
        name: of the recording.
    """
    words = [Word(item["text"], item["start"], item["end"], item["confidence"]) for item in record["words"]]
    return transcript_of_words(words, record["tasks"], duration, name, tasks)


def transcript_of_words(
    words: Sequence[Word],
    active: Sequence[str],
    duration: float,
    name: str = "audio",
    tasks: Optional[TaskSet] = None,
) -> Transcript:
    """Words and task tokens in the order in which they were written -> transcript.

    Args:
        words: task tokens are among them.
        active: names of the tasks that were decoded.
        duration: of the audio in seconds; times are kept within it (the last frame may reach beyond).
        name: of the recording.
        tasks: those of the model; without them, the registered ones with the languages and types that are written.
    """
    known = tasks if tasks is not None else tasks_for_tokens([word.text for word in words])
    duration = round(duration, 3)
    plain: List[Word] = []
    marks: List[Mark] = []
    for word in words:
        start = min(word.start, duration)
        if is_task_token(word.text):
            marks.append(Mark(word.text, len(plain), start, word.confidence))
        else:
            plain.append(Word(word.text, start, max(start, min(word.end, duration)), word.confidence))
    decoded = known.subset([task for task in known.names if task in active])
    answers = decoded.read([word.text for word in plain], [PlainMark(m.position, m.text, m.time) for m in marks])
    language = next((mark for mark in marks if "lid" in decoded and decoded["lid"].owns(mark.text)), None)
    return Transcript(
        name=name,
        duration=duration,
        tasks=tuple(active),
        words=tuple(plain),
        marks=tuple(marks),
        turns=_turns(answers, plain) if "scd" in decoded else (),
        entities=_entities(answers, plain, [m for m in marks if "ner" in decoded and decoded["ner"].owns(m.text)]),
        endpoints=tuple(next(m.time for m in marks if m.position == at and _ends(m)) for at in answers.endpoints),
        language=answers.language,
        language_confidence=language.confidence if language is not None else None,
        others=_others(decoded, answers, plain, marks),
    )


def _others(decoded: TaskSet, answers: Answers, words: Sequence[Word], marks: Sequence[Mark]) -> Dict[str, Any]:
    """What tasks say that `Transcript` has no field for."""
    found: Dict[str, Any] = {}
    for task in decoded.tasks:
        if task.name != "asr" and task.name not in FIELDS:
            own = [PlainMark(mark.position, mark.text, mark.time) for mark in marks if task.owns(mark.text)]
            found.update(task.record(answers, words, own))
    return found


def _ends(mark: Mark) -> bool:
    return mark.text == "[ENDP]"


def _turns(answers: Answers, words: Sequence[Word]) -> tuple[Turn, ...]:
    return tuple(
        Turn(number, _text(words[a:b]), words[a].start, words[b - 1].end, a, b)
        for number, (a, b) in enumerate(answers.turns, start=1)
    )


def _entities(answers: Answers, words: Sequence[Word], marks: Sequence[Mark]) -> tuple[Entity, ...]:
    """The entities, each with the tokens around it: the last that opens at its start, the next one after that."""
    found = []
    for entity in answers.entities:
        pairs = zip(marks, marks[1:])
        around = next((a, b) for a, b in pairs if (a.position, b.position) == (entity.start, entity.end))
        inside = words[entity.start : entity.end]
        confidence = min(mark.confidence for mark in around)
        start, end = inside[0].start, inside[-1].end
        found.append(Entity(_text(inside), entity.type, start, end, confidence, entity.start, entity.end))
    return tuple(found)


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)
