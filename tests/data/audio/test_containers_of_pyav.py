"""MP4, WebM and the like: told by content, on the clock of the container, and what is missing is told."""

import numpy as np
import pytest
from audio_files import measured, packed, sound

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio import AudioInput, read_audio
from tokenverse_pp.data.audio.inputs import open_audio
from tokenverse_pp.data.dataset import load_inputs

pytest.importorskip("av")

FILES = {  # name: codec, how; all hold a second
    "talk.webm": ("libopus", {}),
    "live.webm": ("libopus", {"options": {"live": "1"}}),
    "talk.mkv": ("flac", {}),
    "five.mka": ("aac", {"layout": "5.1"}),
    "talk.m4a": ("aac", {}),
    "fast.m4a": ("aac", {"options": {"movflags": "faststart"}, "layout": "stereo"}),
    "fragments.mp4": ("aac", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
    "talk.mov": ("pcm_s16le", {}),
    "talk.aac": ("aac", {"format": "adts"}),
    "talk.ts": ("aac", {"format": "mpegts"}),
    "talk.avi": ("pcm_s16le", {}),
    "flac.ogg": ("flac", {}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: packed(folder / name, codec, **how) for name, (codec, how) in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_content_tells_the_container(files, name, tmp_path, capfd):
    content = files[name].read_bytes()
    (tmp_path / "browser.wav").write_bytes(content)
    with open(files[name], "rb") as file:
        seconds = {open_audio(source).cut.duration for source in (files[name], tmp_path / "browser.wav", content, file)}
    assert len(seconds) == 1 and seconds.pop() == pytest.approx(1.0, abs=0.06)
    audio = measured(content)
    assert (audio.problems, audio.notes, audio.damage) == ([], [], None)
    assert audio.channels == {"five.mka": 6, "fast.m4a": 2}.get(name, 1)
    samples = load_inputs(open_audio(content).cut, convert=True).numpy()
    spectrum = np.abs(np.fft.rfft(samples[4000:12000] * np.hanning(8000)))
    assert 310 < np.argmax(spectrum) * 2 < 380  # the tone glides from 320 to 360 Hz
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("share", [0.97, 0.5, 0.01])
@pytest.mark.parametrize("name", FILES)
def test_truncated_containers_are_told_or_refused(files, name, share, tmp_path, capfd):
    content = files[name].read_bytes()
    size = int(len(content) * share)
    size -= size % 188 == 0  # between two packets of MPEG-TS nothing would tell
    try:
        audio = measured(content[:size])
    except UserError as error:
        assert str(error).startswith("audio: ") and "\n" not in str(error)
    else:
        read = audio.frames / audio.rate
        # Where only an index behind the audio is missing, there may be nothing to tell.
        assert read > 0.98 or audio.problems[0].startswith("truncated: ")
        assert read <= 1.05
    assert capfd.readouterr().err == ""


def test_mp4_without_its_index_says_so(files):
    content = files["talk.m4a"].read_bytes()
    with pytest.raises(UserError, match=r"^call: truncated: its index \(moov\) is missing"):
        read_audio(content[:-400], "call")


@pytest.mark.parametrize("name", ["gap.webm", "gap.mkv", "gap.mp4"])
def test_gaps_become_silence_and_a_late_start_too(name, tmp_path, caplog):
    codec = "libopus" if name == "gap.webm" else "aac"
    path = packed(tmp_path / name, codec, starts=(2.0, 6.0, 7.5))
    samples = load_inputs(open_audio(path).cut, convert=True).numpy()
    assert len(samples) == pytest.approx(8.5 * 16000, abs=900)
    loud = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1) > 0.05
    for start, stop, heard in ((0, 190, 0), (210, 290, 1), (310, 590, 0), (610, 690, 1), (710, 740, 0)):
        assert (loud[start:stop] == heard).all()
    late, gaps = caplog.messages
    assert late.startswith(f"warning: {path}: its audio starts at ") and late.endswith(": silence stands before it")
    assert gaps.startswith(f"warning: {path}: its time stamps have 2 gaps of 3.4") and "filled with silence" in gaps


def test_a_clock_that_is_set_is_not_silence(tmp_path):
    forward = measured(packed(tmp_path / "a.webm", "libopus", starts=(0.0, 36000.0)))
    assert forward.frames < 2.1 * forward.rate
    [problem] = forward.problems
    assert problem.startswith("its clock is set forward by 35998.9") and " at 1.0" in problem
    start = measured(packed(tmp_path / "b.webm", "libopus", starts=(36000.0, 36003.0)))
    assert start.frames == pytest.approx(4.0 * start.rate, abs=500)
    assert start.problems[0].startswith("its clock is set forward by 36000.0") and len(start.problems) == 1
    # A broadcast's clock begins anywhere.
    stream = measured(packed(tmp_path / "c.ts", "aac", starts=(5000.0,), format="mpegts"))
    assert stream.frames == pytest.approx(stream.rate, abs=1500) and not stream.problems + stream.notes


@pytest.mark.parametrize("name", ["talk.webm", "live.webm", "talk.mkv", "talk.m4a", "fast.m4a", "talk.aac"])
def test_joined_containers_are_read_to_the_end(files, name):
    content = files[name].read_bytes()
    one, two = measured(content), measured(content + content)
    assert two.frames == pytest.approx(2 * one.frames, abs=0.03 * one.rate) and not two.problems


@pytest.mark.parametrize(("codec", "channels"), [("wavpack", 12), ("aac", 16), ("pcm_s16le", 24)])
def test_more_channels_than_pyav_hands_over(codec, channels, tmp_path):
    """PyAV reads beyond its memory where a planar frame has more than eight."""
    import av

    layout = {12: "7.1.4", 16: "hexadecagonal", 24: "22.2"}[channels]
    levels = 0.02 * np.arange(1, channels + 1, dtype=np.float32)
    try:
        with av.open(str(tmp_path / "many.mkv"), "w") as container:
            stream = container.add_stream(codec, rate=48000)
            stream.layout = layout
            resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=48000, frame_size=1024)
            flat = np.tile(levels, 9600)[None]
            frame = av.AudioFrame.from_ndarray(flat, format="flt", layout=layout)
            frame.sample_rate, frame.pts = 48000, 0
            frames = [*resampler.resample(frame), *resampler.resample(None)]
            for packet in [p for frame in frames for p in stream.encode(frame)] + stream.encode(None):
                container.mux(packet)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"this FFmpeg does not write it: {error}")
    with AudioInput(tmp_path / "many.mkv") as audio:
        found = audio.read()
    assert len(found) == channels
    if codec != "aac":  # which has filters of its own
        np.testing.assert_allclose(found[:, 5000], levels, atol=5e-3)


