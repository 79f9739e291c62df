"""`tokenverse-pp manifest prepare`: what every corpus gives, beside lhotse's own recipe; damaged folders."""

import shutil

import pytest
from click.testing import CliRunner
from command_lines import run, run_ok
from lhotse import CutSet
from lhotse.bin.lhotse import cli as lhotse_cli
from mini_runs import CORPORA, MEETINGS, cuts_of, left_out, speaker_of

CONVERSATION = ["asr", "scd", "endp", "lid"]
READ = ["asr", "lid"]
EXPECTED = {  # files, tasks, languages
    "ami": ({"train", "dev", "test"}, CONVERSATION, {"en"}),
    "callhome-english": ({"train", "dev", "test"}, CONVERSATION, {"en"}),
    "commonvoice": ({f"{s}_{c}" for s in ("train", "dev", "test") for c in ("fr", "sv")}, READ, {"fr", "sv"}),
    "eval2000": ({"test"}, CONVERSATION, {"en"}),
    "librispeech": ({"train_clean_100", "dev_clean", "test_other"}, READ, {"en"}),
    "mls": ({f"{s}_{c}" for s in ("train", "dev", "test") for c in ("de", "pl")}, READ, {"de", "pl"}),
    "voxpopuli": ({"train_en", "dev_en", "test_en"}, READ, {"en"}),
}


@pytest.mark.parametrize("name", CORPORA)
def test_files_tasks_and_languages(corpora, name):
    files, tasks, languages = EXPECTED[name]
    out = corpora[name].out
    assert {path.name for path in out.glob("*.jsonl*")} == {f"cuts_{f}.jsonl.gz" for f in files} | {"left_out.jsonl"}
    cuts = [cut for part in files for cut in cuts_of(out, part)]
    assert {cut.sampling_rate for cut in cuts} == {16000} and {cut.num_channels for cut in cuts} == {1}
    assert all(cut.custom["tasks"] == tasks for cut in cuts)
    assert {sup.language for cut in cuts for sup in cut.supervisions} == languages
    assert all(sup.text == sup.text.lower() for cut in cuts for sup in cut.supervisions)
    # A row of numbers for every file, with the tokens of its tasks.
    header, *rows = corpora[name].stdout.splitlines()
    assert header.split()[:6] == ["file", "cuts", "hours", "turns", "words", "speakers"]
    assert set(tasks) - {"asr"} == set(header.split()[6:-3])
    for part in files:
        (row,) = [row.split() for row in rows if row.split()[0] == str(out / f"cuts_{part}.jsonl.gz")]
        here = cuts_of(out, part)
        assert [int(row[1]), int(row[3])] == [len(here), sum(len(cut.supervisions) for cut in here)]


@pytest.mark.parametrize("name", CORPORA)
def test_valid_with_its_audio_and_readable_by_lhotse(corpora, name):
    paths = sorted(corpora[name].out.glob("cuts_*.jsonl.gz"))
    run_ok("manifest", "validate", "--audio", *paths)
    for path in paths:
        checked = CliRunner().invoke(lhotse_cli, ["validate", "--read-data", str(path)])
        assert checked.exit_code == 0 and "failed" not in checked.output.lower()
        described = CliRunner().invoke(lhotse_cli, ["cut", "describe", str(path)])
        assert described.exit_code == 0
        assert f"{sum(1 for _ in cuts_of(path.parent, path.name[5:-9]))}" in described.output


@pytest.mark.parametrize("name", [*CORPORA, "earnings22", "fleurs", "slue-voxpopuli"])
def test_missing_empty_and_foreign_folders_are_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "wav").mkdir(parents=True)
    (tmp_path / "foreign" / "wav" / "a.wav").write_bytes(b"RIFF")
    for folder in ("missing", "empty", "foreign"):
        result = run("manifest", "prepare", name, tmp_path / folder, tmp_path / "out")
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
        assert str(tmp_path / folder) in result.stderr and "expected" in result.stderr
    assert not (tmp_path / "out").exists()


