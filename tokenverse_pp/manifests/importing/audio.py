"""From what the data say about the audio to a recording, and what may be opened at all."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import List, Optional, Tuple, Union
from urllib.parse import unquote

from lhotse import AudioSource, Recording
from lhotse.audio import info
from lhotse.utils import fastcopy

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.access import allow_sources, file_problem
from tokenverse_pp.manifests.corpora.audio import write_16_khz
from tokenverse_pp.manifests.importing.audio_out import AudioOut
from tokenverse_pp.manifests.importing.rows import BadRow, Row, shown
from tokenverse_pp.manifests.importing.textfiles import safe_id
from tokenverse_pp.manifests.lines import CONTROL

ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".sph", ".aac", ".webm", ".mp4")
FIRST_CHANNELS = {"A": 0, "B": 1}


class AudioFinder:
    """Opens the audio of rows.

    A path from the data must lie in ``folder``, by its name (links inside the folder are followed): neither ``..`` nor
    an absolute path leads out of it. The folder ``/`` allows all.

    Args:
        folder: what relative paths begin at.
        sampling_rate: recordings of another rate are written anew, a channel a file; None leaves them as they are.
        allow_pipes: run the commands of a Kaldi wav.scp.
        audio_out: where to write to; audio that the import has written there may be opened too.
    """

    def __init__(
        self,
        folder: Path,
        sampling_rate: Optional[int] = 16000,
        allow_pipes: bool = False,
        audio_out: Optional[AudioOut] = None,
    ):
        self.folder = Path(os.path.abspath(folder))
        self.audio_out = audio_out
        self.sampling_rate = sampling_rate
        self.allow_pipes = allow_pipes
        self._source = lru_cache(maxsize=4096)(self._find)
        self._open = lru_cache(maxsize=4096)(_open)
        self._resample = lru_cache(maxsize=4096)(self._resampled)

    def recording(self, row: Row) -> Tuple[Recording, int]:
        """The recording of a row, and its channel from 0 on.

        Raises:
            BadRow: where it is missing, not in the folder, no audio, or the channel is not in it.
        """
        source, name = self._source(row.audio, row.recording, row.id)
        recording = self._open(source, name)
        if isinstance(recording, str):
            raise BadRow(recording)
        channel = _channel(row.channel, recording.num_channels)
        if self.sampling_rate is None or recording.sampling_rate == self.sampling_rate:
            return recording, channel
        written = self._resample(source, name, channel)
        if isinstance(written, str):
            raise BadRow(written)
        return written, 0

    def _find(self, audio: Optional[str], recording: Optional[str], row_id: str) -> Tuple[str, str]:
        """Path or command (which ends in ``|``) and recording id."""
        if audio is not None and audio.strip().endswith("|"):
            if not self.allow_pipes:
                raise BadRow(
                    f"field 'audio': {shown(audio.strip())} is a command, which is not run without --allow-pipes; "
                    "better write its output to files"
                )
            return audio.strip(), recording or row_id
        if audio is not None:
            path = self._inside(audio)
            if not os.path.isfile(path):
                raise BadRow(f"field 'audio': {path}: no such file")
        elif recording is not None:
            path, recording = self._named(recording)
        else:
            raise BadRow("field 'audio': expected a path (or field 'recording', a name in --audio-dir), found nothing")
        folder = next(folder for folder in self._folders() if folder in path.parents)
        return str(path), recording or safe_id(os.path.splitext(path.relative_to(folder))[0])

    def _folders(self) -> List[Path]:
        own = self.audio_out.made if self.audio_out is not None else None
        return [self.folder] if own is None else [self.folder, own]

    def _inside(self, given: str) -> Path:
        if "\0" in given or len(given) > 4000:
            raise BadRow(f"field 'audio': expected a path, found {shown(given)}")
        path = Path(os.path.normpath(self.folder / given))
        if path != self.folder and not any(folder in path.parents for folder in self._folders()):
            raise BadRow(
                f"field 'audio': {shown(given)} lies outside of {self.folder}; --audio-dir names another folder, "
                "`--audio-dir /` takes any path"
            )
        return path

    def _named(self, recording: str) -> Tuple[Path, str]:
        """The file of a recording, and its name: as it stands, or else with percent-encoded characters decoded."""
        try:
            return self._by_name(recording), recording
        except BadRow:
            name = decoded_name(recording)
            if name == recording:
                raise
            try:
                return self._by_name(name), name
            except BadRow:
                pass
            raise

    def _by_name(self, name: str) -> Path:
        for ending in ("", *ENDINGS):
            path = self._inside(name + ending)
            if path.suffix.lower() in ENDINGS and os.path.isfile(path):
                return path
        raise BadRow(f"field 'recording': no audio file {shown(name)} with {', '.join(ENDINGS)} in {self.folder}")

    def _resampled(self, source: str, name: str, channel: int) -> Union[Recording, str]:
        """One channel at the wanted rate, in a file of its own; or why that is not possible."""
        recording = self._open(source, name)
        if self.audio_out is None or isinstance(recording, str):
            return f"field 'audio': {source}: expected {self.sampling_rate} Hz, found another rate"
        own_name = name if recording.num_channels == 1 else f"{name}-{channel + 1}"
        # Names come from the data, so that they may be no names of files, and two may be one.
        unique = hashlib.sha256(f"{source}\0{own_name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        folder = self.audio_out.folder()
        try:
            with allow_sources(commands=self.allow_pipes):
                written = write_16_khz(fastcopy(recording, id=unique), folder, channel)
        except UserError as error:
            return f"field 'audio': {error}"
        return fastcopy(written, id=own_name)


def _open(source: str, name: str) -> Union[Recording, str]:
    """A recording, or why there is none (a cache keeps no exceptions)."""
    unsafe = "" if source.endswith("|") else file_problem(source)
    if unsafe:
        return f"field 'audio': {unsafe}"
    try:
        recording = _from_command(source, name) if source.endswith("|") else Recording.from_file(source, name)
    except Exception as error:  # whatever the audio backend throws
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"field 'audio': {source}: cannot be read as audio: {lines[0].strip()[:200]}"
    if recording.num_samples < 1:
        return f"field 'audio': {source}: holds no audio"
    return recording


def _from_command(command: str, name: str) -> Recording:
    """Like `Recording.from_file` for a command that writes audio to its output; lhotse runs it again to load it."""
    command = command[:-1].strip()
    data = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=True).stdout
    found = info(io.BytesIO(data))
    source = AudioSource("command", list(range(found.channels)), command)
    return Recording(name, [source], found.samplerate, found.frames, found.duration)


def decoded_name(name: str) -> str:
    """The name of a recording that CTM, STM and RTTM files have percent-encoded (`api.formats.nist.recording_id`).

    >>> decoded_name("my%20call"), decoded_name("100%")
    ('my call', '100%')
    """
    try:
        decoded = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return name
    return name if CONTROL.search(decoded) else decoded


def _channel(given: Optional[str], count: int) -> int:
    """``1`` and ``A`` are the first; what has one channel only has no other."""
    if count == 1:
        return 0
    if given is None:
        raise BadRow(f"field 'channel': the recording has {count}: say which (1 or A is the first)")
    letter = FIRST_CHANNELS.get(given.upper())
    number = letter if letter is not None else int(given) - 1 if given.isascii() and given.isdigit() else -1
    if len(given) > 3 or not 0 <= number < count:
        raise BadRow(f"field 'channel': the recording has {count}, found {shown(given)} (1 or A is the first)")
    return number
