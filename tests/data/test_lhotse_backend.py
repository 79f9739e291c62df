"""lhotse reads audio by one backend, whatever is installed, and lengths are compared."""

import io

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE, encoded, packed, sound, with_wav_size, written
from lhotse import AudioSource, Recording
from lhotse.audio import backend as backends
from lhotse.audio.utils import AudioLoadingError

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import TokenverseBackend, check_audio, use_backend
from tokenverse_pp.data.dataset import TransducerDataset, load_inputs


@pytest.fixture
def restored():
    before = backends.CURRENT_AUDIO_BACKEND
    yield
    backends.CURRENT_AUDIO_BACKEND = before


def test_it_is_the_backend_unless_the_user_has_chosen(restored, monkeypatch):
    assert isinstance(backends.get_current_audio_backend(), TokenverseBackend)
    for before in (None, backends.get_default_audio_backend()):
        backends.CURRENT_AUDIO_BACKEND = before
        use_backend()
        assert isinstance(backends.CURRENT_AUDIO_BACKEND, TokenverseBackend)
    backends.set_current_audio_backend("LibsndfileBackend")
    use_backend()
    assert type(backends.CURRENT_AUDIO_BACKEND).__name__ == "LibsndfileBackend"
    backends.CURRENT_AUDIO_BACKEND = None
    monkeypatch.setenv("LHOTSE_AUDIO_BACKEND", "LibsndfileBackend")
    use_backend()
    assert type(backends.get_current_audio_backend()).__name__ == "LibsndfileBackend"
    assert backends.AudioBackend.new("TokenverseBackend")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_have_it_too(method):
    dataset = TransducerDataset(None, None, None)
    loader = torch.utils.data.DataLoader(
        [dataset], batch_size=None, collate_fn=backend_name, num_workers=1, multiprocessing_context=method
    )
    assert list(loader) == ["TokenverseBackend"]


def backend_name(_):
    return type(backends.get_current_audio_backend()).__name__


@pytest.fixture(params=["none", "failing", "answering"])
def programs(request, tmp_path, monkeypatch):
    """PATH with no audio programs, with ones that fail, and with ones that answer with other audio.

    What they were called for is in the file that is returned.
    """
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "answer.wav").write_bytes(written("wav", 0.1))
    for name in ("ffmpeg", "ffprobe", "avconv", "sox", "soxi", "sph2pipe", "flac"):
        if request.param != "none":
            answer = "exit 1" if request.param == "failing" else f"/bin/cat {folder}/answer.wav"
            (folder / name).write_text(f"#!/bin/sh\necho $0 $* >> {calls}\n{answer}\n")
            (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return calls


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "ogg", "sphere"])
def test_no_program_on_the_path_has_a_say(container, programs, tmp_path):
    path = tmp_path / f"a.{'sph' if container == 'sphere' else container}"
    path.write_bytes(written(container))
    recording = Recording.from_file(path)
    assert recording.num_samples == 2 * RATE
    whole = recording.load_audio()
    assert whole.shape == (1, 2 * RATE) and np.abs(whole[0] - sound()[:, 0]).max() < 0.1
    np.testing.assert_allclose(recording.load_audio(offset=0.5, duration=0.25)[0], whole[0, 8000:12000], atol=1e-6)
    for share in (0.97, 0.5, 0.1):
        path.write_bytes(written(container)[: int(len(written(container)) * share)])
        with pytest.raises(UserError, match=r"(truncated: |no audio that can be decoded)"):
            load_inputs(recording.to_cut())
        assert check_audio(recording.to_cut())
    path.write_bytes(b"not audio " * 99)
    with pytest.raises(UserError, match="not recognised"):
        load_inputs(recording.to_cut())
    assert not programs.exists()


def cut_of(path, seconds=None):
    with soundfile.SoundFile(path) as file:
        frames = file.frames if seconds is None else round(seconds * file.samplerate)
        rate, channels = file.samplerate, file.channels
    source = AudioSource("file", list(range(channels)), str(path))
    return Recording("r", [source], rate, frames, frames / rate).to_cut()


@pytest.mark.parametrize("share", [0.97, 0.5])
@pytest.mark.parametrize("container", ["flac", "wav", "mp3", "ogg"])
def test_truncated_files_are_refused_with_both_lengths(container, share, tmp_path):
    path = tmp_path / "a.flac"
    content = encoded(sound(9.0), format="OGG", subtype="VORBIS") if container == "ogg" else written(container, 9.0)
    path.write_bytes(content)
    cut = cut_of(path)
    assert check_audio(cut) == [] and len(load_inputs(cut)) == 9 * RATE
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"^cut r: ") as caught:
        load_inputs(cut)
    for problem in (check_audio(cut)[0], str(caught.value)):
        assert problem.count(str(path)) == 1 and "truncated: " in problem and " s of 9.000 s" in problem
    # What lies in the part that is there can be read; what does not, cannot, and nothing is padded.
    if container in ("flac", "wav"):
        assert len(cut.recording.load_audio(duration=1.0, offset=2.0)[0]) == RATE
        with pytest.raises(AudioLoadingError, match="truncated: "):
            cut.recording.load_audio(offset=8.4, duration=0.6)


