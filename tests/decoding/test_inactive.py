"""Tasks that are not asked for: decoded with the others and stripped, the same on every path, or suppressed."""

import dataclasses
import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_decoder import TALKATIVE, load, run
from toy_runs import call, call_ok, read_cuts

from tokenverse_pp.api.model import TokenVerse
from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.inactive import inactive_of, select, stripped
from tokenverse_pp.decoding.recognizer import search
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.training.validation import Validator

BEAM = SearchOptions("beam", 4, nbest=4, blank_penalty=2.0)
CHUNKS = ChunkOptions(320, 2, 4)


@pytest.fixture(scope="module")
def loaded(tiny_corpus):
    return load(tiny_corpus, model__vectors__placement="both")


@pytest.fixture(scope="module")
def cuts(tiny_corpus):
    return read_cuts(tiny_corpus)[:4]


def kept(tokens, *names):
    """Tokens of a hypothesis without the task tokens of other tasks."""
    symbols = {"lid": {"[QAA]", "[QAB]"}, "scd": {"[SCD]"}, "endp": {"[ENDP]"}, "ner": {"[NE]", "[/NE]"}}
    return [t for t in tokens if not t.startswith("[") or any(t in symbols.get(name, ()) for name in names)]


TOKENS = st.lists(st.integers(1, 6), max_size=6)


@given(st.lists(TOKENS, min_size=1, max_size=5, unique_by=tuple), st.frozensets(st.integers(1, 6)))
def test_stripped_lists_are_the_lists_without_these_tokens(lists, removed):
    best = [
        Hypothesis(tuple(t), tuple(range(len(t))), tuple(-float(i) for i in range(len(t))), -n, -n)
        for n, t in enumerate(lists)
    ]
    found = stripped(best, removed)
    expected = list(dict.fromkeys(tuple(t for t in tokens if t not in removed) for tokens in lists))
    assert [h.tokens for h in found] == expected
    for h in found:
        source = next(s for s in best if tuple(t for t in s.tokens if t not in removed) == h.tokens)
        assert (h.score, h.log_prob) == (source.score, source.log_prob)
        assert all((source.tokens[f], -float(f)) == (t, p) for t, f, p in zip(h.tokens, h.frames, h.log_probs))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "strip"),  # all labelled tasks active
        ({"model__vectors__placement": "none"}, "strip"),
        ({"tasks__activation": "subset"}, "suppress"),
        ({"tasks__activation": "bernoulli"}, "suppress"),
        ({"tasks__paired": "true"}, "suppress"),
        ({"model__vectors__strategy": "combination"}, "strip"),
    ],
)
def test_default_is_as_the_model_was_trained(tiny_corpus, changes, expected):
    loaded = load(tiny_corpus, **changes)
    assert inactive_of(loaded) == expected
    assert [inactive_of(loaded, wanted) for wanted in ("suppress", "strip")] == ["suppress", "strip"]
    vectors = loaded.model.feature_vectors
    if vectors is not None and vectors.strategy == "combination":
        vectors.trained[3] = 1  # some combination, but not all tasks
        assert inactive_of(loaded) == "suppress"
        vectors.trained[-1] = 1
        assert inactive_of(loaded) == "strip"


def test_what_cannot_be_selected_is_named(loaded):
    for inactive in ("suppress", "strip"):
        with pytest.raises(UserError, match=r"'sing': this model knows asr, scd"):
            select(loaded.tasks, ["sing"], loaded.tokenizer, inactive)
    with pytest.raises(UserError, match="the task 'lid' is not active"):
        select(loaded.tasks, ["scd"], loaded.tokenizer, "strip", ("qaa",))
    every = select(loaded.tasks, loaded.tasks.names, loaded.tokenizer, "strip", ("qaa",))
    assert every == (loaded.tasks.names, frozenset())


@pytest.mark.parametrize("names", [["asr"], ["scd", "lid"]])
@pytest.mark.parametrize(
    "more", [{}, {"window": 1.0, "overlap": 0.2}, {"chunks": CHUNKS}], ids=["", "windows", "chunks"]
)
def test_stripped_results_are_those_of_all_tasks_without_their_tokens(loaded, cuts, names, more):
    everything = run(loaded, cuts, **more)
    found = run(loaded, cuts, names, inactive="strip", **more)
    assert run(loaded, cuts, names, **more) == found  # the model's default
    for cut_id, record in found.items():
        assert record["tokens"] == kept(everything[cut_id]["tokens"], *names)
        assert record["tasks"] == list(loaded.tasks.subset(names).names)
        assert ("language" in record, "entities" in record) == ("lid" in names, False)
        # Two tokens may have the same time.
        found_at, written_at = (Counter(zip(r["times"], r["tokens"])) for r in (record, everything[cut_id]))
        assert not found_at - written_at
    removed = {t for record in everything.values() for t in record["tokens"]}
    assert len(removed & set(loaded.tasks.symbols)) >= 2  # an [NE] that no window closes is not among them
    assert run(loaded, cuts, names, inactive="suppress", **more) != found


