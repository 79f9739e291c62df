"""Find the recording for the audio fields of a row: check that its source is allowed, and convert its audio."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

from lhotse import AudioSource, Recording
from lhotse.utils import fastcopy

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import allow_sources, file_problem, recording_of
from tokenverse_pp.data.audio import ENDINGS, AudioInput
from tokenverse_pp.data.corpora.common import write_16_khz
from tokenverse_pp.data.importing.rows import BadRow, Row, channel_number, composed, decoded_name, safe_id, shown


class AudioOut:
    """A new folder that is created on first use and can be removed again.

    Args:
        kept: the folder may exist from an earlier run, and is not removed; files with the same content are not
            rewritten.
    """

    def __init__(self, path: Path, kept: bool = False):
        self.path = Path(os.path.abspath(path))
        self.kept = kept
        self._made = False

    def folder(self) -> Path:
        """Return the folder, created if necessary (raises UserError if the path existed before, unless ``kept``)."""
        if not self._made:
            if os.path.lexists(self.path) and not self.kept:
                raise UserError(
                    f"--audio-out: {self.path} is there already, perhaps from an earlier import: "
                    "remove it or name another folder"
                )
            self.path.mkdir(parents=True, exist_ok=self.kept)
            self._made = True
        return self.path

    @property
    def made(self) -> Optional[Path]:
        """The folder, if it was created."""
        return self.path if self._made else None

    def remove(self) -> None:
        """Remove what a failed import has written."""
        if self._made and not self.kept:
            shutil.rmtree(self.path, ignore_errors=True)


@dataclass(eq=False)
class AudioFinder:
    """Opens the audio of rows.

    A path from the data must lie in ``folder``: neither ``..`` nor an absolute path may lead out of it. Only the name
    is checked; links inside the folder are followed. The folder ``/`` allows any path.

    Args:
        folder: base of relative paths.
        sampling_rate: recordings with another rate are rewritten, one file per channel; None keeps them. Audio that
            libsndfile cannot read directly (MP4, WebM, joined files, ..) is always rewritten.
        allow_pipes: run the commands of a Kaldi wav.scp.
        audio_out: folder for rewritten audio; audio that the import has written there may also be opened.
    """

    folder: Path
    sampling_rate: Optional[int] = 16000
    allow_pipes: bool = False
    audio_out: Optional[AudioOut] = None

    def __post_init__(self) -> None:
        self.folder = Path(os.path.abspath(self.folder))
        self._source = lru_cache(maxsize=4096)(self._find)
        self._open = lru_cache(maxsize=4096)(_open)
        self._rewrite = lru_cache(maxsize=4096)(self._rewritten)
        self._listing = lru_cache(maxsize=64)(_listing)
        self._forms = lru_cache(maxsize=64)(_forms)

    def recording(self, row: Row) -> Tuple[Recording, int]:
        """Return the recording of a row and its channel, counted from 0.

        Raises BadRow if the file is missing, outside the folder, not audio, truncated or damaged, or lacks the channel.
        """
        source, name = self._source(row.audio, row.recording, row.id)
        opened = self._open(source, name)
        if isinstance(opened, str):
            raise BadRow(opened)
        recording, is_plain = opened
        channel = _channel(row.channel, recording.num_channels)
        if is_plain and self.sampling_rate in (None, recording.sampling_rate):
            return recording, channel
        written = self._rewrite(source, name, channel)
        if isinstance(written, str):
            raise BadRow(written)
        return written, 0

    def original(self, row: Row) -> Optional[str]:
        """Return the id that a row's `recording` had before its channels were written to files; None if it has it."""
        _, name = self._source(row.audio, row.recording, row.id)
        return None if self.recording(row)[0].id == name else name

    def file(self, row: Row) -> Optional[str]:
        """Return the file (or command) of a row, with all its channels; None if there is none."""
        try:
            return self._source(row.audio, row.recording, row.id)[0]
        except BadRow:
            return None

    def _find(self, audio: Optional[str], recording: Optional[str], row_id: str) -> Tuple[str, str]:
        """Return the path or command (ending in ``|``) and the recording id."""
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
                raise BadRow(f"field 'audio': {path}: no such file (--audio-dir FOLDER: where relative paths start)")
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
        return self._stored(path)

    def _stored(self, path: Path) -> Path:
        """Return a path with the names that its folders have: letters may be decomposed there (``é``), or only here."""
        if os.path.lexists(path):
            return path
        found = next((folder for folder in self._folders() if folder in path.parents), path)
        for part in path.relative_to(found).parts:
            if not part.isascii() and not os.path.lexists(found / part):
                same = self._forms(found).get(composed(part), [])
                part = same[0] if len(same) == 1 else part
            found = found / part
        return found

    def _named(self, recording: str) -> Tuple[Path, str]:
        """Return the file of a recording and its name, percent-decoded if there is no file with the given name."""
        errors = []
        for name in dict.fromkeys((recording, decoded_name(recording))):
            try:
                return self._by_name(name), name
            except BadRow as error:
                errors.append(error)
        raise errors[0]

    def _by_name(self, name: str) -> Path:
        """Return the audio file of a recording: its name with the first existing extension of `ENDINGS` (any case).

        A file whose name differs in case is used only if there is no exact match, and one whose letters are composed
        in another way (``é``) only if there is no such file either.
        """
        given = self._inside(name)
        if given.suffix.lower() in ENDINGS and os.path.isfile(given):
            return given
        listing = self._listing(given.parent) if given not in self._folders() else {}
        any_case = given.name.casefold()
        any_form = composed(any_case)
        for key, kind in ((given.name, "exact"), (any_case, "any case"), (any_form, "any form")):
            found = [item for item in listing.get((kind, key), []) if os.path.isfile(given.parent / item)]
            best = min((ENDINGS.index(os.path.splitext(item)[1].lower()) for item in found), default=-1)
            files = [item for item in found if os.path.splitext(item)[1].lower() == ENDINGS[best]]
            if len(files) > 1:
                raise BadRow(f"field 'recording': {shown(name)} may be {' or '.join(files)}: give field 'audio'")
            if files:
                return self._inside(str(given.parent / files[0]))
        raise BadRow(
            f"field 'recording': no audio file {shown(name)} with .wav, .flac, .mp3 or another ending of audio in "
            f"{self.folder}"
        )

    def _rewritten(self, source: str, name: str, channel: int) -> Union[Recording, str]:
        """Write one channel at the requested rate to a separate file; return its recording, or why it is impossible."""
        opened = self._open(source, name)
        if self.audio_out is None or isinstance(opened, str):
            wanted = "" if self.sampling_rate is None else f" of {self.sampling_rate} Hz"
            return f"field 'audio': {source}: expected audio{wanted} that libsndfile reads, found something else"
        recording, _ = opened
        own_name = name if recording.num_channels == 1 else f"{name}-{channel + 1}"
        # Names come from the data: they may be invalid as file names, and two may be equal.
        unique = hashlib.sha256(f"{source}\0{own_name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        folder = self.audio_out.folder()
        rate = self.sampling_rate or recording.sampling_rate
        try:
            with allow_sources(commands=self.allow_pipes):
                written = write_16_khz(fastcopy(recording, id=unique), folder, channel, rate)
        except UserError as error:
            return f"field 'audio': {error}"
        return fastcopy(written, id=own_name)


def _listing(folder: Path) -> Dict[Tuple[str, str], List[str]]:
    """Return the audio files of a folder by name without extension: as it is, case-folded, and composed as well."""
    names: Dict[Tuple[str, str], List[str]] = {}
    with contextlib.suppress(OSError):
        for item in sorted(os.listdir(folder)):
            stem, ending = os.path.splitext(item)
            kinds = {"exact": stem, "any case": stem.casefold(), "any form": composed(stem.casefold())}
            for kind, key in kinds.items() if ending.lower() in ENDINGS else ():
                names.setdefault((kind, key), []).append(item)
    return names


def _forms(folder: Path) -> Dict[str, List[str]]:
    """Return the names in a folder by their composed form (NFC)."""
    names: Dict[str, List[str]] = {}
    with contextlib.suppress(OSError):
        for item in sorted(os.listdir(folder)):
            names.setdefault(composed(item), []).append(item)
    return names


def _open(source: str, name: str) -> Union[Tuple[Recording, bool], str]:
    """Return a recording whose audio was checked, and whether libsndfile alone can read it, or why it cannot be opened.

    The cache does not store exceptions. What the structure of a file does not prove is decoded. A command writes audio
    to stdout; lhotse runs it again to load the audio.
    """
    command = source[:-1].strip() if source.endswith("|") else None
    unsafe = file_problem(source) if command is None else ""
    if unsafe:
        return f"field 'audio': {unsafe}"
    try:
        content: Union[str, bytes] = source
        if command is not None:
            content = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=True).stdout
        with AudioInput(content, source, thorough=True) as audio:
            wrong = audio.measure().damage or next(iter(audio.problems), None)
            if not audio.frames and wrong is None:
                wrong = "holds no audio"
            if wrong is None:
                audio.tell()
            recording, is_plain = recording_of(audio, content, name), audio.is_plain
    except (UserError, OSError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[0].strip()[:200].replace(f"{source}: ", "", 1)
        return f"field 'audio': {source}: cannot be read as audio: {reason}"
    if wrong is not None:
        return f"field 'audio': {source}: {wrong}"
    if command is not None:
        part = AudioSource("command", list(range(recording.num_channels)), command)
        recording = fastcopy(recording, sources=[part])
    return recording, is_plain


def _channel(given: Optional[str], count: int) -> int:
    """Return a channel counted from 0 (``1`` and ``A`` are the first). Files with one channel ignore the label."""
    if count == 1:
        return 0
    if given is None:
        raise BadRow(f"field 'channel': the recording has {count}: say which (1 or A is the first)")
    number = channel_number(given)
    if number is None or not 0 <= number < count:
        raise BadRow(f"field 'channel': the recording has {count}, found {shown(given)} (1 or A is the first)")
    return number
