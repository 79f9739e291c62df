"""Reads Tux Paint's stamp descriptions: `NAME.txt` holds `XX.utf8=text`, `NAME_desc_XX.ogg` the recording."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Dict, List, Tuple

from corpus.clips import Clip, written_of
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.normalise import has_digits, normalise

# What stands in brackets (an amount, a remark) may or may not have been read aloud.
_UNSURE = re.compile(r"[()\[\]<>{}=+*/#%&$€£¥]")


def parse_description(source: str, language: str) -> str:
    """The description in `language`, or "" when the file has none."""
    for line in source.splitlines():
        if line.startswith(f"{language}.utf8="):
            return line.split("=", 1)[1].strip()
    return ""


def read_clips(root: Path, language: str) -> List[Clip]:
    """Clips of one language by path; lines with digits, brackets or symbols are left out, and so are copies of a
    recording.

    Raises:
        UserError: nothing was found.
    """
    stamps = root / "usr/share/tuxpaint/stamps"
    clips: Dict[Tuple[str, str], Clip] = {}
    for sound in sorted(stamps.rglob(f"*_desc_{language}.ogg")):
        name = sound.name[: -len(f"_desc_{language}.ogg")]
        texts = sound.with_name(f"{name}.txt")
        if not texts.is_file():
            continue
        original = parse_description(texts.read_text(encoding="utf-8", errors="replace"), language)
        text = normalise(original)
        if not text or has_digits(text) or _UNSURE.search(original) or "\ufffd" in original:
            continue
        key = sound.relative_to(stamps).as_posix()[: -len(f"_desc_{language}.ogg")]
        clip = Clip(
            id="tuxpaint-" + language + "-" + re.sub(r"[^A-Za-z0-9]+", "-", key),
            corpus="tuxpaint",
            language=language,
            speaker=f"tuxpaint-{language}",
            path=str(sound),
            text=text,
            key=key,
            written=written_of(original, text),
        )
        # Mirrored and recoloured stamps carry copies of one recording.
        clips.setdefault((text, hashlib.sha256(sound.read_bytes()).hexdigest()), clip)
    if not clips:
        raise UserError(f"{root}: no Tux Paint description in {language!r} found")
    return _unique_ids(list(clips.values()))


def _unique_ids(clips: List[Clip]) -> List[Clip]:
    seen: Dict[str, Clip] = {}
    for clip in clips:
        if clip.id in seen:
            raise UserError(f"{clip.path}: two stamps are called {clip.key} but for punctuation")
        seen[clip.id] = clip
    return clips
