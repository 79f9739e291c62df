"""FLEURS, SLUE-VoxPopuli and Earnings-22 in the layouts of their downloads."""

import gzip
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
from command_lines import run
from lhotse import Recording
from lhotse.recipes import prepare_fleurs
from mini_corpora import make_earnings, make_fleurs, make_slue, slue_rows
from mini_runs import cuts_of, left_out, prepare

from tokenverse_pp.base import engine
from tokenverse_pp.base.engine import ShardEngine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.corpora.clips import unpack, unpack_all
from tokenverse_pp.data.corpora.common import at_16_khz
from tokenverse_pp.data.corpora.earnings22 import AlignedWord, read_words, turns_of
from tokenverse_pp.data.corpora.voxpopuli import slue_entities
from tokenverse_pp.data.normalise import normalise

MAKERS = {"earnings22": make_earnings, "fleurs": make_fleurs, "slue-voxpopuli": make_slue}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """name -> the miniature."""
    return {name: make(tmp_path_factory.mktemp(name) / "corpus") for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def prepared(sources, tmp_path_factory):
    """name -> (folder of the cuts, with punct, by two processes; what was printed)."""
    found = {}
    for name, source in sources.items():
        out = tmp_path_factory.mktemp(f"{name}-out")
        found[name] = out, prepare(name, source, out, "--written", "--num-jobs", 2)
    return found


def reasons_of(out):
    return {item["id"]: item["reason"] for item in left_out(out)}


@pytest.mark.parametrize("name", MAKERS)
def test_cuts_are_valid_with_their_audio(prepared, name):
    paths = sorted(prepared[name][0].glob("cuts_*.jsonl.gz"))
    result = run("manifest", "validate", "--audio", *paths)
    assert result.exit_code == 0 and paths, result.stderr
    for path in paths:
        for cut in cuts_of(path.parent, path.name[5:-9]):
            assert (cut.sampling_rate, cut.num_channels, cut.custom["corpus"]) == (16000, 1, name)


def test_fleurs_texts_ids_and_languages(prepared):
    out, _ = prepared["fleurs"]
    assert {path.name[5:-9] for path in out.glob("cuts_*")} == {"train_fr", "dev_fr", "test_fr", "test_zh"}
    for cut in cuts_of(out, "dev_fr"):
        (turn,) = cut.supervisions
        assert cut.id == turn.id == f"fr_fr-10004088536354793{cut.id[-1]}"
        assert cut.custom["tasks"] == ["asr", "lid", "punct"] and turn.language == "fr" and turn.gender == "female"
        assert turn.custom["written"] == f"{turn.text.capitalize()}." and turn.custom["prompt"] in "789"
    (turn,) = cuts_of(out, "test_zh")[0].supervisions
    assert (turn.text, turn.language, turn.custom["written"]) == ("你 好 世 界", "zh", "你好，世界。")


def test_fleurs_unpacked_and_as_lhotse_downloads_it(sources, prepared, tmp_path):
    """Three layouts give the same cuts; the last is read by lhotse's recipe too."""
    hub, lhotse_dir = tmp_path / "hub", tmp_path / "lhotse"
    for split in ("train", "dev", "test"):
        data = sources["fleurs"] / "data" / "fr_fr"
        for audio in (hub / "fr_fr" / "audio", lhotse_dir / "fr_fr"):
            with tarfile.open(data / "audio" / f"{split}.tar.gz") as tar:
                tar.extractall(audio, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(audio)
        for folder in (hub / "fr_fr", lhotse_dir / "metadata" / "fr_fr"):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / f"{split}.tsv", folder)
    for name in ("hub", "lhotse"):
        prepare("fleurs", tmp_path / name, tmp_path / f"{name}-out", "--language", "fr")
        for split in ("train", "dev", "test"):
            here, there = (cuts_of(out, f"{split}_fr") for out in (tmp_path / f"{name}-out", prepared["fleurs"][0]))
            assert [(c.id, c.duration, c.supervisions[0].text) for c in here] == [
                (c.id, c.duration, c.supervisions[0].text) for c in there
            ]
            assert str(here[0].recording.sources[0].source).startswith(str(tmp_path / name))  # not copied
    theirs = prepare_fleurs(lhotse_dir, tmp_path / "manifests", languages=["fr_fr"])["fr_fr"]["test"]["supervisions"]
    ours = [cut.supervisions[0] for cut in cuts_of(tmp_path / "lhotse-out", "test_fr")]
    assert [(f"fr_fr-{t.recording_id}", t.text, t.duration, t.gender.lower()) for t in theirs] == [
        (t.id, t.text, t.duration, t.gender) for t in ours
    ]


def test_fleurs_rows_and_archives_that_are_not_whole(sources, tmp_path):
    root = tmp_path / "fleurs"
    shutil.copytree(sources["fleurs"] / "data" / "fr_fr", root / "fr_fr")
    table, archive = root / "fr_fr" / "test.tsv", root / "fr_fr" / "audio" / "test.tar.gz"
    line = table.read_text(encoding="utf-8").splitlines()[0]
    with open(table, "a", encoding="utf-8") as file:
        file.write(line.replace(".wav", "0.wav") + f"\n{line}\ntorn\trow\n")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) * 2 // 3])
    result = run("manifest", "prepare", "fleurs", root, tmp_path / "out")
    assert result.exit_code == 2 and f"{archive}: not a whole tar archive" in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("cuts_*"))
    archive.write_bytes(whole)
    (archive.parent / "test").mkdir()  # as a tar leaves it that was killed: the archive has all
    assert run("manifest", "prepare", "fleurs", root, tmp_path / "out").exit_code == 0
    assert len(cuts_of(tmp_path / "out", "test_fr")) == 2
    reasons = reasons_of(tmp_path / "out")
    assert sorted(reason.split(",")[0] for reason in reasons.values()) == [
        "expected 7 cells",
        "its clip 1000408853635479400.wav is not there",
        "its clip has a row already",
    ]
    missing = run("manifest", "prepare", "fleurs", root, tmp_path / "out", "--language", "eo")
    assert missing.exit_code == 2 and "expected one of fr_fr" in missing.stderr


