"""Decode containers that libsndfile does not read (MP4, WebM, AAC, WMA, ..) with PyAV (optional), by time stamps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio.containers import NAMES
from tokenverse_pp.data.audio.source import Bytes, Pieces, Range

MIN_GAP = 0.1  # seconds by which time stamps must differ from the samples to be a gap (as in ffmpeg's aresample)
MAX_GAP = 3600.0  # seconds of silence for one gap; a longer one means that the clock was set
ALL_GAPS = 2 * MAX_GAP
TOLERANCE = 0.025  # seconds
MOST_CHANNELS = 64
# Only formats that hold their media themselves: playlists would have FFmpeg open other files and addresses.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,amr,amrnb,amrwb,asf,avi,flv,mpegts,mpeg,ogg,wav,w64,aiff,caf,au,flac,mp3"
    ",ac3,eac3,dts,truehd,tta,wv,ape,mpc,mpc8,tak,shn,voc,gsm,loas,dsf,nistsphere,rm,mxf,nut,wtv,oma,qcp,xwma"
)
# In these, the first time stamp has no meaning: the clock of a broadcast runs on, an Ogg stream may be joined late.
RELATIVE = ("mpegts", "mpeg", "ogg")


@dataclass
class Told:
    """Findings about a source that was decoded to its end."""

    rate: int = 0
    channels: int = 0
    late: float = 0.0  # seconds before the first sample
    gaps: List[float] = field(default_factory=list)  # seconds each
    jumps: List[Tuple[float, float]] = field(default_factory=list)  # second, and by how much the clock was set
    damage: Optional[str] = None
    truncated: Optional[str] = None
    notes: List[str] = field(default_factory=list)

    def silence(self) -> List[str]:
        """Messages about inserted silence."""
        lines = []
        if self.late:
            lines.append(f"its audio starts at {self.late:.3f} s: silence stands before it")
        if self.gaps:
            count = f"{len(self.gaps)} gap{'s' if len(self.gaps) > 1 else ''}"
            lines.append(f"its time stamps have {count} of {sum(self.gaps):.3f} s together, filled with silence")
        return lines

    def clock(self) -> List[str]:
        """Messages about inconsistent time stamps."""
        return [
            f"its clock is set {'forward' if by > 0 else 'back'} by {abs(by):.3f} s at {second:.3f} s: "
            "no silence is put in, so that times from there on are not those of the container"
            for second, by in self.jumps
        ]


def import_av(name: str, container: str) -> Any:
    """Import the module `av` (raises UserError saying what to install)."""
    try:
        import av
    except ImportError:
        what = NAMES.get(container, "this kind of")
        raise UserError(f"{name}: {what} files need PyAV: pip install 'tokenverse_pp[media]'") from None
    return av


class PyAVDecoder:
    """Decodes the first audio stream of a source, once from start to end.

    Args:
        ranges: the files that are joined in it.
        cut: whether its end is missing according to its structure.
        rate: resample to this rate (by FFmpeg) and average the channels; None for the rate of the stream.
    """

    def __init__(
        self, data: Bytes, ranges: Tuple[Range, ...], name: str, container: str, cut: bool, rate: Optional[int] = None
    ):
        self.av = import_av(name, container)
        self.data, self.ranges, self.name, self.container, self.cut = data, ranges, name, container, cut
        self.mono_rate = rate
        self.told = Told()
        self._resamplers: Dict[Tuple[int, int], Any] = {}
        self._done = 0  # samples, at the rate of the stream
        self._silence = 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        """Samples (C, S) as float32 (raises UserError if there is no audio, or none that can be decoded)."""
        stream = self._native()
        if self.mono_rate is None:
            yield from stream
            return
        for block in stream:
            yield from self._resample(block.mean(axis=0, keepdims=True), self.told.rate, self.mono_rate)
        for part in self._resamplers[self.told.rate, 0].resample(None):
            yield part.to_ndarray()

    def _native(self) -> Iterator[np.ndarray]:
        told = self.told
        errors = (self.av.FFmpegError, ValueError, EOFError, AttributeError, AssertionError)
        for number, (begin, end) in enumerate(self.ranges):
            last = number == len(self.ranges) - 1
            try:
                # FFmpeg gets neither name nor extension, since it would trust them.
                file = Pieces(self.data, ((begin, end),))
                with self.av.open(file, options={"format_whitelist": FORMATS}) as container:
                    if not container.streams.audio:
                        raise UserError(f"{self.name}: holds no audio")
                    yield from self._part(container, last)
            except errors as error:
                if not told.rate or not last:
                    raise UserError(f"{self.name}: {self._reason(error)}") from error
                told.truncated = told.truncated or "truncated"
        if not told.rate:
            raise UserError(f"{self.name}: {self._reason(None)}")

    def _reason(self, error: Optional[Exception]) -> str:
        if self.cut and self.container == "mp4":
            return "truncated: its index (moov) is missing, no audio that can be decoded"
        if self.cut:
            return "truncated: no audio that can be decoded"
        said = "" if error is None else f": {' '.join(str(getattr(error, 'strerror', '') or error).split())[:200]}"
        return f"no audio that can be decoded{said}"

    def _part(self, container: Any, last: bool) -> Iterator[np.ndarray]:
        """Decode one of the joined files, whose clock begins where the last one ended."""
        told = self.told
        stream = container.streams.audio[0]
        if len(container.streams.audio) > 1:
            told.notes.append(f"it has {len(container.streams.audio)} audio streams, of which the first is read")
        relative = any(name in RELATIVE for name in container.format.name.split(","))
        base: Optional[int] = None  # samples of the source when the clock of this part says 0
        broken: Optional[float] = None
        begun = self._done
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except (self.av.FFmpegError, ValueError) as error:
                if not isinstance(error, EOFError) and broken is None:
                    broken = self._done / told.rate if told.rate else 0.0
                continue
            for frame in frames:
                if broken is not None and told.damage is None:
                    told.damage = f"damaged at {broken:.3f} s: what stands there cannot be decoded"
                rate = told.rate = told.rate or frame.sample_rate
                stamp, old = frame.time, frame.sample_rate
                if _count(frame) > MOST_CHANNELS:
                    raise UserError(f"{self.name}: has {_count(frame)} channels: expected {MOST_CHANNELS} at most")
                samples = _floats(_packed(self.av, frame))
                told.channels = told.channels or len(samples)
                samples = with_channels(samples, told.channels)
                if stamp is not None:
                    if base is None:
                        base = self._base(stamp, relative)
                    base, silence = self._tick(base, stamp)
                    for at in range(0, silence, rate):
                        yield np.zeros((told.channels, min(rate, silence - at)), np.float32)
                if old != rate:
                    samples = np.concatenate([samples[:, :0], *self._resample(samples, old, rate)], axis=1)
                self._done += samples.shape[1]
                yield samples
        if last and told.rate:
            self._check_end(container, stream, begun, broken is not None)

    def _base(self, stamp: float, relative: bool) -> int:
        """The sample at which the clock of a part is 0, by its first time stamp."""
        if relative or stamp < 0:
            return self._done - round(stamp * self.told.rate)
        # Each joined file has its own clock, fragments of one stream continue the clock of the first.
        return 0 if stamp >= self._done / self.told.rate - MIN_GAP else self._done

    def _tick(self, base: int, stamp: float) -> Tuple[int, int]:
        """Compare a time stamp with the samples so far; return base (moved if the clock was set) and silent samples."""
        told, rate = self.told, self.told.rate
        ahead = base + round(stamp * rate) - self._done
        seconds = ahead / rate
        if seconds > MAX_GAP or self._silence + seconds > ALL_GAPS or seconds < -1.0:
            told.jumps.append((self._done / rate, seconds))
            return base - ahead, 0
        if seconds < MIN_GAP:  # no sample of an overlap is dropped, the next gap makes up for it
            return base, 0
        if self._done == 0:
            told.late = seconds
        else:
            told.gaps.append(seconds)
        self._silence += seconds
        self._done += ahead
        return base, ahead

    def _check_end(self, container: Any, stream: Any, begun: int, broken: bool) -> None:
        """Find out whether the end is missing, from the decoded samples, the structure and the stated length."""
        told = self.told
        seconds = (self._done - begun) / told.rate
        stated = self._stated(container, stream)
        if stated is not None:
            stated -= sum(by for _, by in told.jumps)
        if broken or self.cut or (stated is not None and seconds < stated - 2 * MIN_GAP):
            if stated is not None and stated - seconds > TOLERANCE:
                told.truncated = f"truncated: {seconds:.3f} s of {stated:.3f} s"
            elif stated is None or broken:
                told.truncated = f"truncated: its end is missing, {seconds:.3f} s were read"

    def _stated(self, container: Any, stream: Any) -> Optional[float]:
        """Seconds of audio that the headers state; None if they do not, or FFmpeg would guess."""
        if self.container == "mp4":
            return float(stream.duration * stream.time_base) if stream.duration else None
        if self.container in ("matroska", "flv") and len(container.streams) == 1 and container.duration:
            return float(container.duration / self.av.time_base)
        return None

    def _resample(self, samples: np.ndarray, old: int, new: int) -> Iterator[np.ndarray]:
        """Resample with FFmpeg, one channel at a time, as it supports only named layouts."""
        rows = []
        for channel, row in enumerate(samples):
            if (old, channel) not in self._resamplers:
                self._resamplers[old, channel] = self.av.AudioResampler(format="flt", layout="mono", rate=new)
            frame = self.av.AudioFrame.from_ndarray(np.ascontiguousarray(row[None]), format="flt", layout="mono")
            frame.sample_rate = old
            rows.append([part.to_ndarray()[0] for part in self._resamplers[old, channel].resample(frame)])
        return (np.stack(parts) for parts in zip(*rows))


def _packed(av: Any, frame: Any) -> Any:
    """Return a frame that PyAV can convert: it reads out of bounds in planar frames of more than eight channels."""
    if not frame.format.is_planar or _count(frame) <= 8:
        return frame
    resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
    frame.pts = None
    return resampler.resample(frame)[0]


def _count(frame: Any) -> int:
    """Channels of a frame."""
    return int(getattr(frame.layout, "nb_channels", 0) or len(frame.layout.channels))


def _floats(frame: Any) -> np.ndarray:
    """A decoded frame of any sample format -> (C, S) float32 in [-1, 1]."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, _count(frame)).T
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    return array.astype(np.float32)


def with_channels(samples: np.ndarray, count: int) -> np.ndarray:
    """Return samples (C, S) with ``count`` channels: if the number differs, each has the mean of all."""
    if len(samples) == count:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True), count, axis=0)
