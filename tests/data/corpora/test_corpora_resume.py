"""Reruns of `manifest prepare`, licences, and the label punct from the texts that corpora have."""

import gzip
import json
import os
import re
import shutil
import threading

import pytest
from command_lines import run
from mini_corpora import make_commonvoice, make_librispeech
from mini_runs import CORPORA, cuts_of, left_out, prepare
from toy_runs import ROOT

from tokenverse_pp.base.files import locked
from tokenverse_pp.cli.main import PREPARE
from tokenverse_pp.data.corpora import LICENCES
from tokenverse_pp.data.corpora.resume import contents

THERE = "there from an earlier run with the same options"


def times(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CORPORA)
def test_second_run_writes_nothing_and_says_so(corpora, name, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(corpora[name].out, out)
    before = times(out)
    stdout = prepare(name, corpora[name].corpus_dir, out, "--num-jobs", 2)
    assert times(out) == before
    for path in out.glob("cuts_*"):
        assert re.search(rf"^{THERE}.*{re.escape(str(path))}", stdout, re.MULTILINE)


@pytest.mark.parametrize("damage", ["cut short", "gone", "no record", "odd record", "--force", "other options"])
def test_what_is_not_whole_or_not_as_asked_is_prepared_again(tmp_path, damage):
    corpus = make_librispeech(tmp_path / "LibriSpeech")
    prepare("librispeech", corpus, tmp_path / "out")
    path, record = tmp_path / "out" / "cuts_dev_clean.jsonl.gz", tmp_path / "out" / "prepared.json"
    before, expected = times(tmp_path / "out"), [cut.to_dict() for cut in cuts_of(tmp_path / "out", "dev_clean")]
    options = {"--force": ["--force"], "other options": ["--normaliser", "none"]}.get(damage, [])
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "gone":
        path.unlink()
    elif damage == "no record":
        record.write_text("{")
    elif damage == "odd record":
        groups = json.loads(record.read_text())["librispeech"]
        for entry, files in zip(groups.values(), ([], {}, {"dev_clean": 7})):
            entry["files"] = files
        record.write_text(json.dumps({"librispeech": groups, "mls": 3}))
    stdout = prepare("librispeech", corpus, tmp_path / "out", *options)
    others = stdout.count(THERE)
    assert others == (2 if damage in ("cut short", "gone") else 0)
    found = [cut.to_dict() for cut in cuts_of(tmp_path / "out", "dev_clean")]
    if damage == "other options":
        assert [cut["supervisions"][0]["text"].isupper() for cut in found] == [True, True]
    else:
        assert found == expected
    kept = {file for file, time in times(tmp_path / "out").items() if before.get(file) == time}
    assert len([file for file in kept if file.name.startswith("cuts_")]) == others


@pytest.mark.parametrize("name", CORPORA)
def test_what_came_by_half_is_prepared_again_once_it_is_there(corpora, name, tmp_path):
    """A download that goes on: a file more, in the group that is not whole and in no other."""
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpora[name].corpus_dir, corpus)
    late = sorted(path for path in corpus.rglob("*") if path.suffix in (".flac", ".mp3", ".wav", ".ogg", ".sph"))[0]
    groups = 1 if name not in ("commonvoice", "librispeech", "mls") else 3 if name == "librispeech" else 2
    whole = late.read_bytes()
    prepare(name, corpus, out)
    before = times(out)
    assert prepare(name, corpus, out).count(THERE) == groups and times(out) == before
    late.write_bytes(whole + b"\0" * 64)  # longer, and newer: as good as another file
    assert prepare(name, corpus, out).count(THERE) == groups - 1
    late.write_bytes(whole)
    assert prepare(name, corpus, out).count(THERE) == groups - 1


