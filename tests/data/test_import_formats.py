import gzip
import json

import numpy as np
import pytest
from importing_cases import imported, run, turns, write, write_audio
from lhotse import CutSet, SupervisionSet
from lhotse.kaldi import load_kaldi_data_dir

from tokenverse_pp.data.importing.transcripts import read_transcripts


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_table_with_columns_named_like_fields(audio_dir, data, out):
    table = write(
        data / "T.csv",
        "id,audio,text,language,speaker,entities,endpoint,note\n"
        'u1,a.wav,bonjour Paris,FR,s1,"[{""start"": 8, ""end"": 13, ""type"": ""LOC""}]",yes,x\n'
        "u2,sub/c.flac,oui,fr,,[],,\n",
    )
    one, two = imported(out, "--table", table, "--audio-dir", audio_dir)
    assert one["custom"]["tasks"] == ["asr", "scd", "endp", "ner", "lid"]
    assert one["supervisions"][0]["custom"] == {"entities": [{"start": 8, "end": 13, "type": "LOC"}], "endpoint": True}
    # Missing is not empty: no speaker and no endpoint were given, and that there is no entity was.
    assert two["custom"]["tasks"] == ["asr", "ner", "lid"]
    assert (two["duration"], two["recording"]["sources"][0]["source"]) == (4.0, str(audio_dir / "sub/c.flac"))
    assert next(iter(CutSet.from_file(out))).load_audio().shape == (1, 64000)


def test_columns_constants_times_and_other_rates(audio_dir, data, out):
    lines = ["path\tsentence\tfrom\tto\tch", 'd.wav\tsaid "yes"\t500\t1500\tB', "d.wav\tno\t2000\t4000\t1"]
    table = gzip.compress("\r\n".join(lines).encode("utf-8-sig"))
    (data / "T.tsv.gz").write_bytes(table)
    mapping = ("audio=path", "text=sentence", "start=from", "end=to", "channel=ch")
    options = [x for pair in mapping for x in ("--column", pair)]
    cuts = imported(
        *(out, "--table", data / "T.tsv.gz", "--audio-dir", audio_dir, "--times", "ms", "--set", "language=en"),
        *options,
    )
    assert [(c["start"], c["duration"], c["channel"]) for c in cuts] == [(0.5, 1.0, 0), (2.0, 2.0, 0)]
    assert [c["recording"]["id"] for c in cuts] == ["d-2", "d-1"]  # a file a channel, at 16 kHz
    assert [c["id"] for c in cuts] == ["T-2", "T-3"]
    assert cuts[0]["supervisions"][0]["text"] == 'said "yes"'
    assert cuts[0]["custom"]["tasks"] == ["asr", "lid"]
    assert next(iter(CutSet.from_file(out))).load_audio().shape == (1, 16000)


def test_json_lines_with_tags_and_own_fields(audio_dir, data, out):
    row = {
        "audio": "a.wav",
        "text": "in New York",
        "speaker": 7,
        "tags": ["O", "B-LOC", "I-LOC"],
        "custom.mood": "glad",
    }
    table = write(data / "T.jsonl", json.dumps(row))
    [cut] = imported(out, "--table", table, "--audio-dir", audio_dir, "--column", "entities=tags")
    [turn] = cut["supervisions"]
    assert turn["custom"] == {"mood": "glad", "entities": [{"start": 3, "end": 11, "type": "LOC"}]}
    assert turn["speaker"] == "7"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("brackets", "vers [l'Europe](LOC), [Jean Paul]() dit"),
        ("tags", "vers <LOC>l'Europe</LOC>, <NE>Jean Paul</NE> dit"),
    ],
)
def test_entities_marked_in_the_text(audio_dir, data, out, markup, text):
    table = write(data / "T.tsv", f"audio\ttext\na.wav\t{text}\nb.wav\trien\n")
    options = ("--table", table, "--audio-dir", audio_dir, "--inline-entities", markup, "--normaliser", "words")
    one, two = imported(out, *options)
    assert one["supervisions"][0]["text"] == "vers l'europe jean paul dit"
    assert one["supervisions"][0]["custom"]["entities"] == [
        {"start": 5, "end": 13, "type": "LOC"},
        {"start": 14, "end": 23},
    ]
    assert two["supervisions"][0]["custom"]["entities"] == [] and two["custom"]["tasks"] == ["asr", "ner"]


