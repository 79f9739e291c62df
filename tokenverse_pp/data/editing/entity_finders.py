"""Entity finders: a gazetteer (longest match at word boundaries), and spaCy pipelines (extra "entities")."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import regex

from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.base.languages import casefold, primary_language
from tokenverse_pp.data.lines import BLANKS, number_of, stray_control, text_lines
from tokenverse_pp.data.manifests import reason_of
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.tasks.transcript import character_spans

CACHED = 65536  # words
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # soft hyphens, joiners, variation selectors, ..
_SIGNS = str.maketrans(
    {**dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9`\u00b4\u2032\uff07", "'"),
     **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")}
)  # fmt: skip
_DOT_OF_I = re.compile("(?<=[ijį])\u0307")  # `İ` and Lithuanian accented letters keep it in lower case
_SYMBOL = regex.compile(r"[\p{Sm}\p{Sc}#@&%]")
_OUTER = regex.compile(r"^[\p{P}--[#@&%]]+|[\p{P}--[#@&%]]+$", flags=regex.V1)


class Span(NamedTuple):
    """An entity in a text: characters ``start`` to ``end``, its type, and a confidence (0 to 1)."""

    start: int
    end: int
    type: str
    confidence: float


class _Index(NamedTuple):
    """Phrases by their parts, according to the rules of a language."""

    phrases: Dict[Tuple[str, ...], Tuple[str, float]]
    longest: Dict[str, int]  # parts of the longest phrase, by the phrase's first part


class Gazetteer:
    """Phrases with types (raises UserError for a phrase without a letter, digit or symbol).

    At each word the longest phrase that begins there is taken, and the search continues after it. Spaces separate
    words: ``paris`` is not found in ``parisien`` nor in ``d'paris``. Words are compared by the rules of the text's
    language (`normalise`). The comparison ignores case, punctuation at the ends of a word, kinds of apostrophes and
    hyphens, hyphen or space, composition of accents, and invisible characters, but not signs such as
    ``+ < = > $ # @ & %``.

    Args:
        entries: (phrase, type, confidence); of a repeated phrase, the last counts.
        match_case: distinguish ``Paris`` from ``paris``.
    """

    def __init__(self, entries: Sequence[Tuple[str, str, float]], match_case: bool = False):
        self.match_case = match_case
        self._entries = entries
        self._indexes: Dict[Optional[str], _Index] = {}
        self._first_of_none: Dict[Optional[str], Set[str]] = {}  # words that begin no phrase, by language
        self._parts = lru_cache(maxsize=CACHED)(self._split)
        self._index(None)

    def find(self, text: str, language: Optional[str] = None) -> List[Span]:
        """The phrases in a text, in order, without overlaps.

        Args:
            language: language of the text; it decides which letters differ only in case (Turkish ``I`` and ``ı``). If
                it is unknown, ``ı`` equals ``i``.
        """
        language = primary_language(language)
        phrases, longest = self._index(language)
        words = text.split()
        first_of_none = self._first_of_none[language]
        if first_of_none.issuperset(words):
            return []
        by_word = [self._parts(word, language) for word in words]
        if len(first_of_none) < CACHED:
            first_of_none.update(word for word, parts in zip(words, by_word) if parts[0] not in longest)
        parts = [part for found in by_word for part in found]
        word_of = [i for i, found in enumerate(by_word) for _ in found]
        places = character_spans(text)
        spans, at = [], 0
        while at < len(parts):
            first = word_of[at]
            following = at + len(by_word[first])
            for end in range(min(at + longest.get(parts[at], 0), len(parts)), at, -1):
                ends_word = end == len(parts) or word_of[end] != word_of[end - 1]
                if ends_word and tuple(parts[at:end]) in phrases:
                    last = word_of[end - 1]
                    spans.append(Span(places[first][0], places[last][1], *phrases[tuple(parts[at:end])]))
                    following = end
                    break
            at = following
        return spans

    def _index(self, language: Optional[str]) -> _Index:
        if language not in self._indexes:
            index = _Index({}, {})
            for phrase, kind, confidence in self._entries:
                parts = [part for word in phrase.split() for part in self._parts(word, language)]
                while parts and not parts[0]:
                    parts = parts[1:]
                while parts and not parts[-1]:
                    parts = parts[:-1]
                if not parts:
                    raise UserError(f"phrase {phrase!r}: expected a letter or digit in it")
                index.phrases[tuple(parts)] = (kind, confidence)
                index.longest[parts[0]] = max(len(parts), index.longest.get(parts[0], 0))
            # Most languages have the same rules: one copy serves them all.
            self._indexes[language] = next((other for other in self._indexes.values() if other == index), index)
            self._first_of_none[language] = set()
        return self._indexes[language]

    def _split(self, word: str, language: Optional[str]) -> Tuple[str, ...]:
        """Return the parts of a word that are compared; one empty part if it has no letter or digit."""
        text = unicodedata.normalize("NFC", _IGNORABLE.sub("", word)).translate(_SIGNS)
        if not self.match_case:
            text = _DOT_OF_I.sub("", casefold(text, language))
            text = text if language else text.replace("ı", "i")  # it may be Turkish
        core = _OUTER.sub("", text)
        if _SYMBOL.search(core):
            return (unicodedata.normalize("NFC", core),)
        return tuple(normalise(core, language, lower=False).split()) or ("",)


def read_gazetteer(path: PathLike, match_case: bool = False, confidence: float = 1.0) -> Gazetteer:
    """Read a UTF-8 file of lines ``phrase TAB type [TAB confidence]``; ``#`` starts a comment.

    Args:
        confidence: the confidence of phrases whose line gives none.

    Raises:
        UserError: naming the invalid line, or the file if it has no phrases.
    """
    entries = []
    for number, line in text_lines(Path(path)):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.strip(BLANKS).split("\t")]
        where = f"{path}, line {number}"
        stray = stray_control(line)
        if stray is not None:
            raise UserError(f"{where}: holds a {stray}; expected one phrase a line")
        if not 2 <= len(fields) <= 3 or not fields[0].strip() or not fields[1].strip():
            raise UserError(f"{where}: expected 'phrase TAB type' or 'phrase TAB type TAB confidence'")
        if not any(char.isalnum() or _SYMBOL.match(char) for char in fields[0]):
            raise UserError(f"{where}: expected a phrase with a letter or digit, found {fields[0]!r}")
        own = confidence if len(fields) == 2 else number_of(fields[2])
        if own is None or not 0 <= own <= 1:
            raise UserError(f"{where}: expected a confidence of 0 to 1, found {fields[-1]!r}")
        entries.append((fields[0], fields[1], own))
    if not entries:
        raise UserError(f"{path}: expected lines 'phrase TAB type', found none")
    return Gazetteer(entries, match_case)


BATCH = 256  # texts
BEAM_WIDTH, BEAM_DENSITY = 16, 1e-4  # spaCy's own defaults for `beam_parse`


class SpacyEntities:
    """Finds entities with a spaCy pipeline that is installed or saved to a folder.

    A span that begins or ends inside a word (spaCy splits ``l'italie``) is widened to whole words; of spans that then
    overlap, the first counts. The confidence of a trained recogniser's entity is its share in the beam (spaCy's
    ``EntityRecognizer.scored_ents``); entities found by rules have none, and get ``confidence``.

    Raises:
        UserError: if spaCy or the pipeline is not installed.
    """

    def __init__(self, name: str, confidence: float):
        with needing("entities from spaCy need it", "entities"):
            import spacy
        try:
            self.pipeline = spacy.load(name)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"--spacy {name}: no pipeline that can be loaded: {reason_of(error)}") from None
        self.source = f"spacy/{Path(name).name}"
        self.confidence = confidence
        self.recogniser: Optional[Any] = None
        if "ner" in self.pipeline.pipe_names and hasattr(self.pipeline.get_pipe("ner"), "scored_ents"):
            self.recogniser = self.pipeline.get_pipe("ner")

    def find(self, texts: Iterable[str], languages: Iterable[Optional[str]] = ()) -> Iterator[List[Span]]:
        """The entities of each text, in order. The pipeline is for one language, so ``languages`` is ignored."""
        texts = iter(texts)
        while batch := list(islice(texts, BATCH)):
            docs = list(self.pipeline.pipe(batch, batch_size=BATCH))
            for text, doc, scores in zip(batch, docs, self._scores(docs)):
                yield self._spans(text, doc, scores)

    def _scores(self, docs: Sequence[Any]) -> Sequence[Dict[Tuple[int, int, str], float]]:
        """For each doc, return the shares of (first token, last token + 1, type) in the recogniser's beam."""
        if self.recogniser is None:
            return [{} for _ in docs]
        beams = self.recogniser.beam_parse(docs, beam_width=BEAM_WIDTH, beam_density=BEAM_DENSITY)
        return self.recogniser.scored_ents(beams)

    def _spans(self, text: str, doc: Any, scores: Dict[Tuple[int, int, str], float]) -> List[Span]:
        words = character_spans(text)
        found: List[Span] = []
        for entity in doc.ents:
            touched = [word for word in words if word[0] < entity.end_char and word[1] > entity.start_char]
            if not touched or (found and touched[0][0] < found[-1].end):
                continue
            score = scores.get((entity.start, entity.end, entity.label_), self.confidence)
            confidence = round(min(1.0, float(score)), 4)
            found.append(Span(touched[0][0], touched[-1][1], entity.label_, confidence))
        return found
