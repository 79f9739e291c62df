"""Shallow fusion with an external language model, trained on text alone.

The transducer knows only the words of its training texts. A language model of written text, or a list of words with
their frequencies, has more words. Each token of a hypothesis earns
``lm_scale x log P(token | tokens before) + lm_bonus``, and its end ``lm_scale x log P(end)``. Task tokens and blanks
earn nothing and are not part of the history. ``lm_bonus`` compensates for what every token loses: without it hypotheses
become too short. (``length_bonus`` cannot replace it: task tokens earn it too, so there would be too many of them.)

The file name determines which of two kinds a model is:

- **words** (``.tsv``, ``.tsv.gz``; `ngrams_of_words`): each word is a sentence of its own. Where the next piece begins
  a word, the previous word ends: ``log P(</s> | its pieces) + log P(piece | <s>)``.
- **text** (``.arpa``, ``.arpa.gz``; `read_arpa`): n-grams over the pieces of running text.

One file serves all languages, or a folder has one per language (``cs.tsv``, ``nl.arpa``) and the first language token
of a hypothesis selects the file. The file names are language codes in any spelling (``fr-FR.tsv``, ``FRA.tsv``; see
`tokenverse_pp.base.languages`). They also select the rules by which the words of a list are normalised.

A file ``lm.json`` beside them holds their scale and bonus, ``{"lm_scale": 0.5, "lm_bonus": 2.0}``; explicit options
take precedence. Models are also kept in the cache folder, since large files take seconds to read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import cache_folder, json_of
from tokenverse_pp.base.languages import (
    compatible_languages,
    language_group,
    language_problem,
    matching_languages,
    same_language,
)
from tokenverse_pp.base.options import LM_BONUS, LM_SCALE, SearchOptions
from tokenverse_pp.data import normalise as normalising
from tokenverse_pp.data.normalise import normalise
from tokenverse_pp.data.tokenizer import BLANK_ID, Tokenizer
from tokenverse_pp.decoding import ngram
from tokenverse_pp.decoding.constraints import SPACE, UNKNOWN, languages_written
from tokenverse_pp.decoding.context_graph import ContextGraph, FusedScorers, hotword_phrases
from tokenverse_pp.decoding.ngram import Ngrams, ngrams_of_words, read_arpa, read_words
from tokenverse_pp.decoding.scorer import FusionScorer
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.lid import CODE, language_code, language_token
from tokenverse_pp.tasks.transcript import is_task_token

WORDS, TEXT = (".tsv", ".tsv.gz"), (".arpa", ".arpa.gz")
DEFAULTS = "lm.json"  # beside the files
SMALLEST = 200_000  # bytes; smaller files are not cached
MOST_CACHED = 2 << 30  # bytes of the cache
log = logging.getLogger(__name__)


class LanguageModel(FusionScorer):
    """One n-gram model, or one for each language. State 0 is the start, where the language may not be known yet.

    ``models`` maps the language token that selects a model, or "" for all languages, to the model and whether it is a
    model of words. ``bonus`` is added for each token that a model scores.
    """

    def __init__(self, models: Mapping[str, Tuple[Ngrams, bool]], pieces: Sequence[str], scale: float, bonus: float):
        self.models = list(models.values())
        # State 1 + first[i] + s is state s of model i.
        self.first = np.cumsum([0] + [model.states for model, _ in self.models]).tolist()
        super().__init__(1 + self.first[-1], len(pieces))
        self.scale, self.bonus = scale, bonus
        self.idle = np.array([is_task_token(piece) or i == BLANK_ID for i, piece in enumerate(pieces)])
        self.begins = np.array([piece.startswith(SPACE) for piece in pieces])
        starts = [1 + first + model.start for first, (model, _) in zip(self.first, self.models)]
        self.entry = {list(pieces).index(token): start for token, start in zip(models, starts) if token}
        self.start = starts[0] if "" in models else 0

    def _of(self, state: int) -> Optional[Tuple[int, Ngrams, bool, int]]:
        """The model's number, the model, whether it is one of words, its own state; None while no language is known."""
        state = state or self.start
        if state == 0:
            return None
        number = int(np.searchsorted(self.first, state - 1, side="right")) - 1
        return (number, *self.models[number], state - 1 - self.first[number])

    def advance(self, state: int, token: int) -> int:
        """See `FusionScorer`."""
        found = self._of(state)
        if self.idle[token]:
            return state if found is not None else self.entry.get(token, state)
        if found is None:
            return state
        number, model, words, own = found
        if words and self.begins[token]:
            own = model.start
        return 1 + self.first[number] + model.advance(own, token)

    def gain(self, state: int, token: int) -> float:
        """See `FusionScorer`."""
        return float(self._gains(state)[token])

    def at_end(self, state: int) -> float:
        """See `FusionScorer`."""
        found = self._of(state)
        if found is None:
            return 0.0
        _, model, words, own = found
        return 0.0 if words and own == model.start else self.scale * float(model.row(own)[model.end])

    def row(self, state: int) -> Tensor:
        """See `FusionScorer`."""
        return torch.from_numpy(self._gains(state)).float()

    def anew(self, state: int) -> int:
        """See `FusionScorer`: the language stays known."""
        found = self._of(state)
        return 0 if found is None else 1 + self.first[found[0]] + found[1].start

    def _gains(self, state: int) -> np.ndarray:
        """`gain` of every token in a state, (V,) float64."""
        found = self._of(state)
        if found is None:
            return np.zeros(self.vocab_size)
        _, model, words, own = found
        row = model.row(own)
        if words and own != model.start:
            over = row[model.end]
            row = np.where(self.begins, over + model.row(model.start)[: self.vocab_size], row[: self.vocab_size])
        return np.where(self.idle, 0.0, self.scale * row[: self.vocab_size] + self.bonus)