def test_utterances_and_rows_that_come_later_are_prepared(tmp_path):
    corpus, out = make_librispeech(tmp_path / "LibriSpeech"), tmp_path / "out"
    late = next((corpus / "dev-clean").rglob("*-0001.flac"))
    data = late.read_bytes()
    late.unlink()
    prepare("librispeech", corpus, out)
    assert len(cuts_of(out, "dev_clean")) == 1
    late.write_bytes(data)
    assert prepare("librispeech", corpus, out).count(THERE) == 2 and len(cuts_of(out, "dev_clean")) == 2
    # A table of the same size.
    table = next((corpus / "dev-clean").rglob("*.trans.txt"))
    table.write_text(table.read_text().replace("DOG", "CAT"))
    assert prepare("librispeech", corpus, out).count(THERE) == 2
    assert any("cat" in cut.supervisions[0].text for cut in cuts_of(out, "dev_clean"))
    # An output folder in the corpus is none of it; links that lead round are followed once.
    (corpus / "dev-clean" / "round").symlink_to(corpus)
    inside = corpus / "dev-clean" / "out"
    found = contents([corpus], inside)
    prepare("librispeech", corpus, inside)
    assert contents([corpus], inside) == found and found["files"] == len(list(corpus.glob("*/*/198/*")))


def test_parts_and_languages_that_come_later_are_added(tmp_path):
    corpus = make_commonvoice(tmp_path / "cv", ("fr", "sv-SE"))
    table = corpus / "fr" / "dev.tsv"
    table.write_text(
        table.read_text(encoding="utf-8") + "client\tnone.mp3\tRien.\t2\t0\t\t\t\t\tfr\t\n", encoding="utf-8"
    )
    good = (corpus / "sv-SE" / "test.tsv").read_text(encoding="utf-8")
    (corpus / "sv-SE" / "test.tsv").write_text(good.splitlines()[0] + "\n", encoding="utf-8")
    # The second language fails: what is whole of the first stays.
    failed = run("manifest", "prepare", "commonvoice", corpus, tmp_path / "out")
    assert failed.exit_code == 2 and "holds no rows" in failed.stderr
    assert {path.name for path in (tmp_path / "out").glob("cuts_*")} == {
        f"cuts_{split}_fr.jsonl.gz" for split in ("train", "dev", "test")
    }
    (corpus / "sv-SE" / "test.tsv").write_text(good, encoding="utf-8")
    stdout = prepare("commonvoice", corpus, tmp_path / "out")
    assert stdout.count(THERE) == 1 and len(list((tmp_path / "out").glob("cuts_*"))) == 6
    # The list keeps what it says of the parts of the first run.
    assert lines_out(tmp_path / "out") == [("dev_fr", "none.mp3")]


def lines_out(out):
    return sorted((item["part"], item["id"]) for item in left_out(out))


def librispeech_with_gaps(root):
    """An utterance of each part has no audio."""
    corpus = make_librispeech(root)
    for part in corpus.iterdir():
        next(part.rglob("*-0001.flac")).unlink()
    return corpus


@pytest.mark.parametrize("damage", ["gone", "a line less"])
def test_a_list_of_what_was_left_out_that_has_lost_lines_is_written_again(tmp_path, damage):
    corpus, out = librispeech_with_gaps(tmp_path / "LibriSpeech"), tmp_path / "out"
    prepare("librispeech", corpus, out)
    listed, path = lines_out(out), out / "left_out.jsonl"
    assert len(listed) == 3
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert prepare("librispeech", corpus, out).count(THERE) == (0 if damage == "gone" else 2)
    assert lines_out(out) == listed
    assert prepare("librispeech", corpus, out).count(THERE) == 3


def test_runs_at_the_same_time_keep_each_others_groups(tmp_path, monkeypatch):
    """While a first run makes its cuts, a second writes all of its own."""
    corpus, out = librispeech_with_gaps(tmp_path / "LibriSpeech"), tmp_path / "out"
    for part in ("dev-clean", "test-other"):
        (tmp_path / part).mkdir()
        (corpus / part).rename(tmp_path / part / part)
    import tokenverse_pp.data.corpora.common as common

    written = common._write_checked

    def meanwhile(*args):
        monkeypatch.setattr(common, "_write_checked", written)
        prepare("librispeech", tmp_path / "dev-clean", out)
        return written(*args)

    prepare("librispeech", tmp_path / "test-other", out)
    monkeypatch.setattr(common, "_write_checked", meanwhile)
    prepare("librispeech", corpus, out)
    assert set(json.loads((out / "prepared.json").read_text())["librispeech"]) == {
        "dev-clean",
        "test-other",
        "train-clean-100",
    }
    assert [part for part, _ in lines_out(out)] == ["dev_clean", "test_other", "train_clean_100"]
    for root in (corpus, tmp_path / "dev-clean", tmp_path / "test-other"):
        assert prepare("librispeech", root, out).count(THERE) == 1


