"""How the audio and arrays of a manifest are opened: which sources are allowed, the lhotse backend, and checks.

A recording's source in a lhotse manifest may be a shell command or a URL, and a stored array may come from a pipe, a
URL or a pickle. lhotse opens all of these without asking. Here, files are always allowed, commands and URLs only with
an option. Code that loads audio or arrays of an untrusted manifest calls `access_problems` or `check_access` first;
see docs/security.md.

By default lhotse tries the decoders that are installed (ffmpeg, sph2pipe, torchaudio, torchcodec, audioread), so the
same manifest gives different samples, or different errors, on another machine: where ffmpeg is installed, a truncated
file loads without an error. `use_backend` installs `TokenverseBackend` for the process. Modules that read audio through
lhotse import this one, so it is also active in DataLoader workers, forked or spawned. A backend that the user has set
is kept (environment variable ``LHOTSE_AUDIO_BACKEND``, or `lhotse.audio.backend.set_current_audio_backend`, called
before or after). Then only lhotse's own checks apply.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import os
import re
import shutil
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List, Optional, Set, Tuple

import numpy as np
from lhotse import AudioSource, Recording
from lhotse import serialization as lhotse_files
from lhotse.audio import backend as lhotse_backends
from lhotse.audio.backend import LibsndfileBackend, LibsndfileCompatibleAudioInfo
from lhotse.audio.utils import AudioLoadingError
from lhotse.cut import Cut, MixedCut
from lhotse.utils import compute_num_samples

from tokenverse_pp.base import storage
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import url_of
from tokenverse_pp.data.audio.pyav import TOLERANCE
from tokenverse_pp.data.audio.reader import BAD_FRAMES, AudioInput
from tokenverse_pp.data.manifests import shortened

# lhotse's storage types for arrays that are plain data and thus safe to open.
PLAIN_STORAGE = {
    *("numpy_files", "numpy_hdf5", "lilcom_files", "lilcom_hdf5", "chunked_lilcom_hdf5", "lilcom_chunky", "lilcom_url"),
    *("memory_lilcom", "memory_npy", "shar"),
}
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # at least two letters: C: is a drive
MOST = 200  # maximum length of a source in a message
PIPE = "pipe:"  # lhotse runs the text after it
ALLOW_COMMANDS = "--allow-commands (training: data.allow_commands; Python: allow_sources)"
NOT_RUN = f"which is not run without {ALLOW_COMMANDS}"
NOT_OPENED = "which is not opened without --allow-urls (training: data.allow_urls; Python: allow_sources)"
SHELL_SIGNS = re.compile(r"""[;&|<>()$`\\"'*?\[\]{}#~!%^\n\r]""")
LONGER = 0.5  # seconds by which a file may exceed its manifest: lhotse loads none that differs by more
_reported: Set[str] = set()  # files whose undecodable frames were reported


@dataclass(frozen=True)
class SourceAccess:
    """The kinds of sources that may be opened in addition to files.

    Attributes:
        commands: run shell commands (sources of type ``command``, ``pipe:``, Kaldi archives) and read pickled arrays.
        urls: open URLs (http, s3, ..).
    """

    commands: bool = False
    urls: bool = False


FILES_ONLY = SourceAccess()
_ACCESS: ContextVar[SourceAccess] = ContextVar("source_access", default=FILES_ONLY)


def current_access() -> SourceAccess:
    """The access in effect. Outside of `allow_sources`, only files are allowed."""
    return _ACCESS.get()


@contextlib.contextmanager
def allow_sources(commands: bool = False, urls: bool = False) -> Iterator[None]:
    """Context manager that allows manifests to name shell commands or URLs, which are used when audio is loaded.

    It applies to the current thread only. `TransducerDataset` passes it on to its worker processes. For the arguments
    see `SourceAccess`.

    >>> with allow_sources(urls=True):
    ...     current_access()
    SourceAccess(commands=False, urls=True)
    """
    token = _ACCESS.set(SourceAccess(commands, urls))
    try:
        yield
    finally:
        _ACCESS.reset(token)


def check_access(item: Any, name: str = "") -> None:
    """Check that all sources that would be opened for an item are allowed.

    Args:
        item: a cut (its audio), a recording, or the manifest of an array.
        name: the item's name in the message; by default a cut's id.

    Raises:
        UserError: if not, naming the cut, the source and the option.
    """
    problems = access_problems(item)
    if problems:
        where = name or (f"cut {item.id}" if isinstance(item, Cut) else "")
        raise UserError(f"{where}: {problems[0]}" if where else problems[0])


def access_problems(item: Any) -> List[str]:
    """Return one line for each source that an item would open and `current_access` does not allow."""
    return [problem for problem in map(_problem, _opened_for(item)) if problem]


def file_problem(path: str) -> str:
    """Return why a file must not be passed to lhotse by its name, or an empty string.

    lhotse puts the name of a SPHERE file into a shell command (sph2pipe) without escaping it. With
    ``LHOTSE_LEGACY_OPUS_LOADING`` it does the same for an Opus file.
    """
    name = path.lower()
    if name.endswith(".sph"):
        spaces = shutil.which("sph2pipe") is not None and any(sign.isspace() for sign in path)
        unsafe = spaces or SHELL_SIGNS.search(path) is not None
    else:
        unsafe = name.endswith(".opus") and "'" in path and os.environ.get("LHOTSE_LEGACY_OPUS_LOADING") == "1"
    return f"{shortened(path, MOST)}: the name has signs that a shell would act on; rename the file" if unsafe else ""


def _opened_for(value: Any) -> Iterator[Any]:
    """Yield all that lhotse opens for a cut's audio, a recording or an array: `AudioSource`, or an object with storage.

    These may be nested anywhere: the room impulse response in a transform is also a recording.
    """
    if isinstance(value, MixedCut):
        for track in value.tracks:
            yield from _opened_for(track.cut)
        yield from _opened_for(value.transforms)
    elif isinstance(value, Cut):
        yield from _opened_for(getattr(value, "recording", None))
    elif isinstance(value, AudioSource) or hasattr(value, "storage_type"):
        yield value
    elif isinstance(value, dict):
        if {"type", "source"} <= value.keys():
            yield AudioSource(value["type"], [], value["source"])
        if "storage_type" in value:
            keys = ("storage_type", "storage_path", "storage_key")
            yield SimpleNamespace(**{key: value.get(key) for key in keys})
        for part in value.values():
            yield from _opened_for(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _opened_for(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _opened_for(getattr(value, field.name, None))


def _problem(thing: Any) -> str:
    """Why a source or array must not be opened, or an empty string."""
    allowed = current_access()
    if isinstance(thing, AudioSource):
        source = thing.source if isinstance(thing.source, str) else ""
        reason = ""
        if thing.type == "command" or source.startswith(PIPE):
            reason = "" if allowed.commands else f"is a command, {NOT_RUN}"
        elif thing.type == "url" or (thing.type == "file" and URL.match(source)):
            reason = "" if allowed.urls else f"is a URL, {NOT_OPENED}"
        elif thing.type == "file" and file_problem(source):
            return f"field 'recording': {file_problem(source)}"
        return f"field 'recording': {shortened(repr(source), MOST)} {reason}" if reason else ""
    places = [str(x) for x in (thing.storage_path, thing.storage_key) if isinstance(x, (str, os.PathLike)) and str(x)]
    if any(place.startswith(PIPE) for place in places):
        reason, is_allowed = f"is the output of a command, {NOT_RUN}", allowed.commands
    elif thing.storage_type not in PLAIN_STORAGE:
        kind = shortened(str(thing.storage_type), MOST)
        reason = f"is stored as {kind}, which can run code and is not read without {ALLOW_COMMANDS}"
        is_allowed = allowed.commands
    elif places and SCHEME.match(places[0]):
        reason, is_allowed = f"is behind a URL, {NOT_OPENED}", allowed.urls
    else:
        return ""
    return "" if is_allowed else f"array {shortened(repr('/'.join(places)), MOST)} {reason}"


class DamagedAudio(UserError, AudioLoadingError):
    """Truncated or damaged audio: both a UserError and lhotse's AudioLoadingError."""


class TokenverseBackend(LibsndfileBackend):
    """Reads what `AudioInput` reads, seeking to segments where libsndfile can; saves as libsndfile does.

    Audio shorter than requested raises `DamagedAudio` with both lengths; lhotse itself would pad up to half a second.
    """

    def read_audio(
        self,
        path_or_fd: Any,
        offset: float = 0.0,
        duration: Optional[float] = None,
        force_opus_sampling_rate: Optional[int] = None,
    ) -> Tuple[np.ndarray, int]:
        """Return samples (C, S) as float32 and their rate; ``duration`` None reads to the end."""
        if _in_archive(path_or_fd):
            return super().read_audio(path_or_fd, offset, duration, force_opus_sampling_rate)
        with AudioInput(path_or_fd, _name(path_or_fd), thorough=duration is None) as audio:
            start = compute_num_samples(offset, audio.rate) if offset > 0 else 0
            stop = audio.frames if duration is None else start + compute_num_samples(duration, audio.rate)
            samples = audio.read(start, stop)
            if BAD_FRAMES in audio.problems and audio.name not in _reported:
                _reported.add(audio.name)
                audio.tell()
            # PyAV finds problems by decoding; those of other sources were found by their structure.
            wrong = audio.damage or (audio.problems[0] if audio.by_pyav and stop is None and audio.problems else None)
            if wrong:
                raise DamagedAudio(f"{audio.name}: {wrong}")
            if stop is None or stop - start - samples.shape[1] <= TOLERANCE * audio.rate:
                return samples, audio.rate
            wrong = audio.why_short(start + samples.shape[1], stop)
        if audio.container == "flac" and duration is not None:
            # The requested piece may be in a second file that is joined to the first.
            whole, rate = self.read_audio(path_or_fd)
            if whole.shape[1] >= stop - TOLERANCE * rate:
                return whole[:, start:stop], rate
        raise DamagedAudio(f"{audio.name}: {wrong}")

    def info(self, path_or_fd: Any, force_opus_sampling_rate: Optional[int] = None) -> Any:
        """Return what lhotse needs for a recording; raises `DamagedAudio` for truncated or damaged audio."""
        if _in_archive(path_or_fd):
            return super().info(path_or_fd, force_opus_sampling_rate)
        with AudioInput(path_or_fd, _name(path_or_fd)) as audio:
            frames = audio.measure().frames or 0
            wrong = audio.damage or next(iter(audio.problems), None)
            if wrong:
                raise DamagedAudio(f"{audio.name}: {wrong}")
            return LibsndfileCompatibleAudioInfo(audio.channels, frames, audio.rate, frames / audio.rate)


def _in_archive(path: Any) -> bool:
    """Whether lhotse takes the path for a file in a tar archive."""
    return isinstance(path, (str, Path)) and ".tar/" in str(path)


def _name(path: Any) -> Optional[str]:
    return None if isinstance(path, (str, os.PathLike)) else "audio in memory"


def use_backend() -> None:
    """Make lhotse read audio with `TokenverseBackend`, unless the user has chosen another backend."""
    current = lhotse_backends.CURRENT_AUDIO_BACKEND
    if os.environ.get("LHOTSE_AUDIO_BACKEND") is not None:
        return
    # lhotse sets its own choice as soon as anything has been read.
    if current is None or current is lhotse_backends.get_default_audio_backend():
        lhotse_backends.set_current_audio_backend(TokenverseBackend())


use_backend()


class StorageBackend(lhotse_files.IOBackend):
    """Lets lhotse open URLs of object storage (shards, audio) through `tokenverse_pp.base.storage`.

    lhotse itself would use smart_open, which does not report a body that ends early, and has no cache.
    """

    def open(self, identifier: Any, mode: str) -> Any:
        """Open a URL to read bytes or text, unpacking ``.gz``; to write, use lhotse's default backend."""
        if not mode.startswith("r"):
            return lhotse_files.get_default_io_backend().open(identifier, mode)
        file: Any = storage.open_cached(str(url_of(identifier)))
        if str(identifier).endswith(".gz"):
            file = gzip.GzipFile(fileobj=file)
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def handles_special_case(self, identifier: Any) -> bool:
        """Whether it is a URL that fsspec has a library for; lhotse opens all others by default."""
        url = url_of(identifier) if isinstance(identifier, str) else None
        return url is not None and storage.handles(url)

    is_applicable = handles_special_case


_default = lhotse_files.get_default_io_backend()
# Another value of either is a choice of the user.
if os.environ.get("LHOTSE_IO_BACKEND") is None and lhotse_files.CURRENT_IO_BACKEND in (None, _default):
    lhotse_files.set_current_io_backend(lhotse_files.CompositeIOBackend([StorageBackend(), _default]))


def recording_of(audio: AudioInput, source: Any, name: str) -> Recording:
    """The recording of a file (a path) or of bytes that `AudioInput.measure` has measured."""
    frames = audio.frames or 0
    kind, source = ("memory", source) if isinstance(source, bytes) else ("file", str(source))
    part = AudioSource(kind, list(range(audio.channels)), source)
    return Recording(name, [part], audio.rate, frames, frames / audio.rate)


def recordings(cut: Cut) -> Iterator[Recording]:
    """The recordings of a cut: one for each track of a mixed cut that has audio."""
    if isinstance(cut, MixedCut):
        for track in cut.tracks:
            yield from recordings(track.cut)
    elif getattr(cut, "recording", None) is not None:
        yield cut.recording


def recording_files(cut: Cut) -> str:
    """The audio files of a cut, for a message."""
    return ", ".join(path for recording in recordings(cut) for path, _, _ in _files_of(recording))


def check_audio(cut: Cut) -> List[str]:
    """Decode all audio of a cut and return its problems, one line per problem with the file name.

    The decoded length and those in the file's header and in the manifest are compared.
    """
    problems = check_files(cut) or [problem for recording in recordings(cut) for problem in _measure(recording)]
    if problems:
        return problems
    try:
        cut.load_audio()
    except Exception as error:  # audio backends raise errors of any type
        return [undecodable(cut, error)]
    return []


def check_files(cut: Cut) -> List[str]:
    """Problems of a cut's audio that its file headers show, and sources that may not be opened."""
    problems = access_problems(cut)
    if problems:
        return problems
    found = list(recordings(cut))
    if not found:
        return ["field 'recording': expected a recording, found none"]
    return [problem for recording in found for problem in _check_headers(recording)]


def undecodable(cut: Cut, error: Exception) -> str:
    """Describe an error of an audio backend in one line, with the file."""
    files = recording_files(cut)
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "Exception #" in line), lines[0] if lines else repr(error)).strip()
    return f"field 'recording': {files}: cannot be decoded: {reason.replace(f'{files}: ', '', 1)[:200]}"


def _check_headers(recording: Recording) -> Iterator[str]:
    """Yield a problem for each file that is missing, or has less audio, fewer channels or another rate than stated."""
    if not isinstance(recording.duration, (int, float)):
        yield f"field 'recording.duration': expected seconds, found {recording.duration!r}"
        return
    for path, where, channel_ids in _files_of(recording):
        if not os.path.isfile(path):
            yield f"{where}: no such file"
            continue
        if not isinstance(channel_ids, (list, tuple)):
            yield f"{where}: field 'channels': expected a list of numbers, found {channel_ids!r}"
            continue
        try:
            rate, channels, frames = _header(path)
            if frames is not None and frames < (recording.duration - TOLERANCE) * rate:
                rate, channels, frames = _header(path, thorough=True)
        except UserError:
            continue  # decoding reports the reason
        if recording.transforms or frames is None:
            continue
        seconds = frames / rate
        if seconds < recording.duration - TOLERANCE:
            yield f"{where}: truncated: {seconds:.3f} s of {recording.duration:.3f} s"
        elif rate != recording.sampling_rate:
            yield f"{where}: has {rate} Hz, where the manifest says {recording.sampling_rate} Hz"
        elif channels < len(channel_ids):
            yield f"{where}: has {channels} channels, where the manifest says {len(channel_ids)}"


def _files_of(recording: Recording) -> List[Tuple[str, str, Any]]:
    """The files of a recording: path, its name in messages, and channels."""
    files = [source for source in recording.sources if source.type == "file"]
    return [(str(source.source), f"field 'recording': {source.source}", source.channels) for source in files]


def _header(path: str, thorough: bool = False) -> Tuple[int, int, Optional[int]]:
    """Return rate, channels and samples; samples are None if the structure does not tell (raises UserError)."""
    with AudioInput(path, thorough=thorough) as audio:
        return audio.rate, audio.channels, audio.frames


def _measure(recording: Recording) -> Iterator[str]:
    """Yield a problem for each file that is damaged, shorter than its header or longer than the manifest states."""
    for path, where, _ in _files_of(recording):
        try:
            with AudioInput(path, thorough=True) as audio:
                audio.measure()
        except UserError as error:
            yield f"{where}: cannot be decoded: {str(error).replace(f'{path}: ', '', 1)}"
            continue
        problem = audio.damage or next(iter(audio.problems), None)
        seconds = (audio.frames or 0) / audio.rate
        if problem is not None:
            yield f"{where}: {problem}"
        elif not recording.transforms and seconds > recording.duration + LONGER:
            yield f"{where}: longer than the manifest says: {seconds:.3f} s, not {recording.duration:.3f} s"
