"""Cuts of one turn each, for corpora of read or prepared speech."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, Sequence

from lhotse.audio import Recording
from lhotse.cut import MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.manifests.conversations import NO_WORDS, with_original
from tokenverse_pp.manifests.corpora.audio import at_16_khz
from tokenverse_pp.manifests.corpora.parts import LeftOut, Part, Say, write_parts
from tokenverse_pp.manifests.normalise import NORMALISERS, Normaliser

TASKS = ("asr", "lid")


def write_utterances(
    parts: Sequence[Part], output_dir: Path, corpus: str, normaliser: str, jobs: int, say: Say = print
) -> Dict[str, Path]:
    """A cut for each supervision, labelled for asr and lid -> the files by part; see `write_parts`."""

    def to_cuts(part: Part, left_out: LeftOut) -> Iterator[MonoCut]:
        recordings = at_16_khz(part.recordings, output_dir / "audio" / part.name, jobs)
        return utterance_cuts(part, recordings, corpus, NORMALISERS[normaliser], left_out)

    return write_parts(parts, output_dir, to_cuts, say)


def utterance_cuts(
    part: Part, recordings: Dict[str, Recording], corpus: str, normaliser: Normaliser, left_out: LeftOut
) -> Iterator[MonoCut]:
    """One labelled cut for each supervision of a part, in its order; it has the supervision's id."""
    for turn in part.supervisions:
        text = normaliser(turn.text or "", part.language)
        if not text:
            left_out.add(turn, NO_WORDS)
            continue
        recording = recordings[turn.recording_id]
        # A turn that spans the whole recording ends where the audio as decoded ends: MP3 headers round.
        duration = round(min(turn.duration, recording.duration - turn.start), 8)
        yield MonoCut(
            id=turn.id,
            start=turn.start,
            duration=duration,
            channel=0,
            recording=recording,
            supervisions=[labelled(turn, text, part.language, duration)],
            custom={"tasks": list(TASKS), "corpus": corpus},
        )


def labelled(turn: SupervisionSegment, text: str, language: str, duration: float) -> SupervisionSegment:
    """The supervision of a cut that spans just this turn."""
    custom = with_original(turn.custom, turn.text, text)
    return fastcopy(
        turn, start=0.0, duration=duration, channel=0, text=text, language=language, custom=custom, alignment=None
    )
