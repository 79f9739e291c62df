"""Word and character errors of decoded cuts, as the boards count them: the same words under several text normalisers.

- ``ours``: the plain words of the labels and of the hypothesis, as they are (`tokenverse_pp.metrics.error_rates`).
- ``whisper``: Whisper's normalisers, from the package whisper-normalizer. English: contractions, spelling and numbers
  made alike, fillers dropped. Other languages: lower case, no punctuation, letters as words where no spaces are
  written. Most published WERs of the last years are counted so.
- ``open-asr``: the Open ASR board's own code, from a checkout of it. It began as a copy of Whisper's and went on
  (names, acronyms, compounds; errors by kaldialign, where "white paper" is "whitepaper"), so only it gives today's
  board's WER.

The boards normalise the transcript as the corpus writes it, with case, punctuation and digits. Manifests keep it where
it differs from the plain words (``supervision.custom["original_text"]``).
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import kaldialign
from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import aligned
from tokenverse_pp.base.languages import primary_language
from tokenverse_pp.data.editing.conversations import ORIGINAL_TEXT
from tokenverse_pp.metrics.bootstrap import RatioCounts, bootstrap
from tokenverse_pp.metrics.error_rates import error_rates
from tokenverse_pp.tasks.base import ScoredExample

OURS = "ours"
BY_LETTER = ("zh", "yue", "ja", "th", "lo", "my")  # the Whisper paper counts characters there (section 4.4)
NOT_SCORED = "ignore time segment in scoring"  # a reference of TED-LIUM that the Open ASR board leaves out


def language_of(cut: Cut) -> Optional[str]:
    """The language of a cut without its region; None where it has none, or several."""
    found = {primary_language(turn.language) for turn in cut.supervisions if turn.language}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Utterance:
    """One cut: what was said, and what the model wrote.

    Args:
        language: the reference's, or None.
        words: plain words of the labels.
        original: the transcript as the corpus writes it, or the plain words where they are the same.
        heard: plain words of the hypothesis.
    """

    language: Optional[str]
    words: Tuple[str, ...]
    original: str
    heard: Tuple[str, ...]

    @classmethod
    def of(cls, example: ScoredExample, cut: Cut, language: Optional[str]) -> Utterance:
        """From what the tasks are scored with."""
        turns = sorted(cut.supervisions, key=lambda turn: (turn.start, turn.end))  # as the words of the labels are
        original = " ".join((turn.custom or {}).get(ORIGINAL_TEXT) or turn.text or "" for turn in turns)
        return cls(language, tuple(example.ref.words), original, tuple(example.hyp.words))


@dataclass(frozen=True)
class Normaliser:
    """How a board counts words.

    Args:
        title: for people.
        text: text and language -> normalised text; None: the plain words as they are.
        merges: kaldialign's ``merge_compounds``: words that are one but for a space are the same.
        compounds: of languages other than English, (references, hypotheses) -> both with compounds made alike.
    """

    title: str
    text: Optional[Callable[[str, Optional[str]], str]] = None
    merges: bool = False
    compounds: Optional[Callable[[List[str], List[str]], Tuple[List[str], List[str]]]] = None


def is_english(language: Optional[str]) -> bool:
    """Whether English rules apply: also where the language is not known."""
    return language is None or language == "en"


def whisper_normaliser() -> Normaliser:
    """Whisper's (raises UserError where the package is missing)."""
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'tokenverse_pp[scoreboards]'") from error
    english, basic, letters = EnglishTextNormalizer(), BasicTextNormalizer(), BasicTextNormalizer(split_letters=True)

    def normalised(text: str, language: Optional[str]) -> str:
        chosen = english if is_english(language) else letters if language in BY_LETTER else basic
        return str(chosen(text))

    return Normaliser("Whisper's normaliser", normalised)


