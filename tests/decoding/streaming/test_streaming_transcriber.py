"""Audio in pieces of any length against search over the masked full pass; events, tasks, endpoints, errors."""

import dataclasses
import functools
import gc
import itertools
import json
import random
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import ROOT
from tiny_encoders import masked_pass, noise, tiny_transducer
from toy_runs import read_cuts
from vocabulary import Vocabulary, know

from tokenverse_pp.base.config import ChunkOptions, Config, TasksConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.hypothesis import Calibration, Curve
from tokenverse_pp.decoding.language_models import bonus_for
from tokenverse_pp.decoding.recognizer import Recognizer, search_frames
from tokenverse_pp.decoding.streaming.search import StreamingSearch
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.models.bundle import ModelBundle, load_model

TOY_MODEL = ROOT / "tests" / "oracles" / "fixtures" / "toy_model"
TASKS = know("asr", "scd", "endp")
VOCABULARY = Vocabulary(TASKS)
ENCODERS = {"wav2vec2": ("wav2vec2-layer", "finetune", 1), "whisper": ("whisper", "frozen", 2)}
CHUNKS = ChunkOptions(160, 2, 3)
GREEDY, BEAM = SearchOptions("greedy"), SearchOptions("beam", 3)


@functools.lru_cache(None)
def loaded_of(encoder="wav2vec2"):
    """A tiny random model that writes a token at every other frame or so."""
    family, kind, stack = ENCODERS[encoder]
    model = tiny_transducer(family, kind, stack)
    with torch.no_grad():
        model.joiner.output.weight.mul_(8)
        model.joiner.encoder_proj.weight.mul_(3)
        model.joiner.output.bias.zero_()[0] = 2.0
    return ModelBundle(Config(tasks=TasksConfig(activation="subset")), TASKS, VOCABULARY, model)


def transcriber_of(encoder="wav2vec2", search=GREEDY, chunks=CHUNKS, **options):
    return StreamingTranscriber(loaded_of(encoder), StreamingOptions(chunks, search=search, **options))


