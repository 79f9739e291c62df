"""MP3 and Ogg: every stream is read, from any place, in silence; what is missing between pages is told."""

import io
import os

import numpy as np
import pytest
from audio_files import RATE, encoded, measured, ogg_pages, packed, sound, with_granule, without_xing, written
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import Recording

import tokenverse_pp.data.access  # noqa: F401  # installs the audio backend, if this file is run alone
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio import AudioInput, read_audio
from tokenverse_pp.data.audio.mpeg import library_messages
from tokenverse_pp.data.audio.source import Bytes, Pieces

MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III"}


def mp3(rate=RATE, channels=1, seconds=2.0, **how):
    return encoded(sound(seconds, rate, channels), rate, **MP3, **how)


@pytest.mark.parametrize(
    ("rate", "mode"), [(8000, "VARIABLE"), (16000, "VARIABLE"), (22050, "CONSTANT"), (44100, "VARIABLE")]
)
def test_mp3_without_a_header_is_as_long_as_its_frames(rate, mode, capfd):
    whole = mp3(rate, bitrate_mode=mode)
    assert b"Xing" in whole[:200] or b"Info" in whole[:200]
    with AudioInput(whole) as audio:
        expected = audio.read()
    for content in (without_xing(whole), bytes(700) + without_xing(whole), without_xing(whole) + b"TAG" + bytes(125)):
        audio = measured(content)
        # The encoder's padding at both ends is only known from the header.
        assert 0 <= audio.frames - 2 * rate <= 3000 and not audio.problems
        with AudioInput(content) as audio:
            found = audio.read()
    shift = min(range(0, 3000), key=lambda shift: np.abs(found[0, shift : shift + 3000] - expected[0, :3000]).sum())
    np.testing.assert_allclose(found[0, shift + 1200 : shift + 9000], expected[0, 1200:9000], atol=1e-5)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("rate", "mode"), [(16000, "VARIABLE"), (48000, "CONSTANT"), (8000, "VARIABLE")])
