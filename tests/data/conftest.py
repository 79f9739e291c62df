"""What the tests of importing share: little recordings, and where the manifest goes."""

import pytest
from importing_cases import write_audio


@pytest.fixture(scope="session")
def audio_dir(tmp_path_factory):
    """Recordings of 4 s: a.wav, b.wav, sub/c.flac; d.wav has 2 channels and 8 kHz; and files that hold no audio."""
    folder = tmp_path_factory.mktemp("audio")
    for name in ("a.wav", "b.wav", "sub/c.flac"):
        write_audio(folder / name)
    write_audio(folder / "d.wav", rate=8000, channels=2)
    (folder / "notes.txt").write_text("no audio")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "torn.wav").write_bytes((folder / "a.wav").read_bytes()[:30])
    return folder


@pytest.fixture
def out(tmp_path):
    """The manifest to write."""
    return tmp_path / "out" / "cuts.jsonl"