def test_damage_in_the_middle_is_refused(tmp_path):
    content = packed(tmp_path / "a.m4a", "aac", seconds=3.0, options={"movflags": "faststart"}).read_bytes()
    at = len(content) // 2
    with pytest.raises(UserError, match=r"call: damaged at 1\.\d+ s: what stands there cannot be decoded"):
        read_audio(content[:at] + b"\xff" * 3000 + content[at + 3000 :], "call")


def test_playlists_open_nothing(tmp_path):
    path = packed(tmp_path / "a.ts", "aac", format="mpegts")
    for text in (f"#EXTM3U\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile {path}\n"):
        with pytest.raises(UserError, match="no audio that can be decoded"):
            read_audio(text.encode(), "list")


def test_video_without_audio_says_so(tmp_path):
    import av

    path = tmp_path / "silent.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(UserError, match=r"silent.mkv: holds no audio$"):
        read_audio(path)


def test_samples_are_those_at_any_rate(files):
    with AudioInput(files["talk.mkv"]) as audio:
        np.testing.assert_allclose(audio.read(100, 900)[0], sound(1.0, 48000)[100:900, 0], atol=1e-4)
    with AudioInput(files["talk.mkv"], rate=16000) as audio:
        assert audio.rate == 16000 and len(audio.samples()) == pytest.approx(16000, abs=2)