def test_other_paths_give_the_same(loaded, cuts):
    """The search of arrays, and the Python API."""
    names = ["scd", "lid"]
    audio = [load_inputs(cut) for cut in cuts]
    expected = [record["tokens"] for record in run(loaded, cuts, names, BEAM).values()]
    pieces = loaded.tokenizer.pieces
    by_cut = dict(zip([cut.id for cut in cuts], search(loaded, audio, names, BEAM)))
    ordered = [by_cut[cut_id] for cut_id in run(loaded, cuts, names, BEAM)]
    assert [pieces(best[0].tokens) for best in ordered] == expected
    for best in ordered:
        assert len({h.tokens for h in best}) == len(best)
    model = TokenVerse(loaded)
    for inactive in (None, "strip", "suppress"):
        heard = model.transcribe(list(cuts), tasks=names, search=TALKATIVE, inactive=inactive)
        record = run(loaded, cuts, names, inactive=inactive)
        assert [one.to_record()["text"] for one in heard] == [record[cut.id]["text"] for cut in cuts]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_streams_are_stripped_and_may_switch(loaded, cuts, method):
    options = StreamingOptions(CHUNKS, search=SearchOptions(method, blank_penalty=2.0))
    transcriber = StreamingTranscriber(loaded, options)
    assert transcriber.inactive == "strip"
    for cut in cuts[:2]:
        audio, texts = load_inputs(cut), []
        for names in (loaded.tasks.names, ["scd"]):
            stream = transcriber.open(names)
            events = [*transcriber.push(stream, audio), *transcriber.close(stream)]
            texts.append(events[-1].text)
            for event in events:  # partials too
                assert kept(event.text.split(), *(set(names) - {"asr"})) == event.text.split()
        assert texts[1].split() == kept(texts[0].split(), "scd") != texts[0].split()
    # From here on the other tokens of the same text.
    stream, half = transcriber.open(["scd"]), len(audio) // 2
    transcriber.push(stream, audio[:half])
    before = stream.words.text.getvalue()
    transcriber.set_tasks(stream, loaded.tasks.names)
    transcriber.push(stream, audio[half:])
    text = transcriber.close(stream)[-1].text
    assert text.startswith(before) and kept(text.split(), "scd") == texts[1].split()
    suppressing = StreamingTranscriber(loaded, dataclasses.replace(options, inactive="suppress"))
    stream = suppressing.open(["scd"])
    suppressing.push(stream, audio)
    assert suppressing.close(stream)[-1].text != texts[1]


def test_validation_decodes_as_decode_does(loaded, cuts, monkeypatch):
    """A cut's labelled tasks, of a model that decodes all and strips."""
    from tokenverse_pp.data.dataset import Activation, TransducerDataset

    cuts = [cut.with_custom("tasks", ["asr", "lid"]) if i % 2 else cut for i, cut in enumerate(cuts)]
    told = {}
    monkeypatch.setattr(
        "tokenverse_pp.training.validation.score_hypotheses",
        lambda cuts, records, tasks: told.update({r["id"]: r for r in records}) or {},
    )
    monkeypatch.setattr("tokenverse_pp.training.validation.SearchOptions", lambda **options: TALKATIVE)
    dataset = TransducerDataset(loaded.tasks, loaded.tokenizer, Activation())
    Validator(cuts, dataset, loaded.config, DistributedContext())(loaded.model)
    loaded.model.eval()
    for cut in cuts:
        (record,) = run(loaded, [cut], cut.custom["tasks"]).values()
        assert told[cut.id]["tokens"] == record["tokens"]


def test_the_command_line_says_what_it_did(tiny_corpus, finished_run, decode_script, tmp_path):
    given = ["--model", finished_run, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--no-report", "--threads", 1]
    given += ["--first", 2, "--tasks", "asr"]
    for name, more, said in (("a", [], "strip"), ("b", ["--inactive", "suppress"], "suppress")):
        call_ok(decode_script.main, *given, "--output-dir", tmp_path / name, *more)
        assert json.loads((tmp_path / name / "scores.json").read_text())["options"]["inactive"] == said
    failure = call(decode_script.main, *given, "--output-dir", tmp_path / "c", "--inactive", "hide")
    assert failure.code == 2 and "'hide' is not one of 'suppress', 'strip'" in failure.stderr


def test_a_misspelt_way_is_refused(loaded, cuts):
    with pytest.raises(UserError, match="inactive: expected suppress or strip, got 'supress'"):
        TokenVerse(loaded).transcribe(cuts[0], tasks=["asr"], inactive="supress")


@pytest.mark.slow
def test_an_export_strips_as_the_model_does(loaded, cuts, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5):
        pytest.skip("export needs torch 2.5")
    from tokenverse_pp.base.options import ExportOptions
    from tokenverse_pp.onnx.export import export_onnx
    from tokenverse_pp.runtime import Runtime, StreamingRuntime

    audio = load_inputs(cuts[0]).numpy()
    export_onnx(loaded, tmp_path / "whole")
    runtime = Runtime(tmp_path / "whole")
    assert runtime.inactive == "strip"
    for inactive in ("strip", "suppress"):
        runtime.inactive = inactive
        expected = search(loaded, [audio], ["scd"], BEAM, inactive)[0]
        assert [h.tokens for h in runtime.search([audio], ["scd"], BEAM)[0]] == [h.tokens for h in expected]
        options = {"window": 1.0, "overlap": 0.2}
        long = runtime.transcribe(audio, ["scd"], options=TALKATIVE, **options)
        (record,) = run(loaded, cuts[:1], ["scd"], inactive=inactive, **options).values()
        assert long.raw == record["text"]
    export_onnx(loaded, tmp_path / "live", ExportOptions(chunks=CHUNKS))
    live = StreamingRuntime(tmp_path / "live")
    everything, some = (live.transcribe(audio, names, options=TALKATIVE).raw for names in (None, ["scd"]))
    assert some.split() == kept(everything.split(), "scd") != everything.split()