def test_tasks_by_option_and_by_row(audio_dir, data, out):
    table = write(data / "T.csv", "audio,text,speaker,tasks\na.wav,oui,x,asr\nb.wav,non,y,\n")
    cuts = imported(out, "--table", table, "--audio-dir", audio_dir, "--tasks", "asr,scd")
    assert [cut["custom"]["tasks"] for cut in cuts] == [["asr"], ["asr", "scd"]]
    code, _, err = run("import", out, "--table", table, "--audio-dir", audio_dir, "--tasks", "lid")
    assert code == 2
    assert f"{table}, line 3: field 'language': expected a code" in err and "1 of 2 rows" in err


def kaldi_folder(data, audio_dir):
    write(data / "wav.scp", f"rec-a {audio_dir}/a.wav\nrec-b {audio_dir}/b.wav\n")
    write(data / "segments", "u1 rec-a 0.5 1.5\nu2 rec-a 1.75 3.25\nu3 rec-b 0 -1\n")
    write(data / "text", "u1 bon jour\nu2 oui\nu3 non merci\n")
    write(data / "utt2spk", "u1 s1\nu2 s2\nu3 s1\n")
    write(data / "utt2lang", "u1 fr\nu2 fr\nu3 fr\n")
    return data


def test_kaldi_gives_what_lhotse_gives(audio_dir, data, out):
    folder = kaldi_folder(data, audio_dir)
    _, expected, _ = load_kaldi_data_dir(folder, 16000)
    cuts = imported(out, "--kaldi", folder, "--audio-dir", "/")
    assert [cut["custom"]["tasks"] for cut in cuts] == [["asr", "scd", "lid"]] * 3
    whole = imported(out, "--kaldi", folder, "--audio-dir", "/", "--one-cut-per", "recording")
    assert [(cut["id"], cut["start"], cut["duration"]) for cut in whole] == [("rec-a", 0, 4), ("rec-b", 0, 4)]
    assert turns(whole[0]) == [(0.5, 1.5, "s1", "bon jour"), (1.75, 3.25, "s2", "oui")]
    for cut, turn in zip(cuts, expected):
        mine = cut["supervisions"][0]
        assert (cut["start"], cut["duration"]) == (turn.start, turn.duration)
        assert [mine[k] for k in ("id", "recording_id", "text", "speaker", "language")] == [
            *(turn.id, turn.recording_id, turn.text, turn.speaker, turn.language)
        ]


def test_kaldi_segments_may_name_a_channel_from_0_on(data, out):
    write_audio(data / "k/call.wav", channels=2)
    write(data / "k/wav.scp", "call call.wav\n")
    write(data / "k/segments", "u1 call 0 1 0\nu2 call 0 1 1\nu3 call 0 1 A\n")
    write(data / "k/text", "u1 oui\nu2 non\nu3 si\n")
    code, said, _ = run("import", out, "--kaldi", data / "k", "--skip-bad")
    assert code == 0 and "line 3: expected `utterance recording start end [channel]`" in said
    cuts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(cut["id"], cut["channel"]) for cut in cuts] == [("u1", 0), ("u2", 1)]


