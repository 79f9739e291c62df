"""Reads Asterisk's telephone prompts: `core-sounds-XX.txt.gz` holds `key: text`, the recording is `KEY.g722`."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from corpus.clips import Clip, written_of
from corpus.entities import Word, expand, find_entities, load_rules
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.normalise import normalise

_SPOKEN_SYMBOL = re.compile(r"\[[^\w\[\]]*\]")  # `dash [-]`: the sign beside its name
# Remarks, stage directions, words left out by the reader, keys of another line run into this one.
_UNSURE = re.compile(r"[\[\]<>()#*\ufffd]|www\.|\b[a-z]+-[a-z-]+:")
_LOST_ACCENT = re.compile(
    r"\w\?\w|\?\s+[^\W\d_A-ZА-Я]|\w\?\."
)  # the Italian file: `sar? esattamente`, `La conferenza ? piena`

_KEY_TYPES = (
    (re.compile(r"digits/(\d+[fmn]?|h-.*|hundred|thousands?|millions?|billion|un|9_p|ore-(una|1900|2000))$"), "NUM"),
    (re.compile(r"digits/day-\d$"), "WEEKDAY"),
    (re.compile(r"digits/mon-\d+$"), "MONTH"),
    (re.compile(r"digits/(oclock|a-m|p-m|afternoon|ore-mezzanotte)$"), "TIME"),
    (re.compile(r"phonetic/9_p$"), "NUM"),
    (re.compile(r"(letters/([a-z]|zed)|phonetic/[a-z]_p)$"), "LETTER"),
)

# Acronyms of drivers, each read in its own way (`iax` as "eeks"); dtmf sounds; and sentences that the text only
# describes.
_SKIPPED_KEYS = re.compile(
    r"(silence/|beep|spy-(iax|iax2|h323|mgcp|dahdi|zap|sip|usbradio)$|confbridge-(join|leave)$|.*2tone$|tt-monkeys$)"
)

# Texts that are not what is said, found by ear or by a recogniser.
_WRONG_TEXTS = {
    ("es", "followme/options"),
    ("es", "letters/exclaimation-point"),
    ("fr", "please-try-call-later"),
    ("fr", "vm-review-urgent"),
    ("it", "is"),
    ("it", "vm-tohearenv"),
}

# Wrong keys in the published texts.
_KEY_ERRATA = {("es", "digits/0", "diez"): "digits/10"}


def parse_texts(source: str, language: str) -> Dict[str, str]:
    """Texts by key (lower case); comments, empty texts and keys with two different texts are left out."""
    texts: Dict[str, str] = {}
    clashes = set()
    for line in source.lstrip("\ufeff").splitlines():
        match = re.match(r"([\w./-]+):\s*(.*\S)", line)
        if line.startswith(";") or match is None:
            continue
        key, text = match[1].lower(), match[2]
        key = _KEY_ERRATA.get((language, key, text), key)
        if texts.setdefault(key, text) != text:
            clashes.add(key)
    return {key: text for key, text in texts.items() if key not in clashes}


def key_type(key: str) -> Optional[str]:
    """Entity type that a prompt's key gives away (`digits/day-3`: WEEKDAY), or None."""
    return next((kind for pattern, kind in _KEY_TYPES if pattern.match(key)), None)


def is_closed(key: str, text: str) -> bool:
    """Closed-class prompts: digits, letters, their names, and every lone word; no sentence can be made of one
    alone."""
    return key.startswith(("digits/", "letters/", "phonetic/")) or len(text.split()) == 1


def is_sentence(original: str) -> bool:
    """Whether a text was written as a sentence: a capital first, a mark last (many prompts have neither)."""
    original = original.strip().strip("“”\"'")
    return original[:1].isupper() and original.endswith((".", "!", "?"))


def words_of(key: str, original: str, language: str) -> Optional[List[Word]]:
    """Words of a prompt with what is known of their type; None when it is unsure what was read aloud."""
    original = _SPOKEN_SYMBOL.sub(" ", original).strip().strip("“”\"'")
    if (
        (language, key) in _WRONG_TEXTS
        or _SKIPPED_KEYS.match(key)
        or _UNSURE.search(original)
        or _LOST_ACCENT.search(original)
    ):
        return None
    words = expand(original, load_rules(language))
    kind = key_type(key)
    if not words or kind is None:
        return words or None
    return [(word, kind) for word, _ in words]


def read_clips(text_root: Path, sound_root: Path, language: str) -> Tuple[List[Clip], int]:
    """Clips of one language by key, and the number of prompts left out because text or sound is missing or unsure.

    Raises:
        UserError: the texts or the sounds of the language are not in the unpacked packages.
    """
    file = text_root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    voices = sorted((sound_root / "usr/share/asterisk/sounds").glob(f"{language}_*"))
    if not file.is_file() or not voices:
        raise UserError(f"{text_root}: no Asterisk prompts in {language!r} found")
    texts = parse_texts(gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace"), language)
    speaker = "asterisk-" + voices[0].name.rsplit("_", 1)[-1].lower()
    rules = load_rules(language)
    clips = []
    left_out = 0
    for sound in sorted(voices[0].rglob("*.g722")):
        key = sound.relative_to(voices[0]).as_posix()[: -len(".g722")].lower()
        words = words_of(key, texts[key], language) if key in texts else None
        if words is None:
            left_out += 1
            continue
        text = " ".join(word for word, _ in words)
        clips.append(
            Clip(
                id=f"asterisk-{language}-{key.replace('/', '-')}",
                corpus="asterisk",
                language=language,
                speaker=speaker,
                path=str(sound),
                text=text,
                key=key,
                closed=is_closed(key, text),
                entities=find_entities(words, rules),
                written=written_of(texts[key], text) if is_sentence(texts[key]) else None,
            )
        )
    return clips, left_out


def phrase_words(clips: List[Clip]) -> List[Word]:
    """Words of a phrase made of closed-class prompts, typed by their keys; plain words are left to the rules."""
    return [(word, key_type(clip.key)) for clip in clips for word in normalise(clip.text).split()]
