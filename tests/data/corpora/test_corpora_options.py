"""Options of the prepare commands, releases of a corpus, and rows of transcripts that cannot be read."""

import gzip
import shutil
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_lines import run
from lhotse import Recording
from mini_corpora import (
    call_audio,
    make_commonvoice,
    make_librispeech,
    make_mls,
    make_voxpopuli,
    sentence,
    speech,
    write,
    write_text,
)
from mini_runs import cuts_of, left_out, prepare

from tokenverse_pp.data.corpora.common import Form, check_table
from tokenverse_pp.data.corpora.telephone import CALLHOME_IDS, clean, find_names, read_call, read_call_words
from tokenverse_pp.data.editing.conversations import ConversationOptions, Track, conversation_cuts
from tokenverse_pp.data.normalise import normalise


def test_ami_headsets_are_one_speaker_each_and_not_labelled_for_scd(corpora, tmp_path):
    prepare("ami", corpora["ami"].corpus_dir, tmp_path, "--mic", "ihm")
    cuts = cuts_of(tmp_path, "train")
    assert {cut.channel for cut in cuts} == {0, 1, 2} and len({cut.id for cut in cuts}) == len(cuts)
    for cut in cuts:
        assert cut.custom["tasks"] == ["asr", "endp", "lid"]
        assert len({sup.speaker for sup in cut.supervisions}) == 1
        audio = cut.load_audio()
        assert audio.shape[0] == 1 and np.abs(audio).max() > 0.1  # its own headset hears it


@pytest.mark.parametrize("headset", [0, 2])
def test_ami_meeting_without_one_of_its_headsets_is_left_out(corpora, tmp_path, headset):
    """lhotse would give each speaker the audio of the next headset, and drop the turns of the last."""
    corpus = tmp_path / "corpus"
    shutil.copytree(corpora["ami"].corpus_dir, corpus)
    for path in [*corpus.rglob("ES2002a*")]:  # a meeting more, in train too
        if path.is_file():
            shutil.copy(path, path.with_name(path.name.replace("ES2002a", "ES2002b")))
    (corpus / "wav_db" / "ES2002a").rename(corpus / "wav_db" / "moved")
    audio = corpus / "wav_db" / "ES2002b" / "audio"
    audio.mkdir(parents=True)
    for path in (corpus / "wav_db" / "moved" / "audio").glob("ES2002b.*"):
        path.rename(audio / path.name)
    (corpus / "wav_db" / "moved").rename(corpus / "wav_db" / "ES2002a")
    (audio / f"ES2002b.Headset-{headset}.wav").unlink()
    meetings = corpus / "ami_public_manual_1.6.2" / "corpusResources" / "meetings.xml"
    text = meetings.read_text()
    entry = text[text.index("<meeting ") : text.index("</meeting>") + len("</meeting>")]
    meetings.write_text(text.replace(entry, entry + entry.replace("ES2002a", "ES2002b")))
    prepare("ami", corpus, tmp_path / "out", "--mic", "ihm")
    assert {cut.recording.id for cut in cuts_of(tmp_path / "out", "train")} == {"ES2002a"}
    listed = left_out(tmp_path / "out")
    assert ("ES2002b", f"its audio of Headset-{headset} is not there") in [(i["id"], i["reason"]) for i in listed]


def test_ami_annotations_in_a_zip_elsewhere(corpora, tmp_path):
    bare, archive = tmp_path / "ami", tmp_path / "manual.zip"
    shutil.copytree(corpora["ami"].corpus_dir, bare)
    manual = bare / "ami_public_manual_1.6.2"
    with zipfile.ZipFile(archive, "w") as file:
        for path in manual.rglob("*.xml"):
            file.write(path, path.relative_to(manual))
    shutil.rmtree(manual)
    assert "no annotations" in run("manifest", "prepare", "ami", bare, tmp_path / "out").stderr
    prepare("ami", bare, tmp_path / "out", "--annotations", archive, "--mic", "sdm")
    assert [c.to_dict()["supervisions"] for c in cuts_of(tmp_path / "out", "dev")] == [
        c.to_dict()["supervisions"] for c in cuts_of(corpora["ami"].out, "dev")
    ]
    # The corpus may be read-only: nothing is unpacked into it.
    assert {path.name for path in bare.iterdir()} == {"wav_db"}