def language_model_for(options: SearchOptions, tokenizer: Tokenizer, tasks: Optional[TaskSet]) -> LanguageModel:
    """Load the language model that ``options.lm`` names.

    Raises:
        UserError: for files that are not a language model, and for a folder without a model for a language that may be
            written: hypotheses in that language would lose nothing, unlike all others.
    """
    path = Path(options.lm or "")
    files = lm_files(path)
    pieces = tuple(tokenizer.pieces())
    written = languages_written(options, tasks)
    if path.is_dir():
        chosen = _files_of_languages(path, files, _languages(pieces, tasks))
        if tasks is not None and "lid" not in tasks:
            raise UserError(
                f"{path}: a folder of language models needs the task lid, which is not decoded; pass a file"
            )
        missing = sorted(set(written) - set(chosen))
        if missing:
            raise UserError(
                f"{path}: has no language model for {', '.join(missing)}; add one, or restrict the languages"
            )
        needed = {language: chosen[language] for language in written} or chosen
        used = {language_token(language): (files[code], code) for language, code in needed.items()}
    else:
        # The words of a file for all languages are normalised by the rules of the only language that can be written.
        groups = {language_group(code) for code in written}
        used = {"": (path, (groups.pop() or "") if len(groups) == 1 else "")}
    scale, bonus = _scale_and_bonus(options, path)
    encoder = _Encoder(tokenizer, pieces)
    models = {token: _read(str(file), file.stat().st_mtime_ns, code, encoder) for token, (file, code) in used.items()}
    return LanguageModel(models, pieces, scale, bonus)


def _scale_and_bonus(options: SearchOptions, path: Path) -> Tuple[float, float]:
    """Scale and bonus from the options, else the file `DEFAULTS` beside the model, else `LM_SCALE` and `LM_BONUS`."""
    file = _defaults_of(path)
    stored = json_of(file.read_text(encoding="utf-8", errors="replace"), str(file)) if file.is_file() else {}
    names = {"lm_scale": options.lm_scale, "lm_bonus": options.lm_bonus}
    if not isinstance(stored, dict) or set(stored) - set(names):
        raise UserError(f"{file}: expected a JSON object with {' and '.join(names)}")
    for name, value in stored.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name == "lm_scale" and value <= 0):
            raise UserError(f"{file}: {name}: expected a number{' above 0' if name == 'lm_scale' else ''}")
    scale = stored.get("lm_scale", LM_SCALE) if options.lm_scale is None else options.lm_scale
    bonus = stored.get("lm_bonus", LM_BONUS) if options.lm_bonus is None else options.lm_bonus
    return float(scale), float(bonus)


def _defaults_of(path: Path) -> Path:
    """The path of the file with the scale and bonus of a language model."""
    return (path if path.is_dir() else path.parent) / DEFAULTS


def lm_parts(path: Path) -> List[Path]:
    """All files that a language model depends on (raises UserError)."""
    return sorted([*lm_files(path).values(), *filter(Path.is_file, [_defaults_of(path)])])


def lm_files(path: Path) -> Dict[str, Path]:
    """The files of a language model by language code, "" for a file for all languages (raises UserError)."""
    if path.is_dir():
        found: Dict[str, Path] = {}
        for file in sorted(path.iterdir()):
            if file.name.endswith(WORDS + TEXT):
                other = found.setdefault(file.name.split(".")[0], file)
                if other != file:
                    raise UserError(f"{path}: {other.name} and {file.name} are of one language: expected one of them")
        if not found:
            raise UserError(f"{path}: holds no language model: expected files such as en.tsv, fr.arpa.gz")
        return found
    if not path.exists():
        raise UserError(f"{path}: cannot read a language model: no such file or folder")
    if not path.name.endswith(WORDS + TEXT):
        raise UserError(
            f"{path}: expected a language model named {', '.join('*' + x for x in WORDS + TEXT)}, or a folder"
        )
    return {"": path}


