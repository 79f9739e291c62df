"""Two games in English: from Debian packages to train, dev and test manifests of their own, beside those of `prepare`.

The sets are made so that they can be used together with those of `prepare`: a line whose sentence is in another set
there is left out here, and nothing there changes.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from corpus import packages, queen, report, sky
from corpus.clips import Clip, Example, turn_of
from corpus.compose import chain_turns, cut_conversations, draw_speed
from corpus.prepare import (
    STAMP,
    decode_clips,
    fresh_audio_dir,
    is_prepared,
    keep_licences,
    manifest_files,
    number_words,
    unpack,
    without_outliers,
    write_manifests,
)
from corpus.render import Call, render_example, run_all, to_cut
from corpus.split import SPLITS, near_duplicates, split_clips
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.base.languages import same_language
from tokenverse_pp.data.manifests import read_cuts

CORPORA = ("queen", "sky")
SHARES = (0.85, 0.05, 0.10)
BAD_PAIRS = Path(__file__).with_name("english_bad.txt")
"""Ids of recordings that do not hold their text, found by `check_english.py`."""

FORMAT = 1
"""Raised whenever the same options would give other manifests, so that old ones are not taken for new ones."""


def prepare_english(
    output_dir: Path,
    packages_dir: Optional[Path] = None,
    beside: Optional[Path] = None,
    bad_pairs: Path = BAD_PAIRS,
    jobs: int = 2,
    seed: int = 1,
    speed: float = 0.08,
    compositions: int = 2,
    say: Callable[[str], None] = print,
) -> Dict[str, Path]:
    """Prepares the English corpora and returns the manifest files by name (`train`, `dev`, `test`, `test_<corpus>`).

    Writes `cuts_<name>.jsonl.gz`, `audio/`, `licences/` and `prepared.json` to `output_dir`, as
    `prepare.prepare_human_speech` does.

    Args:
        output_dir: folder to fill; manifests hold absolute paths of its audio.
        packages_dir: folder with the `.deb` files; None: `apt-get download` into `<output_dir>/packages`.
        beside: folder that `prepare_human_speech` filled; None: these corpora are used alone.
        bad_pairs: file with ids of recordings to leave out, one a line (`#`: a comment).
        jobs: processes that decode and write audio.
        seed: of the split, the compositions, the pauses.
        speed: training compositions after the first are played at 1 - speed to 1 + speed (0: as recorded).
        compositions: in how many different examples each line of the training set appears.
        say: takes the lines of the report.

    Raises:
        UserError: a package or a manifest is missing or damaged, an option is out of range.
    """
    if jobs < 1 or compositions < 1 or not 0 <= speed < 0.5:
        raise UserError("expected --jobs >= 1, --compositions >= 1 and 0 <= --speed < 0.5")
    output_dir = Path(output_dir).absolute()
    names = list(packages.ENGLISH_PACKAGES.values())
    files = packages.get_packages(names, output_dir / "packages", packages_dir)
    bad = set(read_ids(bad_pairs))
    others = read_other_texts(beside) if beside is not None else {}
    options = {
        "format": FORMAT,
        "packages": {name: packages.check_package(name, files[name])[0] for name in names},
        "sizes": {name: files[name].stat().st_size for name in names},
        "beside": _digest(f"{split} {language} {text}" for (language, text), s in others.items() for split in s),
        "bad_pairs": _digest(bad),
        "seed": seed,
        "speed": speed,
        "compositions": compositions,
        "folder": str(output_dir),
    }
    manifests = manifest_files(output_dir, CORPORA)
    if is_prepared(output_dir, options, manifests, say):
        return manifests

    work = output_dir / "work"
    roots = unpack(files, work / "unpacked", say)
    clips, scenes = read_all_clips(roots, work / "sounds", say)
    clips_dir = work / "clips"
    durations = decode_clips(clips, clips_dir, jobs)
    clips = without_outliers(clips, durations, say)
    splits = split_english(clips, others, seed, say)
    # After the split, so that a set does not depend on the list of bad pairs but for these.
    found_bad = [clip for clip in clips if clip.id in bad]
    for corpus, count in sorted(Counter(clip.corpus for clip in found_bad).items()):
        say(f"{corpus}: left out, the recording was heard not to hold its text: {count}")
    clips = [clip for clip in clips if clip.id not in bad]

    examples = compose(clips, scenes, splits, durations, seed, speed, compositions)
    audio_dir = fresh_audio_dir(output_dir, options)
    rendered = run_all(Call(render_example, clips_dir, audio_dir), examples, jobs, "write")
    cuts: Dict[str, List[Any]] = {split: [to_cut(r) for r in rendered if r.example.split == split] for split in SPLITS}
    write_manifests(cuts, manifests, CORPORA)
    licences = keep_licences(roots, output_dir / "licences")
    write_json(output_dir / STAMP, options)
    shutil.rmtree(work)
    for line in report.licence_lines(licences, CORPORA) + report.hour_lines(cuts):
        say(line)
    return manifests


def read_all_clips(
    roots: Dict[str, Path], sounds: Path, say: Callable[[str], None]
) -> Tuple[List[Clip], List[queen.Scene]]:
    """Clips of both corpora in a fixed order, and the scenes of the dialogues; says what was left out.

    Args:
        roots: the unpacked packages by name.
        sounds: folder that the recordings are written to as they are.
        say: takes a line for each reason.
    """
    scenes, dropped = queen.read_scenes(roots[packages.ENGLISH_PACKAGES["queen"]], sounds / "queen")
    clips = [clip for scene in scenes for clip in scene.clips.values()]
    lines, dropped_lines = sky.read_clips(roots[packages.ENGLISH_PACKAGES["sky"]], sounds / "sky")
    for corpus, found, reasons in (("queen", len(clips), dropped), ("sky", len(lines), dropped_lines)):
        say(f"{corpus}: {found} recordings with a text")
        for reason, count in sorted(reasons.items()):
            say(f"{corpus}: left out, {reason}: {count}")
    # A lone word ("hello") is no sentence: it may occur in every set.
    return [replace(clip, closed=" " not in clip.text) for clip in clips + lines], scenes


def read_ids(file: Path) -> List[str]:
    """The ids in a file, one a line; what follows a `#` is a comment.

    Raises:
        UserError: there is no such file.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file (ids of recordings to leave out, one a line)")
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


