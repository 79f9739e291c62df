"""Reads Flight of the Amazon Queen: acted English dialogues of the player (Joe) with some forty characters.

A text is cut into segments by marks for the animation (`*NN`); each segment is a recording of its own, whose name says
where it belongs (hexadecimal digits in capitals):

* `KKHHHHJS.SB`, `KKHHHHPS.SB`: segment S of the line with head HHHH of the dialogue with key KK, said by the player or
  by the person; `SSSS` is the player's greeting, `XXXX` the two greetings when they meet again;
* `CCCCCNNS.SB`: segment S of step NN of the scene CCCCC (padded with `_`);
* `JOENNNNS.SB`: segment S of the player's remark NNNN.

A segment is a turn. Who speaks is known: a dialogue has two people, a step of a scene names its object. Lines follow
each other as in the game: along the tree of a dialogue, or in the order of a scene.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from corpus.clips import Clip
from corpus.fillets import is_endpoint
from corpus.queen_archive import (
    JOE,
    Dialogue,
    Level,
    Malformed,
    QueenArchive,
    Slot,
    Step,
    Texts,
    parse_cutaway,
    parse_dialogue,
    parse_texts,
)
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing
from tokenverse_pp.data.normalise import has_digits, normalise

CORPUS = "queen"
DATA = Path("usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
PLAYER = f"{CORPUS}-joe"
REMARKS = "joe"
"""Name of the scene that holds the player's remarks, which do not follow each other."""

# `*XY00(237,112)`: go there; else two characters.
_MARK = re.compile(r"\*(?:XY.{11}|..?|$)", re.DOTALL)
# `<sneeze>`, `(sigh)`: noises; what stands in them is not said.
_UNSURE = re.compile(r"[<>()\[\]{}#@=/\\^_|~]")


@dataclass(frozen=True)
class Scene:
    """One dialogue, one scene, or one group of remarks: its clips by the name of their sound; `runs` are names that
    follow each other."""

    name: str
    clips: Dict[str, Clip]
    runs: List[List[str]]


@dataclass(frozen=True)
class Line:
    """One line before it is paired with its sounds: `prefix` begins the names of these; `speaker` None: unknown."""

    prefix: str
    speaker: Optional[str]
    text: str


def segments(text: str) -> List[Tuple[int, str]]:
    """The segments of a text that hold words, with their numbers from 1; every mark ends a segment.

    The text `0` stands for none.
    """
    parts = [part.strip() for part in _MARK.split(text)] if text != "0" else []
    return [(number, part) for number, part in enumerate(parts, start=1) if normalise(part)]


def endpoint_of(text: str, last: bool) -> Optional[bool]:
    """Whether a segment ends in a semantic endpoint, by its last mark as in the fillets corpus.

    None where the writer left out the mark (`It's locked`): the last segment of a line without any.
    """
    return None if last and text.rstrip("\"' ")[-1:].isalnum() else is_endpoint(text)


def voice_name(key: int, head: object, who: str) -> str:
    """Begin of the names of a dialogue line's sounds; `head` is a number, `SSSS` or `XXXX`, `who` is `J` or `P`.

    >>> voice_name(2, 0x1F, "J")
    '02001FJ'
    """
    place = f"{head:4X}" if isinstance(head, int) else str(head)
    return f"{key:2d}{place}{who}".replace(" ", "0")


