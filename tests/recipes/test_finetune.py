"""recipes/finetune.py: from a table of clips to a model that is better on them, in one command."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scripts import ROOT, load_script
from toy_runs import assert_one_line, call, call_ok, read_cuts

from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.split import KeyRule
from tokenverse_pp.data.importing.sources import ImportOptions
from tokenverse_pp.evaluation.comparison import Counted, compare_decodings
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.log import read_log


@pytest.fixture(scope="module")
def finetune():
    return load_script(ROOT / "recipes" / "finetune.py", "finetune_script")


@pytest.fixture(scope="module")
def table(tiny_corpus, tmp_path_factory):
    """A table of the corpus's first turns, with capitals and punctuation."""
    path = tmp_path_factory.mktemp("clips") / "clips.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "start", "end", "text"])
        for cut in read_cuts(tiny_corpus) + read_cuts(tiny_corpus, "dev") + read_cuts(tiny_corpus, "test"):
            turn, source = cut.supervisions[0], Path(cut.recording.sources[0].source).name
            writer.writerow([source, turn.start, turn.end, f"{turn.text.capitalize()}!"])
    return path


def words(table, corpus, model, folder, *others):
    importing = ["--table", table, "--audio-dir", corpus / "audio", "--column", "audio=file", "--set", "language=qaa"]
    return [*importing, "--model", model, "--output-dir", folder, *others]


@pytest.mark.slow
def test_a_table_becomes_a_better_model_and_the_command_resumes(finetune, tiny_corpus, finished_run, table, tmp_path):
    folder = tmp_path / "mine"
    given = words(table, tiny_corpus, finished_run, folder, "--optim.encoder_lr", "3e-4", "--training.valid_every", "3")
    done = call_ok(finetune.main, *given, "--training.max_steps", "3", standalone_mode=False)
    config = load_config(folder / "config.yaml")
    assert config.optim.lr == 5e-4 and config.optim.encoder_lr == 3e-4 and config.model.loss.warm_steps == 1
    assert config.model.joiner_dim == 32 and config.tasks.languages == ["qaa", "qab"]  # the model's
    assert config.data.augment.enabled and config.data.stored_features is False
    cuts = {name: read_cuts(folder, name) for name in ("train", "dev", "test")}
    assert sum(map(len, cuts.values())) == 24 and all(cuts.values())
    texts = {name: {cut.supervisions[0].text for cut in found} for name, found in cuts.items()}
    assert not texts["train"] & (texts["dev"] | texts["test"])
    assert all(text == text.lower() and "!" not in text for found in texts.values() for text in found)
    manifest = (folder / "cuts_train.jsonl.gz").stat().st_mtime_ns
    done = call(finetune.main, *given, "--training.max_steps", "12", standalone_mode=False)
    assert "those of an earlier run, nothing is imported again" in done.stderr
    assert done.code == 0 and "resuming from step-00000003" in done.stderr, done.stderr
    assert (folder / "cuts_train.jsonl.gz").stat().st_mtime_ns == manifest
    losses = [record["loss"] for record in read_log(folder / "log.jsonl") if record["kind"] == "valid"]
    assert len(losses) == 5 and losses[-1] < 0.9 * losses[0]
    before, after = (json.loads((folder / name / "scores.json").read_text()) for name in ("before", "after"))
    assert before["options"]["model"] == str(finished_run) and after["options"]["model"] == str(folder)
    assert before["wer"]["all"]["wer"] > 0 and before["options"]["tasks"] == after["options"]["tasks"] == "asr,lid"
    assert (folder / "model" / checkpoint.WEIGHTS).is_file()


def test_wrong_options_are_seen_first(finetune, tiny_corpus, finished_run, table, tmp_path):
    folder = tmp_path / "mine"
    for more, said in {
        ("--training.no_such", "3"): ["training.no_such"],
        ("--data.augment.speed", "[9]"): ["--data.augment.speed"],
    }.items():
        failure = call(finetune.main, *words(table, tiny_corpus, finished_run, folder, *more), standalone_mode=False)
        assert_one_line(failure, *said)
        assert not folder.exists()
    failure = call(finetune.main, *words(table, tiny_corpus, "no-such", folder), standalone_mode=False)
    assert_one_line(failure, "no-such", "human-speech")


def test_an_import_that_cannot_be_split_does_not_block_the_next(finetune, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.float32), 8000)  # 8 kHz: a folder of converted audio
    table, mine = tmp_path / "t.csv", tmp_path / "mine"
    table.write_text("audio,text\n" + "".join(f"a.wav,{text}\n" for text in ("oui", "non", "si")))
    options = ImportOptions(table=(table,), normaliser="words")
    files = {name: mine / f"cuts_{name}.jsonl.gz" for name in finetune.SHARES}
    mine.mkdir()
    for kind, said in (("speaker", "no speaker"), ("recording", "1 groups for 3 sets")):
        with pytest.raises(UserError, match=said):
            finetune.import_and_split(mine / "cuts.jsonl.gz", files, options, KeyRule((kind,)))
        assert not list(mine.iterdir())
    kept = dataclasses.replace(options, audio_out=tmp_path, sampling_rate=None)  # a folder that nothing is written to
    with pytest.raises(UserError, match="no speaker"):
        finetune.import_and_split(mine / "cuts.jsonl.gz", files, kept, KeyRule(("speaker",)))
    assert table.is_file() and not list(mine.iterdir())
    finetune.import_and_split(mine / "cuts.jsonl.gz", files, options, KeyRule(("text",)))
    assert all(path.is_file() for path in files.values()) and (mine / "cuts_audio").is_dir()


def counted(*ratios):
    return Counted({"wer": {str(i): ratio for i, ratio in enumerate(ratios)}})


def test_the_last_lines_say_whether_the_model_is_better(finetune):
    good, bad = counted(*[(1, 10)] * 40), counted(*[(5, 10)] * 40)
    for before, after, said in [(bad, good, "better: WER 50.0% before, 10.0% after, on 40"), (good, bad, "WORSE: WER")]:
        sentence = finetune.verdict(compare_decodings([before], [after])["wer"], "theirs")
        assert sentence.startswith(said) and "few" not in sentence and ("Keep theirs" in sentence) == (after is bad)
    few = finetune.verdict(compare_decodings([good], [good])["wer"], "theirs")
    assert few.startswith("undecided: WER 10.0%")
    few = finetune.verdict(compare_decodings([counted((5, 10))], [counted((1, 10))])["wer"], "theirs")
    assert few.startswith("better") and "1 are few" in few
    assert "unknown" in finetune.verdict(None, "theirs")


@pytest.mark.parametrize("errors, warned", [(30, True), (10, False)])
def test_speech_that_is_not_transcribed_is_warned_of(finetune, caplog, errors, warned):
    finetune.warn_of_other_speech(counted((errors, 10), (errors, 10)))
    assert ("speech that is not transcribed" in caplog.text) == warned
    finetune.warn_of_other_speech(Counted())