def test_dropped_overlaps_are_listed(corpora, tmp_path):
    prepare("ami", corpora["ami"].corpus_dir, tmp_path, "--overlaps", "drop")
    texts = [sup.text for cut in cuts_of(tmp_path, "train") for sup in cut.supervisions]
    assert "a forest" not in texts and "the house runs" not in texts and len(texts) == 4
    assert (tmp_path / "left_out.jsonl").read_text().count("two speakers talk at once") == 6


def test_sides_of_a_call_mixed_and_separate(corpora, tmp_path):
    prepare("callhome-english", corpora["callhome-english"].corpus_dir, tmp_path, "--channels", "separate")
    cuts = cuts_of(tmp_path, "dev")
    assert {cut.recording.id for cut in cuts} == {"en_4067-A", "en_4067-B"}
    for cut in cuts:
        assert cut.custom["tasks"] == ["asr", "endp", "lid"] and cut.custom["original_recording"] == "en_4067"
        assert {sup.speaker[-1] for sup in cut.supervisions} == {cut.recording.id[-1]}
    left, right = (soundfile.read(tmp_path / "audio" / "dev" / f"en_4067-{side}.flac")[0] for side in "AB")
    mixed, rate = soundfile.read(corpora["callhome-english"].out / "audio" / "dev" / "en_4067.flac")
    assert rate == 16000 and np.abs(mixed - (left + right) / 2).max() < 2e-4
    # Every other sample is one of the 8 kHz file, up to u-law's and the filter's error.
    reference = call_audio().mean(axis=1)
    assert np.sqrt(np.mean((mixed[::2] - reference) ** 2)) < 0.05 * np.sqrt(np.mean(reference**2))


def test_names_that_were_marked_become_entities(corpora, tmp_path):
    prepare("eval2000", corpora["eval2000"].corpus_dir, tmp_path, "--names")
    cuts = cuts_of(tmp_path, "test")
    assert all(cut.custom["tasks"] == ["asr", "scd", "endp", "lid", "ner"] for cut in cuts)
    found = {s.text: s.custom["entities"] for cut in cuts for s in cut.supervisions}
    assert found.pop("forest runs") == [{"start": 0, "end": 6, "type": "NAME"}]
    assert set(map(len, found.values())) == {0}
    # But for the labels all is as without.
    assert list(found) == [t for t in (s.text for c in cuts_of(corpora["eval2000"].out, "test") for s in c.supervisions)
                           if t != "forest runs"]  # fmt: skip


@pytest.mark.parametrize(
    "raw, names",
    [
        ("&New &York's big", ["new york's"]),
        ("&Bob, &Ann and &Mary-Lou.", ["bob", "ann", "mary lou"]),
        ("nobody -- &", []),
    ],
)
def test_spans_of_names(raw, names):
    text, spans = find_names(raw, normalise)
    assert [text[span["start"] : span["end"]] for span in spans] == names
    assert text == normalise(raw)


def test_callhome_transcripts_elsewhere(corpora, tmp_path):
    speech, texts = (corpora["callhome-english"].corpus_dir / name for name in ("LDC97S42", "LDC97T14"))
    prepare("callhome-english", speech, tmp_path / "out", "--transcripts", texts)
    assert cuts_of(tmp_path / "out", "train")[0].id == "en_4065-0000"


