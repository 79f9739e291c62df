"""The audio reader: decodes a file, bytes or an open file of any container to samples, and reports its defects.

Containers are detected by content. Each source is decoded to its end: its length is that of the decoded samples, and a
header that states another length is reported. libsndfile reads what it can, PyAV (if installed) the rest. No other
program or environment variable has an influence, so the samples are the same on every machine. The exception is SPHERE
files compressed with Shorten: they need sph2pipe, and are rejected without it.

This module imports neither torch nor lhotse.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import replace
from itertools import chain
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio.containers import (
    EXTENTS,
    NAMES,
    PACKETS,
    SAMPLES,
    ogg_structure,
    packet_structure,
    shorten_to_wav,
    sphere_header,
)
from tokenverse_pp.data.audio.mpeg import MEMORY, in_memory, is_mpeg, library_messages, mpeg_structure
from tokenverse_pp.data.audio.pyav import TOLERANCE, PyAVDecoder, import_av, with_channels
from tokenverse_pp.data.audio.source import (
    UNKNOWN,
    Bytes,
    JoinedStream,
    Piece,
    Pieces,
    Source,
    Structure,
    container_of,
    flac_parts,
    mpeg_in_wav,
    parts_of_samples,
    tag_size,
)

BLOCK = 1 << 18  # samples that are decoded at once, all channels together
MOST_CHANNELS = 1024
BAD_FRAMES = "damaged: some of its frames cannot be decoded"
NO_AUDIO = "no audio that can be decoded: not audio, or its format is not recognised"
log = logging.getLogger("tokenverse_pp.data.audio")


def structure_of(data: Bytes, thorough: bool = False) -> Structure:
    """The structure of a source, cached.

    Args:
        thorough: search a FLAC file for other files joined to it.
    """
    key = (*data.key, thorough)
    found = _SEEN.get(key)
    if found is None:
        found = _SEEN[key] = _structure_of(data, thorough)
        _weights.append(1000 + sum(part.frames.length // part.frames.samples for part in found.parts if part.frames))
        if sum(_weights) > _MOST:
            _SEEN.clear()
            _weights.clear()
    return found


_SEEN: Dict[Tuple[Any, ...], Structure] = {}
_weights: List[int] = []
_MOST = 4_000_000  # MP3 frames (16 bytes each here) in the cache


def _structure_of(data: Bytes, thorough: bool) -> Structure:
    start, head = 0, data.at(0, 8192)
    while 0 < tag_size(head) < data.size - start:  # files of any kind may begin with tags
        start += tag_size(head)
        head = data.at(start, 8192)
    container = container_of(head)
    everything = ((start, data.size),)
    inside = mpeg_in_wav(data, start) if container == "wav" else None
    if inside is not None or (container == UNKNOWN and is_mpeg(data, start)):
        found = replace(mpeg_structure(data, start if inside is None else inside[0]), ranges=everything)
        if inside is not None and data.size + 1 < inside[1] < 0x7FFFE000:
            found = replace(found, problems=("truncated: its last frame is not complete",), notes=())
        return found
    if container in SAMPLES:
        samples = parts_of_samples(data, container, start, EXTENTS[container])
        if samples is not None:
            return samples
    elif container == "flac":
        return Structure(container, flac_parts(data, start, thorough), everything)
    elif container == "ogg":
        found = ogg_structure(data)
        return found if found.ranges else replace(found, ranges=everything)
    elif container in PACKETS:
        return packet_structure(data, container)
    # libsndfile recognises VOC, IRCAM and others. It would take any byte 255 for the start of an MP3 file.
    return Structure(container, () if head[:1] == b"\xff" else (JoinedStream(((0, data.size),)),), everything)


class AudioInput:
    """An open audio source; a context manager.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        name: for messages; by default the path.
        thorough: let `measure` decode if the structure does not prove the length, and search for joined FLAC files.
        rate: resample what PyAV decodes to this rate and one channel; other sources keep their rate and channels.

    Attributes:
        container: a key of `NAMES`, or ``unknown``.
        rate: the sampling rate in Hz.
        frames: samples per channel; None if they must be decoded to be counted, until `measure` has done so.
        problems: what is missing at the end or damaged, one line each; complete after `measure` or `samples`.
        notes: other findings, one line each.
        damage: one line if audio is missing in the middle, else None.

    Raises:
        UserError: naming the source, if it holds no audio or needs a package that is not installed.
    """

    rate: int
    channels: int
    frames: Optional[int]

    def __init__(self, source: Source, name: Optional[str] = None, thorough: bool = False, rate: Optional[int] = None):
        is_path = isinstance(source, (str, os.PathLike))
        self.name = name if name is not None else os.fspath(source) if is_path else "audio"  # type: ignore[arg-type]
        self.problems: List[str] = []
        self.notes: List[str] = []
        self.damage: Optional[str] = None
        self.broken_at: Optional[int] = None  # the sample from which libsndfile cannot decode
        self._thorough, self._rate = thorough, rate
        self._counts: List[int] = []  # samples of each part
        self._first: Any = None  # the first part, open and at its start
        self._decoder: Optional[PyAVDecoder] = None
        self._running: Any = None  # the generator of its blocks
        self._decoded: Any = None  # the blocks to come
        self._measured = self._expanded = False
        self._stated_seconds = 0.0  # by Ogg time stamps
        try:
            self._data = Bytes(source)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AudioInput:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source."""
        if self._first is not None:
            self._first.close()
        if self._running is not None:
            self._running.close()
        self._data.close()

    @property
    def by_pyav(self) -> bool:
        """Whether PyAV decodes the source, from its start every time."""
        return self._decoder is not None

    @property
    def is_plain(self) -> bool:
        """Whether libsndfile reads the same samples from the unchanged file."""
        return [x.pieces for x in self._structure.parts] == [None] and not self.by_pyav and not self._expanded

    def _open(self) -> None:
        if self._data.size == 0:
            raise UserError(f"{self.name}: the file is empty")
        if self._data.at(0, 7) == b"NIST_1A" and "shorten" in sphere_header(self._data).get("sample_coding", ""):
            self._expand_shorten()
        self._structure = found = structure_of(self._data, self._thorough)
        self.container = found.container
        self.problems.extend(found.problems)
        self.notes.extend(found.notes)
        self.damage = found.damage
        if found.container in SAMPLES and not found.parts:
            raise UserError(f"{self.name}: truncated: it ends within its header")
        if found.gaps or not found.parts:
            self._open_decoder()
        else:
            self._open_parts()
        if self.channels > MOST_CHANNELS:
            raise UserError(f"{self.name}: has {self.channels} channels: expected {MOST_CHANNELS} at most")

    # libsndfile

    def _file(self, number: int) -> Any:
        """Open a part with libsndfile, which detects its format by content."""
        if number == 0 and self._first is not None:
            file, self._first = self._first, None
            return file
        return self._of_pieces(self._structure.parts[number].pieces)

    def _of_pieces(self, pieces: Optional[Tuple[Piece, ...]]) -> Any:
        try:
            import soundfile
        except ImportError:
            raise UserError(f"{self.name}: reading files needs soundfile: pip install soundfile") from None
        if pieces is None:
            return soundfile.SoundFile(self._data.path or io.BytesIO(self._data.all()))
        file = Pieces(self._data, pieces)
        return soundfile.SoundFile(in_memory(file.read()) if self.container == "mp3" and MEMORY else file)

    def _open_parts(self) -> None:
        rates = set()
        for number in range(len(self._structure.parts)):
            try:
                with self._heard():
                    file = self._file(number)
                rates.add(file.samplerate)
                frames = self._structure.parts[number].frames
                self._counts.append(file.frames if frames is None else min(file.frames, frames.length))
                if number == 0:
                    self.rate, self.channels, self._first = file.samplerate, file.channels, file
                else:
                    file.close()
            except (RuntimeError, OSError) as error:
                self._open_decoder(str(error).rsplit(": ", 1)[-1])
                return
        if len(rates) > 1:
            if self.container not in ("ogg", "mp3"):
                raise UserError(f"{self.name}: its sampling rate changes between {min(rates)} and {max(rates)} Hz")
            self._open_decoder("its sampling rate changes")
            return
        self.frames = sum(self._counts)

    def _file_blocks(self, number: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield samples (C, S) of a part; stop and set ``broken_at`` where they cannot be decoded."""
        frames = self._structure.parts[number].frames
        if frames is not None and frames.seekable:
            yield from self._frame_blocks(number, start, stop)
            return
        size, at = max(1024, BLOCK // self.channels), start
        file = self._file_at(number, start)
        while file is not None and at < stop:
            try:
                with self._heard():
                    block = file.read(min(size, stop - at), dtype="float32", always_2d=True).T
            except RuntimeError:
                file.close()
                # libsndfile does not return what it decoded of a block before it failed.
                file, size = self._file_at(number, at) if size > 16 else None, size // 4
                continue
            if not block.shape[1]:
                break
            at += block.shape[1]
            yield block
        if file is None:
            self.broken_at = sum(self._counts[:number]) + at
        else:
            file.close()

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """Turn libmpg123's messages about MPEG frames into a problem of the source."""
        if self.container != "mp3":
            yield
            return
        with library_messages() as messages:
            yield
        if messages and BAD_FRAMES not in self.problems:
            self.problems.append(BAD_FRAMES)

    def _file_at(self, number: int, at: int) -> Any:
        """Open a part at position ``at``; return None if libsndfile cannot decode the samples before it."""
        file = self._file(number)
        if not at:
            return file
        try:
            if file.seekable() and file.seek(at) == at:
                return file
        except RuntimeError:
            file.close()
            file = self._file(number)
        with contextlib.suppress(RuntimeError):
            while at > 0:  # libsndfile cannot seek in every coding, nor in every file to its end
                count = len(file.read(min(at, BLOCK), dtype="float32", always_2d=True))
                if not count:
                    break
                at -= count
        if not at:
            return file
        file.close()
        return None

    def _frame_blocks(self, number: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """`_file_blocks` for MPEG audio, where each block is a separate file that is read to its end.

        soundfile seeks after each read, after which libmpg123 misses bytes of earlier frames. Reading one file in
        blocks would therefore give other samples, and messages on stderr.
        """
        frames = self._structure.parts[number].frames
        for at in range(start, stop, BLOCK):
            last = min(at + BLOCK, stop)
            skip = 0
            try:
                with self._heard():
                    if at == 0 and last == self._counts[number]:
                        file = self._file(number)
                    else:
                        pieces, skip = frames.piece(self._data, at, last)
                        file = self._of_pieces(pieces)
                    with file:
                        block = file.read(file.frames, dtype="float32", always_2d=True).T[:, skip : skip + last - at]
            except RuntimeError:
                self.broken_at = sum(self._counts[:number]) + at
                return
            yield block

    def _expand_shorten(self) -> None:
        """Replace SPHERE compressed with Shorten by the WAV that sph2pipe makes of it."""
        content, stated = shorten_to_wav(self._data, self.name)
        self._data.close()
        self._data, self._expanded = Bytes(content), True
        with AudioInput(content, self.name) as wav:
            if (wav.frames or 0) < stated:
                self.problems.append(_truncated(wav.frames or 0, stated, wav.rate))

    # PyAV

    def _open_decoder(self, reason: str = "") -> None:
        """Switch to PyAV; ``reason`` says why libsndfile cannot read the source."""
        found = self._structure
        try:
            import_av(self.name, self.container)
        except UserError as error:
            cut = found.cut or any(part.samples is not None or part.stated > 1 for part in found.parts)
            if self.damage or (cut and found.parts):
                raise UserError(f"{self.name}: {self.damage or 'truncated: no audio that can be decoded'}") from None
            install = str(error).rpartition("need ")[2]
            if found.container == UNKNOWN:
                raise UserError(f"{self.name}: {NO_AUDIO}; some formats need {install}") from None
            if not reason:
                raise
            why = "" if "not exist" in reason else f" ({reason.rstrip('.')})"  # libsndfile's for bad MP3 files
            what = NAMES[found.container]
            raise UserError(f"{self.name}: libsndfile cannot read this {what} file{why}; it needs {install}") from None
        self._decoder = PyAVDecoder(self._data, found.ranges, self.name, self.container, found.cut, self._rate)
        blocks = self._running = self._decoder.blocks()
        try:
            first = next(blocks)
        except StopIteration:
            raise UserError(f"{self.name}: holds no samples") from None
        except UserError:
            if found.container == UNKNOWN:
                raise UserError(f"{self.name}: {NO_AUDIO}") from None
            raise
        self._decoded = chain([first], blocks)
        if not self._measured:
            self.rate = self._rate or self._decoder.told.rate
            self.channels = len(first)
            self.frames = None

    def _decode(self) -> Iterator[np.ndarray]:
        """Yield all blocks that PyAV decodes; afterwards, problems and notes are complete."""
        if self._decoded is None:
            self._open_decoder()
        blocks, self._decoded = self._decoded, None
        frames = 0
        for block in blocks:
            frames += block.shape[1]
            yield block
        if self._measured:
            return
        self._measured = True
        self.frames = frames
        told = self._decoder.told  # type: ignore[union-attr]
        if told.truncated and self.container != "ogg":
            self.problems.append(told.truncated)
        self.problems.extend(told.clock())
        seconds, counts = frames / self.rate, [part.samples for part in self._structure.parts]
        if counts and None not in counts:  # libsndfile gave up on it
            stated = sum(counts) / told.rate  # type: ignore[arg-type]
            if seconds < stated - TOLERANCE and not told.truncated:
                self.problems.append(f"truncated: {seconds:.3f} s of {stated:.3f} s")
        elif seconds < self._stated_seconds - TOLERANCE and not told.jumps:
            self.problems.append(f"its time stamps say {self._stated_seconds:.3f} s, it holds {seconds:.3f} s")
        self.notes.extend(told.silence() + told.notes)
        self.damage = self.damage or told.damage

    # Both

    def blocks(self, start: int = 0, stop: Optional[int] = None) -> Iterator[np.ndarray]:
        """Samples (C, S) as float32, from ``start`` to ``stop`` (in samples)."""
        at = 0
        if self.by_pyav:
            for block in self._decode():
                first, last = max(0, start - at), block.shape[1] if stop is None else stop - at
                at += block.shape[1]
                if last > first:
                    yield block[:, first:last]
                if stop is not None and at >= stop:
                    return
            return
        for number, count in enumerate(self._counts):
            first, last = max(0, start - at), count if stop is None else min(count, stop - at)
            if last > first:
                for block in self._file_blocks(number, first, last):
                    yield block if len(block) == self.channels else with_channels(block, self.channels)
                if self.broken_at is not None:
                    return
            at += count

    def read(self, start: int = 0, stop: Optional[int] = None) -> np.ndarray:
        """Return the samples of `blocks` in one array (C, S)."""
        found = list(self.blocks(start, stop)) or [np.zeros((self.channels, 0), np.float32)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def measure(self) -> AudioInput:
        """Determine length and defects of the source; if PyAV reads it, all of it is decoded."""
        if self._measured:
            return self
        if self.by_pyav:
            for _ in self._decode():
                pass
            return self
        self._measured = True
        for number, part in enumerate(self._structure.parts):
            stated = self._counts[number]
            found = self._counts[number] = self._count(number)
            if part.stated != 1.0 or part.samples is not None:
                stated = part.samples if part.samples is not None else round(found * part.stated)
            if stated - found > TOLERANCE * self.rate:
                if self.container == "ogg" and not self.problems and not self.damage:
                    self._stated_seconds = (sum(self._counts) - found + stated) / self.rate
                    self._measured = False
                    self._open_decoder("its time stamps have gaps")
                    return self.measure()
                self.problems.append(_truncated(found, stated, self.rate))
            elif found - stated > TOLERANCE * self.rate:
                self.notes.append(
                    f"{found / self.rate:.3f} s are read, where its header says {stated / self.rate:.3f} s"
                )
        self.frames = sum(self._counts)
        read = f", {self.frames / self.rate:.3f} s are read"
        self.problems = [line + read if line.endswith("is not complete") else line for line in self.problems]
        if len(self._counts) > 1:
            self.notes.append(f"{len(self._counts)} streams are joined in it, {self.frames / self.rate:.3f} s together")
        used = self._data.size - self._structure.left_over
        seconds = self._structure.left_over * self.frames / max(1, used) / self.rate
        if seconds > TOLERANCE:
            self.problems.append(f"longer than its header says: some {seconds:.3f} s behind its end are not read")
        return self

    def _count(self, number: int) -> int:
        """Count the samples of a part that can be decoded; decode if the structure does not prove it."""
        stated = self._counts[number]
        if self.container == "flac" and stated:
            with self._file(number) as file:
                try:
                    if file.seek(stated - 1) == stated - 1 and len(file.read(1)) == 1:
                        return stated
                except RuntimeError:
                    pass
        elif self.container in (*SAMPLES, "mp3") or not self._thorough:
            return stated
        found = sum(block.shape[1] for block in self._file_blocks(number, 0, stated))
        self.broken_at = None
        return found

    def samples(self, mix: bool = True) -> np.ndarray:
        """Return all samples, float32: (S,) averaged, or (C, S) without ``mix``. Completes problems and notes."""
        if not self.by_pyav:
            self.measure()
        if not mix:
            return self.read()
        found = [np.zeros(0, np.float32), *(block.mean(axis=0) for block in self.blocks())]
        return np.concatenate(found)

    def why_short(self, found: int, wanted: int) -> str:
        """Why only ``found`` of ``wanted`` samples could be read: damaged in the middle, or truncated."""
        at = self.broken_at
        if at is not None and not self.measure().problems:
            return f"damaged at {at / self.rate:.3f} s: it cannot be decoded from there"
        return next(iter(self.problems), _truncated(found, wanted, self.rate))

    def tell(self) -> None:
        """Log a warning for each problem and note."""
        for line in self.problems + self.notes:
            log.warning("warning: %s: %s", self.name, line)


def _truncated(found: int, stated: int, rate: int) -> str:
    return f"truncated: {found / rate:.3f} s of {stated / rate:.3f} s"


def read_audio(source: Source, name: Optional[str] = None, rate: Optional[int] = None) -> Tuple[np.ndarray, int]:
    """Read an audio source and average its channels; return samples (S,) as float32 and their rate.

    A missing end, gaps in the time stamps, and similar findings are logged as warnings.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        name: for messages; by default the path.
        rate: as for `AudioInput`.

    Raises:
        UserError: naming the source, if it holds no audio or no samples, NaN or infinity, is damaged in the middle, or
            needs software that is not installed.
    """
    with AudioInput(source, name, thorough=True, rate=rate) as audio:
        samples = audio.samples()
        check_whole(audio)
        if not len(samples):
            raise UserError(f"{audio.name}: {audio.problems[0] if audio.problems else 'holds no samples'}")
        if not np.isfinite(samples).all():
            raise UserError(f"{audio.name}: holds samples of NaN or infinity")
        audio.tell()
        return samples, audio.rate


def check_whole(audio: AudioInput) -> None:
    """Check that no audio is missing in the middle of a measured source (raises UserError)."""
    if audio.damage:
        raise UserError(f"{audio.name}: {audio.damage}")
    if audio.broken_at is not None:
        raise UserError(f"{audio.name}: {audio.why_short(audio.broken_at, audio.frames or 0)}")