def pieces_of(audio, random_, mean=2000):
    """Audio in pieces of random lengths, among them none and one sample."""
    cuts = sorted(random_.randint(0, len(audio)) for _ in range(len(audio) // mean))
    cuts = [0, *cuts, *cuts[:1], *([cuts[-1] + 1] if cuts and cuts[-1] < len(audio) else []), len(audio)]
    return [audio[a:b] for a, b in itertools.pairwise(sorted(cuts))]


def heard(transcriber, audio, random_=None, tasks=None):
    """All events of one stream."""
    stream = transcriber.open(tasks)
    events = []
    for piece in pieces_of(audio, random_) if random_ else [audio]:
        piece = piece.double().numpy().copy()
        events += transcriber.push(stream, piece)
        piece[:] = 0  # the caller uses its buffer again
    return events + transcriber.close(stream)


def finals(events):
    return [word for event in events if event.kind in ("final", "token") for word in event.words]


def search_of(transcriber, out, names, bonus=None):
    """The best hypothesis of encoder output (T, C), searched at once."""
    loaded, options = transcriber.loaded, transcriber.options.search
    constraints = constraints_for(loaded.tasks, names, loaded.tokenizer, options.languages, options.force_language)
    model, lens = loaded.model, torch.tensor([len(out)])
    ((best,),) = search_frames(model.predictor, model.joiner, out[None], lens, options, constraints, bonus)
    return best


def full_pass(transcriber, audio, names=TASKS.names):
    """Output of the masked full pass."""
    loaded = transcriber.loaded
    active = torch.tensor(loaded.tasks.mask(names), dtype=torch.float32)
    return masked_pass(loaded.model, audio, active, transcriber.options.chunks)


def words_of(transcriber, hypothesis):
    return hypothesis.words(VOCABULARY.pieces(hypothesis.tokens), transcriber.encoder.frame_shift)


def assert_same_words(found, expected):
    assert [(w.text, w.start) for w in found] == [(w.text, w.start) for w in expected]
    for one, other in zip(found, expected):
        if not other.is_task_token:  # after one, offline counts a lone space sign to it
            assert one.end == other.end
            assert one.confidence == pytest.approx(other.confidence, abs=2e-3)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    encoder=st.sampled_from(list(ENCODERS)),
    search=st.sampled_from([GREEDY, BEAM]),
    chunk_ms=st.sampled_from([80, 160, 320]),
    left=st.sampled_from([0, 2, -1]),
    sinks=st.sampled_from([0, 5]),
)
def test_what_becomes_final_is_the_search_of_the_masked_full_pass(seed, encoder, search, chunk_ms, left, sinks):
    random_ = random.Random(seed)
    transcriber = transcriber_of(encoder, search, ChunkOptions(chunk_ms, left, sinks))
    tasks = [("scd", "endp"), ("endp",), ()]
    audios = [noise(random_.choice([random_.randint(900, 12000), 2560 * 3]), seed + i) for i in range(3)]
    streams = [transcriber.open(names) for names in tasks]
    events = [[] for _ in streams]
    waiting = [pieces_of(audio, random_) for audio in audios]
    while any(waiting):  # streams of different ages, several in a push
        rows = [row for row in range(3) if waiting[row] and random_.random() < 0.7]
        told = transcriber.push_many([(streams[row], waiting[row].pop(0)) for row in rows])
        for row, some in zip(rows, told):
            events[row] += some
    for row, audio in enumerate(audios):
        events[row] += transcriber.close(streams[row])
        best = search_of(transcriber, full_pass(transcriber, audio, tasks[row]), tasks[row])
        expected = words_of(transcriber, best)
        assert_same_words(finals(events[row]), expected)
        assert events[row][-1].kind == "end" and events[row][-1].time == len(audio) / 16000
        assert events[row][-1].text == " ".join(word.text for word in expected)


@pytest.mark.parametrize("options", [GREEDY, SearchOptions(beam=4, hotwords=("ba",), languages=("qaa",))])
def test_a_trained_model_with_all_tasks(finished_run, tiny_corpus, options):
    loaded = load_model(finished_run)
    options = dataclasses.replace(options, force_language=True, blank_penalty=3.0)  # it was trained for ten steps
    transcriber = StreamingTranscriber(loaded, StreamingOptions(ChunkOptions(320, 2, 4), search=options))
    names, bonus = loaded.tasks.names, bonus_for(options, loaded.tokenizer)
    said = 0
    for cut in read_cuts(tiny_corpus, "test")[:2]:
        audio = load_inputs(cut)
        best = search_of(transcriber, full_pass(transcriber, audio, names), names, bonus)
        events = heard(transcriber, audio, random.Random(len(audio)))
        assert events[-1].text == loaded.tokenizer.decode(best.tokens)
        assert events[0].text.startswith("[QA")
        said += len(best.tokens)
    assert said > 10


@pytest.fixture
def searches(tmp_path):
    """Options of the search as people give them: languages, hotwords, language models and their scales."""
    (tmp_path / "words.tsv").write_text("dun\t30\nibi\t12\nmab\t7\nuda\t5\nkalo\t2\n")
    (tmp_path / "lists").mkdir()
    for code in ("qaa", "qab"):
        (tmp_path / "lists" / f"{code}.tsv").write_text("mab\t9\nkalo\t4\n" if code == "qab" else "dun\t3\n")
    words, lists = str(tmp_path / "words.tsv"), str(tmp_path / "lists")
    return [
        SearchOptions(),
        SearchOptions("greedy", languages=("qab",), force_language=True),
        SearchOptions(languages=("qab",), force_language=True, hotwords=("dun ibi", ("uda", 2.5))),
        SearchOptions(hotwords=("mabkalo",), hotword_score=6.0),
        SearchOptions(lm=words, lm_scale=0.7, lm_bonus=2.0),
        SearchOptions(lm=lists, languages=("qaa", "qab"), hotwords=("dun",)),
    ]


def test_streams_with_their_own_options_say_what_the_recognizer_says(searches, tiny_corpus):
    """All at once, in one transcriber; the recognizer has the same options and chunks (decode.py --chunk-ms)."""
    loaded = load_model(TOY_MODEL)
    chunks = ChunkOptions(640, 2, 4)
    transcriber = StreamingTranscriber(loaded, StreamingOptions(chunks))
    audio = torch.cat([load_inputs(cut) for cut in read_cuts(tiny_corpus, "test")])
    streams = [transcriber.open(search=search) for search in searches]
    assert len({id(stream.searcher) for stream in streams}) == len(searches)
    assert transcriber.open(search=searches[3]).searcher is streams[3].searcher
    for piece in audio.split(7001):
        transcriber.push_many([(stream, piece) for stream in streams])
    said = [transcriber.close(stream)[-1].text for stream in streams]
    for search, text in zip(searches, said):
        recognizer = Recognizer(loaded, DecodeOptions(search, chunks=chunks))
        ((best,),) = recognizer.recognize([audio])
        assert text == loaded.tokenizer.decode(best.tokens) and len(best.tokens) > 20
    assert len(set(said)) == len(said)  # every option changes something
    del streams
    gc.collect()
    assert len(transcriber._searchers) == 1  # the default's


def test_languages_and_their_models_need_the_task_lid(searches):
    loaded = load_model(TOY_MODEL)
    default = dataclasses.replace(searches[-1], hotwords=("dun",), lm_scale=0.3)
    options = StreamingOptions(ChunkOptions(640, 2, 4), search=default, inactive="suppress")
    transcriber = StreamingTranscriber(loaded, options)
    plain = transcriber.open(["asr"]).searcher.options  # what needs lid among the defaults is left out
    assert plain == dataclasses.replace(default, languages=None, lm=None, lm_scale=None)
    with pytest.raises(UserError, match=r"^a: .*the task 'lid' is not active"):
        transcriber.open(["asr"], "a", searches[1])
    with pytest.raises(UserError, match=r"^a: .*a folder of language models needs the task lid"):
        transcriber.open(["asr"], "a", dataclasses.replace(searches[-1], languages=None))
    with pytest.raises(UserError, match=r"^a: hotword 'ÿ': the model's vocabulary lacks"):
        transcriber.open(None, "a", SearchOptions(hotwords=("ÿ",)))
    with pytest.raises(UserError, match=r"^search option 'languages': the task 'lid' is not active"):
        StreamingTranscriber(loaded, dataclasses.replace(options, tasks=("asr",)))
    stream = transcriber.open()
    transcriber.set_tasks(stream, ["asr"])
    assert stream.searcher.options == default
    # The folder has files for the chosen languages only; without lid there are no chosen languages.
    stripping = StreamingTranscriber(loaded, dataclasses.replace(options, inactive="strip"))
    assert stripping.open(["asr"]).searcher.options == plain


@pytest.mark.parametrize("inactive, own", [("suppress", BEAM), ("strip", GREEDY)])
def test_lid_switched_on_later_is_bound_to_the_languages_too(inactive, own, tiny_corpus):
    """To those of the transcriber, or that it is opened with; not to those of a search of its own without any."""
    audios = [load_inputs(cut)[:30000] for cut in read_cuts(tiny_corpus, "test")[:4]]
    loaded = load_model(TOY_MODEL)

    def languages_of(default=None, **fields):
        search = dataclasses.replace(own, languages=default)
        options = StreamingOptions(ChunkOptions(640, 2, 4), search=search, inactive=inactive)
        transcriber = StreamingTranscriber(loaded, options)
        streams = [transcriber.open(["asr", "endp"], **fields) for _ in audios]
        for stream in streams:
            transcriber.set_tasks(stream, ["asr", "endp", "lid"])  # before the first word, where a language is written
        transcriber.push_many(list(zip(streams, audios)))
        said = [transcriber.close(stream)[-1].text.split() for stream in streams]
        return {word for words in said for word in words if word.startswith("[QA")}

    assert "[QAB]" in languages_of(("qaa",), search=own)
    assert languages_of(("qaa",)) == languages_of(search=own, languages=["qaa"]) == {"[QAA]"}


@pytest.mark.parametrize("search", [GREEDY, BEAM])
def test_events_do_not_depend_on_the_pieces_and_tell_all(search):
    transcriber, audio = transcriber_of(search=search), noise(40000)
    events = heard(transcriber, audio)
    assert heard(transcriber, audio, random.Random(1)) == events
    kinds = {event.kind for event in events}
    assert kinds == {"partial", "final", "token", "end"}
    so_far, partial = [], []
    for event in events:
        assert event.time == 2.5 or event.time == pytest.approx(0.16 * round(event.time / 0.16))
        assert event.text == " ".join(word.text for word in event.words) or event.kind == "end"
        assert all(word.end <= event.time + 1e-9 for word in event.words)
        if event.kind == "partial":
            assert event.words != tuple(partial)
            partial = event.words
        elif event.kind == "token":
            assert len(event.words) == 1 and event.words[0].is_task_token
            so_far.append(event.text)
        elif event.kind == "final":
            assert event.words and not any(word.is_task_token for word in event.words)
            so_far.append(event.text)
    assert events[-1].text == " ".join(so_far) and len(so_far) > 10 and partial == ()
    assert json.loads(json.dumps([event.as_dict() for event in events]))[0]["kind"] == events[0].kind


def test_finals_and_partial_are_the_best_hypothesis_so_far():
    transcriber, audio = transcriber_of(search=BEAM), noise(20480)
    stream, said = transcriber.open(), []
    for heard_ in range(2560, len(audio) + 1, 2560):
        said += transcriber.push(stream, audio[heard_ - 2560 : heard_])
        partials = [event for event in said if event.kind == "partial"]
        now = [*finals(said), *(partials[-1].words if partials else ())]
        # The masked pass over what was heard ends with the frames that a stream's end would add.
        out = full_pass(transcriber, audio)[: int(transcriber.encoder.chunk_frames * heard_ / 2560) - 1]
        expected = words_of(transcriber, search_of(transcriber, out, TASKS.names))
        assert [w.text for w in now] == [w.text for w in expected]


def test_tasks_switched_during_a_stream():
    transcriber, audio = transcriber_of(), noise(64000)
    stream = transcriber.open(["scd"])
    events = transcriber.push(stream, audio[:30000])  # 11 chunks of 2560 and a rest
    transcriber.set_tasks(stream, ["endp"])
    events += transcriber.push(stream, audio[30000:]) + transcriber.close(stream)
    tokens = [(word.text, word.start) for word in finals(events) if word.is_task_token]
    edge = 11 * 0.16 - 0.02  # a chunk's last frame comes with the next one
    assert {text for text, start in tokens if start < edge} == {"[SCD]"}
    assert {text for text, start in tokens if start >= edge} == {"[ENDP]"}
    untouched = finals(heard(transcriber, audio, tasks=["scd"]))
    before = [word for word in finals(events) if word.end < edge]
    assert before == untouched[: len(before)] and len(before) > 5


def test_reset_at_an_endpoint():
    plain, reset = transcriber_of(), transcriber_of(reset_at_endpoint=True)
    audio = noise(32000)
    events = heard(reset, audio, random.Random(2))
    assert events == heard(reset, audio)
    model, constraints = reset.loaded.model, constraints_for(TASKS, TASKS.names, VOCABULARY)
    search = StreamingSearch(model.predictor, model.joiner, GREEDY, endpoint=VOCABULARY.id_of("[ENDP]"))
    ((found,), _) = search.step([full_pass(reset, audio)], [search.start(constraints)])
    expected = VOCABULARY.pieces([token.id for token in found.settled])
    assert expected.count("[ENDP]") > 3 and ("[ENDP]", "[SCD]") in itertools.pairwise(expected)
    assert "".join(w.text for w in finals(events)) == "".join(expected).replace("▁", "")
    assert finals(heard(plain, audio)) != finals(events)
    with pytest.raises(UserError, match="reset_at_endpoint"):
        StreamingTranscriber(dataclasses.replace(reset.loaded, tasks=know("asr", "scd", "ner")), reset.options)


def test_confidences_are_calibrated_where_the_model_has_a_calibration(tmp_path):
    audio, calibration = noise(16000), Calibration(Curve(0.5, 0.7, 0.1), Curve(2, 2, -1))
    raw = finals(heard(transcriber_of(), audio))
    calibration.write(tmp_path / "calibration.json")
    calibrated = StreamingTranscriber(dataclasses.replace(loaded_of(), folder=tmp_path), transcriber_of().options)
    found = finals(heard(calibrated, audio))
    assert [w.confidence for w in found] == [calibration(w.text, w.confidence) for w in raw]


@pytest.mark.parametrize("samples", [0, 1, 300])
def test_a_stream_too_short_for_a_frame_says_nothing(samples):
    for encoder in ENCODERS:
        events = heard(transcriber_of(encoder), torch.zeros(samples))
        assert [event.kind for event in events if event.text] == []
        assert events[-1].kind == "end" and events[-1].time == samples / 16000


def sizes(stream):
    """Numbers kept for a stream."""
    rows = stream.search.memory
    tails = sum(map(len, rows.tails)) if hasattr(rows, "tails") else 0
    return sum(t.numel() for t in stream.encoder.tensors.values()) + len(stream.waiting) + tails


@pytest.mark.parametrize("search", [GREEDY, BEAM])
def test_a_long_stream_keeps_no_more_than_a_short_one(search):
    transcriber = transcriber_of(search=search, decide_after=0.5)
    stream, audio, kept = transcriber.open(), noise(2560), []
    for _ in range(150):
        transcriber.push(stream, audio)
        kept.append(sizes(stream))
    assert max(kept[75:]) <= max(kept[10:75]) + 3 * 25


def test_a_dropped_stream_is_gone():
    stream = transcriber_of().open()
    stream.owner.push(stream, noise(6000))
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None


BAD = {
    "NaN": (torch.tensor([0.0, float("nan")]), "holds NaN or infinity"),
    "infinity": (np.array([np.inf]), "holds NaN or infinity"),
    "integers": (np.zeros(5, dtype=np.int16), "got int16 of shape (5,)"),
    "two channels": (np.zeros((2, 5), dtype=np.float32), "got float32 of shape (2, 5)"),
    "scale": (np.full(5, 20000.0), "expected samples in [-1, 1], got 20000"),
    "text": ("audio", "expected an array of floats, got str"),
}


@pytest.mark.parametrize("audio, message", BAD.values(), ids=BAD)
def test_bad_audio_is_refused_and_leaves_all_streams_as_they_were(audio, message):
    transcriber, good = transcriber_of(), noise(9000)
    expected = heard(transcriber, good)
    streams = [transcriber.open(name=name) for name in ("first", "second")]
    events = transcriber.push(streams[0], good[:4000])
    with pytest.raises(UserError, match=r"^second: audio: ") as error:
        transcriber.push_many([(streams[0], good[:1000]), (streams[1], audio)])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert events + transcriber.push(streams[0], good[4000:]) + transcriber.close(streams[0]) == expected


def test_errors_name_the_stream():
    transcriber = transcriber_of()
    stream, closed, audio = transcriber.open(), transcriber.open(), noise(5)
    transcriber.close(closed)
    unknown = "task 'sdc': this model knows asr, scd, endp"
    for call, message in [
        (lambda: transcriber.open(["sdc"], "call 7"), f"call 7: {unknown}"),
        (lambda: transcriber.set_tasks(stream, ["sdc"]), f"stream 1: {unknown}"),
        (lambda: transcriber.push_many([(stream, audio)] * 2), "stream 1: the stream is given twice"),
        (lambda: transcriber_of().push(stream, audio), "stream 1: a stream of another transcriber"),
        (lambda: transcriber.push(closed, audio), "stream 2: the stream is closed"),
        (lambda: transcriber.close(closed), "stream 2: the stream is closed"),
        (lambda: transcriber_of(tasks=("sdc",)), "streaming option 'tasks': task 'sdc'"),
        (lambda: StreamingOptions(decide_after=0), "streaming option 'decide_after'"),
    ]:
        with pytest.raises(UserError, match=f"^{message}"):
            call()


def test_an_encoder_that_gives_nan_is_named_with_its_stream():
    transcriber = transcriber_of()
    transcriber.encoder.step = lambda chunks, states, last: ([torch.full((7, 16), float("nan"))], states)
    stream = transcriber.open(name="line 4")
    with pytest.raises(UserError, match=r"^line 4: the encoder gave NaN"):
        transcriber.push(stream, noise(2560))


def test_an_encoder_that_gives_nan_for_one_stream_leaves_the_others_as_they_were():
    """Each has audio that waits for its chunk to be full."""
    transcriber, good = transcriber_of(), noise(9000)
    expected = heard(transcriber, good)
    streams = [transcriber.open(name=name) for name in ("good", "bad")]
    events = transcriber.push(streams[0], good[:1000])
    transcriber.push(streams[1], good[:1500])
    step = transcriber.encoder.step

    def broken(chunks, states, last):
        outs, after = step(chunks, states, last)
        return [*outs[:-1], torch.full_like(outs[-1], float("nan"))], after

    transcriber.encoder.step = broken
    with pytest.raises(UserError, match=r"^bad: the encoder gave NaN"):
        transcriber.push_many([(streams[0], good[1000:3000]), (streams[1], good[:2000])])
    with pytest.raises(UserError, match=r"^bad: the encoder gave NaN"):
        transcriber.close(streams[1])
    transcriber.encoder.step = step
    assert events + transcriber.push(streams[0], good[1000:]) + transcriber.close(streams[0]) == expected
    assert transcriber.push(streams[1], good[1500:]) + transcriber.close(streams[1]) == expected