def test_turns_of_calls_with_wrong_times_are_listed(tmp_path):
    """lhotse drops them, and takes what follows for words of the turn before."""
    lines = [
        *("# a call", "0.5 1.5 A: one", "2.0 2.0 B: lost", "and gone", "3.0 4.0 A: two", "goes on", "5,0 6.0 B: comma"),
        *("7.0 6.0 A1: turned", "8.0 9.0 B1: three"),
    ]
    path = tmp_path / "en_1.txt"
    path.write_bytes("\n".join(lines).encode() + b"\n9.5 10 A: caf\xe9\nmore\n")
    turns, bad = read_call(path, CALLHOME_IDS, 12.0)
    known = [
        ("en_1_0A_00000", 0.5, 1.5, "one"),
        ("en_1_0A_00001", 3.0, 4.0, "two goes on"),
        ("en_1_B1_00002", 8.0, 9.0, "three"),
    ]
    unknown = [
        *[("en_1-line-3-B", 1.5, 3.0, None), ("en_1-line-7-A1", 4.0, 8.0, None), ("en_1-line-7-B", 4.0, 8.0, None)],
        ("en_1-line-10-A", 9.0, 12.0, None),
    ]
    assert [(turn.id, turn.start, turn.end, turn.text) for turn in turns] == known + unknown
    assert {turn.speaker for turn in turns[3:]} == {"en_1_0A", "en_1_0B", "en_1_A1"}
    assert read_call(path, CALLHOME_IDS)[0] == turns[:-1]  # the end of the call is not known
    assert [name for name, _ in bad] == [f"{path}, line {number}" for number in (3, 4, 7, 8, 10, 11)]
    assert bad[4][1].startswith("not UTF-8") and all("expected `start end" in why for _, why in bad[:4])


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("1.7 1.6 B: lost", ["one.", "two.", "four."]),  # between the first two
        ("1.7 1.4 B: lost", ["two.", "four."]),
        ("99 3.5 B: lost", ["one.", "four."]),
        ("1,7 1.6 B: lost", ["one.", "two.", "four."]),
    ],
)
def test_no_window_has_the_speech_of_a_line_with_wrong_times(tmp_path, line, kept):
    path = tmp_path / "en_1.txt"

    def texts():
        turns, bad = read_call(path, CALLHOME_IDS, 10.0)
        recording = Recording("en_1", [], 16000, 160000, 10.0)
        track = Track("en_1", recording, 0, turns)
        words = partial(read_call_words, normaliser=lambda text, _: text)
        cuts = conversation_cuts(track, ConversationOptions(), words, lambda turn, why: None, {"tasks": ["asr"]})
        assert len(bad) == 1
        return [sup.text for cut in cuts for sup in cut.supervisions]

    path.write_text(f"0.5 1.5 A: one.\n{line}\n3.0 4.0 A: two.\n5.0 6.0 B: four.\n")
    assert texts() == kept
    # A line that is not UTF-8 may continue the turn before it.
    path.write_bytes(b"0.5 1.5 A: one.\n3.0 4.0 A: two.\ncaf\xe9\n5.0 6.0 B: four.\n")
    assert texts() == ["one.", "four."]
    # Without room between its neighbours, it overlaps one of them.
    path.write_text("0.5 1.5 A: one.\n9 8 B: lost\n1.5 4.0 A: two.\n5.0 6.0 B: four.\n")
    assert texts() == ["four."]


def test_turns_of_calls_may_lack_the_colon(tmp_path):
    """lhotse's recipes read them too. What else begins with two numbers is no words of the turn before."""
    path = tmp_path / "en_1.txt"
    lines = ["1.0 2.0 A: hi", "3.0 4.0 B yes: I do", "-- so", "5.0 6.0 B1"]
    lines += ["7.0 8.0 Cyes", "9.0 8.0 A no", "9.0 9.5: no"]
    path.write_text("\n".join(lines))
    turns, bad = read_call(path, CALLHOME_IDS)
    assert [(turn.speaker, turn.start, turn.end, turn.text) for turn in turns] == [
        ("en_1_0A", 1.0, 2.0, "hi"),
        ("en_1_0B", 3.0, 4.0, "yes: I do -- so"),
        ("en_1_B1", 5.0, 6.0, ""),
    ]
    assert [name for name, _ in bad] == [f"{path}, line {number}" for number in (5, 6, 7)]


