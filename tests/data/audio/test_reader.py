"""What an audio source holds is told by its content, and read to its end; what is missing is told."""

import io
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from audio_files import (
    LIBSNDFILE,
    PLAIN,
    RATE,
    encoded,
    measured,
    packed,
    sound,
    with_flac_total,
    with_wav_size,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio import ENDINGS, AudioInput, read_audio
from tokenverse_pp.data.audio.source import container_of


def samples_of(source, **how):
    with AudioInput(source, **how) as audio:
        return audio.read()


@pytest.mark.parametrize("container", LIBSNDFILE)
def test_content_tells_the_container(container, tmp_path):
    path, content = tmp_path / "sound.mp3", written(container)
    path.write_bytes(content)
    with open(path, "rb") as file:
        for source in (path, str(path), content, bytearray(content), io.BytesIO(content), file):
            samples, rate = read_audio(source)
            assert rate == RATE and len(samples) == 2 * RATE
            assert np.abs(samples - sound()[:, 0]).max() < LIBSNDFILE[container][1]
    assert measured(path).container == container


def test_big_endian_and_extensible_wav():
    for how in ({"endian": "BIG"}, {"format": "WAVEX"}, {"subtype": "FLOAT"}, {"subtype": "ULAW"}):
        audio = measured(encoded(sound(), **how))
        assert (audio.container, audio.frames, audio.problems) == ("wav", 2 * RATE, [])


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(written("flac")))
    writer.start()
    assert len(read_audio(pipe)[0]) == 2 * RATE
    writer.join()


@pytest.mark.parametrize("channels", [2, 6, 300])
def test_any_number_of_channels(channels):
    samples = sound(0.1, channels=channels)
    content = encoded(samples)
    np.testing.assert_allclose(samples_of(content), samples.T, atol=1e-4)
    np.testing.assert_allclose(read_audio(content)[0], samples.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36])
def test_wav_that_was_streamed_states_no_length(size):
    content = with_wav_size(written("wav"), size)
    audio = measured(content)
    assert (audio.frames, audio.problems) == (2 * RATE, [])
    assert measured(content[:-2000]).frames == 2 * RATE - 1000
    with pytest.raises(UserError, match="audio: holds no samples"):
        read_audio(content[: content.find(b"data") + 8])


def test_other_headers_without_a_length():
    au = written("au")
    for size in (b"\xff" * 4, bytes(4)):
        assert measured(au[:8] + size + au[12:]).frames == 2 * RATE
    caf = written("caf")
    at = caf.find(b"data") + 4
    assert measured(caf[:at] + b"\xff" * 8 + caf[at + 8 :]).frames == 2 * RATE
    flac = written("flac")
    assert measured(with_flac_total(flac, 0)).frames == 2 * RATE
    np.testing.assert_array_equal(samples_of(with_flac_total(flac, 0)), samples_of(flac))


@pytest.mark.parametrize("container", ["wav", "aiff", "flac", "mp3", "ogg", "caf", "au", "sphere", "w64"])
def test_joined_files_are_read_to_the_end(container, tmp_path):
    one, other = written(container), written(container, 1.0)
    path = tmp_path / "joined"
    path.write_bytes(one + other + one)
    audio = measured(path)
    assert audio.frames == 5 * RATE and not audio.problems and not audio.is_plain
    assert audio.notes == ["3 streams are joined in it, 5.000 s together"]
    expected = np.concatenate([samples_of(one), samples_of(other), samples_of(one)], axis=1)
    np.testing.assert_array_equal(samples_of(path, thorough=True), expected)
    with AudioInput(path, thorough=True) as audio:  # a piece across a joint
        np.testing.assert_array_equal(audio.read(RATE, 3 * RATE), expected[:, RATE : 3 * RATE])