def test_kaldi_pipes_are_not_run_unless_allowed(audio_dir, data, out, tmp_path):
    trace = tmp_path / "trace"
    write(data / "wav.scp", f"u1 touch {trace}; cat {audio_dir}/a.wav |\n")
    write(data / "text", "u1 oui\n")
    code, _, err = run("import", out, "--kaldi", data)
    assert code == 2 and "--allow-pipes" in err and f"{data}/wav.scp, line 1" in err and not trace.exists()
    [cut] = imported(out, "--kaldi", data, "--allow-pipes")
    assert trace.exists() and cut["duration"] == 4.0
    assert next(iter(CutSet.from_file(out))).load_audio().shape == (1, 64000)


STM = """;; a comment
a 1 anna 0.00 1.50 <o,f0,female> bon jour
a A ben 1.60 3.00 oui
b 1 anna 0.5 2.0 non
"""


def test_stm_segments_without_transcript_are_not_passed_over(audio_dir, data, out):
    stm = write(data / "x.stm", STM + "a 1 inter_segment_gap 3 4 <o> ignore_time_segment_in_scoring\n")
    options = ("--stm", stm, "--audio-dir", audio_dir)
    code, _, err = run("import", out, *options)
    assert code == 2 and f"{stm}, line 5: a segment that is marked as not to be scored" in err and not out.exists()
    assert len(imported(out, *options, "--skip-bad")) == 3
    # As one cut it would hold speech that is not in its transcript.
    cuts = imported(out, *options, "--skip-bad", "--one-cut-per", "recording")
    assert [cut["id"] for cut in cuts] == ["b"]


RTTM = """SPKR-INFO a 1 <NA> <NA> <NA> unknown anna <NA> <NA>
SPEAKER a 1 0.00 1.50 <NA> <NA> anna <NA> <NA>
SPEAKER a 1 1.60 1.40 <NA> <NA> ben <NA> <NA>
SPEAKER b 1 0.50 1.50 <NA> <NA> carl <NA> <NA>
"""
CTM = """;; words
a 1 0.10 0.30 bon 0.9
a 1 0.50 0.40 jour 0.9
a 1 1.70 0.30 oui
b A 0.6 0.2 non
"""


def test_rttm_and_ctm_give_what_lhotse_gives(audio_dir, data, out):
    rttm = write(data / "x.rttm", "\n".join(RTTM.splitlines()[1:]))
    ctm = write(data / "x.ctm", CTM.replace("b A", "b 1").split("\n", 1)[1])
    cuts = imported(out, "--rttm", rttm, "--ctm", ctm, "--audio-dir", audio_dir)
    expected = sorted(
        SupervisionSet.from_rttm(rttm).with_alignment_from_ctm(ctm), key=lambda s: (s.recording_id, s.start)
    )
    assert len(cuts) == 3
    for cut, turn in zip(cuts, expected):
        words = " ".join(item.symbol for item in turn.alignment["word"])
        assert (cut["start"], cut["duration"]) == (turn.start, turn.duration)
        assert cut["supervisions"][0]["speaker"] == turn.speaker and cut["supervisions"][0]["text"] == words


def test_ctm_alone_makes_turns_at_pauses(audio_dir, data, out):
    ctm = write(data / "x.ctm", CTM)
    cuts = imported(out, "--ctm", ctm, "--audio-dir", audio_dir, "--pause", "0.5", "--set", "speaker=one")
    assert [(c["start"], c["supervisions"][0]["text"]) for c in cuts] == [(0.1, "bon jour"), (1.7, "oui"), (0.6, "non")]


def test_turns_of_a_ctm_end_where_its_speaker_changes(audio_dir, data, out):
    lines = ["a 1 0.1 0.3 bon 1.0 lex anna", "a 1 0.5 0.4 jour NA lex anna", "a 1 1.0 0.2 oui NA lex ben",
             "a 1 1.3 0.2 non NA lex unknown"]  # fmt: skip
    ctm = write(data / "x.ctm", "\n".join(lines))
    [cut] = imported(out, "--ctm", ctm, "--audio-dir", audio_dir, "--one-cut-per", "recording")
    assert turns(cut) == [(0.1, 0.9, "anna", "bon jour"), (1.0, 1.2, "ben", "oui"), (1.3, 1.5, None, "non")]
    # Beside turns its names of speakers count for nothing: they may be others.
    table = write(data / "T.csv", "audio,start,end,speaker\na.wav,0,2,x\n")
    [cut] = imported(out, "--table", table, "--ctm", ctm, "--audio-dir", audio_dir)
    assert turns(cut) == [(0.0, 2.0, "x", "bon jour oui non")]