def test_a_turn_beyond_the_end_of_its_call_is_listed(corpora, tmp_path):
    """lhotse would cut it off, with all its words."""
    shutil.copytree(corpora["eval2000"].corpus_dir, tmp_path / "corpus")
    path = next((tmp_path / "corpus").rglob("en_4156.txt"))
    path.write_text(path.read_text() + "10.5 13.5 A: the dog runs away\n10.95 11.05 B: hm\n")
    prepare("eval2000", tmp_path / "corpus", tmp_path / "out")
    listed = left_out(tmp_path / "out")
    assert "it does not lie inside its recording" in [item["reason"] for item in listed]
    assert not any("away" in turn.text for cut in cuts_of(tmp_path / "out", "test") for turn in cut.supervisions)


def test_folders_of_ldc_archives_are_found(corpora, tmp_path):
    """As LDC97S42, LDC97T14 and LDC2002T43 unpack."""
    for name, inside in (
        ("callhome-english", {"LDC97S42": "callhome_eng", "LDC97T14": "callhome_english_trans_970711"}),
        ("eval2000", {"LDC2002S09": "", "LDC2002T43": "2000_hub5_eng_eval_tr"}),
    ):
        for package, folder in inside.items():
            shutil.copytree(corpora[name].corpus_dir / package, tmp_path / name / package / folder)
        prepare(name, tmp_path / name, tmp_path / "out" / name)
        found = {path.name: [cut.id for cut in cuts_of(path.parent, path.name[5:-9])] for path in
                 (tmp_path / "out" / name).glob("cuts_*")}  # fmt: skip
        assert found == {name_: [cut.id for cut in cuts_of(corpora[name].out, name_[5:-9])] for name_ in found}
        assert found


def test_voxpopuli_segments_beyond_their_session_are_listed(tmp_path):
    """lhotse would cut them off, with all their words, or drop them silently."""
    corpus = make_voxpopuli(tmp_path / "corpus")
    prepare("voxpopuli", corpus, tmp_path / "whole")
    session = "20190103-0900-PLENARY-5-en"
    times = ((1.0, 99.0), (98.0, 99.0), (1.0, 1.0))
    with gzip.open(corpus / "asr_en.tsv.gz", "at", encoding="utf-8") as file:
        for number, (start, end) in enumerate(times):
            file.write(f"{session}|x{number}|A b.|a b|1|test|female|True|{start}|{end}\n")
    prepare("voxpopuli", corpus, tmp_path / "out")
    assert [c.id for c in cuts_of(tmp_path / "out", "test_en")] == [
        c.id for c in cuts_of(tmp_path / "whole", "test_en")
    ]
    listed = left_out(tmp_path / "out")
    outside = [item["id"] for item in listed if item["reason"] == "it does not lie inside its recording"]
    assert outside == [f"{session}-{number}" for number in (3, 4, 5)]


def test_voxpopuli_sessions_of_all_languages_in_one_folder(corpora, tmp_path):
    """As `download_audios --subset asr` of VoxPopuli writes them."""
    source = corpora["voxpopuli"].corpus_dir
    shutil.copy(source / "asr_en.tsv.gz", tmp_path)
    shutil.copy(source / "asr_en.tsv.gz", tmp_path / "asr_en_accented.tsv.gz")  # which lhotse's recipe refuses
    for path in (source / "raw_audios" / "en" / "2019").glob("*.ogg"):
        target = tmp_path / "raw_audios" / "original" / "2019" / path.name.replace("-en_en.ogg", "-en_original.ogg")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    prepare("voxpopuli", tmp_path, tmp_path / "out")
    for part in ("train_en", "dev_en", "test_en"):
        here, there = cuts_of(tmp_path / "out", part), cuts_of(corpora["voxpopuli"].out, part)
        assert [(c.id, c.start, c.supervisions[0].text) for c in here] == [
            (c.id, c.start, c.supervisions[0].text) for c in there
        ]
        assert here[0].recording.sources[0].source.startswith(str(tmp_path / "raw_audios" / "original"))


