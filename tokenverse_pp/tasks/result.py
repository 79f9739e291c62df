"""The result of recognition, `Transcript`: words and the answers of the tasks, with times; text <-> transcript.

>>> from tokenverse_pp.tasks.result import transcript_of_words
>>> words = [Word("[FR]", 0.04, 0.08, 0.99), Word("bonjour", 0.2, 0.56, 0.9), Word("[ENDP]", 0.6, 0.64, 0.8)]
>>> heard = transcript_of_words(words, ["asr", "endp", "lid"], duration=1.0, name="call")
>>> print(heard)
bonjour
>>> heard.raw, heard.language, heard.endpoints, heard.entities
('[FR] bonjour [ENDP]', 'fr', (0.6,), ())
>>> Transcript.from_json(heard.to_json()) == heard
True

`render` and `parse` convert between an `Answers` and text with task tokens, `transcript_of` reads a labelled cut.
Neither torch nor lhotse is imported.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, cast

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import is_finite, json_of
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.lid import CODE, language_code, language_token
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks
from tokenverse_pp.tasks.transcript import Answers, CutWithTurns, FixedTurns, is_task_token, split_marks, turns_of
from tokenverse_pp.tasks.transcript import TaskMark as PlainMark
from tokenverse_pp.tasks.transcript import TimedWord as Word

if TYPE_CHECKING:
    from lhotse.cut import Cut


def render(transcript: Answers, tasks: TaskSet) -> str:
    """Write a transcript with the tokens of ``tasks``.

    >>> render(Answers(("oui",), {"lid": "fr", "endp": (1,)}), build_tasks(["lid", "endp"]))
    '[FR] oui [ENDP]'
    """
    return tasks.render(transcript)


def parse(text: str, tasks: Optional[TaskSet] = None) -> Answers:
    """Read text with task tokens; never fails (each task's class says how it reads malformed output).

    Without ``tasks``, every registered task is read, and any other ``[XX]`` is taken as a language token.

    >>> parse("[FR] oui [ENDP]", build_tasks(["lid", "endp"], {"lid": {"languages": ["fr"]}}))
    Answers(words=('oui',), answers={'endp': (1,), 'lid': 'fr'})
    """
    words = text.split()
    return (tasks or tasks_for_tokens(words)).read(*split_marks(words))


def tasks_for_tokens(words: Sequence[str]) -> TaskSet:
    """All registered tasks, with the options that the tokens among ``words`` show (languages, entity types)."""
    tokens = [word for word in words if is_task_token(word)]
    options: Dict[str, Dict[str, Any]] = {name: cls.options_for(tokens) for name, cls in REGISTRY.items()}
    others = [name for name in REGISTRY if name != "lid"]
    known = {*build_tasks(others).symbols, *build_tasks(others, options).symbols}
    # Any token that no other task owns is taken as a language.
    codes = [language_code(token) for token in dict.fromkeys(tokens) if token not in known]
    languages = [c for c in dict.fromkeys(codes) if CODE.fullmatch(c) and language_token(c) not in known]
    return build_tasks(list(REGISTRY), {**options, "lid": {"languages": languages}})


def transcript_of(cut: Cut, tasks: TaskSet) -> Answers:
    """The transcript of a labelled cut: answers for those of ``tasks`` that the cut is labelled for.

    Raises:
        UserError: for labels that nobody has validated and that cannot be read.
    """
    if not isinstance(cut, FixedTurns):
        cut = cast("Cut", CutWithTurns(cut))
    try:
        labelled = (cut.custom or {}).get("tasks", ())
        words = tuple(word for turn in turns_of(cut) for word in turn.words)
        answers = {t.name: t.from_cut(cut) for t in tasks.tasks if t.name != "asr" and t.name in labelled}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        message = (
            f"cut {cut.id}: labels that cannot be read ({kind}: {error}); `tokenverse-pp manifest validate` tells more"
        )
        raise UserError(message) from error
    return Answers(words, answers)


__all__ = ["Entity", "Mark", "Transcript", "Turn", "Word"]


@dataclass(frozen=True)
class Mark:
    """A task token as the model wrote it, such as ``[SCD]``; ``position`` is the number of words before it."""

    text: str
    position: int
    time: float
    confidence: float


@dataclass(frozen=True)
class Turn:
    """Words ``first`` to before ``stop``, between two speaker changes.

    The model detects speaker changes, not identities: turns are numbered from 1, speakers are not. Turns 1 and 3 may
    be the same speaker or not.
    """

    number: int
    text: str
    start: float
    end: float
    first: int
    stop: int


@dataclass(frozen=True)
class Entity:
    """A named entity: words ``first`` to before ``stop``; ``type`` is None where the model has no types.

    Its confidence is the lower one of its two task tokens: that these words *are* an entity. What its words are worth
    say their own.
    """

    text: str
    type: Optional[str]
    start: float
    end: float
    confidence: float
    first: int
    stop: int


@dataclass(frozen=True)
class Transcript:
    """The result of recognition for one recording.

    ``tasks`` are the requested tasks. Fields of other tasks are empty (``language``: None), and `to_dict` omits them:
    a task that was not requested differs from one that found nothing.

    Attributes:
        name: of the recording: a file's without its ending (in folders, with those below the one that was named), a
            cut's id.
        duration: of the audio in seconds.
        tasks: names of the tasks that were decoded.
        words: plain words, no task tokens. A transducer says when it wrote a piece of a word, not how long that was
            spoken: a word of one piece lasts one frame of the encoder (`TokenVerse.frame_shift`).
        marks: task tokens in the order in which they were written, also those that mean nothing (a second ``[FR]``).
        turns: see `Turn` (task ``scd``).
        entities: see `Entity` (task ``ner``).
        endpoints: seconds at which a speaker had said all of what was meant (task ``endp``).
        language: a code such as ``fr``, or None where none was written (task ``lid``).
        language_confidence: of the language token.
        others: what tasks from outside of the package say, as their ``Task.record`` does.
    """

    name: str = "audio"
    duration: float = 0.0
    tasks: Tuple[str, ...] = ("asr",)
    words: Tuple[Word, ...] = ()
    marks: Tuple[Mark, ...] = ()
    turns: Tuple[Turn, ...] = ()
    entities: Tuple[Entity, ...] = ()
    endpoints: Tuple[float, ...] = ()
    language: Optional[str] = None
    language_confidence: Optional[float] = None
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        """The plain words."""
        return self.text

    @property
    def text(self) -> str:
        """The plain words."""
        return " ".join(word.text for word in self.words)

    @property
    def raw(self) -> str:
        """Words and task tokens as the model wrote them."""
        pieces, at = [], 0
        for mark in self.marks:
            pieces += [word.text for word in self.words[at : mark.position]] + [mark.text]
            at = mark.position
        return " ".join(pieces + [word.text for word in self.words[at:]])

    @property
    def confidence(self) -> Optional[float]:
        """The mean over the words; None where there are none."""
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else None

    def spans(self) -> Tuple[Turn, ...]:
        """The turns; all words as one turn if speaker changes were not requested."""
        if self.turns or not self.words:
            return self.turns
        return (Turn(1, self.text, self.words[0].start, self.words[-1].end, 0, len(self.words)),)

    def to_dict(self) -> Dict[str, Any]:
        """Everything as JSON takes it (docs/transcribe.md), without the keys of tasks that were not requested."""
        found: Dict[str, Any] = {
            "name": self.name,
            "duration": self.duration,
            "tasks": list(self.tasks),
            "text": self.text,
            "raw": self.raw,
            "words": [dataclasses.asdict(word) for word in self.words],
            "marks": [dataclasses.asdict(mark) for mark in self.marks],
        }
        for task, keys in FIELDS.items():
            for key in keys if task in self.tasks else ():
                value = getattr(self, key)
                found[key] = [_plain(item) for item in value] if isinstance(value, tuple) else value
        return {**found, "others": dict(self.others)} if self.others else found

    def to_json(self, indent: Optional[int] = None) -> str:
        """`to_dict` as JSON text; on one line without ``indent``."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transcript:
        """The inverse of `to_dict`; keys that it does not know are passed over.

        Raises:
            UserError: naming the field that is missing or of another kind.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"transcript: expected an object, found {data!r:.60}")
        values: Dict[str, Any] = {key: _checked(key, data.get(key), kind) for key, kind in PLAIN.items()}
        values["tasks"] = tuple(_checked("tasks", item, str) for item in _list("tasks", data.get("tasks")))
        keys = {key for task, names in FIELDS.items() if task in values["tasks"] for key in names}
        for key, kind in OBJECTS.items():
            if key in ("words", "marks") or key in keys:
                values[key] = tuple(_object(key, item, kind) for item in _list(key, data.get(key)))
        if "endpoints" in keys:
            items = _list("endpoints", data.get("endpoints"))
            values["endpoints"] = tuple(_checked("endpoints", item, float) for item in items)
        if "language" in keys and data.get("language") is not None:
            values["language"] = _checked("language", data["language"], str)
            if data.get("language_confidence") is not None:
                values["language_confidence"] = _checked("language_confidence", data["language_confidence"], float)
        if data.get("others") is not None:
            values["others"] = dict(_checked("others", data["others"], dict))
        made = cls(**values)
        _check_ranges(made)
        return made

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        """The inverse of `to_json` (raises UserError)."""
        return cls.from_dict(json_of(text, "transcript"))


FIELDS = {
    "scd": ("turns",),
    "ner": ("entities",),
    "endp": ("endpoints",),
    "lid": ("language", "language_confidence"),
}
PLAIN: Dict[str, Any] = {"name": str, "duration": float}
OBJECTS: Dict[str, Any] = {"words": Word, "marks": Mark, "turns": Turn, "entities": Entity}
KINDS = {"str": str, "float": float, "int": int, "Optional[str]": None}  # annotations of the fields above


def _plain(item: Any) -> Any:
    return dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item


def _list(key: str, value: Any) -> List[Any]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"transcript, field {key!r}: expected a list, found {value!r:.60}")
    return list(value)


def _checked(key: str, value: Any, kind: Any) -> Any:
    """A value of a field, a whole number as a float where that is expected."""
    if kind is float and is_finite(value):
        return float(value)
    if kind is not float and isinstance(value, kind) and not isinstance(value, bool):
        return value
    expected = {str: "a text", int: "a whole number", float: "a number", dict: "an object"}[kind]
    raise UserError(f"transcript, field {key!r}: expected {expected}, found {value!r:.60}")


def _object(key: str, item: Any, cls: Any) -> Any:
    if not isinstance(item, Mapping):
        raise UserError(f"transcript, field {key!r}: expected objects, found {item!r:.60}")
    values = {}
    for part in dataclasses.fields(cls):
        kind, value = KINDS[str(part.type)], item.get(part.name)
        optional = kind is None
        values[part.name] = None if optional and value is None else _checked(f"{key}.{part.name}", value, kind or str)
    return cls(**values)


def _check_ranges(made: Transcript) -> None:
    """See that turns and entities are of words that there are, and that marks stand in order."""
    for key in ("turns", "entities"):
        for item in getattr(made, key):
            if not 0 <= item.first < item.stop <= len(made.words):
                raise UserError(f"transcript, field {key!r}: there are no words {item.first} to {item.stop}")
    positions = [mark.position for mark in made.marks]
    if positions != sorted(positions) or any(not 0 <= at <= len(made.words) for at in positions):
        raise UserError("transcript, field 'marks': expected positions in order, from 0 to the number of words")


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
