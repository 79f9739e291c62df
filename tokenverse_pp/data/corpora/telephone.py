"""Telephone calls of the LDC: CALLHOME American English and Hub5 2000 (eval2000), as cuts of several turns.

Both use the same transcription conventions, which `clean` turns into plain text. The transcripts are not read by
lhotse's recipes, which silently drop, cut off or join turns whose lines or times are wrong.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import file_problem
from tokenverse_pp.data.corpora.clips import Clip, part_of, with_turns
from tokenverse_pp.data.corpora.common import (
    NO_AUDIO,
    CorpusPart,
    LeftOutRow,
    Preparation,
    at_16_khz,
    is_written,
    require,
)
from tokenverse_pp.data.corpora.conversations import (
    MIXED_TASKS,
    ONE_SPEAKER_TASKS,
    mixed_tracks,
    turns_by_recording,
    write_dialogues,
)
from tokenverse_pp.data.corpora.resume import ALL, CorpusGroup, in_groups
from tokenverse_pp.data.editing.conversations import DEFAULT_OPTIONS, ConversationOptions, Track, TurnWords
from tokenverse_pp.data.lines import number_of, raw_lines, text_of
from tokenverse_pp.data.manifests import ORIGINAL_RECORDING
from tokenverse_pp.data.normalise import Normaliser

CALLHOME_SPLITS = {"train": "train", "dev": "devtest", "test": "evaltest"}
COMPRESSED = "compressed SPHERE files need sph2pipe (lhotse install-sph2pipe)"
CALLHOME_LAYOUT = (
    "LDC97S42/[callhome_eng/]data/{train,devtest,evltest}/*.sph and "
    "LDC97T14/[callhome_english_trans_970711/]transcrpt/{train,devtest,evaltest}/*.txt in one folder "
    f"(or --transcripts for the second); {COMPRESSED}"
)
EVAL2000_LAYOUT = (
    "LDC2002S09/hub5e_00/english/*.sph and LDC2002T43/[2000_hub5_eng_eval_tr/]reference/english/*.txt in one folder "
    f"(or --transcripts for the second); {COMPRESSED}"
)

# An attribute's value may hold a ">": e_form="[we=>we]['re=>are]".
_TAG = re.compile(r"""</?(contraction|(b_|e_)?aside)\b("[^"]*"|'[^']*'|[^>"'])*>""", re.IGNORECASE)
_SOUND = re.compile(r"\{[^}]*\}|\[\[.*?\]\]|\[[^\]]*\]")
_FOREIGN = re.compile(r"<\s*[A-Za-z?][^>]*>?")
_GUESS = re.compile(r"\(\(\s*(.*?)\s*\)\)")
_SIGNS = re.compile(r"[%*+#/~^@]")
_NAME = "&"
SHORTEST = 0.1  # seconds that a line lasts at least
NAME_TYPE = "NAME"


def clean(text: str, keep_names: bool = False) -> Optional[str]:
    """Return an LDC transcript without its marks but with punctuation; None if words are unknown.

    Sounds (``{breath}``, ``[distortion]``), comments (``[[..]]``) and tags (``<contraction ..>``) are removed. Of
    hesitations, names, asides and mispronounced words, only the signs are removed (``% & // + ** #``). A best guess
    ``((like this))`` counts as heard. Unknown words are ``(( ))``, and speech in another language (``<Spanish ..>``).
    ``keep_names`` keeps the sign of proper names, ``&``.

    >>> clean("%um, &Bob {laugh} was <contraction e_form='x'>there --"), clean("I (( )) so"), clean("<Spanish hola>")
    ('um, Bob was there --', None, None)
    """
    text = _SOUND.sub(" ", _TAG.sub(" ", text))
    if _FOREIGN.search(text) or any(not guess for guess in _GUESS.findall(text)):
        return None
    text = _SIGNS.sub("", _GUESS.sub(r"\1", text))
    return " ".join((text if keep_names else text.replace(_NAME, "")).split())


