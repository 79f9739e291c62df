"""LDC telephone calls: CALLHOME American English and Hub5 2000 (eval2000), labelled for asr, scd, endp and lid.

Both use the same transcription conventions, which `clean` turns into plain text. The two sides of a call are mixed into
one channel, or kept apart (``channels="separate"``; then not labelled for scd).
"""

from __future__ import annotations

import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import file_problem
from tokenverse_pp.data.corpora import conversations as dialogues
from tokenverse_pp.data.corpora.common import CorpusPart, Say, lhotse_recipe, require
from tokenverse_pp.data.editing.conversations import DEFAULT_OPTIONS, ConversationOptions, TurnWords
from tokenverse_pp.data.normalise import NORMALISERS, Normaliser

CHANNELS = ("mixed", "separate")
CALLHOME_SPLITS = {"train": "train", "dev": "devtest", "test": "evaltest"}
COMPRESSED = "compressed SPHERE files need sph2pipe (lhotse install-sph2pipe)"
CALLHOME_LAYOUT = (
    "LDC97S42/data/{train,devtest,evltest}/*.sph and LDC97T14/transcrpt/{train,devtest,evaltest}/*.txt in one folder "
    f"(or --transcripts for the second); {COMPRESSED}"
)
EVAL2000_LAYOUT = (
    f"LDC2002S09/hub5e_00/english/*.sph and LDC2002T43/reference/english/*.txt in one folder; {COMPRESSED}"
)

# An attribute's value may hold a ">": e_form="[we=>we]['re=>are]".
_TAG = re.compile(r"""</?(contraction|(b_|e_)?aside)\b("[^"]*"|'[^']*'|[^>"'])*>""", re.IGNORECASE)
_SOUND = re.compile(r"\{[^}]*\}|\[\[.*?\]\]|\[[^\]]*\]")
_FOREIGN = re.compile(r"<\s*[A-Za-z?][^>]*>?")
_GUESS = re.compile(r"\(\(\s*(.*?)\s*\)\)")
_SIGNS = re.compile(r"[%*+#/~^@]")
_NAME = "&"
NAME_TYPE = "NAME"


def clean(text: str, keep_names: bool = False) -> Optional[str]:
    """An LDC transcript without its marks but with punctuation; None where the words are unknown.

    Sounds (``{breath}``, ``[distortion]``), comments (``[[..]]``) and tags (``<contraction ..>``) go, the signs of
    hesitations, names, asides and mispronounced words (``% & // + ** #``) go and leave the word; a best guess
    ``((like this))`` counts as heard. Not known: ``(( ))``, and speech in another language (``<Spanish ..>``).
    ``keep_names`` leaves the sign of proper names, ``&``.

    >>> clean("%um, &Bob {laugh} was <contraction e_form='x'>there --"), clean("I (( )) so"), clean("<Spanish hola>")
    ('um, Bob was there --', None, None)
    """
    text = _SOUND.sub(" ", _TAG.sub(" ", text))
    if _FOREIGN.search(text) or any(not guess for guess in _GUESS.findall(text)):
        return None
    text = _SIGNS.sub("", _GUESS.sub(r"\1", text))
    return " ".join((text if keep_names else text.replace(_NAME, "")).split())


def read_words(turn: SupervisionSegment, normaliser: Normaliser, names: bool = False) -> TurnWords:
    """Words of a turn; a last sign ``. ? !`` makes it complete, ``, -`` (also ``--``: broken off) not complete.

    Args:
        names: label what the transcribers marked as proper names as entities.
    """
    text = clean(turn.text or "", keep_names=names)
    if text is None:
        return TurnWords(None)
    complete = {".": True, "?": True, "!": True, ",": False, "-": False}.get(text[-1:])
    if names:
        plain, entities = find_names(text, lambda token: normaliser(token, turn.language))
        return TurnWords(plain, complete, entities)
    return TurnWords(normaliser(text, turn.language), complete)