@pytest.mark.parametrize(("packed", "name"), [(False, "en"), (True, "en"), (True, "en_accented")])
def test_voxpopuli_clips_of_its_tool_and_of_the_hub(corpora, tmp_path, packed, name):
    root = tmp_path / "corpus" / ("data" if packed else "transcribed_data") / name
    for split in ("train", "test"):
        rows = ["id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"]
        for number in range(2):
            clip, text = f"20190101-0900-PLENARY-3-en_20190101-09:00:0{len(split)}_{number}", sentence("en", number)
            rows.append(f'{clip}\t"{text.capitalize()}.\t{text}\tNone\t{split}\tfemale\tTrue\tNone')
            path = root / (f"{split}_part_0" if packed else "2019") / f"{clip}.{'wav' if packed else 'ogg'}"
            write(path, speech(text, 16000), 16000)
        rows.append("20190101-gone\tGone.\tgone\t7\t" + split + "\tmale\tTrue\tNone")
        write_text(root / f"asr_{split}.tsv", "\n".join(rows) + "\n")
        if packed:
            (root / split).mkdir()
            with tarfile.open(root / split / f"{split}_part_0.tar.gz", "w:gz") as tar:
                tar.add(root / f"{split}_part_0", arcname=f"{split}_part_0")
            shutil.rmtree(root / f"{split}_part_0")
    out = tmp_path / "out"
    prepare("voxpopuli", tmp_path / "corpus", out, "--written")
    assert {path.name[5:-9] for path in out.glob("cuts_*")} == {f"train_{name}", f"test_{name}"}
    for cut in cuts_of(out, f"test_{name}"):
        (turn,) = cut.supervisions
        assert (
            cut.custom["tasks"] == ["asr", "lid", "punct"] and turn.custom["written"] == f'"{turn.text.capitalize()}.'
        )
        assert (turn.speaker, turn.gender, turn.language) == (None, "female", "en")
        within = out / "audio" / f"test_{name}" if packed else root / "2019"
        assert Path(cut.recording.sources[0].source).parent == within
    assert [item["reason"] for item in left_out(out)] == ["its clip is not there"] * 2


def test_call_is_cut_at_what_was_not_understood(corpora):
    first, second = cuts_of(corpora["eval2000"].out, "test")
    assert [(s.speaker, s.text, s.custom["endpoint"]) for s in (*first.supervisions, *second.supervisions)] == [
        ("en_4156-A", "um the dog runs", True),
        ("en_4156-B", "that house sees", False),  # broken off: --
        ("en_4156-A", "a forest", False),  # goes on after 0.3 s
        ("en_4156-A", "and through", True),  # no sign, and the other side speaks next
        ("en_4156-B", "forest runs", True),
        ("en_4156-B", "the house", True),
    ]
    assert first.end < 5.2 and second.start > 6.0  # "I (( )) sees" is from 5.2 to 6.0 s


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("<contraction e_form=\"[we=>we]['re=>are]\">we're starting", "we're starting"),
        ("{breath} oh, [static] about [/static] it", "oh, about it"),
        ("**wowzers** +nuclar+ //aside// #both# &Paris %uh", "wowzers nuclar aside both Paris uh"),
        ("((maybe so)) yes", "maybe so yes"),
        ("well (( )) yes", None),
        ("<? something> yes", None),
        ('he said <foreign language="Spanish"> hola </foreign>', None),
        ("<b_aside> hold on <e_aside> yes", "hold on yes"),
        ("{laugh}", ""),
    ],
)
def test_transcription_conventions_of_the_ldc(raw, expected):
    assert clean(raw) == expected