def read_call_words(
    turn: SupervisionSegment, normaliser: Normaliser, names: bool = False, written: bool = False
) -> TurnWords:
    """Return the words of a turn: complete if it ends in ``. ? !``, not complete if in ``, -`` (``--``: broken off).

    Args:
        names: label proper names, as marked by the transcribers, as entities.
        written: also return the written text.
    """
    text = None if turn.text is None else clean(turn.text, keep_names=names)
    if text is None:
        return TurnWords(None)
    complete = {".": True, "?": True, "!": True, ",": False, "-": False}.get(text[-1:])
    entities: Optional[List[Dict[str, Any]]] = None
    plain, shown = normaliser(text, turn.language), text.replace(_NAME, "")
    if names:
        plain, entities = find_names(text, lambda token: normaliser(token, turn.language))
    return TurnWords(plain, complete, entities, shown if written and is_written(shown, plain) else None)


def find_names(text: str, normalise: Callable[[str], str]) -> Tuple[str, List[Dict[str, Any]]]:
    """Return the normalised text, and a span of type NAME for each run of words marked by ``&``.

    A run ends at punctuation: ``&Bob, &Ann`` is two runs, ``&New &York's`` is one.

    >>> find_names("so &New &York, &Bob said", str.lower)[1][0]
    {'start': 3, 'end': 12, 'type': 'NAME'}
    """
    words: List[str] = []
    spans: List[Dict[str, Any]] = []
    length, in_run = 0, False
    for token in text.split():
        word = normalise(token.replace(_NAME, ""))
        if not word:
            continue
        start = length + bool(words)
        words.append(word)
        length = start + len(word)
        if _NAME in token and in_run:
            spans[-1]["end"] = length
        elif _NAME in token:
            spans.append({"start": start, "end": length, "type": NAME_TYPE})
        in_run = _NAME in token and token[-1].isalnum()
    return " ".join(words), spans


def prepare_calls(
    corpus: str,
    run: Preparation,
    transcripts: Optional[Path] = None,
    channels: str = "mixed",
    names: bool = False,
    options: ConversationOptions = DEFAULT_OPTIONS,
) -> Dict[str, Path]:
    """Prepare telephone calls of the LDC.

    ``callhome-english`` writes ``cuts_{train,dev,test}.jsonl.gz`` (dev: devtest, test: evaltest). ``eval2000``, the
    Hub5 2000 evaluation of Switchboard and CALLHOME calls, writes ``cuts_test.jsonl.gz``.

    Args:
        run: for CALLHOME, its folder contains LDC97S42 and LDC97T14, or is LDC97S42 itself.
        transcripts: folder of the transcripts (LDC97T14), if it is elsewhere.
        channels: ``mixed``: the two sides of a call as one channel; ``separate``: each side, not labelled for scd.
        names: label proper names, as marked by the transcribers, as entities (ner).
    """
    separate, is_callhome = channels == "separate", corpus == "callhome-english"

    def prepare(_: str) -> Dict[str, Path]:
        words, tracks = partial(read_call_words, names=names), side_tracks if separate else mixed_tracks
        parts = (_callhome if is_callhome else _eval2000)(run.corpus_dir, transcripts, run.jobs)
        tasks = [*(ONE_SPEAKER_TASKS if separate else MIXED_TASKS), *(["ner"] * names)]
        return write_dialogues(run, parts, corpus, tasks, tracks, words, options)

    given = {"transcripts": transcripts, "channels": channels, "names": names, "windows": asdict(options)}
    read = [run.corpus_dir, *([transcripts] if transcripts is not None else [])]
    groups = {ALL: CorpusGroup(list(CALLHOME_SPLITS) if is_callhome else ["test"], read)}
    return in_groups(run, corpus, groups, prepare, given)


prepare_callhome_english = partial(prepare_calls, "callhome-english")
prepare_eval2000 = partial(prepare_calls, "eval2000")


def _callhome(corpus_dir: Path, transcripts: Optional[Path], jobs: int) -> List[CorpusPart]:
    speech = corpus_dir / "LDC97S42" if (corpus_dir / "LDC97S42").is_dir() else corpus_dir
    speech = _holding(speech, "data")
    texts = _holding(transcripts if transcripts is not None else corpus_dir / "LDC97T14", "transcrpt")
    require(speech, ["data/train", "data/devtest", "data/evltest"], CALLHOME_LAYOUT)
    require(texts, [f"transcrpt/{name}/**/*.txt" for name in CALLHOME_SPLITS.values()], CALLHOME_LAYOUT)
    _check_names(speech)
    parts = []
    for split, name in CALLHOME_SPLITS.items():
        audio = speech / "data" / name.replace("evaltest", "evltest")  # a typo of the LDC
        parts.append(_calls(split, audio, texts / "transcrpt" / name, CALLHOME_IDS, jobs))
    return parts


