"""Broken input: one clear message naming file and line or cut, exit code 2, nothing written, no row lost.

TOKENVERSE_FUZZ=20000 runs more cases than CI does.
"""

import json
import os
import random
import re

import pytest
from fuzzing import TEXT_FILES, broken_manifest, broken_table, broken_text
from importing_cases import run

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.lines import MAX_LINE

CASES = int(os.environ.get("TOKENVERSE_FUZZ", "1000"))
COUNTS = re.compile(r"rows: (\d+) read = (\d+) kept \+ (\d+) left out")
PARTS = 10  # test cases in pytest's sense, so that a failure names a tenth


def seeds(share, part):
    """The seeds of one part of a share of all cases."""
    return range(part, round(CASES * share), PARTS)


def assert_clear(err, path, seed):
    """A message of short lines, that names the file, or one in it."""
    assert "Traceback" not in err, seed
    lines = err.strip().split("\n")
    assert lines[0].startswith("error: ") and all(line.strip() for line in lines), (seed, err)
    assert str(path) in err, (seed, err)
    assert all(len(line) < 8000 for line in lines), (seed, max(map(len, lines)))


def check_import(folder, seed, path, arguments, rows=None):
    """An import without and with --skip-bad."""
    out, rejected = folder / "out" / "cuts.jsonl", folder / "out" / "rejected.tsv"
    for file in (out, rejected):
        file.unlink(missing_ok=True)
    code, said, err = run("import", out, *arguments)
    assert code in (0, 2), seed
    if code == 2:
        assert_clear(err, path, seed)
        assert not out.exists(), seed
        code, said, err = run("import", out, *arguments, "--skip-bad", "--rejected", rejected)
        assert code in (0, 2), seed
        listed = rejected.read_text(encoding="utf-8").splitlines()[1:] if rejected.exists() else []
        if code == 2:
            assert_clear(err, path, seed)
            assert not out.exists(), seed
            return
        assert listed, (seed, said)
    else:
        listed = []
    read, kept, left_out = map(int, COUNTS.search(said).groups())
    assert read == kept + left_out and left_out == len(listed), (seed, said)
    assert rows is None or read == rows, (seed, said)
    cuts = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    assert sum(len(cut["supervisions"]) for cut in cuts) == kept, seed
    code, _, err = run("validate", out)
    assert code == 0, (seed, err)


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_tables(tmp_path, audio_dir, part):
    for seed in seeds(0.35, part):
        rng = random.Random(seed)
        name, data, rows, packed = broken_table(rng)
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(data)
        arguments = ["--table", path, "--audio-dir", audio_dir]
        if rng.random() < 0.3:
            arguments += ["--one-cut-per", "recording"]
        if rng.random() < 0.2:
            arguments += ["--normaliser", "words"]
        if rng.random() < 0.1:
            arguments += ["--inline-entities", rng.choice(["brackets", "tags"])]
        check_import(tmp_path, seed, path, arguments, rows)


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_annotation_files(tmp_path, audio_dir, part):
    for seed in seeds(0.25, part):
        rng = random.Random(seed)
        kind = rng.choice(sorted(TEXT_FILES))
        folder = tmp_path / str(seed)
        folder.mkdir()
        arguments = ["--audio-dir", audio_dir]
        if kind in ("segments", "text", "wav.scp"):
            for name in ("segments", "text", "wav.scp"):
                (folder / name).write_text(TEXT_FILES[name])
            (folder / kind).write_bytes(broken_text(kind, rng))
            arguments += ["--kaldi", folder]
        elif kind in ("ann", "txt", "conll"):
            (folder / "T.csv").write_text("id,audio,text\nu1,a.wav,bon jour\nu2,b.wav,oui\n")
            for name in ("ann", "txt"):
                (folder / f"u1.{name}").write_text(TEXT_FILES[name])
            (folder / f"u1.{kind}").write_bytes(broken_text(kind, rng))
            arguments += ["--table", folder / "T.csv"]
            arguments += ["--conll", folder / "u1.conll"] if kind == "conll" else ["--brat", folder]
        else:
            (folder / f"a.{kind}").write_bytes(broken_text(kind, rng))
            option = {"srt": "subtitles", "vtt": "subtitles", "json": "transcripts"}.get(kind, kind)
            arguments += [f"--{option}", folder]
        if rng.random() < 0.3:
            arguments += ["--one-cut-per", "recording"]
        check_import(folder, seed, folder, arguments)