def stored_archive(path, clips):
    """A ``.tar.gz`` that is not compressed, so that a flipped bit harms only the checksum."""
    with gzip.open(path, "wb", compresslevel=0) as raw, tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in clips.items():
            member = tarfile.TarInfo(f"test/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_archives_are_checked_to_their_end_and_renewed(tmp_path):
    archive, folder = tmp_path / "test.tar.gz", tmp_path / "clips"
    stored_archive(archive, {"a.wav": b"a" * 3000, "b.wav": b"b" * 3000})
    unpack(archive, folder)
    before = (folder / "a.wav").stat().st_mtime_ns
    unpack(archive, folder)
    assert (folder / "a.wav").stat().st_mtime_ns == before
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"a" * 3000, b"a" * 1500 + b"c" + b"a" * 1499))
    with pytest.raises(UserError, match=r"not a whole tar archive .*CRC"):
        unpack(archive, folder)
    assert not list(folder.iterdir())
    archive.write_bytes(b"no gzip")
    with pytest.raises(UserError, match="not a whole tar archive"):
        unpack(archive, folder)
    archive.write_bytes(whole)
    unpack(archive, folder)
    # Another release, of the same sizes.
    stored_archive(archive, {"a.wav": b"A" * 3000, "b.wav": b"b" * 3000})
    later = (folder / "a.wav").stat().st_mtime + 10
    os.utime(archive, (later, later))
    unpack(archive, folder)
    assert (folder / "a.wav").read_bytes() == b"A" * 3000


class Elsewhere(ShardEngine):
    """A cluster of machines with disks of their own: what they write is not seen here."""

    def map(self, work, items, *about):
        for result in map(work, items):
            for path in result if isinstance(result, list) else [result.sources[0].source]:
                os.unlink(path)
            yield result


def test_audio_on_disks_of_workers_is_missed(tmp_path):
    stored_archive(tmp_path / "test.tar.gz", {"a.wav": b"a" * 3000})
    soundfile.write(tmp_path / "call.wav", np.zeros(8000), 8000)
    token = engine._CURRENT.set(Elsewhere())
    try:
        for write, folder in (
            (lambda folder: unpack_all([(tmp_path / "test.tar.gz", folder)]), tmp_path / "clips"),
            (lambda folder: at_16_khz([Recording.from_file(tmp_path / "call.wav")], folder), tmp_path / "audio"),
        ):
            with pytest.raises(UserError, match=rf"^{folder}: a worker has written .*that all machines share"):
                write(folder)
    finally:
        engine._CURRENT.reset(token)


def entities_of(cut):
    (turn,) = cut.supervisions
    return [(turn.text[e["start"] : e["end"]], e["type"]) for e in turn.custom["entities"]]