def test_headers_that_state_less_than_there_is():
    assert measured(with_flac_total(written("flac"), RATE)).notes == ["2.000 s are read, where its header says 1.000 s"]
    [problem] = measured(with_wav_size(written("wav"), 2 * RATE)).problems
    assert problem == "longer than its header says: some 0.999 s behind its end are not read"
    # Chunks, tags and padding behind the samples are no audio.
    for rest in (b"LIST" + (400).to_bytes(4, "little") + bytes(400), b"TAG" + bytes(125), bytes(9000)):
        assert measured(written("wav") + rest).problems == []


def test_tags_before_the_audio():
    tag = b"ID3" + bytes([3, 0, 0, 0, 0, 4, 10]) + bytes(522)
    for container in ("mp3", "flac", "wav"):
        assert measured(tag + tag + written(container)).frames == 2 * RATE


@pytest.mark.parametrize("container", PLAIN)
@pytest.mark.parametrize("share", [0.97, 0.8, 0.5, 0.1])
def test_truncated_files_are_told_with_both_lengths(container, share):
    content = written(container, 3.0)
    audio = measured(content[: int(len(content) * share)])
    match = re.fullmatch(r"truncated: (\d+\.\d{3}) s of (\d+\.\d{3}) s", "".join(audio.problems))
    assert float(match[1]) == pytest.approx(audio.frames / RATE, abs=1e-3)
    assert float(match[2]) == pytest.approx(3.0, abs=2e-3)  # the header has no more digits where little is left
    assert 3 * (share - 0.1) * RATE < audio.frames < 3 * (share + 0.01) * RATE
    with AudioInput(content[: int(len(content) * share)]) as audio:
        assert audio.samples().shape == (audio.frames,)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_truncated_ogg_has_no_length_to_state(subtype):
    content = encoded(sound(8.0), format="OGG", subtype=subtype)
    [problem] = measured(content[: int(len(content) * 0.8)]).problems
    assert problem.startswith("truncated: its last page is not complete, ") and problem.endswith(" s are read")


CONTENTS = {container: written(container, 0.6) for container in (*PLAIN, "ogg")}


def read_or_refused(content):
    """The samples of bytes; None for a refusal in one line."""
    try:
        samples, rate = read_audio(content, "call")
    except UserError as error:
        assert str(error).startswith("call: ") and "\n" not in str(error)
        return None
    assert samples.dtype == np.float32 and rate > 0
    return samples


def check_cut(container, share):
    content = CONTENTS[container][: int(len(CONTENTS[container]) * share)]
    samples = read_or_refused(content)
    if samples is None:
        return
    audio = measured(content)
    assert audio.frames == len(samples)
    # An encoder or a sloppy header may be wrong by 25 ms.
    assert audio.problems or 0.6 * RATE - len(samples) <= 0.026 * RATE
    whole = len(samples) - (1152 if container == "mp3" else 0)  # its last frame overlaps with one that is missing
    assert whole <= 0 or np.abs(samples - sound(0.6)[: len(samples), 0])[:whole].max() < LIBSNDFILE[container][1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PLAIN), st.floats(0, 1))
def test_wherever_a_file_is_cut_it_is_told_or_refused(container, share):
    check_cut(container, share)


@pytest.mark.slow
@settings(max_examples=10000, deadline=None)
@given(st.sampled_from(PLAIN), st.floats(0, 1))
def test_wherever_a_file_is_cut_long(container, share):
    check_cut(container, share)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CONTENTS)), st.integers(0, 10**6), st.binary(min_size=1, max_size=40))
def test_damage_anywhere_is_no_traceback(container, at, garbage):
    content = bytearray(CONTENTS[container])
    at %= len(content)
    content[at : at + len(garbage)] = garbage
    read_or_refused(bytes(content))


STARTS = [b"", b"RIFF", b"fLaC", b"OggS", b"\xff\xfb\x90\xc4", b"ID3", b"....ftyp"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(STARTS))
def test_anything_at_all_is_no_traceback(content, start):
    samples = read_or_refused(start + content)
    assert samples is None or len(samples) < 2000