DAMAGE = {  # the file that lhotse's recipe needs, and what happens to it
    "ami": ("ami_public_manual_1.6.2/words/ES2002a.A.words.xml", "<nite:root"),
    "callhome-english": ("LDC97T14/transcrpt/devtest/en_4067.txt", None),
    "commonvoice": ("sv-SE/dev.tsv", "client_id\tpath\tsentence\n"),
    "eval2000": ("LDC2002T43/reference/english/en_4156.txt", "one two three four\n"),
    "librispeech": ("train-clean-100/19/198/19-198.trans.txt", "nothing\n"),
    "mls": ("mls_polish/dev/transcripts.txt", "no tab\n"),
    "voxpopuli": ("asr_en.tsv.gz", "not gzip"),
}


DAMAGED_FILES = {
    **{name: {f"cuts_{part}.jsonl.gz" for part in files} for name, (files, _, _) in EXPECTED.items()},
    "commonvoice": {f"cuts_{split}_sv.jsonl.gz" for split in ("train", "dev", "test")},
    "librispeech": {"cuts_train_clean_100.jsonl.gz"},
    "mls": {f"cuts_{split}_pl.jsonl.gz" for split in ("train", "dev", "test")},
}


@pytest.mark.parametrize("name", CORPORA)
def test_damaged_corpus_is_one_line_and_leaves_nothing_of_its_group(corpora, name, tmp_path, threads_for_commonvoice):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpora[name].corpus_dir, damaged)
    path, text = DAMAGE[name]
    (damaged / path).unlink()
    if text is not None:
        (damaged / path).write_text(text, encoding="utf-8")
    result = run("manifest", "prepare", name, damaged, tmp_path / "out")
    assert result.exit_code == 2, result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and str(damaged) in lines[0] and "Traceback" not in result.stderr
    # What was whole before (another language, another part of LibriSpeech) stays.
    assert not {path.name for path in (tmp_path / "out").rglob("cuts_*")} & DAMAGED_FILES[name]


def test_audio_that_cannot_be_decoded_is_named_and_leaves_no_manifest(corpora, tmp_path, threads_for_commonvoice):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpora["eval2000"].corpus_dir, damaged)
    path = next(damaged.rglob("*.sph"))
    path.write_bytes(path.read_bytes()[:2000])
    result = run("manifest", "prepare", "eval2000", damaged, tmp_path / "out")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("error: ")
    assert not list((tmp_path / "out").rglob("cuts_*"))


def test_second_run_keeps_the_audio_that_is_there(corpora, tmp_path, threads_for_commonvoice):
    first, corpus_dir = tmp_path / "out", corpora["eval2000"].corpus_dir
    shutil.copytree(corpora["eval2000"].out, first)
    audio = next((first / "audio").rglob("*.flac"))
    before = audio.stat().st_mtime_ns
    assert run("manifest", "prepare", "eval2000", corpus_dir, first).exit_code == 0
    assert audio.stat().st_mtime_ns == before
    assert [c.id for c in cuts_of(first, "test")] == [c.id for c in cuts_of(corpora["eval2000"].out, "test")]


@pytest.mark.parametrize("name", CORPORA)
def test_every_turn_is_in_a_cut_or_listed(corpora, name, lhotse_alone):
    """Counts in == counts out + counts listed, by id, against lhotse's own recipe."""
    out = corpora[name].out
    written, listed = set(), set()
    for path in out.glob("cuts_*"):
        for cut in cuts_of(out, path.name[5:-9]):
            for sup in cut.supervisions:
                ids = [sup.id, *(sup.custom or {}).get("joined", [])]
                assert not written & set(ids)
                written.update(ids)
    for item in left_out(out):
        assert item["id"] not in listed and item["reason"]
        listed.add(item["id"])
    assert not written & listed
    assert written | listed == {turn.id for pair in lhotse_alone(name).values() for turn in pair["supervisions"]}


READ = ["commonvoice", "librispeech", "mls", "voxpopuli"]


def turns_of(cut):
    """(supervision, start in the recording, text before normalisation) of a cut's turns."""
    for sup in cut.supervisions:
        yield sup, cut.start + sup.start, (sup.custom or {}).get("original_text", sup.text)