def test_turns_of_speakers_who_overlap_are_not_single_words(audio_dir, data, out):
    def lines(*words):
        return "".join(f"a 1 {start} {end - start:.1f} {word} NA lex {who}\n" for word, who, start, end in words)

    overlapping = [("eins", "A", 0, 0.5), ("zwei", "B", 0.3, 0.7), ("drei", "A", 0.6, 1.1), ("vier", "B", 0.9, 1.4)]
    options = ("--ctm", data / "x.ctm", "--audio-dir", audio_dir, "--one-cut-per", "recording")
    write(data / "x.ctm", lines(*overlapping, ("neun", "A", 3, 3.5)))
    [cut] = imported(out, *options)
    assert turns(cut) == [(0, 1.1, "A", "eins drei"), (0.3, 1.4, "B", "zwei vier"), (3, 3.5, "A", "neun")]
    # What another says between two words is no part of their turn.
    write(data / "x.ctm", lines(("eins", "A", 0, 0.5), ("zwei", "B", 0.5, 0.7), ("drei", "A", 0.8, 1.1)))
    [cut] = imported(out, *options)
    assert [turn[2:] for turn in turns(cut)] == [("A", "eins"), ("B", "zwei"), ("A", "drei")]


def test_speakers_and_words_are_found_by_the_name_of_the_audio(audio_dir, data, out):
    write_audio(data / "my call.wav")
    table = write(data / "T.csv", "audio,start,end\nmy call.wav,0,1.5\n")
    rttm = write(data / "x.rttm", RTTM.replace(" a 1", " my%20call 1"))
    ctm = write(data / "x.ctm", "my%20call 1 0.1 0.3 bon\n")
    [cut] = imported(out, "--table", table, "--rttm", rttm, "--ctm", ctm)
    assert turns(cut) == [(0.0, 1.5, "anna", "bon")]


def test_words_and_speakers_of_two_files_of_one_name_are_not_mixed(data, out):
    for folder in ("p", "q"):
        write_audio(data / folder / "call.wav")
    rows = "u1,p/call.wav,0,4\nu2,q/call.wav,0,1\nu3,q/call.wav,1,4\n"
    table = write(data / "T.csv", "id,audio,start,end\n" + rows)
    ctm = write(data / "x.ctm", "call 1 0.1 0.3 bon\ncall 1 2 0.3 jour\n")
    rttm = write(data / "x.rttm", RTTM.replace(" a 1", " call 1"))
    texts = write(data / "texts.csv", "id,audio,start,end,text\n" + rows.replace("\n", ",oui\n"))
    for options in (("--table", table, "--ctm", ctm), ("--table", texts, "--rttm", rttm)):
        code, said, _ = run("import", out, *options, "--skip-bad")
        assert code == 0 and "rows: 3 read = 1 kept + 2 left out" in said
        assert "line 3: field 'audio': 'q/call.wav' has the name of 'p/call.wav'" in said
    # The field decides whose they are; of other names nothing is told.
    named = rows.replace(",p/", ",call,p/").replace(",q/", ",other,q/").replace("\n", ",oui\n")
    table = write(data / "T.csv", "id,recording,audio,start,end,text\n" + named)
    cuts = imported(out, "--table", table, "--rttm", rttm)
    assert [cut["supervisions"][0].get("speaker") for cut in cuts] == ["anna", None, None]