def dialogue_runs(name: str, dialogue: Dialogue) -> List[List[Line]]:
    """Lines of a dialogue as they follow each other; every line of the tree once.

    A run begins with the greetings and goes down the tree, always with the first option that was not taken before;
    where a branch ends, the game leads back to the options that the last one names. What such walks do not reach
    begins runs of its own.
    """
    person = f"{CORPUS}-{re.sub('[0-9]+$', '', name).lower()}"

    def say(head: int) -> List[Line]:
        lines = [
            Line(voice_name(dialogue.key, head, "J"), PLAYER, dialogue.player.get(head, "")),
            Line(voice_name(dialogue.key, head, "P"), person, dialogue.person.get(head, "")),
        ]
        return [line for line in lines if segments(line.text)]

    again = [
        Line(voice_name(dialogue.key, "XXXX", "J"), PLAYER, dialogue.again_player),
        Line(voice_name(dialogue.key, "XXXX", "P"), person, dialogue.again_person),
    ]
    first = dialogue.levels[0][0].head if dialogue.levels else 1
    run = [Line(voice_name(dialogue.key, "SSSS", "J"), PLAYER, dialogue.player.get(0, ""))]
    run += [line for line in say(first) if line.speaker != PLAYER]
    runs = []
    taken = {0, first}
    levels = list(dialogue.levels)
    level: Level = levels[0] if levels else ()
    while True:
        option = next((slot for slot in level[1:] if slot.head not in taken and say(slot.head)), None)
        if option is None:
            runs.append(run)
            run = []
            level = next((lv for lv in levels if any(s.head not in taken and say(s.head) for s in lv[1:])), ())
            if not level:
                break
            continue
        taken.add(option.head)
        run += say(option.head)
        level = _next_level(levels, option)
    rest = [say(head) for head in sorted({*dialogue.player, *dialogue.person} - taken)]
    return [run for run in [*runs, again, *rest] if run]


def _next_level(levels: Sequence[Level], option: Slot) -> Level:
    """Where the talk goes on after an option: the level that begins with its head, else the one that its target is
    on; () at the end. Of several levels the engine takes the last."""
    own = [level for level in levels if level[0].head == option.head]
    back = [level for level in levels if any(slot.head == option.target for slot in level)]
    return () if option.target == -1 else (own or back or [()])[-1]


def scene_runs(name: str, steps: Sequence[Step], names: Dict[int, str]) -> List[List[Line]]:
    """Lines of a scene in order.

    A new run begins where it is not sure that the label tells whether the speaker changes: around a voice of nobody
    on the screen, and between two others than the player in different rooms, as objects of two rooms can be one
    character.
    """
    labels = _speaker_labels(name, steps, names)
    runs: List[List[Line]] = []
    before: Optional[Step] = None
    for step in steps:
        if not segments(step.text) or step.text.startswith("#"):  # a file of credits
            continue
        speaker = labels.get(step.person)
        sure = before is not None and speaker is not None and labels.get(before.person) is not None
        if before is not None and PLAYER not in (speaker, labels.get(before.person)):
            sure = sure and (before.room == step.room or speaker == labels[before.person])
        line = Line(f"{name.ljust(5, '_')}{step.number:02d}", speaker, step.text)
        if sure:
            runs[-1].append(line)
        else:
            runs.append([line])
        before = step
    return runs


def _speaker_labels(scene: str, steps: Sequence[Step], names: Dict[int, str]) -> Dict[int, str]:
    """Speaker by object: its name, or with its number where two objects of one room share a name."""
    speaking = [step for step in steps if step.person > JOE and segments(step.text)]
    rooms: Dict[Tuple[str, int], set] = {}
    for step in speaking:
        rooms.setdefault((names.get(step.person, ""), step.room), set()).add(step.person)
    labels = {JOE: PLAYER}
    for step in speaking:
        called = names.get(step.person, "")
        if called.lower() == "joe king":
            labels[step.person] = PLAYER
        elif called and not any(len(found) > 1 for (n, _), found in rooms.items() if n == called):
            labels[step.person] = f"{CORPUS}-{re.sub('[^a-z]+', '-', called.lower())}"
        else:
            labels[step.person] = f"{CORPUS}-{scene.lower()}-{step.person}"
    return labels


def scene_group(name: str) -> str:
    """What the split keeps together: all dialogues with one character, all scenes of one room.

    >>> scene_group("BOB2"), scene_group("C101D")
    ('bob', 'c101')
    """
    return re.sub(r"(?<=^C)(\d+)[A-Z]$|\d+$", r"\1", name).lower()