def _languages(pieces: Sequence[str], tasks: Optional[TaskSet]) -> List[str]:
    """The languages that the model writes, in its spelling."""
    if tasks is not None and "lid" in tasks:
        return list(tasks.languages)
    codes = {language_code(piece): piece for piece in pieces if is_task_token(piece)}
    return [code for code, piece in codes.items() if CODE.fullmatch(code) and language_token(code) == piece]


def _files_of_languages(path: Path, files: Dict[str, Path], languages: Sequence[str]) -> Dict[str, str]:
    """Map languages of the model to the codes of their files; every file must be used (raises UserError)."""
    chosen: Dict[str, str] = {}
    for language in languages:
        found = matching_languages(language, files)
        others = [other for other in languages if other != language]
        # A file of another region is accepted, unless it is that of another language of the model.
        found = [
            code
            for code in found
            if compatible_languages(code, language) or not any(compatible_languages(code, other) for other in others)
        ]
        if len(found) > 1:
            names = " and ".join(files[code].name for code in found)
            raise UserError(f"{path}: {names} are both for {language}: expected one of them")
        if found:
            chosen[language] = found[0]
    for code in sorted(set(files) - set(chosen.values())):
        meant = [language for language in languages if same_language(language, code)]
        if meant:
            taken = files[chosen[meant[0]]].name if meant[0] in chosen else "no file that fits"
            raise UserError(f"{files[code]}: would not be used: the model's {meant[0]} has {taken}")
        raise UserError(f"{files[code]}: the model has no language {code!r}")
    return chosen


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer as a cache key: tokenizers with the same pieces are equal."""

    tokenizer: Tokenizer = field(compare=False)
    pieces: Tuple[str, ...]


@functools.lru_cache(maxsize=16)  # `search` calls this for each batch
def _read(path: str, changed: int, code: str, encoder: _Encoder) -> Tuple[Ngrams, bool]:
    """Return the model of a file, from the cache if it is there, and whether it is a model of words."""
    words = path.endswith(WORDS)
    if Path(path).stat().st_size < SMALLEST:
        return _made(path, code, encoder), words
    # Everything that the model depends on: the file, the vocabulary, the rules of the language, the code.
    digest = hashlib.sha256(repr((code, encoder.pieces, words)).encode())
    for part in (Path(path), Path(normalising.__file__), Path(ngram.__file__)):
        digest.update(part.read_bytes())
    digest.update(encoder.tokenizer.model)
    kept = cache_folder() / "ngrams" / f"{digest.hexdigest()[:32]}.npz"
    try:
        model = Ngrams.load(kept)
        with contextlib.suppress(OSError):  # a read-only folder
            kept.touch()  # `_tidy` removes the least recently used files
        return model, words
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        log.info(f"{path}: reading the language model (once; then it is kept in {kept.parent})")
    model = _made(path, code, encoder)
    try:
        model.save(kept)
        _tidy(kept.parent)
    except OSError as error:
        log.warning(f"warning: {kept}: cannot be written ({error.strerror}): {path} is read again each time")
    return model, words


def _made(path: str, code: str, encoder: _Encoder) -> Ngrams:
    """Build the model of a file."""
    if path.endswith(TEXT):
        return read_arpa(Path(path), encoder.pieces)
    words, unknown = [], encoder.pieces.index(UNKNOWN)
    for word, frequency in read_words(Path(path)).items():
        for text in normalise(word, None if language_problem(code) else code).split():
            ids = encoder.tokenizer.encode(text)
            if unknown not in ids:
                words.append((ids, frequency))
    if not words:
        raise UserError(f"{path}: none of its words can be written with the model's vocabulary")
    return ngrams_of_words(words, len(encoder.pieces))


def _tidy(folder: Path) -> None:
    """Remove the least recently used files, until the others are at most `MOST_CACHED` bytes."""
    files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MOST_CACHED:
            with contextlib.suppress(OSError):
                file.unlink()


def bonus_for(options: SearchOptions, tokenizer: Tokenizer, tasks: Optional[TaskSet] = None) -> Optional[FusionScorer]:
    """Return the scorer for the hotwords, length bonus and language model of the options, or None without any.

    Args:
        tasks: the decoded tasks, which determine the languages that can be written.

    Raises:
        UserError: for hotwords or a language model that this model cannot use, and for the scale or bonus of a language
            model without one. `SearchOptions` cannot check that: `TranscribeOptions.lm` may still add the model.
    """
    for name in ("lm_scale", "lm_bonus") if options.lm is None else ():
        if getattr(options, name) is not None:
            raise UserError(f"search option {name!r}: has no effect without a language model (lm)")
    bonus: Optional[FusionScorer] = None
    if not options.earns:
        return None
    if options.hotwords or options.length_bonus:
        pieces = tokenizer.pieces()
        phrases = hotword_phrases(options, tokenizer, languages_written(options, tasks))
        bonus = ContextGraph(phrases, pieces, options.length_bonus)
    if options.lm is None:
        return bonus
    model = language_model_for(options, tokenizer, tasks)
    return model if bonus is None else FusedScorers(bonus, model)
