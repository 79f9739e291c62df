"""Whisper's words, the candidates of `turns_pass` and thresholds -> hypotheses as decode.py writes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from corpus.entities import find_entities, load_rules
from whisper_words import SpokenWord

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.base import RANK_CHANGE, RANK_CLOSE, RANK_END, RANK_FRONT, RANK_OPEN
from tokenverse_pp.tasks.lid import language_token
from tokenverse_pp.tasks.transcript import Word

# How strong a mark of Whisper's must be: any place will do, a comma or more, the end of a sentence.
MARKS = {"": ("", ",", "."), ",": (",", "."), ".": (".",)}

Token = Tuple[int, int, str, float]
"""Position among the words, rank at that position, task token, seconds."""


@dataclass(frozen=True)
class ChangeRule:
    """The speaker changes where the voices differ by at least ``distance`` over ``window`` (its number in
    `turns_pass.WINDOWS`), the VAD hears at least ``pause`` seconds of silence, and Whisper wrote at least ``mark``."""

    distance: float
    window: int = 1
    pause: float = 0.0
    mark: str = ""

    def holds(self, place: Mapping[str, Any]) -> bool:
        """Whether a candidate is a change."""
        heard = place["pause"] >= self.pause and place["mark"] in MARKS[self.mark]
        return heard and place["distances"][self.window] >= self.distance


@dataclass(frozen=True)
class EndRule:
    """An endpoint stands where the VAD hears at least ``pause`` seconds of silence and Whisper wrote at least ``mark``.

    The end of the audio counts as a pause longer than any: nothing more is said.
    """

    pause: float
    mark: str = ""

    def holds(self, place: Mapping[str, Any]) -> bool:
        """Whether a candidate is an endpoint."""
        return place["pause"] >= self.pause and place["mark"] in MARKS[self.mark]


@dataclass(frozen=True)
class Rules:
    """What `cascade_tuning.tune` chooses."""

    change: ChangeRule
    end: EndRule

    def as_dict(self) -> Dict[str, Any]:
        """For results.json."""
        return asdict(self)


def change_tokens(places: Sequence[Mapping[str, Any]], rule: ChangeRule) -> List[Token]:
    """``[SCD]`` in the middle of the pause."""
    return [(p["position"], RANK_CHANGE, "[SCD]", p["time"]) for p in places if rule.holds(p)]


def end_tokens(turn: Mapping[str, Any], words: Sequence[SpokenWord], rule: EndRule) -> List[Token]:
    """``[ENDP]`` where speech stops; ``turn``: a record of `turns_pass`."""
    found = [(p["position"], RANK_END, "[ENDP]", p["end"]) for p in turn["places"] if rule.holds(p)]
    if words and words[-1].mark in MARKS[rule.mark]:
        found.append((len(words), RANK_END, "[ENDP]", turn["speech_end"]))
    return found


def entity_tokens(words: Sequence[SpokenWord], language: str) -> List[Token]:
    """``[NE] .. [/NE]`` by the rules that labelled the references; none in a language that has no rules."""
    try:
        rules = load_rules(language)
    except UserError:
        return []
    found: List[Token] = []
    starts = {start: i for i, start in enumerate(_offsets(words))}
    for first, last, _ in find_entities([(word.text, "NUM" if word.number else None) for word in words], rules):
        i = starts[first]
        j = i + len(" ".join(word.text for word in words)[first:last].split())
        found.append((i, RANK_OPEN, "[NE]", words[i].start))
        found.append((j, RANK_CLOSE, "[/NE]", words[j - 1].end))
    return found


def _offsets(words: Sequence[SpokenWord]) -> List[int]:
    """Where each word begins in the text."""
    at, offsets = 0, []
    for word in words:
        offsets.append(at)
        at += len(word.text) + 1
    return offsets


def to_record(
    cut_id: str, words: Sequence[SpokenWord], tokens: Sequence[Token], names: Sequence[str], language: Optional[str]
) -> Dict[str, Any]:
    """One line of hyps.jsonl.

    Args:
        cut_id: of the utterance.
        words: plain words.
        tokens: task tokens, in any order.
        names: the tasks that were looked for.
        language: what was heard, where ``lid`` is among them.
    """
    tokens = list(tokens)
    if "lid" in names and language is not None:
        tokens.append((0, RANK_FRONT, language_token(language), 0.0))
    line: List[Word] = []
    waiting = sorted(tokens, key=lambda token: token[:2])
    for position in range(len(words) + 1):
        while waiting and waiting[0][0] == position:
            _, _, text, time = waiting.pop(0)
            line.append(Word(text, time, time, 1.0))
        if position < len(words):
            word = words[position]
            line.append(Word(word.text, word.start, word.end, word.confidence))
    tasks = build_tasks(list(names), {"lid": {"languages": [language] if language else []}})
    heard = tasks.reader.read(line)
    transcript, plain = heard.answers, heard.words
    record: Dict[str, Any] = {
        "id": cut_id,
        "text": " ".join(word.text for word in line),
        "tokens": [word.text if word.is_task_token else "▁" + word.text for word in line],
        "times": [round(word.start, 3) for word in line],
        "words": [
            {"text": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "confidence": round(w.confidence, 6)}
            for w in plain
        ],
        "tasks": list(tasks.names),
    }
    if "lid" in names:
        record["language"] = transcript.language
    if "scd" in names:
        record["speaker_changes"] = [word.start for word in line if word.text == "[SCD]"]
    if "endp" in names:
        record["endpoints"] = [word.start for word in line if word.text == "[ENDP]"]
    if "ner" in names:
        record["entities"] = [
            {"text": transcript.phrase(e), "start": plain[e.start].start, "end": plain[e.end - 1].end, "type": None}
            for e in transcript.entities
        ]
    return record
