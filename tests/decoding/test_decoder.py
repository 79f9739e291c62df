"""Cuts to hypotheses: chosen tasks, barred tokens, and results that do not depend on the batches."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import Recording
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.hypothesis import CALIBRATION, Calibration, Curve
from tokenverse_pp.decoding.long_form import decode_long
from tokenverse_pp.decoding.recognizer import DecodeOptions, Recognizer, decode, plan_batches
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.training.steps import forward

# An untrained model says little but blanks; the penalty has it say all kinds of things.
TALKATIVE = SearchOptions("greedy", blank_penalty=2.0)


def load(corpus, **changes):
    """An untrained model whose task vectors matter."""
    parts = toy_parts(corpus, **changes)
    torch.manual_seed(3)
    for vectors in (parts.model.feature_vectors, parts.model.encoder_vectors):
        if vectors is not None:
            torch.nn.init.normal_(vectors.table, std=0.5)
    # What it says changes with what it said, and task tokens are among it.
    torch.nn.init.normal_(parts.model.joiner.output.weight, std=0.1)
    torch.nn.init.normal_(parts.model.predictor.embedding.weight, std=2.0)
    with torch.no_grad():
        parts.model.predictor.embedding.weight[0] = 0.0
        parts.model.joiner.output.bias[[parts.tokenizer.id_of(symbol) for symbol in parts.tasks.symbols]] += 1.5
    return ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model.eval())


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    return load(tiny_corpus, model__vectors__placement="both")


def run(loaded, cuts, names=(), options=TALKATIVE, failed=(), **more):
    batches = list(decode(loaded, cuts, DecodeOptions(options, tuple(names), **more)))
    assert [failure["id"] for batch in batches for failure in batch.failures] == list(failed)
    return {record["id"]: record for batch in batches for record in batch.records}


def test_tasks_are_chosen_by_name_and_bad_options_named(loaded):
    assert run(loaded, []) == {}
    for changes, said in (({"max_duration": 0}, "--max-duration"), ({"overlap": 15}, "overlap")):
        with pytest.raises(UserError, match=said):
            DecodeOptions(**changes)
    assert Recognizer(loaded, DecodeOptions()).active.names == loaded.tasks.names
    assert loaded.tasks.chosen(["lid"]).names == ("asr", "lid")
    with pytest.raises(UserError, match=r"--tasks: task 'sing': this model knows asr, scd"):
        loaded.tasks.chosen(["asr", "sing"], "--tasks: ")


@pytest.mark.parametrize("names", [["asr"], ["lid"], ["scd", "ner"], ["asr", "scd", "endp", "ner", "lid"]])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_tokens_of_other_tasks_are_barred(tiny_corpus, loaded, names, method):
    options = SearchOptions(method, blank_penalty=2.0)
    found = run(loaded, read_cuts(tiny_corpus)[:6], names, options, inactive="suppress")
    said = {token for record in found.values() for token in record["tokens"] if token.startswith("[")}
    assert said <= set(loaded.tasks.subset(names).symbols)
    assert all(record["tasks"] == list(loaded.tasks.subset(names).names) for record in found.values())
    if len(names) == 5:
        assert len(said) >= 3  # so there was something to bar
    assert sum(len(record["tokens"]) for record in found.values()) > 30


@pytest.mark.parametrize("method", ["greedy", "beam", pytest.param("full_beam", marks=pytest.mark.slow)])
def test_results_depend_neither_on_batches_nor_on_order(tiny_corpus, loaded, method):
    cuts = read_cuts(tiny_corpus)[:6]
    options = SearchOptions(method, blank_penalty=2.0)
    alone = run(loaded, cuts, options=options, max_duration=0.1)
    for order, seconds in ((cuts[::-1], 100.0), (cuts[3:] + cuts[:3], 7.0)):
        found = run(loaded, order, options=options, max_duration=seconds)
        assert found.keys() == alone.keys()
        for cut_id, record in alone.items():
            assert found[cut_id]["tokens"] == record["tokens"] and found[cut_id]["times"] == record["times"]
            assert found[cut_id]["score"] == pytest.approx(record["score"], rel=1e-3)


def test_active_tasks_reach_the_model(tiny_corpus, loaded):
    cuts = read_cuts(tiny_corpus)[:4]
    greedy = SearchOptions("greedy")
    scores = [
        [record["score"] for record in run(loaded, cuts, names, greedy, inactive="suppress").values()]
        for names in (["asr"], ["asr", "lid"])
    ]
    # Blanks only, in both cases: what differs is the vectors.
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


def test_channels_are_averaged(loaded, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (24000, 3))
    soundfile.write(tmp_path / "mean.wav", noise.mean(axis=1), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "three.wav", noise, 16000, subtype="FLOAT")
    cuts = [Recording.from_file(tmp_path / name).to_cut() for name in ("mean.wav", "three.wav")]
    cuts = [cut.with_id(name) for cut, name in zip(cuts, ("mean", "three"))]
    found = run(loaded, cuts, options=SearchOptions("greedy", blank_penalty=2.0))
    assert found["three"]["tokens"] and found["three"]["tokens"] == found["mean"]["tokens"]


def test_languages_can_be_narrowed(tiny_corpus, loaded):
    options = SearchOptions("greedy", blank_penalty=2.0, languages=("qab",), force_language=True)
    found = run(loaded, read_cuts(tiny_corpus)[:4], [], options)
    assert {record["tokens"][0] for record in found.values()} == {"[QAB]"}
    assert {record["language"] for record in found.values()} == {"qab"}


def test_combination_that_was_never_trained_is_refused(tiny_corpus):
    loaded = load(tiny_corpus, model__vectors__strategy="combination")
    cuts = read_cuts(tiny_corpus)[:2]
    batch = toy_parts(tiny_corpus).dataset[cuts]
    loaded.model.train()
    forward(loaded.model, batch, stored=False)
    loaded.model.eval()
    assert len(run(loaded, cuts)) == 2
    with pytest.raises(UserError, match="never active in training"):
        run(loaded, cuts, ["asr"], inactive="suppress")


def test_long_cuts_are_decoded_in_windows(tiny_corpus, loaded, tmp_path):
    """As `decode_long` decodes them; cuts that fit into a window are not touched by it."""
    cuts = sorted(read_cuts(tiny_corpus), key=lambda cut: cut.duration)
    long, short = cuts[-1], cuts[0]
    window = (long.duration + short.duration) / 2
    options = SearchOptions("beam", blank_penalty=2.0)
    found = run(loaded, [long, short], options=options, window=window, overlap=0.5)
    expected = decode_long(loaded, long, loaded.tasks, options, window, 0.5)
    assert found[long.id]["tokens"] == loaded.tokenizer.pieces(expected.tokens)
    assert found[long.id]["score"] == expected.score
    assert found[short.id] == run(loaded, [short], options=options)[short.id]
    long.recording.sources[0].source = "/no/such/file.flac"
    assert set(run(loaded, [long, short], failed=[long.id], window=window, overlap=0.5)) == {short.id}


def test_hotwords_are_preferred(tiny_corpus, loaded):
    cuts = read_cuts(tiny_corpus)[:3]
    word = read_cuts(tiny_corpus)[5].supervisions[0].text.split()[0]
    plain, boosted = (
        run(loaded, cuts, options=SearchOptions(blank_penalty=2.0, hotwords=hotwords, hotword_score=8.0))
        for hotwords in (None, (word,))
    )
    counts = [sum(r["text"].split().count(word) for r in found.values()) for found in (plain, boosted)]
    assert counts[1] > counts[0]


def test_calibration_of_the_model_folder_is_used(tiny_corpus, loaded, tmp_path):
    Calibration(words=Curve(1.0, 1.0, -2.0)).write(tmp_path / CALIBRATION)
    cuts = read_cuts(tiny_corpus)[:1]
    (plain,), (calibrated,) = (
        run(dataclasses.replace(loaded, folder=folder), cuts).values() for folder in (None, tmp_path)
    )
    assert plain["text"] == calibrated["text"]
    lower = [a["confidence"] > b["confidence"] for a, b in zip(plain["words"], calibrated["words"])]
    assert lower == [not word["text"].startswith("[") for word in plain["words"]]


def test_output_that_is_no_number_names_the_cut(tiny_corpus):
    broken = load(tiny_corpus)
    with torch.no_grad():
        next(broken.model.encoder.parameters()).fill_(float("nan"))
    cut = read_cuts(tiny_corpus)[0]
    (done,) = decode(broken, [cut], DecodeOptions(TALKATIVE))
    assert done.records == []
    (failure,) = done.failures
    assert failure["id"] == cut.id and failure["files"] == [cut.recording.sources[0].source]
    assert f"cut {cut.id}: the encoder gave NaN" in failure["reason"]


def with_samples(folder, name, samples, rate=16000):
    soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")
    return Recording.from_file(folder / f"{name}.wav").to_cut()


def test_a_bad_cut_leaves_its_batch_as_it_is(tiny_corpus, loaded, tmp_path):
    cuts = read_cuts(tiny_corpus)[:4]
    bad = with_samples(tmp_path, "bad", np.full(16000 * 2, np.nan))
    found = run(loaded, [*cuts[:2], bad, *cuts[2:]], failed=[bad.id], max_duration=1000)
    expected = run(loaded, cuts, max_duration=1000)
    assert found == expected


def test_less_than_a_frame_is_an_empty_hypothesis(tiny_corpus, loaded, tmp_path):
    """Alone and in a batch alike; some encoders cannot take it at all."""
    short = with_samples(tmp_path, "short", np.zeros(20))
    alone = run(loaded, [short])[short.id]
    assert alone["text"] == "" and alone["tokens"] == alone["words"] == alone["turns"] == alone["entities"] == []
    assert alone["language"] is None
    cuts = read_cuts(tiny_corpus)[:3]
    batch = run(loaded, [short, *cuts])
    assert batch.pop(short.id) == alone and batch == run(loaded, cuts)


def test_nbest_is_written_best_first(tiny_corpus, loaded):
    options = SearchOptions("beam", beam=4, nbest=3, blank_penalty=2.0)
    for record in run(loaded, read_cuts(tiny_corpus)[:3], options=options).values():
        texts, scores = ([item[key] for item in record["nbest"]] for key in ("text", "score"))
        assert texts[0] == record["text"] and scores[0] == record["score"]
        assert 1 < len(texts) <= 3 and scores == sorted(scores, reverse=True)


@given(st.lists(st.floats(0.1, 50), max_size=30), st.floats(1, 200))
def test_batches_hold_every_cut_once_and_the_longest_come_first(durations, most):
    cuts = [make_cut(str(i), [], duration=seconds) for i, seconds in enumerate(durations)]
    options = DecodeOptions(max_duration=most, window=30, overlap=5)
    batches = plan_batches(cuts, options)
    assert sorted(cut.id for batch in batches for cut in batch) == sorted(cut.id for cut in cuts)
    longest = [max(cut.duration for cut in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, seconds in zip(batches, longest):
        assert len(batch) == 1 or (len(batch) * seconds <= most and seconds <= 30)
    assert plan_batches(cuts[::-1], options) == batches
