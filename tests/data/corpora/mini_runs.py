"""A miniature AMI in the NXT format of ami_public_manual_1.6.2, and every corpus beside lhotse's own recipe."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import List

import numpy as np
from command_lines import run_ok
from lhotse import CutSet
from mini_corpora import (
    SECONDS_PER_WORD,
    make_callhome,
    make_commonvoice,
    make_eval2000,
    make_librispeech,
    make_mls,
    make_voxpopuli,
    tone,
    write,
    write_text,
)

RATE = 16000
SECONDS = 13
AGENTS = "ABC"
MEETINGS = {"train": "ES2002a", "dev": "ES2011a", "test": "ES2004a"}
# (agent, start in seconds, words; a mark has no length).
MEETING = [
    ("A", 0.5, "the dog runs ."),
    ("A", 1.25, "that house sees ,"),  # runs on without a pause, in the same segment, and breaks off
    ("B", 2.6, "a forest ?"),
    ("C", 2.9, "the house runs ."),  # overlaps B
    ("A", 9.0, "through a forest and sees ."),  # after a long silence
    ("B", 10.6, "that dog runs"),  # no mark at all
]
NITE = 'xmlns:nite="http://nite.sourceforge.net/"'
HEAD = '<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?>'


def speaker_of(meeting: str, agent: str) -> str:
    """The name of a person over all meetings."""
    return f"{'MFM'[AGENTS.index(agent)]}EE00{AGENTS.index(agent)}{meeting[2:6]}"


def words_of(agent: str):
    """(token, start, end, is a mark) of all that an agent says."""
    for who, start, text in MEETING:
        time = start
        for token in text.split() if who == agent else ():
            end = time if token in ".?," else round(time + SECONDS_PER_WORD, 2)
            yield token, time, end, token in ".?,"
            time = end


def segments_of(agent: str):
    """(start, end) of the segments: turns without a pause between them are one."""
    segments = []
    for _, start, end, _ in words_of(agent):
        if segments and start - segments[-1][1] < 0.01:
            segments[-1] = (segments[-1][0], end)
        else:
            segments.append((start, end))
    return segments


def track_of(agent: str) -> np.ndarray:
    """What an agent's headset hears, (S,)."""
    samples = np.random.default_rng(AGENTS.index(agent)).normal(0, 0.001, SECONDS * RATE).astype(np.float32)
    for token, start, end, mark in words_of(agent):
        if not mark:
            samples[round(start * RATE) : round(end * RATE)] += tone(token, RATE)
    return samples


def write_annotations(manual: Path, meeting: str) -> str:
    """The words and segments of a meeting -> its entry in meetings.xml."""
    speakers = ""
    for channel, agent in enumerate(AGENTS):
        words = "".join(
            f'<w nite:id="{meeting}.{agent}.words{number}" starttime="{start:.2f}" endtime="{end:.2f}"'
            + (' punc="true"' if mark else "")
            + f">{token}</w>"
            for number, (token, start, end, mark) in enumerate(words_of(agent))
        )
        segments = "".join(
            f'<segment nite:id="s{number}" transcriber_start="{start:.3f}" transcriber_end="{end:.3f}"/>'
            for number, (start, end) in enumerate(segments_of(agent))
        )
        name = f"{meeting}.{agent}"
        write_text(manual / "words" / f"{name}.words.xml", f"{HEAD}<nite:root {NITE}>{words}</nite:root>")
        write_text(manual / "segments" / f"{name}.segments.xml", f"{HEAD}<nite:root {NITE}>{segments}</nite:root>")
        speakers += (
            f'<speaker nite:id="{name}" channel="{channel}" camera="Closeup1" role="PM" nxt_agent="{agent}" '
            f'global_name="{speaker_of(meeting, agent)}"/>'
        )
    return f'<meeting nite:id="{meeting}" observation="{meeting}" type="scenario">{speakers}</meeting>'


def make_ami(root: Path) -> Path:
    """The headset mix, the first distant microphone, the headsets, and the annotations."""
    manual = root / "ami_public_manual_1.6.2"
    entries = []
    tracks = [track_of(agent) for agent in AGENTS]
    for meeting in MEETINGS.values():
        entries.append(write_annotations(manual, meeting))
        audio = root / "wav_db" / meeting / "audio"
        for mic in ("Mix-Headset", "Array1-01"):
            write(audio / f"{meeting}.{mic}.wav", sum(tracks), RATE)
        for channel, track in enumerate(tracks):
            write(audio / f"{meeting}.Headset-{channel}.wav", track, RATE)
    write_text(manual / "corpusResources" / "meetings.xml", f"{HEAD}<nite:root {NITE}>{''.join(entries)}</nite:root>")
    return root


MAKERS = {
    "ami": make_ami,
    "callhome-english": make_callhome,
    "commonvoice": make_commonvoice,
    "eval2000": make_eval2000,
    "librispeech": make_librispeech,
    "mls": make_mls,
    "voxpopuli": make_voxpopuli,
}
CORPORA = sorted(MAKERS)
Prepared = namedtuple("Prepared", "corpus_dir out stdout")


def prepare(name: str, corpus_dir: Path, out: Path, *options: object) -> str:
    """What ``manifest prepare`` prints, of a corpus that it can prepare."""
    return run_ok("manifest", "prepare", name, corpus_dir, out, *options).stdout


def left_out(out: Path) -> List[dict]:
    """The items of left_out.jsonl."""
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]


def cuts_of(out: Path, part: str):
    """The cuts of a part, in a list; those of training parts, which are shuffled, by id."""
    cuts = list(CutSet.from_file(out / f"cuts_{part}.jsonl.gz"))
    return sorted(cuts, key=lambda cut: cut.id) if part.startswith("train") else cuts


def lhotse_manifests(name: str, corpus_dir: Path, folder: Path):
    """What lhotse's recipe alone gives: part (as our files are named) -> {recordings, supervisions}."""
    from lhotse import recipes
    from lhotse.audio.backend import audio_backend

    if name == "ami":
        return recipes.prepare_ami(corpus_dir, mic="ihm-mix", partition="full-corpus-asr", normalize_text="none",
                                   keep_punctuation=True)  # fmt: skip
    if name == "mls":
        codes = {"german": "de", "polish": "pl"}
        found = recipes.prepare_mls(corpus_dir, opus=False)
        return {f"{split}_{codes[lang]}": pair for lang, splits in found.items() for split, pair in splits.items()}
    if name == "commonvoice":
        # "auto" would not find sv-SE: it is not in lhotse's list.
        found = recipes.prepare_commonvoice(corpus_dir, folder, languages=["fr", "sv-SE"])
        return {f"{split}_{lang[:2]}": pair for lang, splits in found.items() for split, pair in splits.items()}
    if name == "librispeech":
        return {part.replace("-", "_"): pair for part, pair in recipes.prepare_librispeech(corpus_dir).items()}
    if name == "voxpopuli":
        (folder / "asr_en.tsv.gz").write_bytes((corpus_dir / "asr_en.tsv.gz").read_bytes())
        return {f"{split}_en": pair for split, pair in recipes.prepare_voxpopuli(corpus_dir, folder).items()}
    with audio_backend("LibsndfileBackend"):
        if name == "eval2000":
            return {"test": recipes.prepare_eval2000(corpus_dir, folder, absolute_paths=True)}
        found = recipes.prepare_callhome_english(
            corpus_dir / "LDC97S42", transcript_dir=corpus_dir / "LDC97T14", absolute_paths=True
        )
    return {"train": found["train"], "dev": found["devtest"], "test": found["evaltest"]}