def test_any_piece_of_mp3_is_that_of_the_whole(rate, channels, mode, capfd):
    one = mp3(rate, channels, 3.0, compression_level=0.9, bitrate_mode=mode)
    for content in (one, one + one, without_xing(one)):
        with AudioInput(content) as audio:
            whole = audio.read()
        for start, stop in ((1, 400), (rate, rate + 5000), (rate // 2, whole.shape[1]), (whole.shape[1] - 9, None)):
            with AudioInput(content) as audio:
                np.testing.assert_allclose(audio.read(start, stop), whole[:, start:stop], atol=1e-6)
    assert capfd.readouterr().err == ""


def test_mp3_with_something_between_its_frames(capfd):
    one = mp3(44100)
    tag = b"ID3" + bytes([3, 0, 0, 0, 0, 8, 0]) + b"\xff\xfb" * 512
    ape = b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(16) + bytes(32)
    for between in (tag, b"TAG" + b"x" * 125 + tag, ape, bytes(5000), b"\x00\x01junk" * 50):
        audio = measured(one + between + one)
        assert audio.frames == 4 * 44100 and not audio.problems
    audio = measured(one + np.random.default_rng(0).bytes(9000) + one)
    assert audio.problems == ["damaged: 9000 bytes between its frames are no MP3"]
    # A file that was cut, and another one joined to it: the frame that was cut is left out, no other.
    audio = measured(one[:-300] + one)
    assert audio.frames > 3.9 * 44100 and audio.problems[0].startswith("truncated: 1.9")
    assert capfd.readouterr().err == ""


def test_frames_that_cannot_be_decoded_are_told_in_our_words(tmp_path, capfd, caplog):
    content = bytearray(mp3(44100, seconds=3.0))
    with AudioInput(bytes(content)) as audio:
        starts = audio._structure.parts[0].frames.starts
    for start in starts[30:50:4]:  # side information that cannot be
        content[start + 6 : start + 20] = b"\xfe" * 14
    path = tmp_path / "radio.mp3"
    path.write_bytes(content)
    samples, _ = read_audio(path)
    assert len(samples) == 3 * 44100
    assert caplog.messages == [f"warning: {path}: damaged: some of its frames cannot be decoded"]
    caplog.clear()
    recording = Recording.from_file(path)
    for _ in range(2):
        assert recording.load_audio(offset=0.5, duration=2.0).shape == (1, 2 * 44100)
    assert caplog.messages == [f"warning: {path}: damaged: some of its frames cannot be decoded"]
    assert capfd.readouterr().err == ""


def test_messages_of_others_are_passed_on(capfd):
    with library_messages() as messages:
        os.write(2, b"before\n[src/libmpg123/layer3.c:1] error: bad\nNote: resync\nafter\n")
    assert capfd.readouterr().err == "before\nafter\n" and len(messages) == 1


def test_mpeg_audio_in_wav_and_of_layer_ii(tmp_path, capfd):
    pytest.importorskip("av")
    layer = packed(tmp_path / "a.mp2", "mp2", seconds=2.0, format="mp2").read_bytes()
    audio = measured(layer)
    with AudioInput(layer) as source:
        assert source.read().shape == (1, audio.frames)
    assert audio.container == "mp3" and audio.frames == pytest.approx(96000, abs=2400) and not audio.problems
    content = packed(tmp_path / "a.wav", "libmp3lame", seconds=2.0, format="wav").read_bytes()
    one = measured(content)
    assert (one.container, one.problems) == ("mp3", []) and one.frames == pytest.approx(96000, abs=3000)
    assert measured(content + content).frames == pytest.approx(2 * one.frames, abs=1200)
    [problem] = measured(content[: len(content) // 2]).problems
    assert problem.startswith("truncated: its last frame is not complete, 0.9") or "1.0" in problem
    assert capfd.readouterr().err == ""


def test_mp3_whose_channels_or_rate_change():
    audio = measured(mp3() + mp3(channels=2) + mp3())
    assert (audio.frames, audio.channels) == (6 * RATE, 1)
    assert len(read_audio(mp3() + mp3(channels=2))[0]) == 4 * RATE
    pytest.importorskip("av")
    audio = measured(mp3(44100) + mp3(48000))
    assert audio.by_pyav and audio.rate == 44100 and audio.frames == pytest.approx(4 * 44100, abs=6000)


def test_headers_that_count_more_or_fewer_frames():
    one = mp3()
    at = one.find(b"Xing") + 8
    assert at > 8
    count = int.from_bytes(one[at : at + 4], "big")
    more, fewer = (one[:at] + (count * k // 2).to_bytes(4, "big") + one[at + 4 :] for k in (4, 1))
    assert measured(more).problems[0].startswith("truncated: 2.0")
    [note] = measured(fewer).notes
    assert note.startswith("2.0") and "where its header says 0.9" in note


def test_wav_with_another_rate_behind_is_refused():
    with pytest.raises(UserError, match="audio: its sampling rate changes between 8000 and 16000 Hz"):
        read_audio(encoded(sound()) + encoded(sound(rate=8000), 8000))


def test_chained_ogg_with_other_channels_and_rates():
    for subtype in ("VORBIS", "OPUS"):
        ogg = {"format": "OGG", "subtype": subtype}
        one, stereo = encoded(sound(), **ogg), encoded(sound(channels=2), **ogg)
        audio = measured(one + stereo + one)
        assert (audio.frames, audio.channels, audio.problems) == (6 * RATE, 1, [])
    pytest.importorskip("av")
    audio = measured(one + encoded(sound(rate=48000), 48000, **ogg))
    assert audio.by_pyav and audio.frames / audio.rate == pytest.approx(4.0, abs=0.05) and not audio.problems


@pytest.fixture(scope="module")
def opus():
    return ogg_pages(encoded(sound(6.0), format="OGG", subtype="OPUS"))


def test_ogg_pages_that_are_lost_or_unfinished(opus):
    with pytest.raises(UserError, match="damaged: pages are missing"):
        read_audio(b"".join(opus[:3] + opus[4:]))
    [note] = measured(b"".join(opus[:-1])).notes
    assert note == "it has no end-of-stream mark: it may be cut short"
    assert measured(b"".join(opus) + bytes(100)).problems == []
    assert measured(b"".join(opus[:4]) + b"stray" * 9 + b"".join(opus[4:])).problems == [
        "damaged: 45 bytes between its pages are no Ogg"
    ]


def test_ogg_time_stamps_with_gaps(opus):
    late = b"".join([*opus[:2], *(with_granule(page, 48000 * 3600) for page in opus[2:])])
    assert measured(late).frames == 6 * RATE  # a stream that was joined late begins at 0
    pytest.importorskip("av")
    gap = b"".join([*opus[:4], *(with_granule(page, 48000 * 2) for page in opus[4:])])
    audio = measured(gap)
    assert audio.frames / audio.rate == pytest.approx(8.0, abs=0.02)
    assert audio.notes == ["its time stamps have 1 gap of 2.000 s together, filled with silence"]
    broken = b"".join([*opus[:4], *(with_granule(page, 48000 * 36000) for page in opus[4:])])
    [problem] = measured(broken).problems
    assert problem.startswith("its clock is set forward by 36000.000 s at 1.") and measured(broken).frames < 7 * 48000


def test_vorbis_time_stamps_with_gaps():
    pages = ogg_pages(encoded(sound(20.0), format="OGG", subtype="VORBIS"))
    pytest.importorskip("av")
    audio = measured(b"".join([*pages[:4], *(with_granule(page, RATE * 3) for page in pages[4:])]))
    assert audio.frames / audio.rate == pytest.approx(23.0, abs=0.05)
    assert audio.notes == ["its time stamps have 1 gap of 3.000 s together, filled with silence"]


ID3 = b"ID3" + bytes([3, 0, 0, 0, 0, 2, 0]) + bytes(256)
PARTS = [(written("mp3", 0.5), 0.5), (written("mp3", 1.0), 1.0), (ID3, 0), (bytes(99), 0)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6))
def test_as_much_as_was_joined_is_read(parts):
    expected = sum(seconds for _, seconds in parts)
    if expected:
        assert measured(b"".join(content for content, _ in parts)).frames == expected * RATE


RANGES = st.tuples(st.integers(0, 50), st.integers(0, 50))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=9), RANGES), max_size=6), st.data())
def test_pieces_are_the_bytes_that_they_are_made_of(pieces, data):
    content = bytes(range(60))
    expected = b"".join(piece if isinstance(piece, bytes) else content[slice(*piece)] for piece in pieces)
    file = Pieces(Bytes(content), tuple(pieces))
    assert file.read() == expected
    for _ in range(4):
        at, size = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
        assert file.seek(at) == at and file.read(size) == expected[at : at + size]
    assert file.seek(0, io.SEEK_END) == len(expected)
