"""Reading and writing object storage, with fsspec's file system in memory as the store."""

import errno
import fcntl
import json
import os
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from lhotse import CutSet

from tokenverse_pp.base import storage
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing, url_of, write_json
from tokenverse_pp.cli.main import cli
from tokenverse_pp.data.access import allow_sources, check_access
from tokenverse_pp.data.editing.shar import UNFINISHED, find_shar
from tokenverse_pp.data.manifests import read_cuts, read_rows
from tokenverse_pp.data.samplers import load_cuts, open_source

HOME = "memory://bucket"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache and an empty store; what is held is let go."""
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_held", {})
    monkeypatch.setattr(storage, "_known", {})
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    yield tmp_path / "cache" / "objects"
    join_readers()  # they would go on in the cache of the next test
    for handle in storage._held.values():
        os.close(handle)
    fsspec.filesystem("memory").store.clear()


def join_readers():
    for thread in threading.enumerate():
        if thread.name == storage.READ_AHEAD:
            thread.join()


def entries(cache):
    return [path for path in cache.iterdir() if len(path.name) == 32]


def failing(monkeypatch, name, errors):
    """The store's method ``name`` raises these one after another (a function is called in its place), then works."""
    real = getattr(MemoryFileSystem, name)

    def method(self, *args, **kwargs):
        if errors:
            error = errors.pop(0)
            if isinstance(error, Exception):
                raise error
            return error(*args)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, name, method)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/a b/c", "s3://bucket/a b/c"),
        (Path("s3://bucket/a") / "b", "s3://bucket/a/b"),
        (Path("hf://datasets/owner/name"), "hf://datasets/owner/name"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3:/bucket", None),  # a string keeps its slashes
        ("C:/audio", None),
        (Path("C:/audio"), None),
        ("exp/s3:/a", None),
        ("pipe:cat s3://a", None),
        (Path("/data/a:/b"), None),
    ],
)
def test_what_is_a_url(path, url):
    assert url_of(path) == url


def test_an_object_is_fetched_once_and_again_when_it_has_changed(cache, monkeypatch):
    got = []
    real = MemoryFileSystem.get_file
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda self, *args: got.append(args[0]) or real(self, *args))
    storage.upload(b"one", f"{HOME}/a.txt")
    assert [storage.read_bytes(f"{HOME}/a.txt") for _ in range(3)] == [b"one"] * 3 and len(got) == 1
    storage.upload(b"two", f"{HOME}/a.txt")
    assert storage.read_bytes(f"{HOME}/a.txt") == b"two" and len(got) == 2
    assert storage.fetch(f"{HOME}/a.txt").name == "a.txt"  # libraries go by endings