def test_damage_in_the_middle_is_refused():
    flac = written("flac", 3.0)
    middle = len(flac) // 2
    for broken in (flac[:middle] + bytes(3000) + flac[middle + 3000 :], flac[:middle] + flac[middle + 3000 :]):
        with pytest.raises(UserError, match=r"^call: damaged at 1\.\d+ s: it cannot be decoded from there"):
            read_audio(broken, "call")
    ogg = encoded(sound(12.0), format="OGG", subtype="VORBIS")
    at = len(ogg) // 2
    with pytest.raises(UserError, match=r"^call: damaged: the page at byte \d+ has another checksum"):
        read_audio(ogg[:at] + b"xxxx" + ogg[at + 4 :], "call")


def test_samples_that_are_no_numbers():
    samples = sound(0.5)
    samples[77] = np.inf
    with pytest.raises(UserError, match="audio: holds samples of NaN or infinity"):
        read_audio(encoded(samples, subtype="FLOAT"))


@pytest.mark.parametrize(
    "content", [b"words " * 999, b"\xff\xfe" + "words ".encode("utf-16-le") * 99, bytes(9999), b"\xff" * 9999, b"{}"]
)
def test_what_is_no_audio(content, capfd):
    with pytest.raises(UserError, match=r"^x.wav: no audio that can be decoded: not audio, or its format is"):
        read_audio(content, "x.wav")
    assert capfd.readouterr() == ("", "")


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UserError, match=r"empty.wav: the file is empty"):
        read_audio(tmp_path / "empty.wav")
    with pytest.raises(UserError, match=r"gone.wav: cannot be read: No such file"):
        read_audio(tmp_path / "gone.wav")


def test_sphere_that_is_compressed_needs_sph2pipe(tmp_path, monkeypatch):
    header = b"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i 16000\nsample_rate -i 16000\n"
    header += b"sample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    path = tmp_path / "call.sph"
    path.write_bytes(header.ljust(1024, b"\0") + b"ajkg" + bytes(500))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"call.sph: SPHERE that is compressed with Shorten needs sph2pipe"):
        read_audio(path)
    program = tmp_path / "sph2pipe"
    for seconds, told in ((1.0, []), (0.5, ["truncated: 0.500 s of 1.000 s"])):
        (tmp_path / "out.wav").write_bytes(written("wav", seconds))
        program.write_text(f"#!/bin/sh\n/bin/cat {tmp_path}/out.wav\n")
        program.chmod(0o755)
        audio = measured(path)
        assert (audio.frames, audio.problems, audio.is_plain) == (seconds * RATE, told, False)
    program.write_text("#!/bin/sh\necho no such coding >&2; exit 1\n")
    with pytest.raises(UserError, match=r"call.sph: sph2pipe cannot read it: no such coding$"):
        read_audio(path)


def test_neither_torch_nor_lhotse_is_imported(tmp_path):
    (tmp_path / "a.flac").write_bytes(written("flac"))
    code = "import sys; from tokenverse_pp.data.audio import read_audio; read_audio(sys.argv[1])\n"
    code += "assert not {'torch', 'lhotse', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.flac")], check=True)


def test_endings_are_in_lower_case():
    assert all(ending == ending.lower() and ending[0] == "." for ending in ENDINGS)


@pytest.mark.parametrize(
    ("head", "container"),
    [
        (b"\x00\x00\x00\x20ftypM4A ", "mp4"),
        (b"#!AMR-WB\n", "amr"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "avi"),
        (b"G words of a text that begins so", "unknown"),
    ],
)
def test_containers_of_pyav_by_content(head, container):
    assert container_of(head.ljust(400, b"\1")) == container


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    pytest.importorskip("av")
    path = packed(tmp_path / "talk.webm", "libopus").rename(tmp_path / "talk.wav")
    monkeypatch.setitem(sys.modules, "av", None)
    for source, name in ((path, str(path)), (path.read_bytes(), "stdin")):
        with pytest.raises(UserError) as caught:
            read_audio(source, name)
        assert str(caught.value) == f"{name}: Matroska or WebM files need PyAV: pip install 'tokenverse_pp[media]'"
