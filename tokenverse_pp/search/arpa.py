"""Reading n-gram models in ARPA's format, as SRILM, KenLM, IRSTLM and others write them.

The n-grams are over the pieces of the tokenizer, separated by spaces (``▁the ▁c at``): the text is encoded before the
model is trained. Log-probabilities are to the base 10 in the file. Pieces that the tokenizer lacks are left out with
all their n-grams; pieces of the tokenizer that the file lacks are as probable as the rarest one.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, TextIO, Tuple

import numpy as np

from tokenverse_pp.errors import UserError
from tokenverse_pp.search.ngram import Level, Ngrams

Gram = Tuple[int, ...]
NEVER = -99.0  # what files write for log10(0)


def read_arpa(path: Path, pieces: Sequence[str]) -> Ngrams:
    """Read a model over ``pieces``, the whole vocabulary in the order of its ids.

    Raises:
        UserError: naming the file, and the line that is none of the format.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    ids.update({"<s>": len(pieces), "</s>": len(pieces) + 1})
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            found = _sections(path, file, ids)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{path}: cannot read a language model: {getattr(error, 'strerror', None) or error}") from None
    if not found or not any(gram[0] < len(pieces) for gram in found[0]):
        raise UserError(f"{path}: holds no n-gram of this model's pieces; was the text encoded with its tokenizer?")
    found[0].setdefault((len(pieces),), (-math.inf, 0.0))
    return _ngrams(found, len(pieces) + 2)


def _sections(path: Path, file: TextIO, ids: Dict[str, int]) -> List[Dict[Gram, Tuple[float, float]]]:
    """The n-grams of each length with log-probability and back-off weight, in nats."""
    levels: List[Dict[Gram, Tuple[float, float]]] = []
    for number, line in _body(file):
        if line.startswith("\\") and line.endswith("-grams:"):
            levels.append({})
            continue
        parts, length = line.split(), len(levels)
        try:
            if not length or len(parts) not in (length + 1, length + 2):
                raise ValueError
            value, weight = float(parts[0]), float(parts[length + 1]) if len(parts) > length + 1 else 0.0
        except ValueError:
            raise UserError(f"{path}, line {number}: no {length or 1}-gram of the ARPA format: {line!r}") from None
        if all(piece in ids for piece in parts[1 : length + 1]):
            gram = tuple(ids[piece] for piece in parts[1 : length + 1])
            levels[-1][gram] = (-math.inf if value <= NEVER else value * math.log(10), weight * math.log(10))
    return levels


def _body(file: TextIO) -> Iterator[Tuple[int, str]]:
    r"""The lines between \1-grams: and \end\ that are not empty, numbered from 1."""
    inside = False
    for number, text in enumerate(file, start=1):
        line = text.strip()
        inside = inside or line == "\\1-grams:"
        if line == "\\end\\":
            return
        if inside and line:
            yield number, line


def _ngrams(found: Sequence[Dict[Gram, Tuple[float, float]]], size: int) -> Ngrams:
    state: Dict[Gram, int] = {(): 0}
    levels: List[Level] = []
    before, last = 0, 1  # the states of the last level's first n-gram, and of this one's
    for grams in found:
        kept = sorted((state[gram[:-1]], gram[-1], gram) for gram in grams if gram[:-1] in state)
        if not kept:
            break
        suffixes = [next((state[gram[i:]] for i in range(1, len(gram)) if gram[i:] in state), 0) for _, _, gram in kept]
        values = np.array([grams[gram] for _, _, gram in kept])
        context = np.array([parent for parent, _, _ in kept]) - before
        token = np.array([token for _, token, _ in kept])
        levels.append(Level(context, token, values[:, 0], values[:, 1], np.array(suffixes)))
        state.update({gram: last + i for i, (_, _, gram) in enumerate(kept)})
        before, last = last, last + len(kept)
    return Ngrams(levels, size)