def test_normaliser_none_keeps_case_and_punctuation(corpora, tmp_path):
    root = tmp_path / "cv"
    shutil.copytree(corpora["commonvoice"].corpus_dir / "fr", root / "fr")
    for normaliser in ("none", "cased"):
        prepare("commonvoice", root, tmp_path / normaliser, "--normaliser", normaliser, "--language", "fr")
    (plain,), (cased,) = (cuts_of(tmp_path / name, "dev_fr")[0].supervisions for name in ("none", "cased"))
    assert plain.text.startswith("« ") and "original_text" not in plain.custom
    assert cased.text == plain.text[2:-4] and cased.text[0].isupper()


def test_several_processes_give_the_same(corpora, tmp_path):
    prepare("callhome-english", corpora["callhome-english"].corpus_dir, tmp_path, "--jobs", 2)
    here, there = (
        [[cut.id, cut.recording.duration, [s.to_dict() for s in cut.supervisions]] for cut in cuts_of(out, "train")]
        for out in (tmp_path, corpora["callhome-english"].out)
    )
    assert here == there
    for path in (tmp_path / "audio").rglob("*.flac"):
        assert path.read_bytes() == (corpora["callhome-english"].out / path.relative_to(tmp_path)).read_bytes()


def test_common_voice_locales_of_one_language_are_refused(corpora, tmp_path):
    root = tmp_path / "cv"
    for locale in ("zh-CN", "zh-TW"):
        shutil.copytree(corpora["commonvoice"].corpus_dir / "fr", root / locale)
    result = run("manifest", "prepare", "commonvoice", root, tmp_path / "out")
    assert result.exit_code == 2 and "zh-CN and zh-TW are both zh" in result.stderr
    missing = run("manifest", "prepare", "commonvoice", root, tmp_path / "out", "--language", "eo")
    assert missing.exit_code == 2 and "eo/clips" in missing.stderr


def test_mls_clips_that_are_not_there_cost_no_other(tmp_path):
    corpus = make_mls(tmp_path / "corpus")
    next((corpus / "mls_german" / "train").rglob("10_2961_000002.flac")).unlink()
    info = corpus / "mls_german" / "metainfo.txt"
    info.write_text("".join(line for line in info.read_text().splitlines(True) if "  11  |" not in line))
    prepare("mls", corpus, tmp_path / "out")
    cuts = cuts_of(tmp_path / "out", "train_de")
    assert len(cuts) == 5
    assert {(cut.supervisions[0].speaker, cut.supervisions[0].gender) for cut in cuts} == {("10", "F"), ("11", None)}
    [item] = left_out(tmp_path / "out")
    assert (item["id"], item["reason"]) == ("10_2961_000002", "its audio is not there")


def test_mls_opus(tmp_path):
    make_mls(tmp_path / "flac")
    for path in (tmp_path / "flac" / "mls_german").rglob("*"):
        target = tmp_path / "opus" / "mls_german_opus" / path.relative_to(tmp_path / "flac" / "mls_german")
        if path.suffix == ".flac":
            target.parent.mkdir(parents=True, exist_ok=True)
            samples, rate = soundfile.read(path)
            soundfile.write(target.with_suffix(".opus"), samples, rate, format="OGG", subtype="OPUS")
        elif path.suffix == ".txt":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    prepare("mls", tmp_path / "opus", tmp_path / "out")
    cuts = cuts_of(tmp_path / "out", "train_de")
    assert len(cuts) == 6 and cuts[0].load_audio().shape == (1, 16000)
    # lhotse's recipe would take one of the two for both.
    shutil.move(tmp_path / "flac" / "mls_polish", tmp_path / "opus")
    result = run("manifest", "prepare", "mls", tmp_path / "opus", tmp_path / "both")
    assert result.exit_code == 2 and "mls_german_opus and mls_polish" in result.stderr