def test_an_rttm_of_other_recordings_is_told(audio_dir, data, out):
    stm = write(data / "m.stm", "a 1 x 0 1.5 bon jour\n")
    rttm = write(data / "m.rttm", "SPEAKER a.Mix-Headset 1 0 1.5 <NA> <NA> anna <NA> <NA>\n")
    code, _, err = run("import", out, "--stm", stm, "--rttm", rttm, "--audio-dir", audio_dir)
    assert code == 2 and f"{rttm}, line 1: no turn is of recording 'a.Mix-Headset'" in err


def test_a_turn_of_a_recording_that_the_recordings_lack_is_told(audio_dir, data, out):
    recordings = write(data / "R.csv", "recording,audio,language\na.Mix,a.wav,fr\n")
    stm = write(data / "m.stm", "a 1 x 0 1.5 bon jour\n")  # there is an a.wav, but its language is not known
    code, _, err = run("import", out, "--recordings", recordings, "--stm", stm, "--audio-dir", audio_dir)
    assert code == 2 and f"{stm}, line 1: recording 'a' is not in {recordings}" in err


def test_recordings_may_list_some_of_those_that_are_found_by_name(audio_dir, data, out):
    stm = write(data / "m.stm", "a 1 x 0 1 bon\nb 1 x 0 1 oui\n")
    options = ("--stm", stm, "--audio-dir", audio_dir, "--recordings")
    one, two = imported(out, *options, write(data / "R.csv", "recording,language\na,fr\n"))
    assert [cut["supervisions"][0].get("language") for cut in (one, two)] == ["fr", None]
    write(stm, "a 1 x 0 1 bon\nnone 1 x 0 1 oui\n")
    recordings = write(data / "R.csv", "recording,language\na,fr\na,en\n")
    code, _, err = run("import", out, *options, recordings)
    assert code == 2 and f"{stm}, line 2: recording 'none' is not in {recordings}" in err


def test_rows_of_the_same_audio_are_told(audio_dir, data, out):
    table = write(data / "T.csv", "audio,start_time,end_time,text\na.wav,0,1,bon\nb.wav,0,1,oui\na.wav,1,2,jour\n")
    code, said, _ = run("import", out, "--table", table, "--audio-dir", audio_dir)
    assert code == 0 and f"as an earlier row: 1, the first: {table}, line 4 (--column start=COLUMN" in said
    columns = ("--column", "start=start_time", "--column", "end=end_time")
    code, said, _ = run("import", out, "--table", table, "--audio-dir", audio_dir, *columns)
    assert code == 0 and "earlier row" not in said
    # Other rows have times, so that there is nothing to map.
    stm = write(data / "x.stm", "a A s 0 1 bon\na B t 0 1 oui\na B t 0 1 oui\n")
    code, said, _ = run("import", out, "--stm", stm, "--audio-dir", audio_dir)
    assert f"earlier row: 2, the first: {stm}, line 2 (as {stm}, line 1, of channel 'A'; this one is of 'B')" in said
    write(table, "audio,start,end,text\na.wav,0,1,bon\na.wav,0,1,jour\n")
    code, said, _ = run("import", out, "--table", table, "--audio-dir", audio_dir)
    assert f"earlier row: 1, the first: {table}, line 3 (as {table}, line 2)\n" in said


def transcript_of(name):
    word = {"text": "oui", "start": 0.0, "end": 1.0, "confidence": None}
    return json.dumps({"name": name, "duration": 4.0, "tasks": ["asr"], "words": [word], "marks": []}) + "\n"


ONE_TURN = {
    "stm": "{} 1 s 0 1 oui\n".format,
    "ctm": "{} 1 0 1 oui\n".format,
    "rttm": "SPEAKER {0} 1 0 1 <NA> <NA> s <NA> <NA>\nLEXEME {0} 1 0 1 oui lex s <NA> <NA>\n".format,
    "srt": "1\n00:00:00,000 --> 00:00:01,000\noui\n".format,
    "conll": "# id = {}\noui O\n".format,
    "json": transcript_of,
    "jsonl": transcript_of,
}