def test_a_lock_is_held_until_its_block_ends(tmp_path):
    waiting, done = threading.Event(), []

    def second():
        waiting.set()
        with locked(tmp_path):
            done.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path):
        thread.start()
        waiting.wait(10)
        thread.join(0.05)
        done.append("first")
    thread.join(10)
    assert done == ["first", "second"]


def test_an_interrupted_conversion_leaves_no_half_file(tmp_path, monkeypatch):
    corpus, out = make_commonvoice(tmp_path / "cv", ("fr",)), tmp_path / "out"
    import tokenverse_pp.data.corpora.common as common

    written, write = [], common.soundfile.write

    def killed(file, *args, **options):
        if len(written) == 3:
            open(file, "wb").write(b"fLaC")  # half a file, and then the machine stops
            raise KeyboardInterrupt
        written.append(file)
        write(file, *args, **options)

    monkeypatch.setattr(common.soundfile, "write", killed)
    assert run("manifest", "prepare", "commonvoice", corpus, out).exit_code != 0
    first = times(out)
    assert len(first) == 3 and all(path.suffix == ".flac" for path in first)
    monkeypatch.setattr(common.soundfile, "write", write)
    prepare("commonvoice", corpus, out)
    after = times(out)
    assert len(list(out.rglob("*.flac"))) == 8 and all(after[path] == time for path, time in first.items())
    assert run("manifest", "validate", "--audio", *out.glob("cuts_*")).exit_code == 0


def test_a_clip_that_was_replaced_is_converted_again(tmp_path):
    corpus, out = make_commonvoice(tmp_path / "cv", ("fr",)), tmp_path / "out"
    prepare("commonvoice", corpus, out)
    before = times(out / "audio")
    clip = next((corpus / "fr" / "clips").glob("*dev*.mp3"))
    newer = max(before.values()) + 10**9
    os.utime(clip, ns=(newer, newer))
    prepare("commonvoice", corpus, out, "--force")
    after = times(out / "audio")
    assert [path.stem for path in before if after[path] != before[path]] == [clip.stem]


def test_licences_are_said_in_runs_help_and_docs(corpora):
    page = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    assert set(PREPARE) == set(LICENCES)
    for name, licence in LICENCES.items():
        shown = " ".join(run("manifest", "prepare", name, "--help").stdout.split())
        assert f"Licence: {licence}." in shown and "--num-jobs" in shown and "--force" in shown
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |") and licence in line)
        assert row
        if name in corpora:
            assert corpora[name].stdout.splitlines()[-1] == f"licence of {name}: {licence}"