Texts = Dict[Tuple[str, str], Set[str]]
"""Sets by `(language, text)`."""


def read_other_texts(folder: Path) -> Texts:
    """The sentences of a prepared corpus with the sets that they are in: turns of one clip and several words.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    texts: Texts = defaultdict(set)
    for split in SPLITS:
        for cut in read_cuts(folder / f"cuts_{split}.jsonl.gz"):
            for supervision in cut.supervisions:
                if len(supervision.custom["clips"]) == 1 and " " in supervision.text:
                    texts[supervision.language, supervision.text].add(split)
    return dict(texts)


def split_english(clips: Sequence[Clip], others: Texts, seed: int, say: Callable[[str], None]) -> Dict[str, str]:
    """The set of each clip id; clips with a sentence, or a near-duplicate of one, that another set holds are absent.

    Lone words follow their dialogue.
    """
    splits = split_clips(clips, lambda clip: SHARES, number_words, seed)
    within = sum(not clip.closed and clip.id not in splits for clip in clips)
    for clip in _seen_elsewhere([clip for clip in clips if clip.id in splits], splits, others):
        del splits[clip]
    across = sum(not clip.closed and clip.id not in splits for clip in clips) - within
    say(f"left out of the lesser set, as a near-duplicate is in another: {within} clips")
    say(f"left out, as a near-duplicate is in another set of the other corpora: {across} clips")
    of_group = {(clip.corpus, clip.group): splits[clip.id] for clip in clips if clip.group and clip.id in splits}
    for clip in clips:
        if clip.closed:
            splits[clip.id] = of_group.get((clip.corpus, clip.group), "train")
    return splits


def _seen_elsewhere(clips: Sequence[Clip], splits: Dict[str, str], others: Texts) -> Set[str]:
    """Ids of clips whose sentence is in another set of `others`: alike in English, the same in any language."""
    leaks = set()
    anywhere: Dict[str, Set[str]] = defaultdict(set)
    for (_, text), found in others.items():
        anywhere[text] |= found
    for clip in clips:
        if anywhere.get(clip.text, set()) - {splits[clip.id]}:
            leaks.add(clip.id)
    english = [(text, found) for (language, text), found in others.items() if same_language(language, "en")]
    texts = [clip.text for clip in clips] + [text for text, _ in english]
    for a, b in near_duplicates(texts, number_words("en")):
        if a < len(clips) <= b and english[b - len(clips)][1] - {splits[clips[a].id]}:
            leaks.add(clips[a].id)
    return leaks


QUEEN_TASKS = ("asr", "scd", "endp", "lid")
SKY_TASKS = ("asr", "lid")


def compose(
    clips: Sequence[Clip],
    scenes: Sequence[queen.Scene],
    splits: Dict[str, str],
    durations: Dict[str, float],
    seed: int,
    speed: float,
    compositions: int,
) -> List[Example]:
    """All examples of all sets; only train has compositions after the first, and only those change speed."""
    examples: List[Example] = []
    kept = {clip.id: clip for clip in clips}
    for split in SPLITS:
        for composition in range(compositions if split == "train" else 1):
            factor = speed if composition else None
            allowed = {name: clip for name, clip in kept.items() if splits.get(name) == split}
            examples += compose_queen(scenes, split, allowed, durations, composition, seed, factor)
            lines = [turn_of(clip) for _, clip in sorted(allowed.items()) if clip.corpus == "sky"]
            rng = random.Random(f"{seed}-sky-{split}-{composition}")
            rng.shuffle(lines)
            name = f"sky-en-{split}-c{composition}"
            examples += chain_turns(
                lines, name, split, SKY_TASKS, durations, rng, factor, shortest=1.0, single=composition == 0
            )
    return examples


def compose_queen(
    scenes: Sequence[queen.Scene],
    split: str,
    allowed: Dict[str, Clip],
    durations: Dict[str, float],
    composition: int,
    seed: int,
    speed_range: Optional[float] = None,
) -> List[Example]:
    """Conversations from runs of lines that follow each other; lines that stand alone are chained by speaker.

    Lines of different speakers stand side by side only as they do in the game.
    """
    examples: List[Example] = []
    alone: Dict[str, List[Clip]] = defaultdict(list)
    for scene in scenes:
        rng = random.Random(f"{seed}-queen-{scene.name}-{composition}")
        for run in scene.runs:
            sequence = [allowed[scene.clips[key].id] for key in run if scene.clips[key].id in allowed]
            if len(sequence) < 2 or scene.name == queen.REMARKS:
                for clip in sequence:
                    alone[clip.speaker].append(clip)
                continue
            chosen = draw_speed(speed_range, rng)
            for clips, gaps in cut_conversations(sequence, durations, chosen, rng, lambda before, after: True):
                name = f"queen-en-{scene.name}-c{composition}-{len(examples):05d}"
                turns = tuple(turn_of(clip) for clip in clips)
                examples.append(Example(name, split, turns, tuple(gaps), chosen, QUEEN_TASKS))
    for speaker, found in sorted(alone.items()):
        rng = random.Random(f"{seed}-{speaker}-{split}-{composition}")
        turns_alone = [turn_of(clip) for clip in found]
        rng.shuffle(turns_alone)
        name = f"{queen.CORPUS}-en-{split}-c{composition}-{speaker[len(queen.CORPUS) + 1 :]}"
        examples += chain_turns(turns_alone, name, split, QUEEN_TASKS, durations, rng, speed_range, shortest=1.0)
    return [_without_unknown_ends(example) for example in examples]


def _without_unknown_ends(example: Example) -> Example:
    """The example, labelled for `endp` only if every turn is."""
    if all(turn.endpoint is not None for turn in example.turns):
        return example
    return replace(example, tasks=tuple(task for task in example.tasks if task != "endp"))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