@pytest.mark.parametrize("ending", list(ONE_TURN))
def test_compressed_files_of_a_folder(audio_dir, data, out, ending):
    write(data / "all" / f"a.{ending}", ONE_TURN[ending]("a"))
    write(data / "all" / f"b.{ending}.gz", gzip.compress(ONE_TURN[ending]("b").encode()))
    option = {"srt": "--subtitles", "jsonl": "--transcripts", "json": "--transcripts"}.get(ending, f"--{ending}")
    options = [option, data / "all", "--audio-dir", audio_dir]
    if ending == "conll":
        options += ["--table", write(data / "T.csv", "id,audio,text\na,a.wav,oui\nb,b.wav,oui\n")]
    cuts = imported(out, *options)
    assert [cut["recording"]["id"] for cut in cuts] == ["a", "b"]
    assert all(("ner" in cut["custom"]["tasks"]) == (ending == "conll") for cut in cuts)
    (data / "all" / f"b.{ending}.gz").rename(data / "all" / f"b.{ending}.GZ")
    assert [cut["recording"]["id"] for cut in imported(out, *options)] == ["a", "b"]
    write(data / "all" / f"a.{ending}.gz", b"")
    code, _, err = run("import", out, *options)
    assert code == 2 and f"a.{ending}.gz: expected one of it and {data}/all/a.{ending}" in err


def test_a_bad_line_of_compressed_transcripts_spoils_no_other(data):
    path = write(data / "x.jsonl.gz", gzip.compress(("{\n" + transcript_of("a")).encode()))
    bad, good = read_transcripts(path)
    assert bad.place.line == 1 and good.text == "oui"


def test_words_that_lie_in_no_turn_are_told(audio_dir, data, out):
    rttm, ctm = write(data / "x.rttm", RTTM), write(data / "x.ctm", CTM + "b 1 3.0 0.5 perdu\n")
    code, _, err = run("import", out, "--rttm", rttm, "--ctm", ctm, "--audio-dir", audio_dir)
    assert code == 2 and f"{ctm}, line 6: word 'perdu' at 3.000 s lies in no turn" in err


def test_a_mix_audio_table_stm_rttm_and_brat(audio_dir, data, out):
    recordings = write(data / "R.csv", "recording,audio,language\nmeet,a.wav,fr\nother,sub/c.flac,en\n")
    stm = write(data / "m.stm", "meet 1 unknown 0 1.5 bon jour, Paris\nmeet 1 unknown 1.6 3 oui\nother 1 z 0 2 yes\n")
    rttm = write(data / "m.rttm", RTTM.replace(" a 1", " meet 1"))
    write(data / "brat/meet.txt", "Bon jour Paris.\r\nOui.\r\n")
    write(data / "brat/meet.ann", "T1\tLOC 9 14\tParis\n#1\tAnnotatorNotes T1\tcapital\n")
    options = ("--recordings", recordings, "--stm", stm, "--rttm", rttm, "--brat", data / "brat")
    options += ("--audio-dir", audio_dir, "--one-cut-per", "recording", "--normaliser", "words")
    [one, two] = imported(out, *options)
    assert turns(one) == [(0.0, 1.5, "anna", "bon jour paris"), (1.6, 3.0, "ben", "oui")]
    assert [turn["custom"]["entities"] for turn in one["supervisions"]] == [
        [{"start": 9, "end": 14, "type": "LOC"}],
        [],
    ]
    assert one["custom"]["tasks"] == ["asr", "scd", "ner", "lid"]
    # Nobody annotated the other recording, and the RTTM says nothing of it.
    assert two["custom"]["tasks"] == ["asr", "lid"] and two["supervisions"][0]["language"] == "en"


CONLL = """-DOCSTART- -X- O

{one}New B-LOC
York I-LOC
! O

{two}# O
rien O
"""