def find_names(text: str, normalise: Callable[[str], str]) -> Tuple[str, List[Dict[str, Any]]]:
    """Text with names marked by ``&`` -> normalised text, and a span of type NAME for each run of marked words.

    A run ends at punctuation: ``&Bob, &Ann`` are two, ``&New &York's`` is one.

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


def side_of(turn: SupervisionSegment) -> int:
    """0 for side A, 1 for B, by the speaker's name (``4077_0A``, ``4077_B1``, ``sw_4390-A``).

    lhotse's recipe for eval2000 puts a second speaker on side A (``A1``) on channel 1.
    """
    return 1 if "B" in re.split("[_-]", turn.speaker)[-1] else 0


def prepare_callhome_english(
    corpus_dir: Path,
    output_dir: Path,
    transcripts: Optional[Path] = None,
    channels: str = "mixed",
    names: bool = False,
    options: ConversationOptions = DEFAULT_OPTIONS,
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """CALLHOME American English -> ``cuts_{train,dev,test}.jsonl.gz`` (dev: devtest, test: evaltest).

    Args:
        corpus_dir: a folder with LDC97S42 and LDC97T14, or LDC97S42 itself.
        transcripts: LDC97T14, where it is elsewhere.
        channels: ``mixed`` or ``separate``.
        names: label proper names, as far as the transcribers marked them, as entities (ner).

    Raises:
        UserError: where the folders are not these corpora.
    """
    from lhotse.recipes.callhome_english import prepare_callhome_english as recipe

    speech = corpus_dir / "LDC97S42" if (corpus_dir / "LDC97S42").is_dir() else corpus_dir
    texts = transcripts if transcripts is not None else corpus_dir / "LDC97T14"
    require(speech, ["data/train", "data/devtest", "data/evltest"], CALLHOME_LAYOUT)
    require(texts, ["transcrpt/train", "transcrpt/devtest", "transcrpt/evaltest"], CALLHOME_LAYOUT)
    _check_names(speech)
    with lhotse_recipe("callhome-english", corpus_dir, CALLHOME_LAYOUT):
        manifests = recipe(speech, transcript_dir=texts, absolute_paths=True)
    parts = [CorpusPart(split, **manifests[name], language="en") for split, name in CALLHOME_SPLITS.items()]
    return _write(parts, output_dir, "callhome-english", channels, names, options, normaliser, jobs, say)


def prepare_eval2000(
    corpus_dir: Path,
    output_dir: Path,
    transcripts: Optional[Path] = None,
    channels: str = "mixed",
    names: bool = False,
    options: ConversationOptions = DEFAULT_OPTIONS,
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """The Hub5 2000 evaluation (Switchboard and CALLHOME calls) -> ``cuts_test.jsonl.gz``.

    Args:
        transcripts: the folder of reference transcripts, where it is elsewhere.
        channels: ``mixed`` or ``separate``.
        names: label proper names, as far as the transcribers marked them, as entities (ner).

    Raises:
        UserError: where the folder is not this corpus.
    """
    from lhotse.recipes.eval2000 import prepare_eval2000 as recipe

    wanted = ["LDC2002S09/hub5e_00/english"] + ([] if transcripts else ["LDC2002T43/reference/english"])
    require(corpus_dir, wanted, EVAL2000_LAYOUT)
    _check_names(corpus_dir)
    with (
        tempfile.TemporaryDirectory() as folder,
        lhotse_recipe("eval2000", corpus_dir, EVAL2000_LAYOUT),
    ):
        manifests = recipe(corpus_dir, folder, transcript_path=transcripts, absolute_paths=True)
    return _write(
        [CorpusPart("test", **manifests, language="en")],
        output_dir,
        "eval2000",
        channels,
        names,
        options,
        normaliser,
        jobs,
        say,
    )


def _check_names(folder: Path) -> None:
    """Check that lhotse can safely open each SPHERE file by its name (raises UserError)."""
    problems = (file_problem(str(path)) for path in sorted(folder.rglob("*.[sS][pP][hH]")))
    problem = next(filter(None, problems), None)
    if problem:
        raise UserError(problem)


def _write(
    parts: Sequence[CorpusPart],
    output_dir: Path,
    corpus: str,
    channels: str,
    names: bool,
    options: ConversationOptions,
    normaliser: str,
    jobs: int,
    say: Say,
) -> Dict[str, Path]:
    def tracks(part: CorpusPart):  # type: ignore[no-untyped-def]
        folder = output_dir / "audio" / part.name
        if channels == "separate":
            return dialogues.side_tracks(part, folder, jobs, side_of)
        return dialogues.mixed_tracks(part, folder, jobs)

    return dialogues.write_dialogues(
        parts,
        output_dir,
        corpus,
        [*(dialogues.ONE_SPEAKER_TASKS if channels == "separate" else dialogues.MIXED_TASKS), *(["ner"] * names)],
        tracks,
        partial(read_words, normaliser=NORMALISERS[normaliser], names=names),
        options,
        say,
    )