def open_asr_normaliser(checkout: Path) -> Normaliser:
    """The Open ASR board's own code: runs ``normalizer/`` of a checkout of huggingface/open_asr_leaderboard.

    Raises:
        UserError: for a folder that is none, packages that it needs and that are missing, and a kaldialign that cannot
            merge compounds.
    """
    if "merge_compounds" not in inspect.signature(kaldialign.edit_distance).parameters:
        raise UserError("--open-asr: expected kaldialign 0.12 or newer, for Python 3.10 or newer")
    if not (checkout / "normalizer" / "data_utils.py").is_file():
        raise UserError(f"--open-asr {checkout}: expected a checkout of github.com/huggingface/open_asr_leaderboard")
    sys.path.insert(0, str(checkout))
    try:
        code, scoring = (importlib.import_module(f"normalizer.{name}") for name in ("data_utils", "eval_utils"))
    except ImportError as error:
        raise UserError(
            f"--open-asr {checkout}: {one_line(error)}; for what it needs: "
            "pip install 'tokenverse_pp[scoreboards,datasets]'"
        ) from error
    finally:
        sys.path.remove(str(checkout))

    def normalised(text: str, language: Optional[str]) -> str:
        return str(code.normalizer(text) if is_english(language) else code.ml_normalizer(text, lang=language))

    return Normaliser(
        f"Open ASR board {commit_of(checkout)}".strip(), normalised, True, scoring.normalize_compound_pairs
    )


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, shortened; nothing where git does not know."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def normalisers(checkout: Optional[Path]) -> Dict[str, Normaliser]:
    """Those to count with, by name in the JSON."""
    found = {OURS: Normaliser("ours"), "whisper": whisper_normaliser()}
    if checkout is not None:
        found["open-asr"] = open_asr_normaliser(checkout)
    return found


def texts_of(utterances: Sequence[Utterance], by: Normaliser) -> List[Tuple[List[str], List[str]]]:
    """Reference and hypothesis of each utterance as normalised words.

    An utterance with nothing left of its reference does not count (the Open ASR board leaves it out as well); by the
    plain words there is none.
    """
    if by.text is None:
        return [(list(u.words), list(u.heard)) for u in utterances]
    found = []
    for utterance in utterances:
        ref = by.text(utterance.original, utterance.language).strip()
        hyp = by.text(" ".join(utterance.heard), utterance.language).strip()
        if not ref or ref == NOT_SCORED:
            continue
        if by.compounds is not None and not is_english(utterance.language):
            (ref,), (hyp,) = by.compounds([ref], [hyp])
        found.append((ref.split(), hyp.split()))
    return found


def word_scores(utterances: Sequence[Utterance], by: Normaliser, interval: bool = True) -> Dict[str, Any]:
    """WER with its parts and its 95% interval (bootstrap over utterances), CER, and what they were counted over.

    All as in `tokenverse_pp.metrics.error_rates.error_rates`; with ``merges`` the errors in words are kaldialign's with
    compounds merged.
    """
    pairs = texts_of(utterances, by)
    scores: Dict[str, Any] = dict(error_rates(pairs))
    if not by.merges and not interval:
        return scores
    merged = {"merge_compounds": True} if by.merges else {}
    edits = [kaldialign.edit_distance(ref, hyp, **merged) for ref, hyp in pairs]
    if by.merges:
        words = max(scores["words"], 1)
        for ours, kind in (("ins", "ins"), ("del", "del"), ("sub", "sub"), ("wer", "total")):
            scores[ours] = sum(edit[kind] for edit in edits) / words
        scores["errors"] = int(sum(edit["total"] for edit in edits))
    if interval and pairs:
        ratios = [(float(edit["total"]), float(len(ref))) for edit, (ref, _) in zip(edits, pairs)]
        scores["wer_interval"] = list(bootstrap(RatioCounts.of([ratios])))
    return scores


def word_table(scores: Dict[str, Dict[str, Any]], titles: Dict[str, str]) -> str:
    """A row for each normaliser."""
    rows = [["words", "WER %", "95%", "ins %", "del %", "sub %", "CER %", "words", "cuts"]]
    for name, found in scores.items():
        interval = " .. ".join(f"{100 * value:.1f}" for value in found.get("wer_interval", ()))
        rates = [f"{100 * found[key]:.1f}" for key in ("ins", "del", "sub", "cer")]
        counts = [str(found["words"]), str(found["utterances"])]
        rows.append([titles[name], f"{100 * found['wer']:.2f}", interval, *rates, *counts])
    return aligned(rows)
