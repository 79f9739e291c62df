"""Folders that tests share are made once, whole, and nobody changes them."""

from types import SimpleNamespace

import pytest
from shared_folders import shared_folder


def test_a_folder_is_made_once_and_whole_and_a_change_is_seen(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    factory, made = SimpleNamespace(getbasetemp=lambda: tmp_path), []

    def make(folder):
        folder.mkdir()  # refuses what is there by half
        made.append(folder)
        (folder / "half").touch()
        assert len(made) > 1, "the first time something goes wrong"

    with pytest.raises(AssertionError, match="goes wrong"), shared_folder(factory, "a", make):
        pass
    for _ in range(2):
        with shared_folder(factory, "a", make) as folder:
            assert [path.name for path in folder.iterdir()] == ["half"]
    assert len(made) == 2
    for change in (lambda: (folder / "half").write_text("whole"), lambda: (folder / "new").touch()):
        with pytest.raises(AssertionError, match="copy it first"), shared_folder(factory, "a", make):
            change()
