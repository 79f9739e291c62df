"""`manifest import`: any channel, any container, names in any case; audio that is not whole is refused by row."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import encoded, packed, sound, written
from importing_cases import RATE, imported, run, table_of, write_audio
from lhotse import CutSet

from tokenverse_pp.data.audio.source import Bytes
from tokenverse_pp.data.corpora.common import channel_name
from tokenverse_pp.data.importing.audio import AudioFinder
from tokenverse_pp.data.importing.rows import BadRow, ImportedWord, Place, Row, Words, channel_number, same_channel
from tokenverse_pp.data.importing.tables import _ending_of


def loaded(cut):
    recording = cut["recording"]
    samples, rate = soundfile.read(recording["sources"][0]["source"], dtype="float32", always_2d=True)
    return samples[:, cut["channel"]], rate


@pytest.mark.parametrize("rate", [RATE, 48000])
@pytest.mark.parametrize(("channel", "index"), [("1", 0), ("3", 2), (4, 3), ("C", 2), ("d", 3), ("3.0", 2), ("02", 1)])
def test_any_channel_of_a_recording(tmp_path, out, rate, channel, index):
    samples = np.stack([np.full(2 * rate, 0.1 * (i + 1)) for i in range(4)], axis=1)
    soundfile.write(tmp_path / "four.wav", samples, rate)
    table = table_of(tmp_path, [("four.wav", channel, "hello there")], ("audio", "channel", "text"))
    [cut] = imported(out, "--table", table)
    found, rate = loaded(cut)
    assert rate == RATE and cut["duration"] == 2.0
    np.testing.assert_allclose(found[1000:-1000], 0.1 * (index + 1), atol=1e-2)


@pytest.mark.parametrize("rate", [RATE, 8000])
def test_the_channels_of_a_call_stay_in_one_set(tmp_path, out, rate):
    rows = []
    for number in range(4):
        write_audio(tmp_path / f"call{number}.wav", rate=rate, channels=2, seconds=1.0)
        rows += [(f"call{number}.wav", side, "oui") for side in "AB"]
    cuts = imported(out, "--table", table_of(tmp_path, rows, ("audio", "channel", "text")))
    assert [cut["recording"]["id"] for cut in cuts[:2]] == (["call0"] * 2 if rate == RATE else ["call0-1", "call0-2"])
    code, _, err = run("split", out, tmp_path / "sets", "--by", "recording", "--shares", "train=0.5,dev=0.5")
    assert code == 0, err
    sets = [CutSet.from_file(tmp_path / "sets" / f"cuts_{name}.jsonl.gz") for name in ("train", "dev")]
    calls = [{cut.recording.id[:5] for cut in part} for part in sets]
    assert [len(part) for part in calls] == [2, 2] and not calls[0] & calls[1]


@pytest.mark.parametrize("channel", ["0", "5", "E", "-1", "left", "1.5", "1e0", "", "³", None])
def test_channels_that_are_not_there(tmp_path, out, channel):
    write_audio(tmp_path / "four.wav", channels=4, seconds=0.5)
    table = table_of(tmp_path, [("four.wav", channel, "hello")], ("audio", "channel", "text"))
    code, _, err = run("import", out, "--table", table)
    assert code == 2 and "line 1: field 'channel': the recording has 4" in err and not out.exists()


def test_labels_of_channels():
    assert [channel_number(label) for label in ("1", "A", "b", "z", "26", "300", "x1", "AA", "0")] == [
        *(0, 0, 1, 25, 25, 299, None, None, None)
    ]
    assert [channel_name(number) for number in (0, 2, 25, 26)] == ["A", "C", "Z", "27"]
    assert same_channel("C", "3") and same_channel("c", "03") and not same_channel("C", "2")
    assert same_channel("mic", "mic") and not same_channel("mic", "Mic") and same_channel(None, "4")


def test_words_of_one_channel_under_two_labels_are_one_turn():
    place = Place("a.ctm", 1)
    words = [ImportedWord(place, "r", label, i, i + 0.5, str(i)) for i, label in enumerate(["3", "C", "c", "D"])]
    assert [(row.channel, row.text) for row in Words(words).turns(pause=1.0)] == [("3", "0 1 2"), ("D", "3")]


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        (["CALL.WAV"], "CALL", "CALL.WAV"),
        (["call.Wav"], "call", "call.Wav"),
        (["CALL.WAV"], "call", "CALL.WAV"),
        (["call.wav", "CALL.WAV"], "call", "call.wav"),
        (["a.oga"], "a", "a.oga"),
        (["a.mka"], "a", "a.mka"),
        (["a.mp3", "a.FLAC", "a.wav.txt"], "a", "a.FLAC"),
        (["sub/a.b.Mp3"], "sub/a.b", "sub/a.b.Mp3"),
        (["a.wav", "a.flac"], "a.flac", "a.flac"),
        (["a.WAV", "a.wav"], "a", "may be a.WAV or a.wav"),
        (["CALL.wav", "Call.wav"], "call", "may be CALL.wav or Call.wav"),
        (["a.txt"], "a", "no audio file 'a'"),
        (["a.wav"], "..", "lies outside"),
        (["a.wav"], ".", "no audio file '.'"),
        (["a.wav"], "", "no audio file ''"),
    ],
)
def test_recordings_by_name(tmp_path, files, name, found):
    folder = tmp_path / "calls"
    (tmp_path / "calls.wav").write_bytes(written("wav", 0.2))
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(written("wav", 0.2))
    row = Row(Place("T", 1), "r", recording=name)
    try:
        source = AudioFinder(folder).recording(row)[0].sources[0].source
    except BadRow as error:
        assert found in str(error) and not found.endswith(".wav'")
    else:
        assert source == str(folder / found)


@pytest.mark.parametrize(("name", "codec"), [("talk.webm", "libopus"), ("talk.m4a", "aac"), ("talk.mka", "flac")])
@pytest.mark.parametrize("option", [(), ("--any-rate",)])
def test_containers_are_written_as_flac(tmp_path, out, name, codec, option):
    pytest.importorskip("av")
    packed(tmp_path / name, codec).rename(tmp_path / "talk.wav")
    [cut] = imported(out, "--table", table_of(tmp_path, [("talk.wav", "hello")]), *option)
    source = cut["recording"]["sources"][0]["source"]
    assert source.endswith(".flac") and str(out.parent) in source and cut["recording"]["id"] == "talk"
    samples, rate = loaded(cut)
    assert rate == (48000 if option else RATE) and cut["duration"] == pytest.approx(1.0, abs=0.03)
    assert np.abs(np.fft.rfft(samples[rate // 4 : rate // 2])).argmax() == pytest.approx(82, abs=6)


def test_what_libsndfile_reads_is_left_where_it_is(tmp_path, out):
    for container in ("wav", "flac", "mp3", "ogg", "aiff"):
        (tmp_path / f"{container}.audio").write_bytes(written(container, 1.0))
    rows = [(f"{container}.audio", "hello") for container in ("wav", "flac", "mp3", "ogg", "aiff")]
    cuts = imported(out, "--table", table_of(tmp_path, rows))
    assert [Path(cut["recording"]["sources"][0]["source"]) for cut in cuts] == [tmp_path / name for name, _ in rows]


@pytest.mark.parametrize("container", ["mp3", "ogg", "flac", "wav"])
def test_joined_files_are_written_whole(tmp_path, out, container, caplog):
    (tmp_path / "two").write_bytes(written(container, 1.0) * 2)
    [cut] = imported(out, "--table", table_of(tmp_path, [("two", "hello")]))
    assert cut["duration"] == 2.0 and len(loaded(cut)[0]) == 2 * RATE
    assert caplog.messages == [f"warning: {tmp_path / 'two'}: 2 streams are joined in it, 2.000 s together"]


def test_gaps_of_a_container_are_silence(tmp_path, out, caplog):
    pytest.importorskip("av")
    packed(tmp_path / "gap.webm", "libopus", starts=(1.0, 4.0))
    [cut] = imported(out, "--table", table_of(tmp_path, [("gap.webm", "hello")]))
    samples, _ = loaded(cut)
    loud = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1) > 0.05
    assert not loud[:95].any() and loud[105:195].all() and not loud[205:395].any() and loud[405:495].all()
    assert len(caplog.messages) == 2 and all("gap.webm: its " in line for line in caplog.messages)


def test_audio_that_is_not_whole_is_refused_by_row(tmp_path, out):
    files = {
        "cut.flac": (written("flac", 3.0)[:-9000], "truncated: "),
        "cut.wav": (written("wav", 3.0)[:-9000], "truncated: 2.719 s of 3.000 s"),
        "cut.mp3": (written("mp3", 3.0)[:-2000], "truncated: "),
        "cut.ogg": (written("ogg", 3.0)[:-2000], "truncated: "),
        "empty.wav": (b"", "the file is empty"),
        "none.wav": (encoded(sound(0)), "holds no audio"),
        "text.wav": (b"hello " * 99, "not recognised"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    write_audio(tmp_path / "good.wav")
    rejected = tmp_path / "rejected.tsv"
    table = table_of(tmp_path, [*((name, "hello") for name in files), ("good.wav", "hello")])
    code, text, _ = run("import", out, "--table", table, "--skip-bad", "--rejected", rejected)
    assert code == 0 and "rows: 8 read = 1 kept + 7 left out" in text
    lines = rejected.read_text().splitlines()[-7:]
    for line, (name, (_, reason)) in zip(lines, files.items()):
        assert f"{tmp_path / name}: " in line and reason in line


def test_pipes_give_what_files_give(tmp_path, out):
    (tmp_path / "a.mp3").write_bytes(written("mp3", 1.0) * 2)
    (tmp_path / "wav.scp").write_text(f"u1 cat {tmp_path}/a.mp3 |\nu2 head -c 3000 {tmp_path}/a.mp3 |\n")
    (tmp_path / "text").write_text("u1 hello\nu2 there\n")
    code, text, _ = run("import", out, "--kaldi", tmp_path, "--allow-pipes", "--skip-bad")
    assert code == 0 and "line 2: field 'audio': head -c 3000" in text and "truncated: " in text
    [cut] = [json.loads(line) for line in out.read_text().splitlines()]
    assert cut["duration"] == 2.0 and cut["recording"]["sources"][0]["type"] == "file"


def test_bytes_of_a_data_set_get_an_ending_by_their_content():
    for container, ending in (("wav", ".wav"), ("flac", ".flac"), ("ogg", ".ogg"), ("sphere", ".sph"), ("mp3", ".mp3")):
        assert _ending_of(Bytes(written(container, 0.2)).all()) == ending
    assert _ending_of(b"....ftypM4A " + bytes(99)) == ".mp4"
