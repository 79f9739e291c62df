"""Earnings-22: 125 earnings calls (119 hours of English from all over the world), written as windows of turns.

It is a test set: its authors made no splits. The repository is read unchanged: ``media/<call>.mp3`` (Git LFS) and
``transcripts/force_aligned_nlp_references/<call>.aligned.nlp``, tables with one word per row. The transcripts in
``nlp_references`` have no times; lhotse's recipe turns them into one supervision per call, an hour long.

The aligned words are mostly spelled as spoken (``twenty nineteen``), some contractions in unusual spellings (``lemme``,
``cuz``). Words that the aligner spelled out have tags and are in lower case, even at the start of a sentence and in
names. The aligner did not find a quarter of the words; in about thirty calls it found almost none. A sentence with such
a word, or with one that the transcribers did not understand, becomes a turn of unknown words, from the word before it
to the word after it. No window contains it.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.corpora.clips import Clip, Rows, part_of, with_turns
from tokenverse_pp.data.corpora.common import Form, LeftOutRow, Preparation, check_table, is_written, require
from tokenverse_pp.data.corpora.conversations import MIXED_TASKS, mixed_tracks, write_dialogues
from tokenverse_pp.data.corpora.resume import ALL, CorpusGroup, in_groups
from tokenverse_pp.data.editing.conversations import DEFAULT_OPTIONS, ConversationOptions, TurnWords
from tokenverse_pp.data.lines import number_of
from tokenverse_pp.data.normalise import Normaliser

FORM = Form(delimiter="|")
COLUMNS = ("token", "speaker", "ts", "endTs", "punctuation", "tags")
ALIGNED = "transcripts/force_aligned_nlp_references"
LAYOUT = (
    f"the folder earnings22 of github.com/revdotcom/speech-datasets: media/<call>.mp3 and {ALIGNED}/<call>.aligned.nlp"
)
POINTER = b"version https://git-lfs"  # first bytes of a file that Git LFS has not fetched
SOUNDS = {"<laugh>", "<cough>", "<clear_throat>", "<silence>"}
# Any other <mark> stands for unknown words. The aligner has dropped most brackets; "phonetic" marks a guess at the
# spelling of the previous word. Many <unk> have become "foreign language", sometimes misspelled ("langauge").
UNKNOWN = {"inaudible", "crosstalk", "phonetic", "silence", "unk"}
FOREIGN_LANGUAGE = re.compile("foreign lan[gaue]+-?")
TITLES = {"mr", "mrs", "ms", "dr", "prof", "st"}  # before a name: their full stop does not end a sentence
ENDS = (".", "?", "!")
SMALL = re.compile("CONTRACTION|CARDINAL|ORDINAL|PERCENT|YEAR|MONEY|TIME|RANGE|PHONE")  # tags
UNCASED = "uncased"  # custom field of a turn that has lost capitals
SHORTEST = 0.01  # minimum seconds of a turn of unknown words; it may then overlap the next turn


def prepare_earnings22(run: Preparation, options: ConversationOptions = DEFAULT_OPTIONS) -> Dict[str, Path]:
    """Write the calls to ``cuts_test.jsonl.gz`` as windows of turns. A turn is a sentence, or a speaker's part of one.

    Raises:
        UserError: if the folder is not Earnings-22, or its audio was not fetched.
    """
    corpus_dir = run.corpus_dir / "earnings22" if (run.corpus_dir / "earnings22").is_dir() else run.corpus_dir
    require(corpus_dir, ["media/*.mp3", f"{ALIGNED}/*.aligned.nlp"], LAYOUT)
    files = sorted(corpus_dir.glob(f"{ALIGNED}/*.aligned.nlp"))
    tables = {path.name[: -len(".aligned.nlp")]: path for path in files}

    def read(call: str, duration: float) -> Tuple[Iterable[SupervisionSegment], List[LeftOutRow]]:
        words, bad = _words(tables[call])
        return turns_of(call, words, duration), bad

    def prepare(_: str) -> Dict[str, Path]:
        part = with_turns(part_of("test", "en", _calls(corpus_dir, tables), run.jobs), read)
        return write_dialogues(run, [part], "earnings22", MIXED_TASKS, mixed_tracks, read_words, options)

    groups = {ALL: CorpusGroup(["test"], [corpus_dir / "media", *files])}
    return in_groups(run, "earnings22", groups, prepare, {"windows": asdict(options)})


def _calls(corpus_dir: Path, tables: Mapping[str, Path]) -> Rows:
    for call in tables:
        audio = corpus_dir / "media" / f"{call}.mp3"
        if not audio.is_file():
            yield call, f"its audio media/{audio.name} is not there"
            continue
        with open(audio, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UserError(f"{audio}: a pointer of Git LFS; fetch the audio with `git lfs pull`")
        yield Clip(call, audio, "", "en")


class AlignedWord(NamedTuple):
    """A row of the aligned transcripts; start and end in seconds."""

    token: str
    mark: str
    speaker: str
    start: Optional[float] = None
    end: Optional[float] = None
    tags: str = "[]"  # such as ['17:CONTRACTION'], if the aligner has spelled it out

    @property
    def uncased(self) -> bool:
        """Whether the aligner may have changed the word to lower case."""
        return self.tags not in ("", "[]") and self.token.islower()


def _words(path: Path) -> Tuple[List[AlignedWord], List[LeftOutRow]]:
    """Return the words of a call, and the rows that cannot be read, each of which stands for an unknown word."""
    table = check_table(path, FORM)
    words: List[AlignedWord] = []
    rows = dict(table.records(COLUMNS, LAYOUT))
    for number in sorted([*rows, *table.bad]):
        if number in table.bad:
            words.append(AlignedWord("<unread>", "", words[-1].speaker if words else "0"))
        else:
            token, speaker, start, end, mark, tags = (rows[number][name].strip() for name in COLUMNS)
            words.append(AlignedWord(token, mark, speaker, number_of(start), number_of(end), tags))
    return words, table.left_out()


def turns_of(call: str, words: Sequence[AlignedWord], duration: float) -> Iterator[SupervisionSegment]:
    """Yield one turn per sentence of a speaker. Its text is None unless all its words are known and have times.

    Args:
        duration: duration of the call, in seconds.
    """
    sentences: List[List[AlignedWord]] = []
    for i, word in enumerate(words):
        if not sentences or word.speaker != sentences[-1][-1].speaker or _ends(words, i - 1):
            sentences.append([])
        sentences[-1].append(word)
    ends = [max((word.end for word in sentence if word.end is not None), default=None) for sentence in sentences]
    starts = [min((word.start for word in sentence if word.start is not None), default=None) for sentence in sentences]
    before = 0.0
    for number, sentence in enumerate(sentences):
        spoken = [word for word in sentence if word.token not in SOUNDS]
        known = _known(spoken)
        start, end = starts[number], ends[number]
        if not known:  # its first or last words may lie anywhere between its neighbours
            start = before
            end = next((time for time in starts[number + 1 :] if time is not None), duration)
            end = max(end, start + SHORTEST)
        if spoken and start is not None and end is not None:
            yield SupervisionSegment(
                id=f"{call}-{number:05d}",
                recording_id=call,
                start=start,
                duration=round(end - start, 8),
                channel=0,
                language="en",
                speaker=f"{call}-{sentence[0].speaker}",
                text=" ".join(word.token + word.mark for word in spoken) if known else None,
                custom={UNCASED: True} if _uncased(spoken) else None,
            )
        before = max(before, ends[number] or 0.0)


def _known(spoken: Sequence[AlignedWord]) -> bool:
    """Whether all words of a sentence are known, with times."""
    tokens = [word.token.lower() for word in spoken]
    return (
        all(word.start is not None and word.end is not None for word in spoken)
        and not any(token in UNKNOWN or token.startswith("<") for token in tokens)
        and not any(FOREIGN_LANGUAGE.fullmatch(" ".join(pair)) for pair in zip(tokens, tokens[1:]))
    )


def _uncased(spoken: Sequence[AlignedWord]) -> bool:
    """Whether a sentence has lost a capital: that of its first word, of ``I`` or of a name.

    Elsewhere, contractions and numbers are in lower case anyway.
    """
    return any(
        word.uncased and (i == 0 or not SMALL.search(word.tags) or re.match("i\\b", word.token))
        for i, word in enumerate(spoken)
    )


def _ends(words: Sequence[AlignedWord], i: int) -> bool:
    """Whether a sentence ends with word ``i``: not with ``Mr.``, and not before a lower-case letter (``Inc. and``).

    The case of words that the aligner spelled out does not count: ``Yes. we're fine`` is two sentences.
    """
    token, mark = words[i].token, words[i].mark
    if not mark.endswith(ENDS) or token.lower() in TITLES:
        return mark.endswith("…")
    if mark != "." or i + 1 == len(words):
        return True
    return words[i + 1].uncased or not words[i + 1].token[:1].islower()


def read_words(turn: SupervisionSegment, normaliser: Normaliser, written: bool) -> TurnWords:
    """Return the words of a turn, complete if it ends in ``. ? !``; without written text if it has lost capitals."""
    if turn.text is None:
        return TurnWords(None)
    cased = UNCASED not in (turn.custom or {})
    plain, shown = normaliser(turn.text, turn.language), turn.text if written and cased else None
    return TurnWords(plain, turn.text.endswith(ENDS), written=shown if is_written(shown, plain) else None)