def test_a_truncated_file_is_no_recording(tmp_path):
    for container in ("flac", "wav", "mp3", "aiff"):
        path = tmp_path / "a.wav"
        path.write_bytes(written(container)[: len(written(container)) // 2])
        with pytest.raises(UserError, match=r"a.wav: truncated: \d\.\d+ s of 2\.0\d* s"):
            Recording.from_file(path)
        # A manifest that was made of it by others agrees with what is there, and not with the file's own header.
        assert any(f"{path}: truncated: " in line for line in check_audio(cut_of(path, 0.2)))


def test_files_that_are_not_what_the_manifest_says(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(sound(3.0)))
    cut = cut_of(path)
    for content, said in (
        (encoded(sound(3.0, 8000), 8000), "has 8000 Hz, where the manifest says 16000 Hz"),
        (encoded(sound(4.0)), "longer than the manifest says: 4.000 s, not 3.000 s"),
        (with_wav_size(encoded(sound(5.0)), 3 * 2 * RATE), "longer than its header says: some 1.99"),
    ):
        path.write_bytes(content)
        [problem] = check_audio(cut)
        assert said in problem and str(path) in problem
    path.write_bytes(encoded(sound(3.0, channels=3)))
    three = cut_of(path)
    path.write_bytes(encoded(sound(3.0)))
    assert check_audio(three) == [f"field 'recording': {path}: has 1 channels, where the manifest says 3"]


def test_damage_in_the_middle_is_no_truncation(tmp_path):
    path = tmp_path / "a.flac"
    content = written("flac", 4.0)
    path.write_bytes(content)
    cut = cut_of(path)
    path.write_bytes(content[:20000] + bytes(4000) + content[24000:])
    [problem] = check_audio(cut)
    assert "cannot be decoded: damaged at 0." in problem


def test_memory_and_saving(tmp_path):
    content = written("flac")
    recording = Recording.from_bytes(content, "r")
    assert recording.num_samples == 2 * RATE
    part = recording.to_cut().truncate(offset=0.5, duration=0.5)
    np.testing.assert_allclose(part.load_audio()[0], sound()[8000:16000, 0], atol=1e-4)
    (tmp_path / "a.flac").write_bytes(content)
    moved = Recording.from_file(tmp_path / "a.flac").move_to_memory(offset=0.5, duration=0.5, format="flac")
    np.testing.assert_array_equal(moved.load_audio(), part.load_audio())
    memory = io.BytesIO()
    backends.save_audio(memory, sound()[:, 0][None], RATE, format="flac")
    assert soundfile.info(io.BytesIO(memory.getvalue())).frames == 2 * RATE


@pytest.mark.parametrize("container", ["flac", "mp3", "wav", "ogg"])
def test_any_piece_of_joined_files(container, tmp_path):
    (tmp_path / "two").write_bytes(written(container) * 2)
    cut = Recording("r", [AudioSource("file", [0], str(tmp_path / "two"))], RATE, 4 * RATE, 4.0).to_cut()
    whole = load_inputs(cut).numpy()
    assert check_audio(cut) == [] and len(whole) == 4 * RATE
    for start in (0.5, 1.8, 2.5):
        piece = load_inputs(cut.truncate(offset=start, duration=1.0)).numpy()
        np.testing.assert_allclose(piece, whole[round(start * RATE) :][:RATE], atol=1e-6)


def test_containers_of_pyav(tmp_path):
    pytest.importorskip("av")
    recording = Recording.from_file(packed(tmp_path / "a.mkv", "flac", seconds=2.0))
    assert (recording.num_samples, recording.sampling_rate) == (96000, 48000)
    piece = recording.load_audio(offset=1.0, duration=0.5)[0]
    np.testing.assert_allclose(piece, sound(2.0, 48000)[48000:72000, 0], atol=1e-4)
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: int(len(content) * 0.8)])
    assert "truncated: 1.5" in check_audio(recording.to_cut())[0]
    with pytest.raises(UserError, match=r"cut a: .*a.mkv: .*truncated: 1.5"):
        load_inputs(recording.to_cut(), convert=True)
