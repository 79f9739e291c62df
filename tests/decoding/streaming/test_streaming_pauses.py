"""Events of pauses: what the masked full pass says at the end of each chunk, only where they were asked for."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from test_streaming_transcriber import BEAM, GREEDY, TOY_MODEL, full_pass, heard, loaded_of, search_of, transcriber_of
from tiny_encoders import noise
from toy_runs import read_cuts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.models.bundle import load_model


@pytest.mark.parametrize("encoder", ["wav2vec2", "whisper"])
@pytest.mark.parametrize("seed", range(3))
def test_pauses_are_those_of_the_masked_full_pass(encoder, seed):
    transcriber = transcriber_of(encoder, GREEDY, ChunkOptions(160, 2, 3), pauses=True)
    audio = noise(40000 + 3333 * seed, seed)
    events = heard(transcriber, audio, random.Random(seed))
    out = full_pass(transcriber, audio)
    best = search_of(transcriber, out, ("asr", "scd", "endp"))
    (curve,) = transcriber._default.pauses.read(out[None], [len(out)], [best])
    told = {event.time: event.endpoint for event in events if event.kind == "pause"}
    # A stream knows no tokens that come later: its curve at a frame is that of the whole hypothesis there.
    known = {round(probability, 4) for probability in curve.tolist()}
    assert told and all(0 <= endpoint <= 1 and round(endpoint, 4) in known for endpoint in told.values())
    size = transcriber.encoder.chunk_samples / 16000
    assert all(time == pytest.approx(round(time / size) * size) for time in sorted(told)[:-1])
    assert events[-1].kind == "end"
    without = heard(transcriber_of(encoder, GREEDY, ChunkOptions(160, 2, 3)), audio)
    assert without == [event for event in events if event.kind != "pause"]
    for event in events:
        assert ("endpoint" in event.as_dict()) == (event.kind == "pause")


def test_a_beam_tells_pauses_too_and_streams_choose_for_themselves():
    transcriber = transcriber_of("wav2vec2", BEAM)
    asked, not_asked, no_endpoints = (
        transcriber.open(pauses=True),
        transcriber.open(),
        transcriber.open(["asr", "scd"], pauses=True),
    )
    events = transcriber.push_many([(stream, noise(48000, 1)) for stream in (asked, not_asked, no_endpoints)])
    kinds = [{event.kind for event in some} for some in events]
    assert "pause" in kinds[0] and "pause" not in kinds[1] | kinds[2]
    transcriber.set_tasks(asked, ["asr"])
    assert "pause" not in {event.kind for event in transcriber.push(asked, noise(32000, 2))}
    transcriber.set_tasks(no_endpoints, ["endp"])
    assert "pause" in {event.kind for event in transcriber.push(no_endpoints, noise(32000, 3))}


FEW = SearchOptions("greedy", blank_penalty=-5.0)  # few words


def test_a_change_of_tasks_does_not_end_a_pause():
    transcriber = transcriber_of("wav2vec2", FEW, ChunkOptions(80, 2, 3), pauses=True)
    size = transcriber.encoder.chunk_samples
    for seed, chunks in ((2, 12), (3, 8), (5, 20), (6, 13)):  # the change is in a pause
        audio, stream = noise(40000, seed), transcriber.open()
        events = transcriber.push(stream, audio[: size * chunks])
        transcriber.set_tasks(stream, ["asr", "scd", "endp"])  # as before
        events += transcriber.push(stream, audio[size * chunks :]) + transcriber.close(stream)
        assert events == heard(transcriber, audio)


def test_endp_that_is_switched_on_in_a_pause_tells_it():
    transcriber = transcriber_of("wav2vec2", FEW, ChunkOptions(80, 2, 3), pauses=True)
    size = transcriber.encoder.chunk_samples
    audio, stream = noise(size * 12, 6), transcriber.open(["asr", "scd"])
    assert "final" in {event.kind for event in transcriber.push(stream, audio[: size * 11])}
    transcriber.set_tasks(stream, ["asr", "scd", "endp"])
    (event,) = transcriber.push(stream, audio[size * 11 :])
    assert event.kind == "pause"


def test_pauses_change_nothing_else_of_a_decoded_batch(tiny_corpus):
    """Long recordings too; with word lists the endpoints go to where the model writes them without."""
    loaded = load_model(TOY_MODEL)
    cuts = read_cuts(tiny_corpus, "test")[:6]
    longest = max(cut.duration for cut in cuts)
    options = DecodeOptions(SearchOptions("beam", 4), window=longest - 0.2, overlap=1.0)
    plain = Recognizer(loaded, options)
    asked = Recognizer(loaded, dataclasses.replace(options, pauses=True))
    seen = 0
    for cut in cuts:
        (one,), (other,) = plain([cut]).transcripts, asked([cut]).transcripts
        assert one == dataclasses.replace(other, pauses=None)
        assert [pause.position for pause in other.pauses] == list(range(1, len(other.words) + 1))
        for pause, word in zip(other.pauses, other.words):
            assert pause.start == word.end <= pause.end <= other.duration + 1e-3 and 0 <= pause.probability <= 1
            seen += pause.probability > 0.5
    assert seen
    with pytest.raises(UserError, match=r"--pauses: .* need the task endp"):
        Recognizer(loaded, dataclasses.replace(options, tasks=("asr",), pauses=True))


def test_with_bonuses_endpoints_stay_where_the_model_alone_has_them():
    """Of a search with a bonus only the frames of [ENDP] change."""
    loaded = loaded_of()
    search = SearchOptions("beam", 3, length_bonus=0.5)
    recognizer = Recognizer(loaded, DecodeOptions(search))
    reader = recognizer.pause_reader
    out, _ = recognizer.encode(noise(40000, 5)[None], torch.tensor([40000]), recognizer.weights[None], False, None)
    ((best, *_),) = recognizer.search(out, torch.tensor([out.shape[1]]))
    recognizer.pause_reader = None
    ((before, *_),) = recognizer.search(out, torch.tensor([out.shape[1]]))
    assert best.tokens == before.tokens and reader.endpoint in best.tokens
    (remaining,) = reader.remaining(out, [out.shape[1]], [before])
    assert best == reader.retimed(before, remaining)
    others = np.array(best.tokens) != reader.endpoint
    assert (np.array(best.frames)[others] == np.array(before.frames)[others]).all()