def _eval2000(corpus_dir: Path, transcripts: Optional[Path], jobs: int) -> List[CorpusPart]:
    require(corpus_dir, ["LDC2002S09/hub5e_00/english"], EVAL2000_LAYOUT)
    texts = _holding(transcripts if transcripts is not None else corpus_dir / "LDC2002T43", "reference/english")
    if transcripts is None:
        require(texts, ["reference/english"], EVAL2000_LAYOUT)
    if (texts / "reference" / "english").is_dir():
        texts = texts / "reference" / "english"
    require(texts, ["**/*.txt"], EVAL2000_LAYOUT)
    _check_names(corpus_dir)
    return [_calls("test", corpus_dir / "LDC2002S09" / "hub5e_00" / "english", texts, EVAL2000_IDS, jobs)]


# Forms of the ids of speakers and turns, as in lhotse's recipes.
CALLHOME_IDS = ("{call}_{side:0>2}", "{call}_{side:0>2}_{number:05}")
EVAL2000_IDS = ("{call}-{side}", "{call}-{number}")
# Some transcripts have no colon after the side.
_TURN = re.compile(r"([0-9.]+)\s+([0-9.]+)\s+([AB][0-9]*)(?:\s*:|(?=\s|$))(.*)", re.DOTALL)
_NUMBER = r"[-+.,]*[0-9][-+.,0-9]*"
_LIKE_A_TURN = re.compile(rf"{_NUMBER}\s+{_NUMBER}(?![^\s:])|[-+.,0-9]\S*\s+[-+.,0-9]\S*\s+[A-Za-z]\w*\s*:")
_SIDE = re.compile(r"([-+.,0-9]\S*)\s+([-+.,0-9]\S*)\s+([AB][0-9]*)\s*:")  # of a line with wrong times


def _calls(name: str, speech: Path, texts: Path, ids: Tuple[str, str], jobs: int) -> CorpusPart:
    """Return the calls of a folder of transcripts with their turns. Calls without audio and bad lines are left out."""
    audio = {path.stem: path for path in sorted(speech.rglob("*")) if path.suffix.lower() == ".sph"}
    calls = {path.stem: path for path in sorted(texts.rglob("*.txt"))}
    rows = (Clip(call, audio[call], "", "en") if call in audio else (call, NO_AUDIO) for call in calls)
    return with_turns(part_of(name, "en", rows, jobs), lambda call, seconds: read_call(calls[call], ids, seconds))


def read_call(
    path: Path, ids: Tuple[str, str], duration: float = math.inf
) -> Tuple[List[SupervisionSegment], List[LeftOutRow]]:
    """Return the turns of a transcript, lines ``start end side: words``, and the lines that cannot be read.

    The colon may be missing. A line without times continues the line before it. lhotse's recipes silently drop a turn
    with wrong times, and read its further lines, or all of it, as words of the previous turn. Here, its speech is a
    turn without text between the lines before and after it, so that no window contains it.

    Args:
        duration: seconds of the call; infinite if they are not known, and lines after the last turn then have no turn.
    """
    turns: List[SupervisionSegment] = []
    unknown: List[SupervisionSegment] = []
    bad: List[LeftOutRow] = []
    lost = LostLines(path.stem, ids[0], duration)
    open_turn: Optional[SupervisionSegment] = None
    for number, raw in raw_lines(path):
        where = f"{path}, line {number}"
        try:
            line = text_of(raw, "").strip()
        except UserError as error:
            bad.append((where, str(error).lstrip(": ")))
            line = raw.decode("utf-8", "replace").strip()
            if open_turn is not None and not _LIKE_A_TURN.match(line):
                open_turn.text = None  # it continues there
            else:
                lost.add(number, _SIDE.match(line))
            open_turn = None
            continue
        if not line or line.startswith("#"):
            continue
        match = _TURN.fullmatch(line)
        start, end = (number_of(match[1]), number_of(match[2])) if match is not None else (None, None)
        if match is not None and start is not None and end is not None and start < end:
            about = {"call": path.stem, "side": match[3], "number": len(turns)}
            speaker, name = (form.format(**about) for form in ids)
            text = " ".join(match[4].split())
            open_turn = SupervisionSegment(name, path.stem, start, round(end - start, 8), text=text, speaker=speaker)
            unknown += lost.before(open_turn)
            turns.append(open_turn)
        elif open_turn is not None and not _LIKE_A_TURN.match(line):
            open_turn.text = " ".join([open_turn.text or "", *line.split()]).strip()
        else:
            bad.append((where, f"expected `start end side: words`, the end after the start, found {line[:60]!r}"))
            if not lost.sides or match is not None or _LIKE_A_TURN.match(line):  # else it continues a lost line
                lost.add(number, match or _SIDE.match(line))
            open_turn = None
    return [*turns, *unknown, *lost.before(None)], bad


