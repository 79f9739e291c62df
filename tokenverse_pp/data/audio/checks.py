"""Checking that the audio of cuts is there and whole."""

from __future__ import annotations

import os
from typing import Iterator, List, Optional, Tuple

from lhotse import Recording
from lhotse.cut import Cut, MixedCut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import access_problems
from tokenverse_pp.data.audio import AudioInput
from tokenverse_pp.data.audio.lhotse_backend import use_backend

TOLERANCE = 0.025  # seconds of difference between manifest and file
LONGER = 0.5  # seconds that a file may be longer: lhotse loads no recording that differs by more

use_backend()


def check_audio(cut: Cut) -> List[str]:
    """What is wrong with a cut's audio: one line a problem, naming the file. All of it is decoded.

    The length that is read, the one that the file's header states, and that of the manifest are compared.
    """
    problems = check_files(cut) or [problem for recording in _recordings(cut) for problem in _measure(recording)]
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
    files = recording_files(cut)
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "Exception #" in line), lines[0] if lines else repr(error)).strip()
    return f"field 'recording': {files}: cannot be decoded: {reason.replace(f'{files}: ', '', 1)[:200]}"


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
        if not isinstance(source.channels, (list, tuple)):
            yield f"{where}: field 'channels': expected a list of numbers, found {source.channels!r}"
            continue
        try:
            rate, channels, frames = _header(str(source.source))
            if frames is not None and frames < (recording.duration - TOLERANCE) * rate:
                rate, channels, frames = _header(str(source.source), thorough=True)
        except UserError:
            continue  # decoding it will say why
        if recording.transforms or frames is None:
            continue
        seconds = frames / rate
        if seconds < recording.duration - TOLERANCE:
            yield f"{where}: truncated: {seconds:.3f} s of {recording.duration:.3f} s"
        elif rate != recording.sampling_rate:
            yield f"{where}: has {rate} Hz, where the manifest says {recording.sampling_rate} Hz"
        elif channels < len(source.channels):
            yield f"{where}: has {channels} channels, where the manifest says {len(source.channels)}"


def _header(path: str, thorough: bool = False) -> Tuple[int, int, Optional[int]]:
    """Rate, channels and samples, as far as the structure of a file tells (raises UserError)."""
    with AudioInput(path, thorough=thorough) as audio:
        return audio.rate, audio.channels, audio.frames


def _measure(recording: Recording) -> Iterator[str]:
    """Files that are damaged, shorter than their own header says, or of another length than the manifest says."""
    for source in recording.sources:
        if source.type != "file":
            continue
        where = f"field 'recording': {source.source}"
        try:
            with AudioInput(str(source.source), thorough=True) as audio:
                audio.measure()
        except UserError as error:
            yield f"{where}: cannot be decoded: {str(error).replace(f'{source.source}: ', '', 1)}"
            continue
        problem = audio.damage or next(iter(audio.problems), None)
        seconds = (audio.frames or 0) / audio.rate
        if problem is not None:
            yield f"{where}: {problem}"
        elif not recording.transforms and seconds > recording.duration + LONGER:
            yield f"{where}: longer than the manifest says: {seconds:.3f} s, not {recording.duration:.3f} s"