CV_RELEASES = {
    "1": "client_id path sentence up_votes down_votes age gender accent",
    "5.1": "client_id path sentence up_votes down_votes age gender accent locale segment",
    "8": "client_id path sentence up_votes down_votes age gender accents locale segment",
    "13": "client_id path sentence up_votes down_votes age gender accents variant locale segment",
    "17": "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale "
    "segment",
    "bare": "path sentence",
}


def cv_release(corpora, root, columns, change=lambda split, rows: None, newline="\n"):
    """The miniature's French with other columns; ``change`` may alter the rows (lists of cells)."""
    shutil.copytree(corpora["commonvoice"].corpus_dir / "fr", root / "fr")
    for split in ("train", "dev", "test"):
        path = root / "fr" / f"{split}.tsv"
        header, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [dict(zip(header, cells)) for cells in lines]
        table = [columns, *[[{**row, "accent": row["accents"]}.get(name, "x") for name in columns] for row in rows]]
        change(split, table)
        path.write_bytes(newline.join("\t".join(cells) for cells in [*table, []]).encode("utf-8"))
    return root


@pytest.mark.parametrize("release", CV_RELEASES)
def test_common_voice_releases(corpora, tmp_path, release):
    columns = CV_RELEASES[release].split()
    prepare("commonvoice", cv_release(corpora, tmp_path / "cv", columns), tmp_path / "out")
    cuts, expected = cuts_of(tmp_path / "out", "train_fr"), cuts_of(corpora["commonvoice"].out, "train_fr")
    assert [(cut.id, cut.supervisions[0].text) for cut in cuts] == [(c.id, c.supervisions[0].text) for c in expected]
    (turn,) = cuts[1].supervisions
    assert turn.speaker == (None if release == "bare" else "client1")
    assert set(turn.custom) == {"age", "accents", "variant"} & {*columns, *(["accents"] if "accent" in columns else [])}
    assert not left_out(tmp_path / "out")


def test_common_voice_clips_without_ending_or_with_another_case(corpora, tmp_path):
    def change(split, table):
        at = table[0].index("path")
        for row in table[1:]:
            row[at] = {"train": row[at][:-4], "dev": row[at][:-4] + ".MP3", "test": row[at]}[split]

    root = cv_release(corpora, tmp_path / "cv", CV_RELEASES["5.1"].split(), change, newline="\r\n")
    for path in (root / "fr" / "clips").glob("*_test*"):
        path.rename(path.with_suffix(".MP3"))
    prepare("commonvoice", root, tmp_path / "out")
    for part in ("train_fr", "dev_fr", "test_fr"):
        assert [c.id for c in cuts_of(tmp_path / "out", part)] == [
            c.id for c in cuts_of(corpora["commonvoice"].out, part)
        ]
    assert not left_out(tmp_path / "out")


def test_common_voice_rows_that_cannot_be_read_are_listed(corpora, tmp_path):
    bad = ["torn.mp3", "none.mp3", "../fr/clips/a.mp3", "", "/etc/hostname", "tab", "short", "twice", "latin"]

    def change(split, table):
        if split == "train":
            good = table[1]
            for name in bad:
                table.append([*good[:1], name, *good[2:]])
                if name in ("tab", "short", "twice"):
                    table[-1] = [*good, "x"] if name == "tab" else good[:2] if name == "short" else good
            table.append([*table[2][:1], "spare.mp3", *table[2][2:8]])  # empty cells at the end left out

    root = cv_release(corpora, tmp_path / "cv", CV_RELEASES["13"].split(), change)
    table = root / "fr" / "train.tsv"
    table.write_bytes(table.read_bytes().replace(b"\tlatin\t", b"\tl\xe4tin\t"))
    clips = root / "fr" / "clips"
    (clips / "torn.mp3").write_bytes(b"no audio")
    shutil.copy(next(clips.glob("common_voice*.mp3")), clips / "spare.mp3")
    prepare("commonvoice", root, tmp_path / "out")
    assert [cut.id for cut in cuts_of(tmp_path / "out", "train_fr")] == [
        *(cut.id for cut in cuts_of(corpora["commonvoice"].out, "train_fr")),
        "spare",
    ]
    items = left_out(tmp_path / "out")
    assert len(items) == len(bad) and {item["part"] for item in items} == {"train_fr"}
    reasons = {item["id"]: item["reason"] for item in items}
    assert "cannot be read as audio" in reasons["torn"] and "not in the folder" in reasons["none.mp3"]
    assert reasons[f"{table}, line 11"] == "expected 11 cells, found 12"
    assert "not UTF-8" in reasons[f"{table}, line 14"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"client_id\tsentence\n", "no path"),
        (b"path\n", "no sentence"),
        (b"", "empty"),
        (b"path\tsentence\tpath\n", "twice"),
    ],
)
def test_common_voice_tables_without_what_is_needed(corpora, tmp_path, header, said):
    root = cv_release(corpora, tmp_path / "cv", CV_RELEASES["13"].split())
    (root / "fr" / "dev.tsv").write_bytes(header)
    result = run("manifest", "prepare", "commonvoice", root, tmp_path / "out")
    assert result.exit_code == 2 and said in result.stderr and "dev.tsv" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def lines_of(path):
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    return data.rstrip(b"\n").split(b"\n")