@pytest.fixture(scope="module")
def good_cuts(tmp_path_factory, audio_dir):
    """Three cuts, as dictionaries, that are labelled for all tasks."""
    folder = tmp_path_factory.mktemp("good")
    entity = json.dumps([{"start": 0, "end": 3, "type": "X"}])
    columns = ["id", "audio", "start", "end", "text", "speaker", "language", "entities", "endpoint"]
    rows = [
        ["u1", "a.wav", 0, 1, "bon jour", "s1", "fr", entity, True],
        ["u2", "a.wav", 1.5, 3, "oui", "s2", "fr", [], False],
        ["u3", "b.wav", 0, 2, "non merci", "s1", "fr", [], True],
        ["u4", "sub/c.flac", 0, 2, "new york", "s1", "fr", entity, True],
    ]
    table = folder / "T.jsonl"
    table.write_text("\n".join(json.dumps(dict(zip(columns, row))) for row in rows))
    code, _, err = run(
        "import", folder / "c.jsonl", "--table", table, "--audio-dir", audio_dir, "--one-cut-per", "recording"
    )
    assert code == 0, err
    return [json.loads(line) for line in (folder / "c.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def train_reads(train_script):
    """What recipes/train.py does with its manifests before it trains."""
    from tokenverse_pp.base.config import Config, DataConfig
    from tokenverse_pp.data.samplers import load_cuts
    from tokenverse_pp.tasks import build_tasks

    tasks = build_tasks(["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr"]}})

    def read(path):
        load_cuts([str(path)])
        train_script.check_data(Config(data=DataConfig(train=[str(path)])), tasks)

    return read


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_manifests(tmp_path, good_cuts, train_reads, part):
    for seed in seeds(0.4, part):
        rng = random.Random(seed)
        name, data = broken_manifest(good_cuts, rng)
        path = tmp_path / name
        path.write_bytes(data)
        counts = tmp_path / "counts.json"
        counts.unlink(missing_ok=True)
        valid, _, err = run("validate", path, *rng.choice([(), ("--all",), ("--audio",)]))
        if valid:
            assert valid == 2, seed
            assert_clear(err, path, seed)
        code, _, err = run("stats", path, "--json", counts)
        assert code in (0, 2) and counts.exists() == (code == 0), (seed, err)
        if code:
            assert_clear(err, path, seed)
        elif not valid:
            assert valid == 0, seed
        code, _, err = run("show", "b", "--cuts", path)
        assert code in (0, 2), seed
        if code:
            assert err.startswith("error: ") and ("cut b" in err or str(path) in err), (seed, err)
        if seed % 3 == 0:
            try:
                train_reads(path)
            except UserError as error:
                assert str(path) in str(error) or "cut " in str(error), (seed, error)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_line_of_two_gigabytes(tmp_path, audio_dir, good_cuts, ending, train_reads):
    path = tmp_path / f"T.{ending}"
    lines = (
        [json.dumps(good_cuts[0])]
        if ending == "jsonl"
        else [("," if ending == "csv" else "\t").join(["audio", "text"])]
    )
    path.write_text("\n".join(lines) + "\n")
    os.truncate(path, 2**31)  # sparse: it takes no room on the disk
    limit = f"{path}, line 2: longer than {MAX_LINE // 2**20} MB"
    code, _, err = run("import", tmp_path / "cuts.jsonl", "--table", path, "--audio-dir", audio_dir, "--skip-bad")
    assert code == 2 and limit in err and not (tmp_path / "cuts.jsonl").exists()
    if ending == "jsonl":
        for command in (("validate", path), ("stats", path), ("show", "x", "--cuts", path)):
            code, _, err = run(*command)
            assert code == 2 and limit in err, command
        with pytest.raises(UserError, match="longer than"):
            train_reads(path)
