"""Reads the dialogues of the game Fish Fillets: who says what (`dialogs_XX.lua`), and in which order (`code.lua`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from corpus.clips import Clip, written_of
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.normalise import has_digits, normalise

_LUA_STRING = r'"(?:\\.|[^"\\])*"'
_LUA_STRINGS = rf"{_LUA_STRING}(?:\s*\.\.\s*{_LUA_STRING})*"
_DIALOG = re.compile(
    rf'dialogId\(\s*"(?P<id>[^"]*)"\s*,\s*"(?P<font>[^"]*)"|dialogStr\(\s*(?P<text>{_LUA_STRINGS})\s*\)', re.DOTALL
)
_STRING = re.compile(rf"({_LUA_STRING})(\s*\.\.)?")
# What follows one of these is another branch: it is not said after what came before.
_BRANCH = re.compile(r"\b(else|elseif|function)\b")

LEADS = ("small", "big")
"""The two actors who speak all through the game; any other font is a minor part of one level."""


@dataclass(frozen=True)
class Line:
    """One line of a level: its id, the font it is shown in (one font = one part), and its original text."""

    id: str
    font: str
    text: str


def parse_dialogs(source: str) -> List[Line]:
    """Lines of a `dialogs_XX.lua` in file order; one without text (a sound effect) is left out, a repeated id keeps
    its first text."""
    lines: Dict[str, Line] = {}
    current = None
    for match in _DIALOG.finditer(source):
        if match["id"] is not None:
            current = (match["id"], match["font"])
        elif current is not None:
            text = "".join(_unquote(part) for part in re.findall(_LUA_STRING, match["text"]))
            if text.strip():
                lines.setdefault(current[0], Line(current[0], current[1], text.strip()))
            current = None
    return list(lines.values())


def _unquote(literal: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], literal[1:-1], flags=re.DOTALL)


def parse_runs(source: str, known: List[str]) -> List[List[List[str]]]:
    """Scripted runs of a level's `code.lua`: lines that follow each other inside one branch of the script.

    Returns a list of runs; a run is a list of places; a place is the list of line ids that can stand there, of which
    the game picks one (`"let-v-vrak"..random(3)`). Only ids in `known` count.
    """
    runs: List[List[List[str]]] = [[]]
    for code in source.splitlines():
        code = code.split("--", 1)[0]
        if _BRANCH.search(code) and runs[-1]:
            runs.append([])
        for literal, joined in _STRING.findall(code):
            name = _unquote(literal)
            choices = [line for line in known if line == name]
            if joined and name:
                choices = [line for line in known if re.fullmatch(re.escape(name) + r"\w{1,2}", line)]
            if choices:
                runs[-1].append(choices)
    return [run for run in runs if run]


def is_endpoint(text: str) -> bool:
    """True when the original text ends a sentence: `.`, `!` or `?`, closing quotes and brackets aside.

    A turn that trails off (`...`, `…`) or breaks off (comma, dash, colon, no mark at all) is not an endpoint: its
    speaker has not finished the thought, and often goes on in the next line.
    """
    text = text.rstrip().rstrip("\"'”“’»«)]").rstrip()
    return text.endswith((".", "!", "?")) and not text.endswith(("..", "…"))


def speaker_of(language: str, level: str, font: str) -> Optional[str]:
    """Speaker label of a font: the two leads keep theirs across levels; None when nobody in particular speaks
    (`both`, none)."""
    part = font.replace("font_", "")
    if part in ("", "both"):
        return None
    return f"fillets-{language}-{part}" if part in LEADS else f"fillets-{language}-{level}-{part}"


def is_lead(speaker: str) -> bool:
    """True for the two lead actors."""
    return speaker.rsplit("-", 1)[-1] in LEADS


@dataclass(frozen=True)
class Level:
    """One level in one language: its clips by line id, and the scripted runs."""

    name: str
    language: str
    clips: Dict[str, Clip]
    runs: List[List[List[str]]]


def read_level(script_dir: Path, sound_dir: Path, language: str) -> Optional[Level]:
    """Reads one level; lines that nobody recorded, or that hold digits or escaped characters, are left out.

    None when the level has no dialogue in this language.

    Raises:
        UserError: the dialogue file is not UTF-8.
    """
    name = script_dir.name
    dialogs = script_dir / f"dialogs_{language}.lua"
    if not dialogs.is_file():
        return None
    clips = {}
    for line in parse_dialogs(_read(dialogs)):
        path = sound_dir / name / language / f"{line.id}.ogg"
        speaker = speaker_of(language, name, line.font)
        text = normalise(line.text)
        if speaker is None or not path.is_file() or not text or has_digits(text) or "\\" in line.text:
            continue
        clips[line.id] = Clip(
            id=f"fillets-{language}-{name}-{line.id}",
            corpus="fillets",
            language=language,
            speaker=speaker,
            path=str(path),
            text=text,
            key=line.id,
            group=name,
            endpoint=is_endpoint(line.text),
            written=written_of(line.text, text),
        )
    code = script_dir / "code.lua"
    runs = parse_runs(_read(code), list(clips)) if code.is_file() else []
    return Level(name, language, clips, runs)


def read_levels(text_dir: Path, sound_dir: Path, language: str) -> List[Level]:
    """All levels with recordings in `language`, by name; the two folders are the packages' roots after unpacking."""
    game = Path("usr/share/games/fillets-ng")
    scripts = sorted((text_dir / game / "script").glob("*/"))
    levels = [read_level(script, sound_dir / game / "sound", language) for script in scripts if script.is_dir()]
    found = [level for level in levels if level is not None and level.clips]
    if not found:
        raise UserError(f"{sound_dir}: no recorded dialogue of Fish Fillets in {language!r} found")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error})") from error