@pytest.mark.parametrize("names", [("", ""), ("# id = u1\n", "# sent_id = u2\n")])
def test_conll_in_order_and_by_name(audio_dir, data, out, names):
    rows = ["u1,a.wav,new york", "u2,b.wav,rien"]
    if names[0]:
        rows.reverse()
    table = write(data / "T.csv", "id,audio,text\n" + "\n".join(rows) + "\n")
    conll = write(data / "T.conll", CONLL.format(one=names[0], two=names[1]))
    cuts = imported(out, "--table", table, "--audio-dir", audio_dir, "--conll", conll)
    entities = {cut["id"]: cut["supervisions"][0]["custom"]["entities"] for cut in cuts}
    assert entities == {"u1": [{"start": 0, "end": 8, "type": "LOC"}], "u2": []}


def test_hugging_face_folders(audio_dir, data, out):
    datasets = pytest.importorskip("datasets")
    wave = (audio_dir / "a.wav").read_bytes()
    features = datasets.Features(
        {
            "clip": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "sentence": datasets.Value("string"),
            "lang": datasets.ClassLabel(names=["en", "fr"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-LOC", "I-LOC"])),
        }
    )
    rows = {
        "clip": [{"bytes": wave, "path": "x.wav"}, {"bytes": None, "path": str(audio_dir / "b.wav")}],
        "sentence": ["in New York", "oui"],
        "lang": [0, 1],
        "tags": [[0, 1, 2], [0]],
    }
    data_set = datasets.Dataset.from_dict(rows, features=features).cast_column("clip", datasets.Audio())
    datasets.DatasetDict({"train": data_set, "test": data_set.select([0])}).save_to_disk(data / "hf")
    columns = ("audio=clip", "text=sentence", "language=lang", "entities=tags")
    options = [x for pair in columns for x in ("--column", pair)]
    code, _, err = run("import", out, "--hf", data / "hf", *options)
    assert code == 2 and "expected one of train, test" in err and not out.exists()
    bad = [*options[:-1], "entities=sentence"]
    code, _, err = run("import", out, "--hf", data / "hf", "--hf-split", "train", *bad)
    assert code == 2 and f"{data / 'hf'}, row 0: field 'entities'" in err
    assert not out.exists() and not (out.parent / "cuts_audio").exists()
    one, two = imported(out, "--hf", data / "hf", "--hf-split", "train", *options)
    assert [cut["supervisions"][0]["language"] for cut in (one, two)] == ["en", "fr"]
    assert one["supervisions"][0]["custom"]["entities"] == [{"start": 3, "end": 11, "type": "LOC"}]
    assert one["recording"]["sources"][0]["source"] == str(out.parent / "cuts_audio" / "00000000.wav")
    assert np.isfinite(next(iter(CutSet.from_file(out))).load_audio()).all()
    code, _, err = run("import", out, "--hf", data / "hf", "--hf-split", "train", *options)
    assert code == 2 and "cuts_audio is there already, perhaps from an earlier import: remove it or" in err


def test_hugging_face_folder_of_parquet(audio_dir, data, out):
    datasets = pytest.importorskip("datasets")
    clip = {"bytes": (audio_dir / "a.wav").read_bytes(), "path": None}
    data_set = datasets.Dataset.from_dict({"audio": [clip], "text": ["bon jour"]}).cast_column(
        "audio", datasets.Audio()
    )
    (data / "hf" / "data").mkdir(parents=True)
    data_set.to_parquet(data / "hf" / "data" / "train-00000-of-00001.parquet")
    [cut] = imported(out, "--hf", data / "hf", "--set", "language=fr", "--audio-out", out.parent / "wavs")
    assert cut["recording"]["sources"][0]["source"] == str(out.parent / "wavs" / "00000000.wav")
    assert turns(cut) == [(0.0, 4.0, None, "bon jour")]
    (data / "empty").mkdir()
    code, _, err = run("import", out, "--hf", data / "empty")
    assert code == 2 and f"error: {data / 'empty'}: datasets cannot read it" in err