def rewrite(path, lines):
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


CASES = [
    ("mls", make_mls, "mls_german/train/transcripts.txt", "train_de", 1, b"\t"),
    ("librispeech", make_librispeech, "train-clean-100/19/198/19-198.trans.txt", "train_clean_100", 1, b" "),
    ("voxpopuli", make_voxpopuli, "asr_en.tsv.gz", "train_en", 3, b"|"),
    ("commonvoice", make_commonvoice, "fr/train.tsv", "train_fr", 2, b"\t"),
]


@pytest.mark.parametrize(("name", "make", "file", "part", "at", "delimiter"), CASES)
def test_a_broken_row_costs_no_other(tmp_path, threads_for_commonvoice, name, make, file, part, at, delimiter):
    corpus = make(tmp_path / "corpus")
    prepare(name, corpus, tmp_path / "whole")
    path = corpus / file
    lines = lines_of(path)
    lines[at] = lines[at][:-3] + b"\r" + lines[at][-3:]
    # White space of Unicode within a text is none of the recipe's line ends; a byte order mark is no column's name.
    lines[at + 1] = lines[at + 1].replace(b"e ", "e\u2028".encode())
    lines[0] = b"\xef\xbb\xbf" + lines[0]
    rewrite(path, lines)
    prepare(name, corpus, tmp_path / "out")
    named = {"part": part, "id": f"{path}, line {at + 1}", "seconds": 0.0, "reason": "holds a carriage return (U+000D)"}
    assert [item for item in left_out(tmp_path / "out") if "line" in item["id"]] == [named]
    before = [cut.supervisions[0].text for cut in cuts_of(tmp_path / "whole", part)]
    after = [cut.supervisions[0].text for cut in cuts_of(tmp_path / "out", part)]
    assert len(after) == len(before) - 1 and set(after) < set(before)
    for cut in cuts_of(tmp_path / "out", part):
        assert Path(cut.recording.sources[0].source).is_file()


def test_what_is_wrong_with_a_row(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes(b'a|start\nx|1\nx\nx|1|2\n\nx|1_0\n"x|1\n"x""y"|2\n' + b"\xff|1\n" + b"x\0|1\n")
    table = check_table(path, Form(delimiter="|", quoting=True, numbers=("start",)))
    assert table.bad == {
        3: "expected 2 cells, found 1",
        4: "expected 2 cells, found 3",
        6: "column start: expected a number, found '1_0'",
        7: "broken quoting",
        9: "not UTF-8",
        10: "holds a NUL byte (U+0000)",
    }
    assert [(number, cells) for number, cells in table.rows()] == [
        (1, ["a", "start"]),
        (2, ["x", "1"]),
        (8, ['x"y', "2"]),
    ]
