"""Scaling a task's vector at decoding: as if its row in the table were another one."""

import copy

import pytest
import torch
from test_decoder import load, run
from toy_runs import assert_one_line, call, call_ok, read_cuts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.recognizer import vector_weights


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    return load(tiny_corpus, model__vectors__placement="both")


def texts(loaded, cuts, *scales, **more):
    return [record["text"] for record in run(loaded, cuts, vector_scale=tuple(scales), **more).values()]


@pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.13 copies no module with weight norm")
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_scaling_is_another_row_in_the_table(tiny_corpus, loaded, scale):
    cuts = read_cuts(tiny_corpus, "test")
    other = copy.deepcopy(loaded)
    row = loaded.tasks.names.index("ner")
    with torch.no_grad():
        for vectors in (other.model.feature_vectors, other.model.encoder_vectors):
            vectors.table[row] *= scale
    scaled = texts(loaded, cuts, ("ner", scale))
    assert scaled == texts(other, cuts)
    assert scaled != texts(loaded, cuts) == texts(loaded, cuts, ("ner", 1.0), ("lid", 1.0))
    # In windows too.
    assert texts(loaded, cuts, ("ner", scale), window=1.0, overlap=0.2) == texts(other, cuts, window=1.0, overlap=0.2)


def test_only_decoded_tasks_with_a_vector_have_a_scale(tiny_corpus, loaded):
    with pytest.raises(UserError, match=r"--vector-scale ner=2: expected one of the decoded tasks asr, lid"):
        vector_weights(loaded, loaded.tasks.subset(["lid"]), (("ner", 2.0),))
    for placement, strategy in (("none", "sum"), ("features", "combination")):
        other = load(tiny_corpus, model__vectors__placement=placement, model__vectors__strategy=strategy)
        assert vector_weights(other, other.tasks).tolist() == [1.0] * 5
        with pytest.raises(UserError, match="one vector per task"):
            vector_weights(other, other.tasks, (("ner", 2.0),))


def test_the_command_line_takes_scales(tiny_corpus, finished_run, decode_script, tmp_path):
    given = ["--model", finished_run, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--no-report", "--threads", 1]
    call_ok(decode_script.main, *given, "--output-dir", tmp_path / "a", "--vector-scale", "ner=2")
    assert (tmp_path / "a" / "scores.json").is_file()
    failure = call(decode_script.main, *given, "--output-dir", tmp_path / "b", "--vector-scale", "sing=2")
    assert_one_line(failure, "--vector-scale sing=2", "asr, scd")
