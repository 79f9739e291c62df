"""From Debian packages to train, dev and test manifests of labelled human speech, in one call."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from corpus import asterisk, fillets, packages, report, tuxpaint
from corpus import compose as chains
from corpus import compose as conversations
from corpus.clips import Clip, Example, find_outliers
from corpus.entities import load_rules
from corpus.render import Call, decode_clip, render_example, run_all, to_cut
from corpus.split import SPLITS, split_clips
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.data.manifests import write_cuts

CORPORA = ("fillets", "asterisk", "tuxpaint")
TUXPAINT_LANGUAGES = ("es", "fr", "ru")
SHARES = {"fillets": (0.85, 0.05, 0.10), "asterisk": (0.85, 0.05, 0.10), "tuxpaint": (0.70, 0.05, 0.25)}
STAMP = "prepared.json"
FORMAT = 4
"""Raised whenever the same options would give other manifests, so that old ones are not taken for new ones."""


def prepare_human_speech(
    output_dir: Path,
    packages_dir: Optional[Path] = None,
    jobs: int = 2,
    seed: int = 1,
    speed: float = 0.08,
    compositions: int = 2,
    tuxpaint_languages: Sequence[str] = TUXPAINT_LANGUAGES,
    say: Callable[[str], None] = print,
) -> Dict[str, Path]:
    """Prepares the human-speech corpus and returns the manifest files by name (`train`, `dev`, `test`,
    `test_<corpus>`).

    Writes `cuts_<name>.jsonl.gz`, `audio/<corpus>/<language>/*.flac`, `licences/` and `prepared.json` to
    `output_dir`. What is whole and made with the same options is not made again. The result depends on the packages
    and options alone, never on `jobs`.

    Args:
        output_dir: folder to fill; manifests hold absolute paths of its audio.
        packages_dir: folder with the `.deb` files; None: `apt-get download` into `<output_dir>/packages`.
        jobs: processes that decode and write audio.
        seed: of the split, the compositions, the pauses.
        speed: training compositions after the first are played at 1 - speed to 1 + speed (0: as recorded).
        compositions: in how many different examples each line of the training set appears.
        tuxpaint_languages: languages taken from Tux Paint.
        say: takes the lines of the report.

    Raises:
        UserError: a package is missing or damaged, an audio file is damaged, an option is out of range.
    """
    if jobs < 1 or compositions < 1 or not 0 <= speed < 0.5:
        raise UserError("expected --jobs >= 1, --compositions >= 1 and 0 <= --speed < 0.5")
    output_dir = Path(output_dir).absolute()
    names = packages.package_names()
    files = packages.get_packages(names, output_dir / "packages", packages_dir)
    versions = {name: packages.check_package(name, files[name])[0] for name in names}
    options = {
        "format": FORMAT,
        "packages": versions,
        "sizes": {name: files[name].stat().st_size for name in names},
        "seed": seed,
        "speed": speed,
        "compositions": compositions,
        "tuxpaint_languages": list(tuxpaint_languages),
        "folder": str(output_dir),
    }
    manifests = manifest_files(output_dir, CORPORA)
    if is_prepared(output_dir, options, manifests, say):
        return manifests

    roots = unpack(files, output_dir / "work" / "unpacked", say)
    clips, levels = read_all_clips(roots, tuxpaint_languages, say)
    clips_dir = output_dir / "work" / "clips"
    durations = decode_clips(clips, clips_dir, jobs)
    clips = without_outliers(clips, durations, say)
    splits = split_clips(clips, lambda clip: SHARES[clip.corpus], number_words, seed)
    say(f"left out of the lesser set, as a near-duplicate is in another: {count_dropped(clips, splits)} clips")

    examples = compose(clips, levels, splits, durations, seed, speed, compositions)
    audio_dir = fresh_audio_dir(output_dir, options)
    rendered = run_all(Call(render_example, clips_dir, audio_dir), examples, jobs, "write")
    cuts = {split: [to_cut(r) for r in rendered if r.example.split == split] for split in SPLITS}
    write_manifests(cuts, manifests, CORPORA)
    licences = keep_licences(roots, output_dir / "licences")
    write_json(output_dir / STAMP, options)
    shutil.rmtree(output_dir / "work")
    for line in report.licence_lines(licences, CORPORA) + report.hour_lines(cuts):
        say(line)
    return manifests


def manifest_files(output_dir: Path, corpora: Sequence[str]) -> Dict[str, Path]:
    """The manifests of the sets, and of the test set of each corpus, by name."""
    names = [*SPLITS, *(f"test_{corpus}" for corpus in corpora)]
    return {name: output_dir / f"cuts_{name}.jsonl.gz" for name in names}


def is_prepared(
    output_dir: Path, options: Dict[str, Any], manifests: Dict[str, Path], say: Callable[[str], None]
) -> bool:
    """Whether the folder is whole and was made with the same options; if not, its stamp is removed."""
    stamp = output_dir / STAMP
    if read_json(stamp) == options and all(file.is_file() for file in manifests.values()):
        say(f"{output_dir}: already prepared with these options")
        return True
    stamp.unlink(missing_ok=True)
    return False


def decode_clips(clips: Sequence[Clip], folder: Path, jobs: int) -> Dict[str, float]:
    """Decode the clips into a folder; their lengths in seconds by id."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = run_all(Call(decode_clip, folder), clips, jobs, "decode")
    return {clip.id: length for clip, length in zip(clips, lengths)}


def number_words(language: str) -> FrozenSet[str]:
    """Number words of a language that has rules; the others' lines hold hardly any numbers."""
    return load_rules(language).number_words if language in packages.ASTERISK_LANGUAGES else frozenset()