@dataclass
class LostLines:
    """The lines that cannot be read since the last turn of a call: their sides, and times as far as they have any."""

    call: str
    form: str  # of speakers
    duration: float
    last: Optional[SupervisionSegment] = None
    number: int = 0
    sides: Set[str] = field(default_factory=set)
    times: List[float] = field(default_factory=list)

    def add(self, number: int, match: Optional[re.Match[str]]) -> None:
        """Add a line; without a match it may be of either side."""
        self.number = self.number if self.sides else number
        self.sides |= {match[3]} if match is not None else {"A", "B"}
        found = (number_of(match[1]), number_of(match[2])) if match is not None else ()
        self.times += [time for time in found if time is not None]

    def before(self, turn: Optional[SupervisionSegment]) -> List[SupervisionSegment]:
        """Return a turn without text for each side of the lines before this turn (None: the end), and forget the lines.

        It lasts from the end of the turn before the lines to the start of this turn, and includes what times the lines
        have in the two. If that is too short for speech, the lines must overlap one of the two, and it overlaps both.
        """
        first, last = self.last, turn
        sides, times, self.sides, self.times, self.last = sorted(self.sides), self.times, set(), [], turn
        earliest, start = (0.0, 0.0) if first is None else (first.start, first.end)
        end, latest = (self.duration, self.duration) if last is None else (last.start, last.end)
        inside = [time for time in times if earliest <= time <= latest]
        begin, stop = min([start, *inside]), max([end, *inside])
        if stop - begin < SHORTEST:
            begin, stop = min(start, end) - SHORTEST, max(start, end) + SHORTEST
        begin, stop = max(begin, 0.0), min(stop, self.duration)
        return [
            SupervisionSegment(
                id=f"{self.call}-line-{self.number}-{side}",
                recording_id=self.call,
                start=begin,
                duration=round(stop - begin, 8),
                speaker=self.form.format(call=self.call, side=side),
            )
            for side in (sides if begin < stop < math.inf else ())
        ]


def _holding(folder: Path, part: str) -> Path:
    """Return the folder or its subfolder that contains ``part``: the LDC's archives unpack into a separate folder."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return next((path for path in [folder, *inside] if (path / part).is_dir()), folder)


def side_tracks(part: CorpusPart, folder: Path, jobs: int) -> Iterator[Track]:
    """Yield one track per side of a telephone call, each written to a separate file."""
    sides = [at_16_khz(part.recordings, folder / part.name, jobs, channel) for channel in (0, 1)]
    for name, turns in turns_by_recording(part).items():
        for is_b, recordings in enumerate(sides):
            recording = recordings[name]
            # The side is in the speaker's name: 4077_0A, 4077_B1, sw_4390-A.
            here = [turn for turn in turns if ("B" in re.split("[_-]", turn.speaker)[-1]) == is_b]
            yield Track(recording.id, recording, 0, here, {ORIGINAL_RECORDING: name})


def _check_names(folder: Path) -> None:
    """Check that lhotse can safely open each SPHERE file by its name (raises UserError)."""
    problems = (file_problem(str(path)) for path in sorted(folder.rglob("*.[sS][pP][hH]")))
    problem = next(filter(None, problems), None)
    if problem:
        raise UserError(problem)
