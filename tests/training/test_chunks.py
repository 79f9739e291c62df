"""Multi-chunk training: what is drawn, that it resumes exactly, that stored features fit, and decoding in chunks."""

import shutil

import pytest
import torch
from click.testing import CliRunner
from lhotse import CutSet
from safetensors.torch import load_file
from toy_runs import assert_one_line, call, call_ok, read_cuts, save_frozen_encoder, toy_options, toy_parts

from tokenverse_pp.base.config import ChunkOptions, Config, StreamingConfig
from tokenverse_pp.base.config_files import check_config, from_dict, save_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.main import cli
from tokenverse_pp.data.dataset import FEATURES, Activation, features_key, load_inputs
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.models.stored_features import ORIGIN, store_features
from tokenverse_pp.training.steps import forward
from tokenverse_pp.training.validation import ChunkDraw, training_chunks, validation_chunks

MULTI = {
    "model__streaming__chunk_ms": [0, 320, 640],
    "model__streaming__left_chunks": [-1, 1],
    "model__streaming__sinks": [0, 4],
}
SMALL = {"data__valid": [], "data__max_cuts": 4, "training__save_every": 2, "training__average_last": 1}


def train(script, corpus, exp_dir, **changes):
    call_ok(script.main, *toy_options(corpus, exp_dir, **{**SMALL, **changes}))
    return load_file(exp_dir / "model" / "model.safetensors")


def same(ours, theirs):
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_every_combination_is_drawn_the_same_again():
    draw = ChunkDraw(StreamingConfig([0, 320, 640], [-1, 2], [0, 16]), seed=3)
    drawn = [draw([f"cut-{number}", "b"], epoch) for number in range(60) for epoch in (0, 1)]
    assert drawn == [draw([f"cut-{number}", "b"], epoch) for number in range(60) for epoch in (0, 1)]
    combinations = {ChunkOptions(ms, left, sinks) for ms in (320, 640) for left in (-1, 2) for sinks in (0, 16)}
    assert set(drawn) == {None, *combinations}
    assert 20 < drawn.count(None) < 60
    assert drawn[::2] != drawn[1::2]
    assert drawn[::2] != [ChunkDraw(draw.config, seed=4)([f"cut-{number}", "b"], 0) for number in range(60)]


def test_chunks_of_a_batch_of_one_cut_do_not_depend_on_its_active_tasks():
    draw, activation = (
        ChunkDraw(StreamingConfig([80, 320, 640], [-1, 2, 4], [0, 4]), 1),
        Activation("bernoulli", 0.5, 1),
    )
    active = {}  # is scd active, by the chunks of the cut
    for cut_id in map(str, range(3000)):
        active.setdefault(draw([cut_id], 0), []).append("scd" in activation(["asr", "scd"], cut_id, 0))
    chi_square = sum((sum(found) - len(found) / 2) ** 2 / (len(found) / 4) for found in active.values())
    assert len(active) == 18 and chi_square < 60  # 18 degrees of freedom


def test_validation_is_in_full_context_where_training_is():
    def config(chunk_ms):
        return from_dict({"model": {"streaming": {"chunk_ms": chunk_ms, "left_chunks": [2, 1], "sinks": [4, 0]}}})

    assert training_chunks(Config()) is None and validation_chunks(Config()) is None
    assert training_chunks(config([320])) is not None
    assert validation_chunks(config([320, 0])) is None
    assert validation_chunks(config([640, 320]))(["a"], 0) == ChunkOptions(640, 2, 4)


@pytest.mark.parametrize(
    "section, said",
    [
        ({"chunk_ms": [-5]}, r"--model.streaming.chunk_ms=\[-5\]: expected numbers from 0 on"),
        ({"left_chunks": [-2]}, "--model.streaming.left_chunks"),
        ({"sinks": []}, "--model.streaming.sinks: expected at least one"),
    ],
)
def test_impossible_lists_are_refused(section, said):
    with pytest.raises(UserError, match=said):
        check_config(from_dict({"model": {"streaming": section}}))


@pytest.mark.slow
def test_full_context_alone_trains_as_before(train_script, tiny_corpus, tmp_path):
    steps = {"training__max_steps": 2}
    off = train(train_script, tiny_corpus, tmp_path / "off", **steps)
    full = train(train_script, tiny_corpus, tmp_path / "full", **steps, model__streaming__chunk_ms=[0])
    chunked = train(train_script, tiny_corpus, tmp_path / "chunked", **steps, model__streaming__chunk_ms=[320])
    assert same(full, off) and not same(chunked, off)


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_chunks(train_script, tiny_corpus, tmp_path):
    whole = train(train_script, tiny_corpus, tmp_path / "exp", **MULTI, training__max_steps=6)
    for name in ("model", "checkpoints/step-00000006", "checkpoints/step-00000004"):
        shutil.rmtree(tmp_path / "exp" / name)
    assert same(train(train_script, tiny_corpus, tmp_path / "exp", **MULTI, training__max_steps=6), whole)
    assert load_model(tmp_path / "exp").config.model.streaming == StreamingConfig([0, 320, 640], [-1, 1], [0, 4])


