"""Audio files of many formats, made for the tests, and ways to break them."""

import io
import struct

import numpy as np
import soundfile

from tokenverse_pp.data.audio import AudioInput
from tokenverse_pp.data.audio.containers import ogg_crc

RATE = 16000


def sound(seconds=2.0, rate=RATE, channels=1, seed=0):
    """Samples (S, C): a tone that glides, and noise, so that no two places are alike."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal((len(times), channels))
    tone = 0.2 * np.sin(2 * np.pi * times * (300 + 40 * times))[:, None]
    return (tone + 0.02 * noise).astype(np.float32)


def encoded(samples, rate=RATE, format="WAV", subtype="PCM_16", **how):
    """The bytes of a file."""
    memory = io.BytesIO()
    with soundfile.SoundFile(
        memory, "w", rate, samples.shape[1], format=format, subtype=subtype, **how
    ) as file:  # in pieces: libsndfile's Vorbis encoder overflows its stack on long writes
        for start in range(0, len(samples), rate):
            file.write(samples[start : start + rate])
    return memory.getvalue()


LIBSNDFILE = {  # container: how it is written, and how far its samples are from those that were written
    "wav": ({}, 1e-4),
    "rf64": ({"format": "RF64"}, 1e-4),
    "w64": ({"format": "W64"}, 1e-4),
    "aiff": ({"format": "AIFF"}, 1e-4),
    "au": ({"format": "AU"}, 1e-4),
    "sphere": ({"format": "NIST"}, 1e-4),
    "caf": ({"format": "CAF"}, 1e-4),
    "flac": ({"format": "FLAC"}, 1e-4),
    "mp3": ({"format": "MP3", "subtype": "MPEG_LAYER_III"}, 0.1),
    "ogg": ({"format": "OGG", "subtype": "VORBIS"}, 0.1),
}
PLAIN = ("wav", "rf64", "w64", "aiff", "au", "sphere", "caf", "flac", "mp3")  # their headers state a length


def written(container, seconds=2.0, **how):
    """The bytes of a file of a container of `LIBSNDFILE`."""
    return encoded(sound(seconds), **LIBSNDFILE[container][0], **how)


def with_wav_size(content, size):
    """A WAV file whose header states this many bytes of samples."""
    at = content.find(b"data") + 4
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def with_flac_total(content, total):
    """A FLAC file whose header states this many samples."""
    return content[:21] + bytes([content[21] & 0xF0 | total >> 32]) + struct.pack(">I", total % 2**32) + content[26:]


def without_xing(content):
    """An MP3 file without its first frame, which tells how many there are."""
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    if content[1] & 0x18 == 0x18:  # MPEG 1
        rate = (44100, 48000, 32000)[content[2] >> 2 & 3]
        length = 144000 * kbits[content[2] >> 4] // rate
    else:
        kbits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
        length = 72000 * kbits[content[2] >> 4] // (22050, 24000, 16000)[content[2] >> 2 & 3]
    return content[length + (content[2] >> 1 & 1) :]


def ogg_pages(content):
    """The pages of an Ogg file."""
    at, pages = 0, []
    while at < len(content):
        count = content[at + 26]
        end = at + 27 + count + sum(content[at + 27 : at + 27 + count])
        pages.append(content[at:end])
        at = end
    return pages


def with_granule(page, by):
    """An Ogg page whose time stamp is moved."""
    granule = struct.unpack("<q", page[6:14])[0] + by
    page = page[:6] + struct.pack("<q", granule) + page[14:22] + bytes(4) + page[26:]
    return page[:22] + struct.pack("<I", ogg_crc(page)) + page[26:]


def packed(path, codec, starts=(0.0,), seconds=1.0, rate=48000, layout="mono", format=None, options=None):
    """Write a container by PyAV: a sound of some seconds at each of these times (of the container)."""
    from fractions import Fraction

    import av

    samples = sound(seconds, rate)[:, 0]
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        for start in starts:
            encoder = av.CodecContext.create(codec, "w")
            encoder.sample_rate, encoder.layout, encoder.time_base = rate, layout, Fraction(1, rate)
            encoder.format = {"libopus": "flt", **dict.fromkeys(("flac", "mp2", "pcm_s16le"), "s16")}.get(codec, "fltp")
            encoder.bit_rate = 128000
            encoder.open()
            size = {"frame_size": encoder.frame_size} if encoder.frame_size else {}
            resampler = av.AudioResampler(format=encoder.format.name, layout=layout, rate=rate, **size)
            frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = rate, 0
            frames = [*resampler.resample(frame), *resampler.resample(None)]
            for packet in [p for frame in frames for p in encoder.encode(frame)] + encoder.encode(None):
                packet.stream = stream
                packet.pts = packet.dts = (packet.pts or 0) + round(start * rate)
                packet.time_base = Fraction(1, rate)
                container.mux(packet)
    return path


def measured(source, **how):
    """`AudioInput` of a source, closed after `measure`."""
    with AudioInput(source, thorough=True, **how) as audio:
        return audio.measure()
