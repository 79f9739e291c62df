import dataclasses

import numpy as np
import pytest
import torch
from command_lines import run, run_ok
from labelled_cuts import make_cut
from lhotse import CutSet
from lhotse.features.io import NumpyFilesWriter

from tokenverse_pp.data.dataset import FEATURES, Activation, TransducerDataset, load_inputs
from tokenverse_pp.data.labels import validate_cuts
from tokenverse_pp.data.samplers import open_source
from tokenverse_pp.data.tokenizer import train_tokenizer

READ_BACK = ("shard_origin", "shar_epoch")  # what from_shar adds to custom fields


@pytest.fixture
def manifest(tiny_corpus, tmp_path):
    """Eight cuts of the toy, with audio; their entities are a machine's."""
    cuts = []
    for cut in CutSet.from_file(tiny_corpus / "cuts_train.jsonl.gz").subset(first=8):
        cut.custom["label_source"] = {"ner": "machine:x"}
        for sup in cut.supervisions:
            sup.custom["entities"] = [{**e, "source": "machine:x", "confidence": 0.5} for e in sup.custom["entities"]]
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


def same_cut(found, expected):
    custom = {key: value for key, value in found.custom.items() if key not in READ_BACK}
    same = (found.id, found.duration, custom) == (expected.id, expected.duration, expected.custom)
    return same and found.supervisions == expected.supervisions


def test_labels_and_audio_come_back(manifest, tmp_path, toy_tasks):
    folder = tmp_path / "shar"
    result = run_ok("manifest", "to-shar", manifest, folder, "--shard-size", 3)
    assert result.stdout.startswith("8 cuts in 3 shards, ")
    expected, found = list(CutSet.from_file(manifest)), list(CutSet.from_shar(in_dir=folder))
    assert len(found) == 8 and all(map(same_cut, found, expected))
    validate_cuts(found)
    dataset = TransducerDataset(
        toy_tasks, train_tokenizer([s.text for cut in expected for s in cut.supervisions], toy_tasks, 40), Activation()
    )
    before, after = dataset[CutSet.from_cuts(expected)], dataset[CutSet.from_cuts(found)]
    assert set(before) == set(after)
    for name, value in before.items():
        if name == "inputs":
            torch.testing.assert_close(after[name], value, atol=1e-4, rtol=0)  # 16-bit flac
        else:
            assert torch.equal(after[name], value) if isinstance(value, torch.Tensor) else after[name] == value
    assert [cut.id for cut in open_source(str(folder)).read(0, 8)] == [cut.id for cut in expected]


def test_only_the_audio_of_the_cut_is_stored(manifest, tmp_path):
    [whole, *_] = CutSet.from_file(manifest)
    part = whole.truncate(offset=0.25, duration=0.5, preserve_id=True)
    CutSet.from_cuts([part]).to_file(tmp_path / "part.jsonl")
    assert run("manifest", "to-shar", tmp_path / "part.jsonl", tmp_path / "shar").exit_code == 0
    [found] = CutSet.from_shar(in_dir=tmp_path / "shar")
    assert found.start == 0 and found.recording.num_samples == 8000
    np.testing.assert_allclose(found.load_audio(), part.load_audio(), atol=1e-4)


def test_stored_features_come_back(manifest, tmp_path):
    cuts = []
    with NumpyFilesWriter(tmp_path / "features") as writer:
        for i, cut in enumerate(CutSet.from_file(manifest)):
            array = writer.store_array(cut.id, np.full((4, 3), i, dtype=np.float16))
            cuts.append(dataclasses.replace(cut, custom={**cut.custom, FEATURES: array}))
    CutSet.from_cuts(cuts).to_file(tmp_path / "stored.jsonl.gz")
    assert run("manifest", "to-shar", tmp_path / "stored.jsonl.gz", tmp_path / "shar", "--audio", "none").exit_code == 0
    assert not list((tmp_path / "shar").glob("recording.*"))
    for i, cut in enumerate(CutSet.from_shar(in_dir=tmp_path / "shar")):
        assert torch.equal(load_inputs(cut, stored_features=True), torch.full((4, 3), float(i)))
    counted = run("manifest", "stats", tmp_path / "shar")
    assert counted.exit_code == 2 and f"name its files: {tmp_path / 'shar'}/cuts.*" in counted.stderr
    assert run("manifest", "stats", *(tmp_path / "shar").glob("cuts.*")).exit_code == 0


def refused(*args):
    result = run("manifest", "to-shar", *args)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_what_cannot_be_stored(manifest, tmp_path, tiny_corpus):
    cuts = list(CutSet.from_file(manifest))
    path, folder = tmp_path / "bad.jsonl", tmp_path / "shar"
    CutSet.from_cuts([cuts[0].pad(60.0)]).to_file(path)
    assert "Shar holds no mixed cuts" in refused(path, folder)
    gone = dataclasses.replace(cuts[0].recording)
    gone.sources = [dataclasses.replace(gone.sources[0], source="gone.wav")]
    CutSet.from_cuts([cuts[1], dataclasses.replace(cuts[0], recording=gone)]).to_file(path)
    assert f"cut {cuts[0].id}: field 'recording': gone.wav: no such file" in refused(path, folder)
    CutSet.from_cuts([make_cut("c", [{"text": "oui"}])]).to_file(path)
    assert "cut c: nothing to store" in refused(path, folder, "--audio", "none")
    path.write_text("")
    assert "found none" in refused(path, folder)
    assert not folder.exists() and not list(tmp_path.glob(".*"))
    folder.mkdir()
    (folder / "mine").write_text("")
    assert "exists already" in refused(manifest, folder)


def test_several_processes_write_the_same_files(manifest, tmp_path):
    for folder, jobs in (("one", 1), ("two", 2)):
        result = run_ok("manifest", "to-shar", manifest, tmp_path / folder, "--shard-size", 3, "--num-jobs", jobs)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir()) and len(names) == 6
    one, two = (list(CutSet.from_shar(in_dir=tmp_path / folder)) for folder in ("one", "two"))
    assert [cut.id for cut in one] == [cut.id for cut in two] and len(one) == 8
    assert all(np.array_equal(a.load_audio(), b.load_audio()) for a, b in zip(one, two))
    cuts = list(CutSet.from_file(manifest))
    cuts[5].recording.sources[0].source = str(tmp_path / "gone.wav")
    CutSet.from_cuts(cuts).to_file(tmp_path / "bad.jsonl")
    result = run("manifest", "to-shar", tmp_path / "bad.jsonl", tmp_path / "x", "--shard-size", 2, "--num-jobs", 2)
    assert result.exit_code == 2 and f"cut {cuts[5].id}" in result.stderr and not (tmp_path / "x").exists()
