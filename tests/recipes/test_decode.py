"""recipes/decode.py through its command line: what it writes, the tasks it is told to decode, and bad input."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile
from command_lines import run_ok
from labelled_cuts import make_cut
from lhotse import CutSet, Recording, RecordingSet
from lhotse.audio import AudioSource
from toy_runs import assert_one_line, call, call_ok, finish, read_cuts, start

from tokenverse_pp.data.dataset import load_inputs

# A model of ten steps says little but blanks; the penalty has it say all kinds of things.
OPTIONS = ["--blank-penalty", 4, "--threads", 1]
FIELDS = {
    "id", "text", "tokens", "times", "words", "score", "tasks",
    "language", "turns", "entities", "endpoints", "speaker_changes",
}  # fmt: skip


def options(model, cuts, output, *more):
    return ["--model", model, "--cuts", cuts, "--output-dir", output, *OPTIONS, *more]


def read(folder):
    hyps = [json.loads(line) for line in (folder / "hyps.jsonl").read_text(encoding="utf-8").splitlines()]
    return hyps, json.loads((folder / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def decoded(finished_run, tiny_corpus, tmp_path_factory):
    """All tasks, beam search, through the real command line."""
    folder = tmp_path_factory.mktemp("decoded") / "out"
    process = start("decode.py", *options(finished_run, tiny_corpus / "cuts_test.jsonl.gz", folder, "--show", 2))
    table = process.stdout.read()
    assert finish(process).code == 0
    return folder, table


def test_what_is_written_and_printed(decoded, tiny_corpus):
    folder, table = decoded
    hyps, scores = read(folder)
    cuts = read_cuts(tiny_corpus, "test")
    assert [hyp["id"] for hyp in hyps] == [cut.id for cut in cuts]
    for cut, hyp in zip(cuts, hyps):
        assert set(hyp) == FIELDS
        assert len(hyp["tokens"]) == len(hyp["times"]) > 0
        assert hyp["times"] == sorted(hyp["times"]) and 0 <= hyp["times"][0] and hyp["times"][-1] < cut.duration
        assert " ".join(word["text"] for word in hyp["words"]) == hyp["text"]
        assert hyp["tasks"] == ["asr", "scd", "endp", "ner", "lid"]
    assert set(scores["wer"]) == {"all", "qaa", "qab"}
    assert {"wer", "ins", "del", "sub", "words"} <= set(scores["wer"]["all"])
    for name in ("scd", "endp"):
        assert {"precision", "recall", "f1"} <= set(scores[name]["text"])
        assert set(scores[name]["time"]) == {"0.25", "0.5"}
    assert {"precision", "recall", "f1"} <= set(scores["ner"]["exact"]) & set(scores["ner"]["soft"])
    assert {"accuracy", "confusion"} <= set(scores["lid"])
    assert scores["utterances"] == 4 and scores["not_decoded"] == {}
    assert scores["speed"]["rtf"] > 0 and len(scores["speed"]["ranks"]) == 1
    assert scores["refused"] == scores["speed"]["cuts_decoded_before"] == 0
    assert scores["options"]["blank_penalty"] == 4
    assert (folder / "failures.jsonl").read_text() == "" and not (folder / "parts").exists()
    assert "WER" in table.upper() and str(folder / "hyps.jsonl") in table
    assert table.count("reference:") == table.count("hypothesis:") == 2


def test_report_holds_the_scores(decoded):
    folder, table = decoded
    _, scores = read(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert f"report: {folder / 'report.html'}" in table
    table = html.split('data-table="wer-language"')[1]
    for name, rates in scores["wer"].items():
        row = re.findall(rf'<tr data-group="{name}">(.*?)</tr>', table, re.S)[0]
        shown = dict(re.findall(r'data-value="([^"]*)" data-key="([^"]*)"', row))
        assert {key: float(value) for value, key in shown.items()} | rates == rates
    assert html.count("<article") == 4 == html.count("<audio")
    assert "blank_penalty" in html and "real-time factor" in html


def test_report_can_be_left_out_or_hold_its_audio(decode_script, finished_run, tiny_corpus, tmp_path):
    cuts = tiny_corpus / "cuts_test.jsonl.gz"
    for name, more in (("none", ["--no-report"]), ("whole", ["--embed-audio"])):
        assert call(decode_script.main, *options(finished_run, cuts, tmp_path / name, *more)).code == 0
    assert not (tmp_path / "none" / "report.html").exists()
    html = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert html.count('src="data:audio/ogg;base64,') == 4 and ".flac" not in html.split("<summary>Options")[0]


def test_score_command_gives_the_same_scores(decoded, tiny_corpus, tmp_path):
    folder, _ = decoded
    reference, output = tiny_corpus / "cuts_test.jsonl.gz", tmp_path / "s.json"
    arguments = ["score", "--ref", reference, "--hyp", folder / "hyps.jsonl", "--output", output]
    run_ok(*arguments)
    scores = read(folder)[1]
    for key in ("speed", "options", "refused"):  # of the decoding, which the command knows nothing about
        del scores[key]
    assert json.loads(output.read_text()) == scores


def test_tasks_bar_the_tokens_of_the_others(decode_script, finished_run, tiny_corpus, tmp_path):
    cuts = tiny_corpus / "cuts_test.jsonl.gz"
    call_ok(decode_script.main, *options(finished_run, cuts, tmp_path, "--tasks", "asr,lid", "--languages", "qaa"))
    hyps, scores = read(tmp_path)
    said = {token for hyp in hyps for token in hyp["tokens"] if token.startswith("[")}
    assert said <= {"[QAA]"}
    assert set(hyps[0]) == FIELDS - {"turns", "entities", "endpoints", "speaker_changes"}
    assert scores["not_decoded"] == {"scd": 4, "endp": 4, "ner": 4}
    assert "lid" in scores and "ner" not in scores


def test_neither_order_nor_batches_matter(decode_script, decoded, finished_run, tiny_corpus, tmp_path):
    cuts = tmp_path / "cuts.jsonl"
    CutSet.from_cuts(read_cuts(tiny_corpus, "test")[::-1]).to_file(cuts)
    # A checkpoint's folder and the experiment's give the model as well as its own folder.
    model = finished_run / "model"
    assert call(decode_script.main, *options(model, cuts, tmp_path, "--max-duration", 1)).code == 0
    ours, theirs = read(tmp_path)[0], read(decoded[0])[0]
    assert [hyp["id"] for hyp in ours] == [hyp["id"] for hyp in theirs][::-1]
    for found, expected in zip(ours[::-1], theirs):
        assert found["tokens"] == expected["tokens"] and found["times"] == expected["times"]


def test_checkpoint_of_a_run_that_was_stopped_decodes(decode_script, finished_run, tiny_corpus, tmp_path):
    exp_dir = tmp_path / "exp"
    shutil.copytree(finished_run / "checkpoints", exp_dir / "checkpoints")
    (exp_dir / "checkpoints" / "step-00000099.tmp").mkdir()
    cuts = tiny_corpus / "cuts_test.jsonl.gz"
    for model, name in ((exp_dir, "a"), (exp_dir / "checkpoints" / "step-00000010", "b")):
        assert call(decode_script.main, *options(model, cuts, tmp_path / name, "--first", 2)).code == 0
    assert read(tmp_path / "a")[0] == read(tmp_path / "b")[0]
    assert len(read(tmp_path / "a")[0]) == 2


def test_cuts_without_labels_are_decoded_and_not_scored(decode_script, finished_run, tiny_corpus, tmp_path):
    cuts = read_cuts(tiny_corpus, "test")
    for cut in cuts:
        cut.supervisions, cut.custom = [], {}
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    call_ok(decode_script.main, *options(finished_run, tmp_path / "cuts.jsonl", tmp_path, "--show", 1))
    hyps, scores = read(tmp_path)
    assert len(hyps) == 4 and "wer" not in scores


def refused(script, folder, arguments, *said):
    assert_one_line(call(script.main, *arguments), *said)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--tasks", "asr,sing"], ["--tasks", "sing", "asr, scd"]),
        (["--tasks", ""], ["--tasks: names no task"]),
        (["--languages", "xx"], ["[XX]", "[QAA], [QAB]"]),
        (["--encoder", "/no/such/folder"], ["/no/such/folder"]),
        (["--stored-features"], ["no stored features"]),
        (["--cuts", "/no/such/cuts.jsonl"], ["--cuts", "/no/such/cuts.jsonl"]),
        (["--beam", 0], ["beam"]),
        (["--first", -1], ["--first"]),
        (["--nbest", 9], ["nbest", "beam=4"]),
        (["--hotwords", "/no/such/words.txt"], ["/no/such/words.txt"]),
        (["--lm", "/no/such/words.tsv"], ["/no/such/words.tsv"]),
        (["--window", 10, "--overlap", 5], ["overlap"]),
        (["--max-duration", 0], ["--max-duration"]),
        (["--joiner-dtype", "int8"], None),
        (["--loud"], None),
    ],
)
def test_bad_option_is_one_line(decode_script, finished_run, tiny_corpus, tmp_path, more, said):
    arguments = options(finished_run, tiny_corpus / "cuts_test.jsonl.gz", tmp_path / "out", *more)
    if said is None:  # in the words of click
        assert call(decode_script.main, *arguments).code == 2
    else:
        refused(decode_script, tmp_path, arguments, *said)


def test_a_language_model_is_part_of_what_was_decoded(decode_script, finished_run, tiny_corpus, tmp_path):
    """Words of the list are drawn to; with another list nothing of the first run is taken over."""
    cuts, folder = tiny_corpus / "cuts_test.jsonl.gz", tmp_path / "out"
    texts = [s.text for cut in CutSet.from_file(cuts) for s in cut.supervisions]
    counts = Counter(word for text in texts for word in text.split())
    words = tmp_path / "words.tsv"
    digests = []
    for kept in (counts, dict(counts.most_common(1))):
        words.write_text("".join(f"{word}\t{n}\n" for word, n in kept.items()), encoding="utf-8")
        more = ["--lm", words, "--lm-scale", 2, "--lm-bonus", 1, "--no-report"]
        assert call(decode_script.main, *options(finished_run, cuts, folder, *more)).code == 0
        digests.append((folder / "hyps.jsonl").read_bytes())
    assert digests[0] != digests[1]


def test_missing_and_damaged_models_are_one_line(decode_script, finished_run, tiny_corpus, tmp_path):
    cuts = tiny_corpus / "cuts_test.jsonl.gz"
    refused(decode_script, tmp_path, options(tmp_path / "none", cuts, tmp_path / "out"), "none: no such folder")
    for name, content in {
        "model.safetensors": b"damaged",
        "tokenizer.model": b"damaged",
        "config.yaml": b"optim: [",
    }.items():
        model = tmp_path / f"without-{name}"
        shutil.copytree(finished_run / "model", model)
        (model / name).write_bytes(content)
        refused(decode_script, tmp_path, options(model, cuts, tmp_path / "out"), model / name)
        (model / name).unlink()
        refused(decode_script, tmp_path, options(model, cuts, tmp_path / "out"), model)


def test_foreign_and_damaged_manifests_are_one_line(decode_script, finished_run, tiny_corpus, tmp_path):
    RecordingSet.from_recordings([Recording("r", [], 16000, 16000, 1.0)]).to_file(tmp_path / "recordings.jsonl")
    (tmp_path / "text.jsonl").write_text("hello\n")
    for name in ("recordings.jsonl", "text.jsonl"):
        path = tmp_path / name
        refused(decode_script, tmp_path, options(finished_run, path, tmp_path / "out"), path)
    cuts = tmp_path / "cuts.jsonl"
    CutSet.from_cuts(read_cuts(tiny_corpus, "test")).to_file(cuts)
    cuts.write_bytes(cuts.read_bytes()[:-100])
    refused(decode_script, tmp_path, options(finished_run, cuts, tmp_path / "out"), f"{cuts}, line 4")


def test_mixed_cuts_are_decoded(decode_script, finished_run, tiny_corpus, tmp_path):
    first, *others = read_cuts(tiny_corpus, "test")
    language = first.supervisions[0].language
    mixed = first.append(next(cut for cut in others if cut.supervisions[0].language == language))
    CutSet.from_cuts([mixed]).to_file(tmp_path / "cuts.jsonl")
    for name, more in (("a", []), ("b", ["--embed-audio"])):
        call_ok(decode_script.main, *options(finished_run, tmp_path / "cuts.jsonl", tmp_path / name, *more))
        (hyp,), scores = read(tmp_path / name)
        assert hyp["id"] == mixed.id and scores["wer"]["all"]["utterances"] == 1
        # No file holds it, so it cannot be linked.
        assert ("<audio" in (tmp_path / name / "report.html").read_text(encoding="utf-8")) == (name == "b")


@pytest.mark.parametrize("kind", ["wrong label", "twice", "twice without labels", "unknown language"])
def test_bad_cuts_are_one_line_before_decoding(decode_script, finished_run, tiny_corpus, tmp_path, kind):
    cuts = read_cuts(tiny_corpus, "test")
    if kind == "wrong label":
        cuts[2].custom["tasks"] = ["asr", "sing"]
    elif kind == "unknown language":
        cuts[2].supervisions[0].language = 3
    else:
        cuts.append(cuts[2])
    if kind == "twice without labels":
        for cut in cuts:
            cut.custom = {}
    with (tmp_path / "cuts.jsonl").open("w") as file:
        file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    arguments = options(finished_run, tmp_path / "cuts.jsonl", tmp_path / "out")
    refused(decode_script, tmp_path, arguments, cuts[2].id)


def test_several_files_are_corpora(decode_script, finished_run, tiny_corpus, tmp_path):
    files = [tmp_path / name for name in ("calls.jsonl", "prompts.jsonl.gz")]
    cuts = read_cuts(tiny_corpus, "test")
    for cut in cuts:
        cut.custom.pop("corpus", None)
    for path, part in zip(files, (cuts[:1], cuts[1:])):
        CutSet.from_cuts(part).to_file(path)
    call_ok(decode_script.main, *options(finished_run, files[0], tmp_path / "out", "--cuts", files[1]))
    hyps, scores = read(tmp_path / "out")
    assert [hyp["id"] for hyp in hyps] == [cut.id for cut in cuts]
    assert {name: rates["utterances"] for name, rates in scores["wer_by_corpus"].items()} == {"calls": 1, "prompts": 3}
    for corpus, languages in scores["wer_by_corpus_and_language"].items():
        for key in ("words", "errors", "utterances"):
            assert sum(rates[key] for rates in languages.values()) == scores["wer_by_corpus"][corpus][key]


def test_files_of_the_same_name_are_corpora_of_their_own(decode_script, tmp_path):
    files = [tmp_path / folder / "cuts_test.jsonl" for folder in ("ami", "voxpopuli")]
    for i, path in enumerate(files):
        path.parent.mkdir()
        CutSet.from_cuts([make_cut(f"c{i}", [{"text": "oui"}])]).to_file(path)
    corpora = {}
    assert [cut.id for cut in decode_script.read_all(list(map(str, files)), corpora)] == ["c0", "c1"]
    assert corpora == {"c0": "ami-cuts_test", "c1": "voxpopuli-cuts_test"}


# Audio that is odd, damaged or none at all: what can be decoded is, what cannot is named.
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
    done = call(script.main, *options(model, path, folder / "out", *more))
    hyps, scores = read(folder / "out")
    failures = (folder / "out" / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    return done, hyps, list(map(json.loads, failures)), scores


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