def unpack(files: Dict[str, Path], folder: Path, say: Callable[[str], None]) -> Dict[str, Path]:
    """Unpacks package files under `folder` and returns the root of each."""
    folder.mkdir(parents=True, exist_ok=True)
    roots = {}
    for name, file in files.items():
        say(f"package {file.name}: {file.stat().st_size / 1e6:.1f} MB")
        # Name and size are part of the folder's name: another version is never taken for this one.
        roots[name] = folder / f"{file.stem}-{file.stat().st_size}"
        packages.extract_package(file, roots[name])
    return roots


def read_all_clips(
    roots: Dict[str, Path], tuxpaint_languages: Sequence[str], say: Callable[[str], None]
) -> Tuple[List[Clip], List[fillets.Level]]:
    """Clips of all corpora (in a fixed order), and the levels that the fillets clips belong to."""
    clips: List[Clip] = []
    levels: List[fillets.Level] = []
    for language in packages.FILLETS_LANGUAGES:
        levels += fillets.read_levels(roots["fillets-ng-data"], roots[f"fillets-ng-data-{language}"], language)
    for level in levels:
        clips += level.clips.values()
    for language in packages.ASTERISK_LANGUAGES:
        name = f"asterisk-core-sounds-{language}"
        found, left_out = asterisk.read_clips(roots[name], roots[f"{name}-g722"], language)
        say(f"asterisk {language}: {len(found)} prompts; {left_out} left out as their text is missing or unsure")
        clips += found
    for language in tuxpaint_languages:
        clips += tuxpaint.read_clips(roots["tuxpaint-stamps-default"], language)
    doubled = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if doubled:
        raise UserError(f"two recordings would both be called {doubled[0]}")
    return clips, levels


def without_outliers(clips: List[Clip], durations: Dict[str, float], say: Callable[[str], None]) -> List[Clip]:
    """The clips whose length fits their text (`find_outliers`); says how many of each corpus do not."""
    reasons = find_outliers(clips, durations)
    counts = Counter(f"{clip.corpus} {clip.language} {reasons[clip.id]}" for clip in clips if clip.id in reasons)
    for what, count in sorted(counts.items()):
        say(f"left out, length does not fit the text: {what}: {count}")
    return [clip for clip in clips if clip.id not in reasons]


def count_dropped(clips: Sequence[Clip], splits: Dict[str, str]) -> int:
    """Sentences that the split left out."""
    return sum(not clip.closed and clip.id not in splits for clip in clips)


def compose(
    clips: Sequence[Clip],
    levels: Sequence[fillets.Level],
    splits: Dict[str, str],
    durations: Dict[str, float],
    seed: int,
    speed: float,
    compositions: int,
) -> List[Example]:
    """All examples of all sets; only train has compositions after the first, and only those change speed."""
    members: Dict[Tuple[str, str, str], List[Clip]] = defaultdict(list)
    closed: Dict[str, List[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.closed:
            closed[clip.language].append(clip)
        elif clip.id in splits:
            members[clip.corpus, clip.language, splits[clip.id]].append(clip)
    examples: List[Example] = []
    for split in SPLITS:
        for composition in range(compositions if split == "train" else 1):
            factor = speed if composition else None
            for level in levels:
                allowed = {
                    key: clip
                    for key, clip in level.clips.items()
                    if splits.get(clip.id) == split and clip.id in durations
                }
                examples += conversations.compose_level(level, split, allowed, durations, composition, seed, factor)
            for (corpus, language, part), found in sorted(members.items()):
                if part == split and corpus == "asterisk":
                    examples += chains.compose_asterisk(
                        found, closed[language], language, split, durations, composition, seed, factor
                    )
                elif part == split and corpus == "tuxpaint":
                    examples += chains.compose_tuxpaint(found, language, split, durations, composition, seed, factor)
    return examples


def fresh_audio_dir(output_dir: Path, options: dict) -> Path:
    """The audio folder, emptied unless it was begun with the same options (its files are then written over one by
    one)."""
    audio_dir = output_dir / "audio"
    marker = audio_dir / "options.json"
    if audio_dir.is_dir() and read_json(marker) != options:
        shutil.rmtree(audio_dir)
    audio_dir.mkdir(parents=True, exist_ok=True)
    write_json(marker, options)
    return audio_dir


def write_manifests(cuts: Dict[str, list], manifests: Dict[str, Path], corpora: Sequence[str]) -> None:
    """Writes the cuts of each set, and those of `test` by corpus, to the files of `manifests`.

    Raises:
        UserError: one of them would be empty.
    """
    from lhotse import CutSet

    sets = dict(cuts)
    for corpus in corpora:
        sets[f"test_{corpus}"] = [cut for cut in cuts["test"] if cut.custom["corpus"] == corpus]
    empty = [name for name, found in sets.items() if not found]
    if empty:
        raise UserError(f"no example is left for the set {empty[0]!r}: the packages hold too little text to split")
    for name, file in manifests.items():
        write_cuts(CutSet.from_cuts(sets[name]), file)


def keep_licences(roots: Dict[str, Path], folder: Path) -> List[str]:
    """Copies the packages' licence texts to `folder` and returns the copies' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for name, root in roots.items():
        source = root / "usr/share/doc" / name / "copyright"
        if source.is_file():
            shutil.copyfile(source, folder / f"{name}.txt")
            kept.append(str(folder / f"{name}.txt"))
    return kept


def read_json(file: Path) -> Optional[dict]:
    """The parsed file; None if there is none."""
    return json.loads(file.read_text()) if file.is_file() else None
