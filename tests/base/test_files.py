import hashlib
import os

import pytest

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import BLOCK, feed, replacing, replacing_folder, write_json, write_text


def test_folders_are_made_and_files_replaced_whole(tmp_path):
    path = tmp_path / "a" / "scores.json"
    write_text(path, "é")
    write_json(path, {"wer": 0.1})
    with pytest.raises(ValueError):
        write_json(path, {"wer": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 10000 + "\ud800")
    assert path.read_text() == '{\n  "wer": 0.1\n}\n'
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_replacing_keeps_the_ending_and_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "new" / "cuts.jsonl.gz"
    with replacing(path) as temporary:
        assert temporary.name.endswith(".jsonl.gz") and temporary.parent == path.parent
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["cuts.jsonl.gz"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As root, /dev/null would become a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "oui")
        assert os.read(reader, 10) == b"oui" and pipe.is_fifo()
        with pytest.raises(RuntimeError), replacing(pipe) as temporary:
            temporary.write_text("half")
            raise RuntimeError
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_folders_are_no_files(tmp_path):
    for path in (tmp_path, "", "."):
        with pytest.raises(IsADirectoryError, match="expected a file to write"):
            write_text(path, "oui")
    assert not list(tmp_path.iterdir())


def test_folders_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path, neighbours = tmp_path / "model", [tmp_path / "model.old", tmp_path / "model.tmp"]
    for folder in neighbours:
        folder.mkdir()
    for content in ("first", "second"):
        with replacing_folder(path) as new:
            new.mkdir()
            (new / content).write_text(content)
    with pytest.raises(UserError, match="cannot be written: disk full"), replacing_folder(path) as new:
        new.mkdir()
        raise OSError("disk full")
    assert [file.name for file in path.iterdir()] == ["second"]
    for here in (path, path / "second_level"):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        with pytest.raises(UserError, match="the current folder"), replacing_folder(path):
            pass
    assert sorted(tmp_path.iterdir()) == sorted([path, *neighbours])


def test_feeding_files_of_any_size_to_a_digest(tmp_path):
    for content in (b"", b"x", b"0123456789" * (BLOCK // 4)):
        (tmp_path / "file").write_bytes(content)
        digest = hashlib.sha256(b"before")
        assert feed(digest, tmp_path / "file") == len(content)
        assert digest.hexdigest() == hashlib.sha256(b"before" + content).hexdigest()
