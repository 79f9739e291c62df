"""Checking that the audio of cuts is there and whole."""

from __future__ import annotations

import os
from typing import Iterator, List

import soundfile
from lhotse import Recording
from lhotse.cut import Cut, MixedCut

from tokenverse_pp.manifests.access import access_problems

TOLERANCE = 0.025  # seconds of difference between manifest and file: lhotse's own default


def check_audio(cut: Cut) -> List[str]:
    """What is wrong with a cut's audio: one line a problem, naming the file. All of it is decoded.

    A file that was cut short can still open, and a decoder can pad what is missing: so the length in the
    file's header is compared with the manifest's as well.
    """
    problems = check_files(cut)
    if problems:
        return problems
    try:
        cut.load_audio()
    except Exception as error:  # whatever the audio backend throws
        return [undecodable(cut, error)]
    return []


def check_files(cut: Cut) -> List[str]:
    """What is wrong with a cut's audio as far as the headers of its files tell, and sources that may not be opened."""
    problems = access_problems(cut)
    if problems:
        return problems
    recordings = list(_recordings(cut))
    if not recordings:
        return ["field 'recording': expected a recording, found none"]
    return [problem for recording in recordings for problem in _check_files(recording)]


def undecodable(cut: Cut, error: Exception) -> str:
    """One line for what an audio backend threw: the user needs the file."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "Exception #" in line), lines[0] if lines else repr(error))
    return f"field 'recording': {recording_files(cut)}: cannot be decoded: {reason.strip()[:200]}"


def _recordings(cut: Cut) -> Iterator[Recording]:
    if isinstance(cut, MixedCut):
        for track in cut.tracks:
            yield from _recordings(track.cut)
    elif getattr(cut, "recording", None) is not None:
        yield cut.recording


def recording_files(cut: Cut) -> str:
    """The audio files of a cut, for a message."""
    return ", ".join(str(s.source) for recording in _recordings(cut) for s in recording.sources if s.type == "file")


def _check_files(recording: Recording) -> Iterator[str]:
    """Files that are missing, or shorter than the manifest says."""
    if not isinstance(recording.duration, (int, float)):
        yield f"field 'recording.duration': expected seconds, found {recording.duration!r}"
        return
    for source in recording.sources:
        if source.type != "file":
            continue
        where = f"field 'recording': {source.source}"
        if not os.path.isfile(str(source.source)):
            yield f"{where}: no such file"
            continue
        try:
            info = soundfile.info(str(source.source))
        except RuntimeError:
            continue  # a format that lhotse may read by other means: decoding it will show
        seconds = info.frames / info.samplerate
        if not recording.transforms and seconds < recording.duration - TOLERANCE:
            yield f"{where}: truncated: {seconds:.3f} s of {recording.duration:.3f} s"