def test_slue_entities_are_those_that_are_scored(prepared, sources, tmp_path):
    out, _ = prepared["slue-voxpopuli"]
    for part, split in (("train", "fine-tune"), ("dev", "dev"), ("test", "test")):
        cuts = cuts_of(out, part)
        assert [cut.id for cut in cuts] == [cells["id"] for cells, _ in slue_rows(split)]
        assert [cut.supervisions[0].speaker for cut in cuts] == ["28115", None, None]
        # Part of a word: the whole of it. FAC is not scored.
        assert [entities_of(cut) for cut in cuts] == [
            [("brussels", "PLACE"), ("two days", "WHEN")],
            [("council's", "ORG")],
            [],
        ]
        assert [cut.custom["tasks"] for cut in cuts] == [["asr", "lid", "ner"]] * 2 + [["asr", "lid", "ner", "punct"]]
    prepare("slue-voxpopuli", sources["slue-voxpopuli"], tmp_path, "--entities", "raw")
    assert [kind for cut in cuts_of(tmp_path, "test") for _, kind in entities_of(cut)] == ["GPE", "DATE", "ORG", "FAC"]


def test_slue_blind_test_set_is_not_labelled_for_entities(tmp_path):
    source = make_slue(tmp_path / "slue", blind=True)
    for split in ("fine-tune", "dev"):
        (source / f"slue-voxpopuli_{split}.tsv").unlink()
    prepare("slue-voxpopuli", source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("cuts_*")} == {"cuts_test.jsonl.gz"}
    assert all(cut.custom["tasks"] == ["asr", "lid"] for cut in cuts_of(tmp_path / "out", "test"))