@pytest.mark.parametrize("name", CORPORA)
def test_recordings_turns_speakers_texts_and_times_are_lhotses(corpora, lhotse_alone, name):
    seen = 0
    for part, pair in lhotse_alone(name).items():
        recordings = {recording.id: recording for recording in pair["recordings"]}
        turns = {turn.id: turn for turn in pair["supervisions"]}
        cuts = cuts_of(corpora[name].out, part)
        assert {cut.recording.id for cut in cuts} == set(recordings)
        for cut in cuts:
            theirs = recordings[cut.recording.id]
            # MP3 decoders pad: the length of the decoded audio may differ from the header's by a frame or two.
            assert cut.recording.duration == pytest.approx(theirs.duration, abs=0.06 if name == "commonvoice" else 1e-4)
            for sup, start, text in turns_of(cut):
                seen += 1
                turn = turns[sup.id]
                assert (sup.recording_id, sup.speaker, sup.gender) == (turn.recording_id, turn.speaker, turn.gender)
                assert text == turn.text
                assert start == pytest.approx(turn.start, abs=1e-6)
                assert sup.duration == pytest.approx(turn.duration, abs=0.06 if name == "commonvoice" else 1e-6)
                # What lhotse read besides is kept.
                assert (turn.custom or {}).items() <= (sup.custom or {}).items()
    assert seen > 5


@pytest.mark.parametrize("name", READ)
def test_read_speech_is_one_cut_a_supervision_in_lhotses_order_training_parts_shuffled(corpora, lhotse_alone, name):
    shuffled = False
    for part, pair in lhotse_alone(name).items():
        found = [cut.id for cut in CutSet.from_file(corpora[name].out / f"cuts_{part}.jsonl.gz")]
        expected = [turn.id for turn in pair["supervisions"] if turn.text]
        if part.startswith("train"):
            shuffled |= found != expected
            found, expected = sorted(found), sorted(expected)
        assert found == expected
    assert shuffled


@pytest.mark.parametrize("name", ["ami", "librispeech", "mls", "voxpopuli"])
def test_audio_of_16_khz_is_left_where_it_is(corpora, name):
    for path in corpora[name].out.glob("cuts_*"):
        for cut in cuts_of(path.parent, path.name[5:-9]):
            assert cut.recording.sources[0].source.startswith(str(corpora[name].corpus_dir))
    assert not (corpora[name].out / "audio").exists()


def test_languages_are_codes_and_texts_normalised(corpora, lhotse_alone):
    cut = cuts_of(corpora["commonvoice"].out, "train_fr")[0]
    (sup,) = cut.supervisions
    assert sup.custom["original_text"].startswith("« ") and sup.custom["original_text"].endswith(" ! »")
    assert sup.text == sup.custom["original_text"].lower()[2:-4]
    assert lhotse_alone("commonvoice")["train_sv"]["supervisions"][0].language == "sv-SE"
    assert cuts_of(corpora["commonvoice"].out, "train_sv")[0].supervisions[0].language == "sv"
    assert lhotse_alone("mls")["dev_pl"]["supervisions"][0].language == "polish"


def test_ami_meeting_is_two_windows_with_the_endpoints_of_its_punctuation(corpora):
    for split, meeting in MEETINGS.items():
        first, second = cuts_of(corpora["ami"].out, split)
        said = [(s.speaker[-7:], s.text, s.custom["endpoint"]) for c in (first, second) for s in c.supervisions]
        names = {agent: speaker_of(meeting, agent)[-7:] for agent in "ABC"}
        assert said == [
            (names["A"], "the dog runs", True),
            (names["A"], "that house sees", False),  # a comma
            (names["B"], "a forest", True),  # a question mark, which lhotse keeps; the full stops it drops
            (names["C"], "the house runs", True),  # overlaps the turn before
            (names["A"], "through a forest and sees", True),
            (names["B"], "that dog runs", False),  # no mark, though a pause follows
        ]
        assert (first.start, first.end) == (0.3, 3.85) and second.start == 8.8