def test_many_readers_fetch_once(monkeypatch):
    got = []
    real = MemoryFileSystem.get_file
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda self, *args: got.append(args[0]) or real(self, *args))
    storage.upload(b"x" * 1000, f"{HOME}/a.bin")
    found = []
    threads = [threading.Thread(target=lambda: found.append(storage.read_bytes(f"{HOME}/a.bin"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"x" * 1000] * 8 and len(got) == 1


def test_what_fails_or_comes_short_is_tried_again(monkeypatch, tmp_path):
    storage.upload(b"whole", f"{HOME}/a.bin")

    def short(path, target):
        Path(target).write_bytes(b"who")

    failing(monkeypatch, "get_file", [OSError("503 SlowDown"), short, TimeoutError(), short])
    assert storage.read_bytes(f"{HOME}/a.bin") == b"whole"
    memory = fsspec.filesystem("memory")
    failing(monkeypatch, "put_file", [OSError("reset"), lambda source, path: memory.pipe_file(path, b"more")])
    (tmp_path / "b").write_bytes(b"more than before")
    storage.upload(tmp_path / "b", f"{HOME}/b")
    assert storage.read_bytes(f"{HOME}/b") == b"more than before"


def test_what_does_not_pass_is_an_error_of_one_line(monkeypatch, cache):
    storage.upload(b"whole", f"{HOME}/a.bin")
    failing(monkeypatch, "get_file", [OSError("503 SlowDown")] * storage.TRIES)
    with pytest.raises(UserError, match=rf"{HOME}/a.bin: failed {storage.TRIES} times, at last: 503 SlowDown"):
        storage.read_bytes(f"{HOME}/a.bin")
    assert entries(cache) == []
    failing(monkeypatch, "get_file", [PermissionError("Access Denied"), OSError("never raised")])
    with pytest.raises(UserError, match="Access Denied"):
        storage.read_bytes(f"{HOME}/a.bin")
    with pytest.raises(UserError, match="no such file"):
        storage.fetch(f"{HOME}/none")
    with pytest.raises(UserError, match="nostore"):
        storage.fetch("nostore://a/b")


def test_the_cache_keeps_to_its_size(cache, monkeypatch):
    monkeypatch.setenv(storage.SIZE, "0.00001")  # 10,000 bytes
    for number in range(6):
        storage.upload(bytes([number]) * 3000, f"{HOME}/{number}")
    held = storage.fetch(f"{HOME}/0")
    times = 1_000_000_000
    for number in range(1, 6):
        with storage.open_cached(f"{HOME}/{number}") as file:
            assert file.read() == bytes([number]) * 3000
        for entry in entries(cache):  # file times may be coarse: those of before are older
            os.utime(entry, (times + int(next(entry.iterdir()).name),) * 2)
        assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) <= 10_000
    assert held.read_bytes() == bytes(3000)  # held by this process, though not used for longest
    assert sorted(next(entry.iterdir()).name for entry in entries(cache)) == ["0", "4", "5"]
    monkeypatch.setenv(storage.SIZE, "none")
    with pytest.raises(UserError, match="expected gigabytes"):
        storage.fetch(f"{HOME}/1")


def test_what_is_held_or_cannot_be_locked_stays(cache, monkeypatch, caplog):
    monkeypatch.setenv(storage.SIZE, "0.000004")
    monkeypatch.setattr(storage, "_told", set())
    flock = fcntl.flock

    def refuse(handle, operation):
        if operation & fcntl.LOCK_NB:
            raise OSError("no locks available")
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    for number in range(2):
        storage.upload(bytes(3000), f"{HOME}/{number}")
    held = storage.fetch(f"{HOME}/0")
    storage.read_bytes(f"{HOME}/1")
    assert held.is_file() and "not to be locked" in caplog.text


def test_a_file_in_the_cache_that_was_cut_off_is_fetched_again(cache):
    storage.upload(b"whole", f"{HOME}/a.bin")
    for read in (storage.read_bytes, lambda url: storage.fetch(url).read_bytes()):
        assert read(f"{HOME}/a.bin") == b"whole"
        next(entries(cache)[0].iterdir()).write_bytes(b"wh")
        assert read(f"{HOME}/a.bin") == b"whole" and len(entries(cache)) == 1


def test_a_full_disk_is_an_error_at_once(monkeypatch):
    storage.upload(b"whole", f"{HOME}/a.bin")
    failing(monkeypatch, "get_file", [OSError(errno.ENOSPC, "No space left on device"), OSError("never raised")])
    with pytest.raises(UserError, match=r"a\.bin: .*No space left"):
        storage.read_bytes(f"{HOME}/a.bin")


def test_an_object_that_is_replaced_in_use_is_an_error(monkeypatch):
    storage.upload(b"one", f"{HOME}/a.bin")
    real = MemoryFileSystem.info
    etag = ["first"]
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, *a, **k: {**real(self, *a, **k), "ETag": etag[0]})
    storage.remember(HOME, {"a.bin": storage.info_of(f"{HOME}/a.bin")})
    etag[0] = "second"
    with pytest.raises(UserError, match="was replaced while it was in use"):
        storage.fetch(f"{HOME}/a.bin")


def test_keys_that_lead_out_of_a_folder_are_left_out():
    memory = fsspec.filesystem("memory")
    for key in ("a.txt", "b/c.txt", "../out", "b/../../out", "/etc/out", "b//out", "./out", "d\\\\..\\\\out"):
        memory.store[f"/bucket/folder/{key}"] = memory.store.get("/x") or fsspec.implementations.memory.MemoryFile(
            memory, f"/bucket/folder/{key}", b"x"
        )
    assert list(storage.list_folder(f"{HOME}/folder")) == ["a.txt", "b/c.txt"]


def test_files_are_written_whole_or_not_at_all():
    write_json(f"{HOME}/out/a.json", {"a": 1})
    assert json.loads(storage.read_bytes(f"{HOME}/out/a.json")) == {"a": 1}
    with pytest.raises(ZeroDivisionError), replacing(Path(f"{HOME}/out/a.json")) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert list(storage.list_folder(f"{HOME}/out")) == ["a.json"]
    assert json.loads(storage.read_bytes(f"{HOME}/out/a.json")) == {"a": 1}


@pytest.fixture
def manifest(tiny_corpus):
    path = tiny_corpus / "cuts_test.jsonl.gz"
    storage.upload(path, f"{HOME}/cuts_test.jsonl.gz")
    return path


def test_manifest_commands_read_and_write_urls(manifest):
    words = ["manifest", "subset", f"{HOME}/cuts_test.jsonl.gz", f"{HOME}/two.jsonl.gz", "--cuts", "2"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2 and f"{HOME}/two.jsonl.gz: exists already; --overwrite replaces it" in done.output
    assert CliRunner().invoke(cli, [*words, "--overwrite"]).exit_code == 0
    two = [cut.id for cut in read_cuts(f"{HOME}/two.jsonl.gz")]
    assert two == [cut.id for cut in read_cuts(manifest)][:2]
    assert next(read_rows(Path(f"{HOME}/two.jsonl.gz"))).where == f"{HOME}/two.jsonl.gz, line 1"
    done = CliRunner().invoke(cli, ["manifest", "stats", f"{HOME}/none.jsonl.gz"])
    assert done.exit_code == 2 and f"{HOME}/none.jsonl.gz: no such file" in done.output
    for output, more in ((f"{HOME}/new.jsonl.gz", ()), ("new.jsonl", ("--storage-dir", f"{HOME}/features"))):
        words = ["manifest", "store-features", str(manifest), output, "--config", str(manifest), *more]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 2 and "--storage-dir: expected a local folder" in done.output


def test_a_shar_is_written_and_read_there(manifest, cache, monkeypatch):
    url = f"{HOME}/shar"
    words = ["manifest", "to-shar", str(manifest), url, "--shard-size", "2"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    cuts = list(open_source(url).open_at(0)) if open_source(url).count else []
    expected = list(read_cuts(manifest))
    assert [cut.id for cut in cuts] == [cut.id for cut in expected]
    for cut, other in zip(cuts, expected):
        assert (cut.load_audio() == other.load_audio()).all()
    again = open_source(url)
    assert again.count == 4 and [cut.id for cut in again.open_at(3)] == [expected[3].id]
    # A folder that holds something is not touched, unless a run that was stopped has left it.
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2 and "exists already" in done.output
    storage.upload(b"", f"{url}/{UNFINISHED}")
    storage.upload(b"old", f"{url}/recording.000009.tar")
    with pytest.raises(UserError, match=f"--data.train: {url}: not finished"):
        open_source(url)
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert [name for name in storage.list_folder(url) if "000009" in name or name == UNFINISHED] == []
    # Shards are those that were there when the Shar was opened.
    files = open_source(url).files
    assert files.is_remote and (storage.info_of(f"{url}/recording.000000.tar"))["size"] > 0
    join_readers()
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "info", lambda self, path, **kwargs: pytest.fail("asked again"))
        assert len(list(CutSet.from_shar(fields=files.open(0)))) == 2
    # What cannot be read is told as such, and not as lhotse tells it.
    storage.remove(f"{url}/recording.000001.tar")
    join_readers()
    for entry in entries(cache):
        if next(entry.iterdir()).name == "recording.000001.tar":
            shutil.rmtree(entry)
    with pytest.raises(UserError, match=f"^{url}/recording.000001.tar: no such file"):
        list(again.open_at(0))
    # Nothing is deleted where there is anything that is no shard.
    storage.upload(b"", f"{url}/{UNFINISHED}")
    storage.upload(b"notes", f"{url}/more/notes.txt")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2 and "more/notes.txt is in it" in done.output
    assert {"more/notes.txt", "recording.000000.tar"} <= storage.list_folder(url).keys()
    with pytest.raises(UserError, match=f"{HOME}/nothing: expected a file of cuts or a Shar"):
        find_shar(f"{HOME}/nothing")


def test_a_url_in_a_manifest_still_needs_leave(manifest, tmp_path):
    cut, expected = next(read_cuts(manifest)), next(read_cuts(manifest)).load_audio()
    source = cut.recording.sources[0]
    storage.upload(Path(source.source), f"{HOME}/a.wav")
    source.type, source.source = "url", f"{HOME}/a.wav"
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (found,) = load_cuts([str(tmp_path / "cuts.jsonl")])
    with pytest.raises(UserError, match="--allow-urls"):
        check_access(found)
    with allow_sources(urls=True):
        check_access(found)
        assert (found.load_audio() == expected).all()