def read_scenes(root: Path, sounds: Path) -> Tuple[List[Scene], Counter]:
    """All scenes, and how many recordings and lines were left out, by reason.

    Recordings are written to `sounds` as MP3 (what is there already is kept).

    Raises:
        UserError: the archive is missing or damaged, or holds no dialogue.
    """
    archive = QueenArchive(root / DATA)
    dropped: Counter = Counter()
    scripts: List[Tuple[str, str, List[List[Line]]]] = []
    texts = _texts(archive)
    for file in archive.names(".DOG") + archive.names(".CUT"):
        name, kind = file[:-4], file[-3:]
        try:
            if kind == "DOG":
                runs = dialogue_runs(name, parse_dialogue(archive.read(file)))
            else:
                runs = scene_runs(name, parse_cutaway(archive.read(file)), texts.names)
        except Malformed:
            dropped[f"scripts that are malformed ({kind})"] += 1
            continue
        scripts.append((name, scene_group(name), runs))
    remarks = [[Line(f"JOE{number:04d}", PLAYER, text)] for number, text in sorted(texts.remarks.items())]
    scripts.append((REMARKS, "", remarks))
    spoken = Pairs(archive, sounds, dropped)
    scenes = [spoken.scene(*script) for script in scripts]
    dropped["recordings without a text (noises, leftovers)"] = len(set(archive.names(".SB")) - spoken.named)
    scenes = [scene for scene in scenes if scene.clips]
    if not scenes:
        raise UserError(f"{archive.path}: no recorded dialogue found")
    return scenes, dropped


def _texts(archive: QueenArchive) -> Texts:
    try:
        return parse_texts(archive.read("QUEEN.JAS"), archive.read("QUEEN2.JAS"))
    except (Malformed, KeyError) as error:
        raise UserError(f"{archive.path}: QUEEN.JAS and QUEEN2.JAS: {error}") from error


class Pairs:
    """Pairs lines with recordings, writes these to files, and counts what cannot be used in `dropped`."""

    def __init__(self, archive: QueenArchive, sounds: Path, dropped: Counter):
        self.archive = archive
        self.sounds = sounds
        self.dropped = dropped
        self.named: set = set()
        self.seen: set = set()
        sounds.mkdir(parents=True, exist_ok=True)

    def scene(self, name: str, group: str, runs: List[List[Line]]) -> Scene:
        """The scene of these runs; lines without any usable recording are left out of them."""
        clips: Dict[str, Clip] = {}
        kept = []
        for run in runs:
            found = [clip for line in run for clip in self._line(line, group)]
            clips.update({clip.key: clip for clip in found})
            kept.append([clip.key for clip in found])
        return Scene(name.lower(), clips, [run for run in kept if run])

    def _line(self, line: Line, group: str) -> List[Clip]:
        found = []
        for number, original in segments(line.text):
            name = f"{line.prefix}{number:X}.SB"
            if name not in self.archive.places:
                self.dropped["segments without a recording"] += 1
                continue
            if name in self.named:
                continue
            self.named.add(name)
            text = normalise(original)
            data = self.archive.read(name)
            reason = self._reason(original, text, data)
            if reason:
                self.dropped[reason] += 1
                continue
            self.seen.add((text, data))
            last = number == segments(line.text)[-1][0]
            found.append(self._clip(name, line.speaker, original, text, data, group, last))
        return found

    def _reason(self, original: str, text: str, data: bytes) -> Optional[str]:
        if has_digits(text) or _UNSURE.search(original):
            return "texts with digits, brackets or signs"
        if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:  # a frame's eleven bits of synchronisation
            return "recordings that are empty or no MP3"
        if (text, data) in self.seen:
            return "copies of a recording"
        return None

    def _clip(
        self, name: str, speaker: Optional[str], original: str, text: str, data: bytes, group: str, last: bool
    ) -> Clip:
        stem = name[:-3].lower()
        path = self.sounds / f"{stem}.mp3"
        if not path.is_file():
            with replacing(path) as aside:
                aside.write_bytes(data)
        return Clip(
            id=f"{CORPUS}-en-{stem}",
            corpus=CORPUS,
            language="en",
            speaker=speaker or f"{CORPUS}-voice-{stem}",
            path=str(path),
            text=text,
            key=name,
            group=group,
            endpoint=endpoint_of(original, last),
        )
