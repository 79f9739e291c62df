"""The result of recognition, `Transcript`: from the tokens of a search to hyps.jsonl and the output formats.

>>> words = [Word("[FR]", 0.04, 0.08, 0.99), Word("bonjour", 0.2, 0.56, 0.9), Word("[ENDP]", 0.6, 0.64, 0.8)]
>>> heard = transcript_of_words(words, ["asr", "endp", "lid"], duration=1.0, name="call")
>>> print(heard)
bonjour
>>> heard.raw, heard.language, heard.endpoints, heard.entities
('[FR] bonjour [ENDP]', 'fr', (0.6,), ())
>>> Transcript.from_json(heard.to_json()) == heard
True

`words_of_tokens` joins tokens to words with times, `TranscriptReader` reads the answers of the tasks from words and
task tokens, and `Transcript.to_record` and `Transcript.from_record` write and read a line of hyps.jsonl. Neither torch
nor lhotse is imported.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import is_finite, json_of
from tokenverse_pp.tasks.transcript import (
    CONFIDENCE_DIGITS,
    SECONDS_DIGITS,
    UNKNOWN,
    Answers,
    Mark,
    MarkReader,
    Word,
    is_task_token,
    split_marks,
    word_spans,
)

if TYPE_CHECKING:
    from tokenverse_pp.tasks.base import TaskSet


def words_of_tokens(
    pieces: Sequence[str],
    frames: Sequence[int],
    log_probs: Sequence[float],
    frame_shift: float,
    calibration: Optional[Callable[[str, float], float]] = None,
) -> List[Word]:
    """Return words and task tokens with times and confidences.

    A word starts where the frame of its first piece starts, and ends where the frame of its last piece ends: a
    transducer gives the time of a piece, not its duration, so a word of one piece lasts one frame. A word's confidence
    is the geometric mean of its pieces' probabilities.

    Args:
        pieces: text of each token (SentencePiece pieces and task tokens).
        frames: encoder output frame of each token.
        log_probs: log-probability of each token.
        frame_shift: seconds per encoder output frame.
        calibration: maps text and raw confidence of a word to its calibrated confidence.
    """
    words = []
    for text, first, end in word_spans(pieces):
        confidence = min(1.0, math.exp(sum(log_probs[first:end]) / (end - first)))
        raw = None
        if calibration is not None:
            raw, confidence = confidence, calibration(text, confidence)
        words.append(Word(text, frames[first] * frame_shift, (frames[end - 1] + 1) * frame_shift, confidence, raw))
    return words


@dataclass(frozen=True)
class Turn:
    """Words ``first`` to ``stop`` (exclusive), between two speaker changes.

    The model detects speaker changes, not identities: turns are numbered from 1, speakers are not. Turns 1 and 3 may or
    may not have the same speaker.
    """

    number: int
    text: str
    start: float
    end: float
    first: int
    stop: int


@dataclass(frozen=True)
class Entity:
    """A named entity: words ``first`` to ``stop`` (exclusive); ``type`` is None if the model has no types.

    Its confidence, that these words *are* an entity, is the lower one of its two task tokens. The words have their own
    confidences.
    """

    text: str
    type: Optional[str]
    start: float
    end: float
    confidence: float
    first: int
    stop: int


@dataclass(frozen=True)
class Pause:
    """The gap after a word, with the probability that an utterance is complete there.

    ``position``: number of words before it. It lasts from ``start``, when the model had written the word before it, to
    ``end``, when it wrote the next word or the audio ended. ``probability``: of an endpoint by ``end``, whether the
    model wrote ``[ENDP]`` or not (docs/streaming.md).
    """

    position: int
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Transcript:
    """The result of recognition for one recording.

    ``tasks`` are the requested tasks. Fields of other tasks are empty (``language``: None), and `to_dict` omits them:
    a task that was not requested differs from one that found nothing.

    Attributes:
        name: a cut's id, or a file name without its ending (for files in a folder, with their path below it).
        duration: length of the audio in seconds.
        tasks: names of the tasks that were decoded.
        words: plain words, no task tokens. A transducer gives the time of a piece, not its duration: a word of one
            piece lasts one encoder output frame (`TokenVerse.frame_shift`).
        marks: task tokens in the order in which they were written, including those without meaning (a second ``[FR]``).
        turns: see `Turn` (task ``scd``).
        entities: see `Entity` (task ``ner``).
        endpoints: times in seconds at which the speaker had completed an utterance (task ``endp``).
        pauses: one `Pause` after each word with the option ``pauses``, else None.
        language: a code such as ``fr``, or None if none was written (task ``lid``).
        language_confidence: confidence of the language token.
        others: fields of tasks from outside the package, as given by their ``Task.record``.
        written: words and task tokens as a search wrote them, with times that may exceed ``duration`` by part of a
            frame. This and the following fields are not part of `to_dict`.
        tokens: pieces of the vocabulary; None if the transcript is not from a search.
        times: time in seconds of each token.
        score: score of the hypothesis in the search.
        answers: the answers of the tasks as word positions, for scoring.
    """

    name: str = "audio"
    duration: float = 0.0
    tasks: Tuple[str, ...] = ("asr",)
    words: Tuple[Word, ...] = ()
    marks: Tuple[Mark, ...] = ()
    turns: Tuple[Turn, ...] = ()
    entities: Tuple[Entity, ...] = ()
    endpoints: Tuple[float, ...] = ()
    pauses: Optional[Tuple[Pause, ...]] = None
    language: Optional[str] = None
    language_confidence: Optional[float] = None
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)
    written: Tuple[Word, ...] = field(default=(), compare=False, repr=False)
    tokens: Optional[Tuple[str, ...]] = field(default=None, compare=False, repr=False)
    times: Tuple[float, ...] = field(default=(), compare=False, repr=False)
    score: Optional[float] = field(default=None, compare=False, repr=False)
    answers: Answers = field(default_factory=Answers, compare=False, repr=False)

    def __str__(self) -> str:
        """The plain words."""
        return self.text

    @property
    def text(self) -> str:
        """The plain words."""
        return text_of(self.words)

    @property
    def raw(self) -> str:
        """Words and task tokens as the model wrote them."""
        return text_of(self._sequence())

    @cached_property
    def spelled(self) -> Tuple[str, ...]:
        """Each word with its capitals and the mark after it (task ``punct``; without it the plain words)."""
        from tokenverse_pp.tasks.punct import spelled  # here, as it imports this module

        plain = [word.text for word in self.words]
        found = ((mark.position, mark.text) for mark in self.marks)
        return tuple(spelled(plain, found, self.language) if "punct" in self.tasks else plain)

    def written_text(self, first: int = 0, stop: Optional[int] = None) -> str:
        """Return words ``first`` to ``stop`` (exclusive) as printed, with punctuation and case if decoded."""
        from tokenverse_pp.tasks.punct import joined  # here, as it imports this module

        pieces = self.spelled[first:stop]
        return joined(pieces) if "punct" in self.tasks else " ".join(pieces)

    def _sequence(self) -> Sequence[Word]:
        """Return words and task tokens: ``written``, or ``words`` and ``marks`` merged."""
        if self.written:
            return self.written
        found: List[Word] = []
        at = 0
        for mark in self.marks:
            found += self.words[at : mark.position]
            found.append(Word(mark.text, mark.time, mark.time, mark.confidence))
            at = mark.position
        return [*found, *self.words[at:]]

    @property
    def confidence(self) -> Optional[float]:
        """The mean over the words; None if no word has a confidence."""
        known = [word.confidence for word in self.words if word.confidence is not None]
        return sum(known) / len(known) if known else None

    def spans(self) -> Tuple[Turn, ...]:
        """The turns; all words as one turn if speaker changes were not requested."""
        if self.turns or not self.words:
            return self.turns
        return (Turn(1, self.text, self.words[0].start, self.words[-1].end, 0, len(self.words)),)

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values (docs/transcribe.md), without the keys of tasks that were not requested."""
        found: Dict[str, Any] = {
            "name": self.name,
            "duration": self.duration,
            "tasks": list(self.tasks),
            "text": self.text,
            "raw": self.raw,
            "words": [word.to_dict() for word in self.words],
            "marks": [dataclasses.asdict(mark) for mark in self.marks],
        }
        if "scd" in self.tasks:
            found["turns"] = [dataclasses.asdict(turn) for turn in self.turns]
        if "ner" in self.tasks:
            found["entities"] = [dataclasses.asdict(entity) for entity in self.entities]
        if "endp" in self.tasks:
            found["endpoints"] = list(self.endpoints)
            if self.pauses is not None:
                found["pauses"] = [dataclasses.asdict(pause) for pause in self.pauses]
        if "lid" in self.tasks:
            found.update(language=self.language, language_confidence=self.language_confidence)
        if "punct" in self.tasks:
            found["written"] = self.written_text()
        return {**found, "others": dict(self.others)} if self.others else found

    def to_json(self, indent: Optional[int] = None) -> str:
        """`to_dict` as JSON text; on one line without ``indent``."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transcript:
        """The inverse of `to_dict`; unknown keys are ignored (raises UserError, naming a wrong or missing field)."""
        if not isinstance(data, Mapping):
            raise UserError(f"transcript: expected an object, found {data!r:.60}")

        def items(key: str) -> List[Any]:
            if not isinstance(data.get(key), (list, tuple)):
                raise UserError(f"transcript, field {key!r}: expected a list, found {data.get(key)!r:.60}")
            return list(data[key])

        values: Dict[str, Any] = {
            "name": _checked("name", data.get("name"), "str"),
            "duration": _checked("duration", data.get("duration"), "float"),
        }
        tasks = values["tasks"] = tuple(_checked("tasks", item, "str") for item in items("tasks"))
        for key, kind, task in OBJECTS:
            if task is None or task in tasks:
                values[key] = tuple(_object(key, item, kind) for item in items(key))
        if "endp" in tasks:
            values["endpoints"] = tuple(_checked("endpoints", item, "float") for item in items("endpoints"))
            if data.get("pauses") is not None:
                values["pauses"] = tuple(_object("pauses", item, Pause) for item in items("pauses"))
        if "lid" in tasks and data.get("language") is not None:
            values["language"] = _checked("language", data["language"], "str")
            values["language_confidence"] = _checked(
                "language_confidence", data.get("language_confidence"), "Optional[float]"
            )
        if data.get("others") is not None:
            values["others"] = dict(_checked("others", data["others"], "dict"))
        made = cls(**values)
        _check_ranges(made)
        return made

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        """The inverse of `to_json` (raises UserError)."""
        return cls.from_dict(json_of(text, "transcript"))

    def to_record(self) -> Dict[str, Any]:
        """Return a line of hyps.jsonl (docs/decoding.md); keys of tasks that were not decoded are absent, not empty."""
        written = self._sequence()
        plain = [word for word in written if not word.is_task_token]
        record: Dict[str, Any] = {"id": self.name, "text": text_of(written)}
        if self.tokens is not None:
            record.update(tokens=list(self.tokens), times=list(self.times))
        record["words"] = [word.to_dict(raw=True) for word in written]
        if self.score is not None:
            record["score"] = self.score
        record["tasks"] = list(self.tasks)
        if "scd" in self.tasks:
            record["turns"] = [span_record(plain[turn.first : turn.stop]) for turn in self.turns]
            record["speaker_changes"] = [word.start for word in written if word.text == "[SCD]"]
        if "endp" in self.tasks:
            record["endpoints"] = [word.start for word in written if word.text == "[ENDP]"]
            if self.pauses is not None:
                record["pauses"] = [dataclasses.asdict(pause) for pause in self.pauses]
        if "ner" in self.tasks:
            spans = [(span_record(plain[entity.first : entity.stop]), entity.type) for entity in self.entities]
            record["entities"] = [{**span, "type": kind} for span, kind in spans]
        if "lid" in self.tasks:
            record["language"] = self.language
        if "punct" in self.tasks:
            record["written"] = self.written_text()
        return {**record, **self.others}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], tasks: Optional[TaskSet] = None) -> Transcript:
        """The inverse of `to_record`, for any line that `tokenverse_pp.data.hypotheses.check_hypothesis` accepts.

        A line with only ``id`` and ``text`` gives words without times and confidences.

        Args:
            record: the line. If it has ``tasks``, only these get an answer: a task that was not decoded differs from
                one that found nothing.
            tasks: tasks to read; by default all registered ones.
        """
        written = written_words(record)
        pauses = record.get("pauses")
        known = tasks if tasks is not None else _tasks_of(written)
        active = known if record.get("tasks") is None else known.subset(record["tasks"])
        return active.reader.read(
            written,
            name=record["id"],
            tokens=None if record.get("tokens") is None else tuple(record["tokens"]),
            times=tuple(record.get("times") or ()),
            score=record.get("score"),
            pauses=None if pauses is None else tuple(_object("pauses", pause, Pause) for pause in pauses),
            others={key: value for key, value in record.items() if key not in RECORD_KEYS},
        )


# Fields of `Transcript` that are tuples of objects, and the task without which they are absent from JSON.
OBJECTS = (("words", Word, None), ("marks", Mark, None), ("turns", Turn, "scd"), ("entities", Entity, "ner"))
WITH_FIELDS = ("asr", "scd", "endp", "ner", "lid", "punct")  # tasks whose answers are fields of `Transcript`
RECORD_KEYS = {
    *("id", "text", "tokens", "times", "words", "score", "tasks", "turns", "speaker_changes"),
    *("endpoints", "pauses", "entities", "language", "written"),
}


class TranscriptReader:
    """Reads transcripts with the tokens of some tasks; each `TaskSet` has one.

    It gets the reader of each task (`Task.reader`) once.
    """

    def __init__(self, tasks: TaskSet):
        self.names = tasks.names
        self.symbols = {task.name: frozenset(task.symbols) for task in tasks.tasks if task.name != "asr"}
        self.readers: Dict[str, MarkReader] = {name: tasks[name].reader for name in self.symbols}
        self.outside = [task for task in tasks.tasks if task.name not in WITH_FIELDS]

    def answers(self, words: Sequence[str], marks: Sequence[Mark]) -> Answers:
        """Return an answer for each of the tasks, and only these, read from words and task tokens."""
        found = {}
        for name, reader in self.readers.items():
            found[name] = reader([mark for mark in marks if mark.text in self.symbols[name]], len(words))
        return Answers(tuple(words), found)

    def read_tokens(
        self,
        pieces: Sequence[str],
        frames: Sequence[int],
        log_probs: Sequence[float],
        frame_shift: float,
        calibration: Optional[Callable[[str, float], float]],
        score: float,
        duration: float,
        name: str,
        pauses: Optional[Sequence[float]] = None,
    ) -> Transcript:
        """Build a transcript from tokens of a search (`words_of_tokens`), with numbers rounded as in hyps.jsonl.

        ``duration``: of the audio, in seconds. ``pauses``: see `Hypothesis.pauses`.
        """
        words = [word.rounded() for word in words_of_tokens(pieces, frames, log_probs, frame_shift, calibration)]
        times = tuple(round(frame * frame_shift, SECONDS_DIGITS) for frame in frames)
        more: Dict[str, Any] = {} if pauses is None else {"pauses": pauses_of_tokens(pieces, words, pauses, duration)}
        return self.read(words, duration, name=name, tokens=tuple(pieces), times=times, score=score, **more)

    def read(
        self,
        written: Sequence[Word],
        duration: Optional[float] = None,
        others: Optional[Mapping[str, Any]] = None,
        **fields: Any,
    ) -> Transcript:
        """Build a transcript from words and task tokens in the order of writing.

        Args:
            duration: length of the audio in seconds; times are limited to it (the last frame may exceed it).
            others: fields of tasks from outside the package; by default from their `Task.record`.
        """
        if duration is not None:
            fields["duration"] = duration = round(duration, 3)
        timed = written if duration is None else [word.within(duration) for word in written]
        plain = [word for word in timed if not word.is_task_token]
        marks: List[Mark] = []
        for number, word in enumerate(timed):
            if word.is_task_token:
                marks.append(Mark(word.text, number - len(marks), word.start, word.confidence))
        answers = self.answers([word.text for word in plain], marks)
        mine = {name: [mark for mark in marks if mark.text in symbols] for name, symbols in self.symbols.items()}
        bounds = enumerate(answers.turns, start=1) if "scd" in mine else ()
        # The first of several at one place counts.
        ends = {mark.position: mark.time for mark in reversed(mine.get("endp", ()))}
        language = next(iter(mine.get("lid", ())), None)
        return Transcript(
            words=tuple(plain),
            marks=tuple(marks),
            turns=tuple(Turn(n, text_of(plain[a:b]), plain[a].start, plain[b - 1].end, a, b) for n, (a, b) in bounds),
            entities=_entities(answers, plain, mine.get("ner", ())),
            endpoints=tuple(ends[at] for at in answers.endpoints),
            language=answers.language,
            language_confidence=None if language is None else language.confidence,
            others=self._others(answers, written) if others is None else others,
            written=tuple(written),
            answers=answers,
            **{"tasks": self.names, **fields},
        )

    def _others(self, answers: Answers, written: Sequence[Word]) -> Dict[str, Any]:
        """The fields of tasks from outside the package."""
        found: Dict[str, Any] = {}
        if self.outside:
            words = [word for word in written if not word.is_task_token]
            marks = split_marks([word.text for word in written], [word.start for word in written])[1]
            for task in self.outside:
                found.update(task.record(answers, words, [m for m in marks if m.text in self.symbols[task.name]]))
        return found


def pauses_of_tokens(
    pieces: Sequence[str], words: Sequence[Word], probabilities: Sequence[float], duration: float
) -> Tuple[Pause, ...]:
    """The pause after each plain word; the last ends with the audio.

    ``words``: words and task tokens of the pieces. ``probabilities``: see `Hypothesis.pauses`.
    """
    plain = [
        (word.within(duration), probabilities[stop - 1])
        for word, (text, _, stop) in zip(words, word_spans(pieces))
        if not is_task_token(text)
    ]
    ends = [max(a.end, b.start) for (a, _), (b, _) in zip(plain, plain[1:])] + [round(duration, SECONDS_DIGITS)]
    return tuple(
        Pause(i, word.end, max(word.end, end), round(probability, CONFIDENCE_DIGITS))
        for i, ((word, probability), end) in enumerate(zip(plain, ends), start=1)
    )


def transcript_of_words(
    words: Sequence[Word], active: Sequence[str], duration: float, name: str = "audio", tasks: Optional[TaskSet] = None
) -> Transcript:
    """`TranscriptReader.read` for the names of the decoded tasks.

    ``tasks``: of the model; by default the registered ones, with the languages and types in ``words``.
    """
    known = tasks if tasks is not None else _tasks_of(words)
    decoded = known.subset([task for task in known.names if task in active])
    return decoded.reader.read(words, duration, name=name, tasks=tuple(active))


def span_record(words: Sequence[Word]) -> Dict[str, Any]:
    """Text, start and end of consecutive words (at least one), as in hyps.jsonl."""
    return {"text": text_of(words), "start": seconds(words[0].start), "end": seconds(words[-1].end)}


def seconds(time: Optional[float]) -> float:
    """A time in seconds, rounded as in hyps.jsonl."""
    return round(time or 0.0, SECONDS_DIGITS)


def text_of(words: Sequence[Word]) -> str:
    """The words with spaces between them."""
    return " ".join(word.text for word in words)


def _tasks_of(words: Sequence[Word]) -> TaskSet:
    from tokenverse_pp.tasks.registry import tasks_for_tokens  # here, as it imports this module

    return tasks_for_tokens([word.text for word in words])


def _entities(answers: Answers, words: Sequence[Word], marks: Sequence[Mark]) -> Tuple[Entity, ...]:
    """Return the entities; their confidence comes from the two consecutive tokens at their start and end."""
    found = []
    pairs = {(a.position, b.position): (a, b) for a, b in reversed(list(zip(marks, marks[1:])))}  # the first ones
    for entity in answers.entities:
        around = pairs[entity.start, entity.end]
        inside = words[entity.start : entity.end]
        known = [mark.confidence for mark in around if mark.confidence is not None]
        confidence = min(known, default=UNKNOWN)
        start, end = inside[0].start, inside[-1].end
        found.append(Entity(text_of(inside), entity.type, start, end, confidence, entity.start, entity.end))
    return tuple(found)


def written_words(record: Mapping[str, Any]) -> List[Word]:
    """Return words and task tokens of a line of hyps.jsonl, from its tokens, else its text, else its words.

    Times and confidences come from ``words``, which may have no task tokens, and from ``times``.
    """
    words: Sequence[Mapping[str, Any]] = record.get("words") or ()
    starts: Sequence[float] = ()
    if record.get("tokens") is not None:
        spans, times = word_spans(record["tokens"]), record.get("times")
        texts = [text for text, _, _ in spans]
        starts = [UNKNOWN if times is None else times[first] for _, first, _ in spans]
    else:
        texts = record["text"].split() if "text" in record else [word["text"] for word in words]
    written, at = [], 0
    for text, start in zip(texts, starts or [UNKNOWN] * len(texts)):
        word: Mapping[str, Any] = {}
        if at < len(words) and words[at]["text"] == text:
            word, at = words[at], at + 1
        start = word.get("start", UNKNOWN) if start is None else start
        end, confidence = word.get("end", UNKNOWN), word.get("confidence", UNKNOWN)
        written.append(Word(text, start, end, confidence, word.get("raw_confidence")))
    return written


EXPECTED: Dict[str, Tuple[type, str]] = {
    "str": (str, "a text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "dict": (dict, "an object"),
}


def _checked(key: str, value: Any, annotation: str) -> Any:
    """Check the value of a field with this annotation and return it; integers become floats if needed."""
    if annotation.startswith("Optional"):
        return None if value is None else _checked(key, value, annotation[len("Optional[") : -1])
    kind, expected = EXPECTED[annotation]
    if kind is float and is_finite(value):
        return float(value)
    if kind is not float and isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise UserError(f"transcript, field {key!r}: expected {expected}, found {value!r:.60}")


def _object(key: str, item: Any, cls: Any) -> Any:
    if not isinstance(item, Mapping):
        raise UserError(f"transcript, field {key!r}: expected objects, found {item!r:.60}")
    values = {}
    for part in dataclasses.fields(cls):
        is_unknown = part.name == "confidence" and item.get("confidence", 0) is None  # sherpa-onnx may not give any
        if part.compare:
            name = f"{key}.{part.name}"
            values[part.name] = UNKNOWN if is_unknown else _checked(name, item.get(part.name), str(part.type))
    return cls(**values)


def _check_ranges(made: Transcript) -> None:
    """Check that turns and entities refer to existing words, and that marks are in order."""
    for key in ("turns", "entities"):
        for item in getattr(made, key):
            if not 0 <= item.first < item.stop <= len(made.words):
                raise UserError(f"transcript, field {key!r}: there are no words {item.first} to {item.stop}")
    positions = [mark.position for mark in made.marks]
    if positions != sorted(positions) or any(not 0 <= at <= len(made.words) for at in positions):
        raise UserError("transcript, field 'marks': expected positions in order, from 0 to the number of words")