WRITTEN = {  # a part, how many cuts of it, and the first texts
    "ami": ("train", 2, ["the dog runs.", "that house sees,", "a forest?", "the house runs."]),
    "callhome-english": ("train", 4, ["um the dog runs.", "that house sees --"]),
    "commonvoice": ("dev_fr", 2, ["« Voit maison de forêt ! »"]),
    "eval2000": ("test", 2, ["um the dog runs.", "that house sees --"]),
    "voxpopuli": ("dev_en", 2, ["House dog through forest."]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_punct_by_the_texts_as_they_are(corpora, name, tmp_path):
    prepare(name, corpora[name].corpus_dir, tmp_path, "--written")
    part, count, texts = WRITTEN[name]
    cuts = [cut for cut in cuts_of(tmp_path, part) if "punct" in cut.custom["tasks"]]
    assert len(cuts) == count
    assert run("manifest", "validate", *tmp_path.glob("cuts_*")).exit_code == 0
    assert [sup.custom["written"] for cut in cuts for sup in cut.supervisions][: len(texts)] == texts
    # All else is as without.
    plain = cuts_of(corpora[name].out, part)
    assert [[s.text for s in cut.supervisions] for cut in cuts_of(tmp_path, part)] == [
        [s.text for s in cut.supervisions] for cut in plain
    ]
    assert not any("punct" in cut.custom["tasks"] for cut in plain)
    refused = run("manifest", "prepare", name, corpora[name].corpus_dir, tmp_path, "--written", "--normaliser", "none")
    assert refused.exit_code == 2 and "--written: needs --normaliser words" in refused.stderr


SESSION = "20190104-0900-PLENARY-6-en"


def add_session(corpus):
    """Segments of a session that comes last, in no order."""
    with gzip.open(corpus / "asr_en.tsv.gz", "at", encoding="utf-8") as file:
        for number in (7, 5):
            file.write(f"{SESSION}|s{number}|A.|a|1|dev|female|True|{number}.0|{number}.5\n")


WITHOUT_AUDIO = {  # a file to remove, and the lines that tell so (part, id)
    "ami": ("**/ES2011b.Mix-Headset.wav", [("dev", "ES2011b")]),
    "callhome-english": (
        "**/en_4066.sph",
        [("train", "en_4066"), *(("train", f"en_4066_0{side}_{i:05}") for i, side in enumerate("ABBAABABB"))],
    ),
    "librispeech": ("dev-clean/**/*-0001.flac", [("dev_clean", "84-198-0001")]),
    "voxpopuli": ("**/20190104*.ogg", [("dev_en", f"{SESSION}-{i}") for i in (1, 2)]),
}


@pytest.mark.parametrize("name", WITHOUT_AUDIO)
def test_what_lhotse_drops_for_lack_of_audio_is_listed(corpora, name, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(corpora[name].corpus_dir, corpus)
    if name == "ami":  # a meeting more
        for path in [*corpus.rglob("ES2011a*")]:
            if path.is_file():
                shutil.copy(path, path.with_name(path.name.replace("ES2011a", "ES2011b")))
    if name == "voxpopuli":
        add_session(corpus)
    pattern, expected = WITHOUT_AUDIO[name]
    for path in corpus.glob(pattern):
        path.unlink()
    prepare(name, corpus, tmp_path / "out")
    missing = [item for item in left_out(tmp_path / "out") if item["reason"] == "its audio is not there"]
    assert [(item["part"], item["id"], item["seconds"]) for item in missing] == [(*item, 0.0) for item in expected]


def test_segments_of_a_session_that_cannot_be_opened_are_listed(corpora, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(corpora["voxpopuli"].corpus_dir, corpus)
    add_session(corpus)
    (corpus / "raw_audios" / "en" / "2019" / f"{SESSION}_en.ogg").write_bytes(b"OggS torn")
    prepare("voxpopuli", corpus, tmp_path / "out")
    torn = [item for item in left_out(tmp_path / "out") if item["reason"].startswith("cannot be read as audio")]
    assert [(item["part"], item["id"]) for item in torn] == [("dev_en", f"{SESSION}-{i}") for i in (1, 2)]


def hub_rows(clip, count=3):
    """Rows with embedded audio, names of speakers and entities; the last has no text."""
    entities = {"type": ["LOC"], "start": [3], "length": [8]}
    return {
        "clip": [{"bytes": clip, "path": None}] * count,
        "sentence": ["In New York!"] * (count - 1) + [""],
        "speaker": [f"s{i}" for i in range(count)],
        "entities": [entities] * count,
    }


@pytest.fixture
def data_set(tmp_path):
    """A saved data set with two splits."""
    import numpy as np
    import soundfile

    datasets = pytest.importorskip("datasets")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 9).astype("float32"), 8000)
    data = datasets.Dataset.from_dict(hub_rows((tmp_path / "a.wav").read_bytes())).cast_column("clip", datasets.Audio())
    return datasets.DatasetDict({"train": data, "validation": data.select([0, 1])})


COLUMNS = ("--column", "audio=clip", "--column", "text=sentence", "--set", "language=en")


def test_hugging_face_folder(data_set, tmp_path):
    data_set.save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    stdout = prepare("huggingface", tmp_path / "set", tmp_path / "out", *COLUMNS, "--written", "--num-jobs", 2)
    assert stdout.splitlines()[-1] == "licence of huggingface: cc-by-4.0"
    assert stdout.count("same audio from start to end as an earlier row: 1, the first: ") == 2  # in each split
    cuts = cuts_of(tmp_path / "out", "train")
    assert [cut.id for cut in cuts] == ["set-0", "set-1"] and len(cuts_of(tmp_path / "out", "dev")) == 2
    for cut in cuts:
        (turn,) = cut.supervisions
        assert set(cut.custom["tasks"]) == {"asr", "scd", "ner", "lid", "punct"} and cut.custom["corpus"] == "set"
        assert (turn.text, turn.custom["written"], turn.language) == ("in new york", "In New York!", "en")
        assert turn.custom["entities"] == [{"start": 3, "end": 11, "type": "LOC"}]
        assert cut.sampling_rate == 16000 and cut.load_audio().shape == (1, 16000)
    [item] = left_out(tmp_path / "out")
    assert "field 'text'" in item["reason"] and item["part"] == "train"
    before = times(tmp_path / "out")
    assert prepare("huggingface", tmp_path / "set", tmp_path / "out", *COLUMNS, "--written").count(THERE) == 2
    prepare("huggingface", tmp_path / "set", tmp_path / "out", *COLUMNS, "--split", "train")
    after = times(tmp_path / "out")
    assert {path for path in before if after[path] != before[path]} == {
        tmp_path / "out" / name for name in ("cuts_train.jsonl.gz", "left_out.jsonl", "prepared.json")
    }
    wrong = run("manifest", "prepare", "huggingface", tmp_path / "set", tmp_path / "out", "--split", "test")
    assert wrong.exit_code == 2 and "expected one of train, validation" in wrong.stderr
    column = run("manifest", "prepare", "huggingface", tmp_path / "set", tmp_path / "other")
    assert column.exit_code == 2 and "no column audio" in column.stderr and "clip" in column.stderr


def test_no_corpus_replaces_the_manifests_of_another(corpora, data_set, tmp_path):
    out = tmp_path / "out"
    prepare("eval2000", corpora["eval2000"].corpus_dir, out)
    before = (out / "cuts_test.jsonl.gz").read_bytes()
    for force in ((), ("--force",)):
        result = run("manifest", "prepare", "ami", corpora["ami"].corpus_dir, out, *force)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
        assert f"{out}/cuts_test.jsonl.gz: is of eval2000; prepare ami into a folder of its own" in result.stderr
    assert (out / "cuts_test.jsonl.gz").read_bytes() == before and not (out / "cuts_train.jsonl.gz").exists()
    (out / "cuts_test.jsonl.gz").unlink()  # what is not there may be written
    prepare("ami", corpora["ami"].corpus_dir, out)
    # Data sets are corpora of their own; two splits may have one name.
    data_set.save_to_disk(tmp_path / "one")
    data_set.save_to_disk(tmp_path / "two")
    prepare("huggingface", tmp_path / "one", tmp_path / "hf", *COLUMNS)
    result = run("manifest", "prepare", "huggingface", tmp_path / "two", tmp_path / "hf", *COLUMNS)
    said = f"is of huggingface, train, {tmp_path / 'one'}; --force replaces it, or prepare huggingface, train, "
    assert result.exit_code == 2 and said in result.stderr
    (tmp_path / "one").rename(tmp_path / "moved")  # it is known by its path
    assert run("manifest", "prepare", "huggingface", tmp_path / "moved", tmp_path / "hf", *COLUMNS).exit_code == 2
    prepare("huggingface", tmp_path / "moved", tmp_path / "hf", *COLUMNS, "--force")
    assert prepare("huggingface", tmp_path / "moved", tmp_path / "hf", *COLUMNS).count(THERE) == 2
    data_set["dev"] = data_set["train"]
    data_set.save_to_disk(tmp_path / "three")
    result = run("manifest", "prepare", "huggingface", tmp_path / "three", tmp_path / "hf3", *COLUMNS)
    assert result.exit_code == 2 and "cuts_dev.jsonl.gz: is of huggingface, validation" in result.stderr


def test_hugging_face_name_on_the_hub(data_set, tmp_path, monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or data_set)
    monkeypatch.setattr("tokenverse_pp.data.corpora.huggingface.licence_of", lambda source: "mit")
    monkeypatch.chdir(tmp_path)
    options = (*COLUMNS, "--config", "fr")
    stdout = prepare("huggingface", "owner/name", tmp_path / "out", *options)
    assert stdout.splitlines()[-1] == "licence of huggingface: mit"
    assert [cut.id for cut in cuts_of(tmp_path / "out", "dev")] == ["name-0", "name-1"]
    # Never code of a data set: where the library can run it, it is told not to.
    allowed = {} if int(datasets.__version__.split(".")[0]) >= 4 else {"trust_remote_code": False}
    assert asked and all(call == (("owner/name", "fr"), allowed) for call in asked)
    result = run(
        "manifest", "import", tmp_path / "cuts.jsonl", "--hf", "owner/name", "--hf-split", "validation", *COLUMNS
    )
    assert result.exit_code == 0 and len((tmp_path / "cuts.jsonl").read_text().splitlines()) == 2
    missing = run("manifest", "import", tmp_path / "c.jsonl", "--hf", "no/such/folder")
    assert missing.exit_code == 2 and "no such file or folder" in missing.stderr


def test_of_a_data_set_on_the_hub_only_the_wanted_split_is_read(data_set, tmp_path, monkeypatch):
    """The library itself reads a folder laid out like a repository of the hub; the files of a split are torn."""
    import datasets

    from tokenverse_pp.data.importing import tables

    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    for split, data in data_set.items():
        data.to_parquet(hub / "data" / f"{split}-00000-of-00001.parquet")
    (hub / "data" / "train-00000-of-00001.parquet").write_bytes(b"torn")
    for name in ("load_dataset", "load_dataset_builder"):
        call = getattr(datasets, name)

        def local(path, *args, call=call, **options):
            assert path == "owner/name"
            options.pop("trust_remote_code", None)
            return call(str(hub), *args, cache_dir=str(tmp_path / "cache"), **options)

        monkeypatch.setattr(datasets, name, local)
    monkeypatch.setattr(tables, "is_hub_name", lambda source: str(source) == "owner/name")
    monkeypatch.setattr("tokenverse_pp.data.corpora.huggingface.licence_of", lambda source: "mit")
    prepare("huggingface", "owner/name", tmp_path / "out", *COLUMNS, "--split", "validation")
    assert [cut.id for cut in cuts_of(tmp_path / "out", "dev")] == ["name-0", "name-1"]
    wrong = run("manifest", "prepare", "huggingface", "owner/name", tmp_path / "out", *COLUMNS, "--split", "test")
    assert wrong.exit_code == 2 and "--split test: expected one of" in wrong.stderr and "train" in wrong.stderr
    everything = run("manifest", "prepare", "huggingface", "owner/name", tmp_path / "all", *COLUMNS)
    assert everything.exit_code == 2 and "datasets cannot read it" in everything.stderr


def test_hugging_face_arrays(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"audio": [{"array": [0.0, 0.5] * 8000, "sampling_rate": 16000}], "text": ["yes"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    prepare("huggingface", tmp_path / "set", tmp_path / "out")
    [cut] = cuts_of(tmp_path / "out", "train")
    assert cut.duration == 1.0 and abs(cut.load_audio()).max() == pytest.approx(0.5, abs=1e-3)
