"""recipes/decode.py on audio that is odd, damaged or none at all: what can be decoded is, what cannot is named."""

import json

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording
from lhotse.audio import AudioSource
from toy_runs import call, read_cuts

OPTIONS = ["--blank-penalty", 4, "--threads", 1]
NOISE = np.random.default_rng(0).standard_normal((16000, 2)).astype(np.float32) * 0.1
# name -> samples, rate and format; each is one second, but one.
DECODED = {
    "silence.wav": (np.zeros(16000), 16000, {}),
    "ten-milliseconds.wav": (NOISE[:160, 0], 16000, {}),
    "stereo-8k.wav": (NOISE[:8000], 8000, {}),
    "music.mp3": (NOISE[:, 0], 16000, {"format": "MP3"}),
    "clip.ogg": (NOISE[:, 0], 16000, {}),
}
REFUSED = {
    "nan.wav": "NaN",
    "empty.wav": "the file is empty",
    "letter.wav": "not recognised",
    "gone.wav": "no such file",
    "half.wav": "truncated",
}


def write_audio(folder):
    """All the files -> a cut of each."""
    for name, (samples, rate, more) in DECODED.items():
        soundfile.write(folder / name, samples, rate, **more)
    cuts = [Recording.from_file(folder / name).to_cut() for name in DECODED]
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(folder / "half.wav", NOISE[:8000, 0], 16000)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "letter.wav").write_text("Dear reader,\n" * 50)
    for name in REFUSED:
        source = AudioSource("file", [0], str(folder / name))
        cuts.append(Recording(name.split(".")[0], [source], 16000, 16000, 1.0).to_cut())
    return cuts


def decode(script, model, cuts, folder, *more):
    path = folder / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    done = call(script.main, "--model", model, "--cuts", path, "--output-dir", folder / "out", *OPTIONS, *more)
    read = lambda name: [json.loads(line) for line in (folder / "out" / name).read_text("utf-8").splitlines()]
    return done, read("hyps.jsonl"), read("failures.jsonl"), json.loads((folder / "out" / "scores.json").read_text())


@pytest.fixture(scope="module")
def mixed(decode_script, finished_run, tiny_corpus, tmp_path_factory):
    """Good cuts among odd and bad ones."""
    folder = tmp_path_factory.mktemp("bad")
    good, odd = read_cuts(tiny_corpus, "test"), write_audio(folder)
    return decode(decode_script, finished_run, [*good[:2], *odd, *good[2:]], folder), odd


def test_what_can_be_decoded_is(mixed):
    (_, hyps, _, _), odd = mixed
    found = {hyp["id"]: hyp for hyp in hyps}
    assert [hyp["id"] for hyp in hyps if not hyp["id"].startswith("toy")] == [cut.id for cut in odd[: len(DECODED)]]
    for cut in odd[: len(DECODED)]:
        assert all(0 <= time < cut.duration for time in found[cut.id]["times"])
    assert found[odd[list(DECODED).index("ten-milliseconds.wav")].id]["text"] == ""


def test_what_cannot_is_refused_in_one_line_each(mixed):
    (done, _, failures, scores), odd = mixed
    assert done.code == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert len(lines) == len(failures) == scores["refused"] == len(REFUSED)
    assert done.stderr.splitlines()[-1].startswith(f"{len(REFUSED)} of 14 cuts could not be decoded: ")
    assert "Traceback" not in done.stderr
    for cut, failure, (name, reason) in zip(odd[len(DECODED) :], failures, REFUSED.items()):
        assert failure["id"] == cut.id and failure["files"][0].endswith(name)
        assert f"cut {cut.id}: " in failure["reason"] and name in failure["reason"] and reason in failure["reason"]
        assert sum(failure["reason"] in line for line in lines) == 1


def test_the_others_are_decoded_as_ever(mixed, decode_script, finished_run, tiny_corpus, tmp_path):
    (_, hyps, _, scores), _ = mixed
    done, expected, failures, alone = decode(decode_script, finished_run, read_cuts(tiny_corpus, "test"), tmp_path)
    assert done.code == 0 and failures == []
    found = [hyp for hyp in hyps if hyp["id"].startswith("toy")]
    for hyp, other in zip(found, expected):
        assert hyp.pop("score") == pytest.approx(other.pop("score"), rel=1e-4)
        del hyp["words"], other["words"]  # confidences are rounded
    assert found == expected
    # They alone are labelled.
    assert scores["wer"] == alone["wer"] and scores["utterances"] == len(hyps)


def test_nothing_but_bad_files(decode_script, finished_run, tmp_path):
    cuts = write_audio(tmp_path)[len(DECODED) :]
    done, hyps, failures, scores = decode(decode_script, finished_run, cuts, tmp_path)
    assert done.code == 2 and hyps == [] and len(failures) == scores["refused"] == len(REFUSED)
    assert scores["utterances"] == 0 and "wer" not in scores


def test_many_refused_cuts_do_not_flood_the_terminal(decode_script, finished_run, tmp_path):
    source = AudioSource("file", [0], str(tmp_path / "gone.wav"))
    cuts = [Recording(f"r{i}", [source], 16000, 16000, 1.0).to_cut() for i in range(30)]
    done, _, failures, _ = decode(decode_script, finished_run, cuts, tmp_path)
    assert done.code == 2 and len(failures) == 30
    assert len(done.stderr.splitlines()) == 12
    assert done.stderr.splitlines()[10] == "refused: more cuts, see failures.jsonl"


@pytest.mark.slow
def test_an_hour_of_audio(decode_script, finished_run, tiny_corpus, tmp_path):
    """Synthetic speech over and over, at 8 kHz and in stereo; beside it a short file, which comes out as ever."""
    from tokenverse_pp.data.dataset import load_inputs

    cuts = read_cuts(tiny_corpus, "test")
    speech = np.concatenate([load_inputs(cut).numpy() for cut in cuts])[::2]
    with soundfile.SoundFile(tmp_path / "hour.flac", "w", 8000, 2) as file:
        for _ in range(3600 * 8000 // len(speech) + 1):
            file.write(np.stack([speech, speech], 1))
    hour = Recording.from_file(tmp_path / "hour.flac").to_cut()
    more = ["--method", "greedy", "--embed-audio"]
    done, hyps, failures, scores = decode(decode_script, finished_run, [hour, cuts[0]], tmp_path, *more)
    assert done.code == 0 and failures == [] and scores["utterances"] == 2
    times = hyps[0]["times"]
    assert times == sorted(times) and 3500 < times[-1] < hour.duration
    # It is linked, not embedded.
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'src="../hour.flac"' in page
    (tmp_path / "alone").mkdir()
    _, alone, _, _ = decode(decode_script, finished_run, [cuts[0]], tmp_path / "alone", *more)
    assert hyps[1]["tokens"] == alone[0]["tokens"]