def test_features_are_stored_for_each_combination(tiny_corpus, tmp_path):
    """Losses from stored features are those from audio, for the chunks that a batch draws."""
    frozen = save_frozen_encoder(tiny_corpus, tmp_path / "wav2vec2-tiny")
    parts = toy_parts(tiny_corpus, **frozen, **{**MULTI, "model__streaming__sinks": [4]})
    cuts = CutSet.from_cuts(read_cuts(tiny_corpus)[:4])
    combinations = [None, *(ChunkOptions(ms, left, 4) for ms in (320, 640) for left in (-1, 1))]
    stored = cuts
    for chunks in combinations:
        arguments = (parts.model.encoder, parts.config.model.encoder, tmp_path / "features", "float32")
        stored = store_features(stored, *arguments, chunks=chunks)
    kept = {key for key in next(iter(stored)).custom if key.startswith(FEATURES) and key != ORIGIN}
    assert kept == {features_key(chunks) for chunks in combinations}
    seen = set()
    for epoch in range(20):
        parts.dataset.epoch, losses = epoch, []
        for features, source in ((True, stored), (False, cuts)):
            parts.dataset.stored_features = features
            batch = parts.dataset[source]
            with torch.no_grad():
                losses.append(forward(parts.model, batch, features).simple)
        seen.add(batch["chunks"])
        assert torch.allclose(*losses, rtol=1e-5)
    assert len(seen) > 2
    with pytest.raises(UserError, match="no stored features of these chunks"):
        load_inputs(next(iter(stored)), stored_features=True, chunks=ChunkOptions(960))


def test_features_of_chunks_are_stored_by_the_command_line(tiny_corpus, tmp_path):
    frozen = save_frozen_encoder(tiny_corpus, tmp_path / "wav2vec2-tiny")
    save_config(toy_parts(tiny_corpus, **frozen).config, tmp_path / "c.yaml")
    cuts = tmp_path / "cuts.jsonl"
    CutSet.from_cuts(read_cuts(tiny_corpus)[:2]).to_file(cuts)
    chunked = ["--chunk-ms", "320", "--left-chunks", "1", "--sinks", "4"]
    for more in ([], chunked, [*chunked, "--no-strict"]):
        # Into the file that it reads: features come beside those that are there.
        options = ["--overwrite", "--config", str(tmp_path / "c.yaml"), *more]
        result = CliRunner().invoke(cli, ["manifest", "store-features", str(cuts), str(cuts), *options])
        assert result.exit_code == 0, result.output
    cut = next(iter(CutSet.from_file(cuts)))
    every = (None, ChunkOptions(320, 1, 4), ChunkOptions(320, 1, 4, strict=False))
    full, strict, loose = (load_inputs(cut, True, chunks=chunks) for chunks in every)
    for ours, other in ((full, strict), (full, loose), (strict, loose)):
        assert ours.shape == other.shape and not torch.allclose(ours, other, atol=1e-2)


def test_decoding_in_chunks_warns_where_training_was_not(
    decode_script, finished_run, train_script, tiny_corpus, tmp_path
):
    def decode(model, *more):
        where = ["--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--output-dir", tmp_path / "out", "--no-resume"]
        return call(decode_script.main, "--model", model, *where, "--no-report", *more, standalone_mode=False)

    done = decode(finished_run, "--chunk-ms", 320, "--left-chunks", 1, "--sinks", 4, "--blank-penalty", 4)
    assert done.code == 0 and done.stderr.count("trained in full context only") == 1
    assert "warning" not in decode(finished_run).stderr
    assert_one_line(decode(finished_run, "--chunk-ms", 30), "--chunk-ms=30", "multiple of 20 ms")
    assert_one_line(decode(finished_run, "--chunk-ms", 320, "--sinks", -1), "--sinks=-1")
    train(train_script, tiny_corpus, tmp_path / "exp", training__max_steps=1, **MULTI)
    done = decode(tmp_path / "exp", "--chunk-ms", 640)
    assert done.code == 0 and "warning" not in done.stderr
