"""recipes/toy/prepare.py: the corpus is repeatable, valid, unevenly labelled on request, and its sets are disjoint."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner
from lhotse import CutSet

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks import parse, render, transcript_of

SIZES = {"train": 40, "dev": 6, "test": 24}
SPLITS = tuple(SIZES)


@pytest.fixture(scope="module")
def toy_speech(toy_prepare):
    return sys.modules[toy_prepare.compose_utterance.__module__]


@pytest.fixture(scope="module")
def uneven(toy_prepare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    toy_prepare.prepare_toy(folder, SIZES, seed=3, label_share={"ner": 0.5, "scd": 0.25, "endp": 0.75, "lid": 0.0})
    return folder


def read(folder, split):
    return list(CutSet.from_file(folder / f"cuts_{split}.jsonl.gz"))


def manifest(folder, split):
    """The cuts as dictionaries, with file names in place of paths."""
    cuts = [cut.to_dict() for cut in read(folder, split)]
    for cut in cuts:
        source = cut["recording"]["sources"][0]
        source["source"] = Path(source["source"]).name
    return cuts


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "audio").iterdir()}


def test_options_and_the_seed_decide_the_corpus(toy_prepare, tmp_path):
    for name in ("a", "b"):
        toy_prepare.prepare_toy(tmp_path / name, {"train": 4, "test": 2}, seed=5, label_share={"ner": 0.5})
    toy_prepare.prepare_toy(tmp_path / "other", {"train": 4, "test": 2}, seed=6)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert manifest(tmp_path / "a", "train") == manifest(tmp_path / "b", "train")
    assert digests(tmp_path / "a")["toy-test-00000.flac"] != digests(tmp_path / "other")["toy-test-00000.flac"]
    # The test set does not depend on the size of the others.
    toy_prepare.prepare_toy(tmp_path / "small", {"train": 2, "test": 4})
    toy_prepare.prepare_toy(tmp_path / "large", {"train": 9, "dev": 3, "test": 4}, label_share={"scd": 0.1})
    assert manifest(tmp_path / "small", "test") == manifest(tmp_path / "large", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_labels_pass_every_task_and_survive_the_text(uneven, toy_tasks, split):
    for cut in read(uneven, split):
        labelled = toy_tasks.subset(cut.custom["tasks"])
        assert [problem for task in labelled.tasks for problem in task.check(cut)] == []
        transcript = transcript_of(cut, toy_tasks)
        assert parse(render(transcript, labelled), labelled) == labelled.restrict(transcript)
        assert cut.custom["corpus"] == "toy"


def test_all_labels_occur_with_and_without_an_event(uneven, toy_tasks):
    transcripts = [transcript_of(cut, toy_tasks) for cut in read(uneven, "test")]
    for found in ("entities", "endpoints", "speaker_changes"):
        assert {bool(getattr(transcript, found)) for transcript in transcripts} == {True, False}
    assert {transcript.language for transcript in transcripts} == {"qaa", "qab"}
    assert {entity.end - entity.start for t in transcripts for entity in t.entities} == {1, 2}


def test_label_share_withholds_task_and_labels(uneven):
    cuts = read(uneven, "train")
    labelled = Counter(task for cut in cuts for task in cut.custom["tasks"])
    assert labelled == {"asr": 40, "ner": 20, "scd": 10, "endp": 30}
    for cut in cuts:
        for sup in cut.supervisions:
            assert (sup.speaker is not None) == ("scd" in cut.custom["tasks"])
            assert ("entities" in sup.custom) == ("ner" in cut.custom["tasks"])
            assert ("endpoint" in sup.custom) == ("endp" in cut.custom["tasks"])
            assert sup.language is None
    # No entity spoken: labelled with an empty list, unlike those above that nobody annotated.
    assert any(sup.custom.get("entities") == [] for cut in cuts for sup in cut.supervisions)
    for split in ("dev", "test"):
        assert all(len(cut.custom["tasks"]) == 5 for cut in read(uneven, split))


@pytest.mark.slow
def test_no_turn_is_said_in_two_sets(toy_prepare, toy_speech, tmp_path):
    # A small language, so that the sets would meet if nothing kept them apart.
    sets = toy_prepare.prepare_toy(tmp_path, {"train": 250, "dev": 60, "test": 60})
    said = {split: {sup.text for cut in cuts for sup in cut.supervisions} for split, cuts in sets.items()}
    assert not (said["train"] & said["test"] or said["train"] & said["dev"] or said["dev"] & said["test"])
    language = toy_speech.Language("qac", ("ba",), (("nik", "PER"),))
    barred = {"ba", "nik ba", "ba nik"}
    with pytest.raises(UserError, match="too small"):
        toy_speech.compose_new_turn(language, (1, 1), np.random.default_rng(0), barred)


def test_audio_is_what_the_manifest_says_and_pauses_hold_a_breath_where_the_speaker_changes(uneven):
    for cut in read(uneven, "test"):
        assert cut.sampling_rate == 16000 and cut.load_audio().shape == (1, cut.recording.num_samples)
        audio = cut.load_audio()[0]
        assert 0.7 < cut.duration < 6.0 and 0.05 < np.abs(audio).max() < 1.0
        starts = [round(sup.start * 16000) for sup in cut.supervisions]
        ends = [0] + [round(sup.end * 16000) for sup in cut.supervisions]
        loud = [np.abs(audio[end:start]).max() > 0.05 for end, start in zip(ends, starts)]
        speakers = [sup.speaker for sup in cut.supervisions]
        assert loud == [True] + [a != b for a, b in zip(speakers, speakers[1:])]
        assert np.abs(audio[ends[-1] :]).max() < 0.03


def test_endpoint_can_be_heard_without_the_pause(toy_speech):
    speaker = toy_speech.SPEAKERS[2]
    sounds = {
        complete: toy_speech.voice_turn("ba di gu", speaker, complete, np.random.default_rng(1))
        for complete in (True, False)
    }
    assert len(sounds[True]) > len(sounds[False]) + 0.05 * 16000
    # Frequency in Hz of the strongest component under 350 Hz, at the end.
    spectra = {key: np.abs(np.fft.rfft(sound[-1600:] * np.hanning(1600), n=16000)) for key, sound in sounds.items()}
    lowest = {key: float(np.argmax(spectrum[:350])) for key, spectrum in spectra.items()}
    assert lowest[True] < 0.75 * lowest[False]
    assert lowest[False] == pytest.approx(speaker.pitch, rel=0.1)


def test_encoder_config_is_a_tiny_wav2vec2(tiny_corpus):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tiny_corpus / "encoder"))
    assert type(model).__name__ == "Wav2Vec2Model"
    assert np.prod(model.config.conv_stride) == 320
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6


def test_second_run_replaces_the_first_and_leaves_other_files(toy_prepare, tmp_path):
    toy_prepare.prepare_toy(tmp_path, {"train": 4, "dev": 2, "test": 2})
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    toy_prepare.prepare_toy(tmp_path, {"train": 2, "test": 1})
    assert len(list((tmp_path / "audio").iterdir())) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audio", "cuts_test.jsonl.gz", "cuts_train.jsonl.gz", "encoder", "notes.txt",
    ]  # fmt: skip


def test_failed_run_leaves_the_earlier_corpus(toy_prepare, tmp_path, monkeypatch: pytest.MonkeyPatch):
    toy_prepare.prepare_toy(tmp_path, {"test": 2})
    before = digests(tmp_path), manifest(tmp_path, "test")

    monkeypatch.setattr(toy_prepare.soundfile, "write", Mock(side_effect=OSError("no space left on device")))
    with pytest.raises(OSError, match="no space"):
        toy_prepare.prepare_toy(tmp_path, {"test": 2}, seed=1)
    assert (digests(tmp_path), manifest(tmp_path, "test")) == before


@pytest.mark.parametrize("value", ["asr=0.5", "ner", "ner=half", "ner=1.5", "speakers=0.1"])
def test_bad_label_share_is_one_line_and_exit_2(toy_prepare, tmp_path, value):
    result = CliRunner().invoke(toy_prepare.main, ["--output-dir", str(tmp_path / "toy"), "--label-share", value])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1 and f"--label-share {value}" in result.output
    assert not (tmp_path / "toy").exists()


def test_command_line_writes_the_sets(toy_prepare, tmp_path):
    options = f"--output-dir {tmp_path} --train 4 --dev 1 --test 1 --label-share ner=0.5,lid=0"
    result = CliRunner().invoke(toy_prepare.main, options.split())
    assert result.exit_code == 0, result.output
    assert "train: 4 utterances" in result.output and "ner 2, lid 0" in result.output
    assert json.loads((tmp_path / "encoder" / "config.json").read_text(encoding="utf-8"))["model_type"] == "wav2vec2"