def test_slue_of_the_hub_has_the_same_cuts(prepared, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = []
    for cells, samples in slue_rows("test"):
        soundfile.write(tmp_path / "clip.ogg", samples, 16000, format="OGG", subtype="VORBIS")
        kinds, starts, lengths = zip(*cells["normalized_ner"]) if cells["normalized_ner"] else ((), (), ())
        spans = {"type": list(kinds), "start": list(starts), "length": list(lengths)}
        audio = {"bytes": (tmp_path / "clip.ogg").read_bytes(), "path": f"{cells['id']}.ogg"}
        rows.append({**cells, "audio": audio, "normalized_ner": spans})
    (tmp_path / "slue" / "voxpopuli").mkdir(parents=True)
    data = datasets.Dataset.from_list([{key: value for key, value in row.items() if key != "raw_ner"} for row in rows])
    path = tmp_path / "slue" / "voxpopuli" / "test-00000-of-00001.parquet"
    data.to_parquet(path)
    prepare("slue-voxpopuli", tmp_path / "slue", tmp_path / "out", "--written")
    here, there = cuts_of(tmp_path / "out", "test"), cuts_of(prepared["slue-voxpopuli"][0], "test")
    assert [(c.id, c.duration, c.custom["tasks"], entities_of(c)) for c in here] == [
        (c.id, c.duration, c.custom["tasks"], entities_of(c)) for c in there
    ]
    path.write_bytes(path.read_bytes()[:-100])
    torn = run("manifest", "prepare", "slue-voxpopuli", tmp_path / "slue", tmp_path / "out2")
    assert torn.exit_code == 2 and "not a whole parquet file" in torn.stderr.splitlines()[-1]


@pytest.mark.parametrize("value", ["[['LAW', 1]]", "[[", "[['XYZ', 1, 2]]", "7", [["LAW", None, 3]], {"type": ["LAW"]}])
def test_slue_entities_in_another_form_are_refused(value):
    with pytest.raises(ValueError, match="normalized_ner"):
        slue_entities(value)
    assert slue_entities("None") == slue_entities("[]") == [] and slue_entities(None) is None


def test_earnings_windows_have_turns_of_known_words_only(prepared):
    out, _ = prepared["earnings22"]
    cuts = [cut for cut in cuts_of(out, "test") if cut.id.startswith("4320211")]
    assert all(cut.custom["tasks"] == ["asr", "scd", "endp", "lid", "punct"] for cut in cuts)
    said = [[(s.speaker, s.custom["written"], s.custom["endpoint"]) for s in cut.supervisions] for cut in cuts]
    assert said == [
        [
            ("4320211-0", "Good day, Mr. Brown.", True),  # one sentence: Mr. ends none
            ("4320211-1", "Thank you.", True),
            ("4320211-1", "Twenty two percent, Inc. and more?", True),
        ],
        [("4320211-1", "The end…", False), ("4320211-0", "Bye", False)],
    ]
    first = cuts[0].supervisions[0]
    assert (first.text, cuts[0].start + first.start) == ("good day mr brown", pytest.approx(0.5))
    # "We cannot hear you." lies between the words before and after; so does what nobody understood.
    assert cuts[0].end <= 4.8 and cuts[1].start >= 9
    assert list(reasons_of(out).values()) == ["its words are not known"] * 4
    assert cuts[0].recording.sources[0].source.endswith("audio/test/4320211.flac")


def test_earnings_words_without_times_at_the_end_reach_to_the_end_of_the_call():
    words = [AlignedWord("Yes", ".", "0", 1.0, 1.5), AlignedWord("No", "", "0")]
    known, unknown = turns_of("call", words, 9.0)
    assert (known.text, known.start, known.end) == ("Yes.", 1.0, 1.5)
    assert (unknown.text, unknown.start, unknown.end) == (None, 1.5, 9.0)


def earnings_turns(text):
    """The turns of words with times; ``we're/CONTRACTION``: spelled out by the aligner."""
    words = []
    for i, token in enumerate(text.split()):
        token, _, tag = token.partition("/")
        mark = token[-1] if token[-1] in ".?," else ""
        words.append(AlignedWord(token.rstrip(".?,"), mark, "0", float(i), i + 0.5, f"['7:{tag}']" if tag else "[]"))
    return list(turns_of("call", words, 100.0))


@pytest.mark.parametrize(
    "text",
    [
        "Foreign language. Yes",
        "a Foreign, langauge- ok",
        "Inaudible",
        "of phonetic Kim",
        "so silence",
        "<foreign>",
    ],
)
def test_earnings_words_that_the_aligner_made_of_marks_are_unknown(text):
    assert earnings_turns(text)[0].text is None
    known = "Foreign exchange and a language of silent foreign lands"
    assert [turn.text for turn in earnings_turns(known)] == [known]


def test_earnings_sentences_begin_with_small_letters_where_the_aligner_spelled_out_a_word():
    turns = earnings_turns("Thank you. we're/CONTRACTION fine, Inc. and more. lemme/CONTRACTION see")
    assert [turn.text for turn in turns] == ["Thank you.", "we're fine, Inc. and more.", "lemme see"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Yes we're/CONTRACTION up twenty/PERCENT percent./PERCENT", True),
        ("The EBITDA/ABBREVIATION of Q1./ALPHANUMERIC", True),
        ("we're/CONTRACTION fine.", False),
        ("And i'll/CONTRACTION see.", False),
        ("In q/ALPHANUMERIC one./ALPHANUMERIC", False),
        ("It/CONTRACTION is./CONTRACTION", True),
    ],
)
def test_earnings_turns_that_lost_a_capital_are_not_labelled_for_punct(text, written):
    [turn] = earnings_turns(text)
    words = read_words(turn, normalise, written=True)
    assert words.text == normalise(turn.text) and words.complete
    assert words.written == (turn.text if written else None)


def test_earnings_audio_that_git_lfs_has_not_fetched(sources, tmp_path):
    shutil.copytree(sources["earnings22"], tmp_path / "earnings22")
    (tmp_path / "earnings22" / "media" / "4320211.mp3").write_text(
        "version https://git-lfs.github.com/spec/v1\noid 1\n"
    )
    result = run("manifest", "prepare", "earnings22", tmp_path / "earnings22", tmp_path / "out")
    assert result.exit_code == 2 and "git lfs pull" in result.stderr and result.stderr.count("\n") == 1


def test_earnings_turns_of_a_call_that_cannot_be_opened_are_listed(sources, prepared, tmp_path):
    shutil.copytree(sources["earnings22"], tmp_path / "earnings22")
    (tmp_path / "earnings22" / "media" / "MP3-A.mp3").write_bytes(b"ID3 torn")
    prepare("earnings22", tmp_path / "earnings22", tmp_path / "out")
    torn = [name for name, why in reasons_of(tmp_path / "out").items() if why.startswith("cannot be read as audio")]
    turns = [turn.id for cut in cuts_of(prepared["earnings22"][0], "test") for turn in cut.supervisions]
    assert torn[0] == "MP3-A" and {name for name in turns if name.startswith("MP3-A-")} < set(torn)
