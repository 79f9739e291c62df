"""The probability of an endpoint at a pause: against loops over frames, in batches, chunks and windows."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_transducers import build_tiny, log_probs_at
from vocabulary import Vocabulary, know

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.long_form import Merger, units_of
from tokenverse_pp.decoding.pauses import PauseMemory, PauseReader, Written
from tokenverse_pp.decoding.streaming.events import Token
from tokenverse_pp.decoding.streaming.search import Found
from tokenverse_pp.tasks.result import Transcript

TASKS = know("asr", "scd", "endp")
VOCABULARY = Vocabulary(TASKS)
ENDP = VOCABULARY.id_of("[ENDP]")
WORDS = {VOCABULARY.id_of(piece) for piece in ("▁", "▁a", "▁b", "c")}
MODELS = [build_tiny(seed, V=VOCABULARY.vocab_size, lens=(14,), context=2 * (seed % 2)) for seed in range(4)]


def reader_of(model, **options):
    return PauseReader(model.predictor, model.joiner, SearchOptions(**options), VOCABULARY.all, ENDP)


def hazards(model, tokens, frames, count, **options):
    """h of each frame, straight through the modules after the tokens before it."""
    found = []
    for t in range(count):
        before = [i for i, at in zip(tokens, frames) if at < t and i != ENDP]
        found.append(float(log_probs_at(model, 0, t, before, **options)[ENDP].exp()))
    return found


def probability(h, tokens, frames, t):
    """P of frame t: 1 minus the product over the frames after the last word piece."""
    words = [at for i, at in zip(tokens, frames) if i in WORDS and at <= t]
    if not words:
        return 0.0
    left = 1.0
    for u in range(words[-1] + 1, t + 1):
        left *= 1 - h[u]
    return 1 - left


@st.composite
def written(draw):
    """A model, tokens, and frames in order; several may be at one frame, as full_beam writes them."""
    count = draw(st.integers(1, 14))
    frames = sorted(draw(st.lists(st.integers(0, count - 1), max_size=8)))
    tokens = draw(st.lists(st.integers(2, VOCABULARY.vocab_size - 1), min_size=len(frames), max_size=len(frames)))
    return draw(st.sampled_from(MODELS)), tokens, frames, count


@given(written(), st.sampled_from([{}, {"temperature": 2.0, "blank_penalty": 1.5}]))
@settings(deadline=None)
def test_curves_are_those_of_a_loop_over_frames(case, options):
    model, tokens, frames, count = case
    best = Hypothesis(tuple(tokens), tuple(frames), (0.0,) * len(tokens), 0.0, 0.0)
    reader = reader_of(model, **options)
    (curve,) = reader.read(model.encoder_out[:, :count], [count], [best])
    h = hazards(model, tokens, frames, count, **options)
    expected = [probability(h, tokens, frames, t) for t in range(count)]
    assert curve.tolist() == pytest.approx(expected, abs=1e-5)
    # Of each word piece: at the last frame before the next one.
    (remaining,) = reader.remaining(model.encoder_out[:, :count], [count], [best])
    pauses = reader.with_pauses(best, remaining).pauses
    words = [k for k, token in enumerate(tokens) if token in WORDS]
    for k, following in zip(words, [*words[1:], None]):
        last = count - 1 if following is None else frames[following] - 1
        assert pauses[k] == pytest.approx(expected[last] if last > frames[k] else 0.0, abs=1e-5)
    assert all(pause == 0 for k, pause in enumerate(pauses) if k not in words)


@given(written())
@settings(deadline=None)
def test_endpoints_go_to_the_frame_at_which_the_model_alone_would_write_them(case):
    model, tokens, frames, count = case
    best = Hypothesis(tuple(tokens), tuple(frames), (-9.0,) * len(tokens), 0.0, 0.0)
    reader = reader_of(model)
    (remaining,) = reader.remaining(model.encoder_out[:, :count], [count], [best])
    moved = reader.retimed(best, remaining)
    assert moved.tokens == best.tokens and list(moved.frames) == sorted(moved.frames)
    h = hazards(model, tokens, frames, count)
    for k, token in enumerate(tokens):
        first = moved.frames[k - 1] + 1 if k else 0
        inside = range(first, frames[k + 1] if k + 1 < len(frames) else count)
        if token != ENDP or not inside:
            assert (moved.frames[k], moved.log_probs[k]) == (frames[k], -9.0)
            continue
        firsts = {t: h[t] * math.prod(1 - h[u] for u in range(first, t)) for t in inside}
        assert firsts[moved.frames[k]] == pytest.approx(max(firsts.values()), rel=1e-3)
        assert moved.log_probs[k] == pytest.approx(math.log(h[moved.frames[k]]), abs=1e-3)


@given(written(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_chunk_by_chunk_a_stream_has_the_curve_of_the_whole(case, random_):
    """Whatever is open or final, as long as the hypothesis itself does not change."""
    model, tokens, frames, count = case
    reader, out = reader_of(model), model.encoder_out[0]
    line = [Token(i, t, 0.0) for i, t in zip(tokens, frames)]
    best = Hypothesis(tuple(tokens), tuple(frames), (0.0,) * len(tokens), 0.0, 0.0)
    (curve,) = reader.read(out[None], [count], [best])
    edges = sorted({0, count, *(random_.randint(0, count) for _ in range(4))})
    memory, final = PauseMemory(), 0
    for first, end in zip(edges, edges[1:]):
        heard = sum(t < end for t in frames)
        now = random_.randint(final, heard)
        found = Found(line[final:now], line[now:heard])
        (pause,), (memory,) = reader.step([out[first:end]], [first], [found], [memory])
        final = now
        words = [t for i, t in zip(tokens, frames) if i in WORDS and t < end]
        if not words or words[-1] == end - 1:
            assert pause is None
        else:
            assert pause == pytest.approx(curve[end - 1], abs=1e-6)


@given(written(), st.data())
@settings(deadline=None, max_examples=50)
def test_frames_before_endp_is_switched_on_do_not_count(case, data):
    """The reader follows the words meanwhile: the context is known, and a pause that lasts goes on."""
    model, tokens, frames, count = case
    reader, out, h = reader_of(model), model.encoder_out[0], hazards(model, tokens, frames, count)
    line = [Token(i, t, 0.0) for i, t in zip(tokens, frames)]
    edges = sorted({0, count, *(data.draw(st.integers(0, count)) for _ in range(3))})
    on = data.draw(st.sampled_from(edges))
    memory, final = PauseMemory(), 0
    for first, end in zip(edges, edges[1:]):
        heard = sum(t < end for t in frames)
        now = data.draw(st.integers(final, heard))
        found = Found(line[final:now], line[now:heard])
        final = now
        if end <= on:
            memory = reader.follow(found, memory)
            continue
        (pause,), (memory,) = reader.step([out[first:end]], [first], [found], [memory])
        words = [t for i, t in zip(tokens, frames) if i in WORDS and t < end]
        if not words or words[-1] == end - 1:
            assert pause is None
        else:
            left = math.prod(1 - h[t] for t in range(max(words[-1] + 1, on), end))
            assert pause == pytest.approx(1 - left, abs=1e-6)


def test_streams_of_a_batch_and_chunks_without_frames_do_not_meet():
    model = MODELS[0]
    reader, out = reader_of(model), model.encoder_out[0]
    word = Token(VOCABULARY.id_of("▁a"), 1, 0.0)
    alone = reader.step([out[:5]], [0], [Found([word], [])], [PauseMemory()])
    both = reader.step([out[:5], out[:0]], [0, 7], [Found([word], []), Found([], [])], [PauseMemory(), alone[1][0]])
    assert both[0] == pytest.approx([alone[0][0], alone[0][0]])
    assert both[1][1] == alone[1][0]


def test_a_word_that_changes_later_starts_its_pause_anew():
    model = MODELS[0]
    reader, out = reader_of(model), model.encoder_out[0]
    a, b = (Token(VOCABULARY.id_of(piece), 1, 0.0) for piece in ("▁a", "▁b"))
    _, (memory,) = reader.step([out[:5]], [0], [Found([], [a])], [PauseMemory()])
    (pause,), _ = reader.step([out[5:8]], [5], [Found([], [b])], [memory])
    remaining = reader.log_remaining(out[5:8], reader.contexts(Written([b.id], [-1]), 3))
    assert pause == pytest.approx(-np.expm1(remaining.sum()))


@pytest.mark.parametrize("model", MODELS[:2])
def test_a_word_that_is_gone_later_ends_its_pause(model):
    reader, out = reader_of(model), model.encoder_out[0]
    a, b = (Token(VOCABULARY.id_of(piece), frame, 0.0) for piece, frame in (("▁a", 1), ("▁b", 3)))
    _, (memory,) = reader.step([out[:3]], [0], [Found([], [a])], [PauseMemory()])
    assert reader.step([out[3:5]], [3], [Found([], [])], [memory])[0] == [None]
    # The last word is that of an earlier chunk again.
    _, (memory,) = reader.step([out[:3]], [0], [Found([a], [])], [PauseMemory()])
    _, (memory,) = reader.step([out[3:5]], [3], [Found([], [b])], [memory])
    (pause,), (memory,) = reader.step([out[5:8]], [5], [Found([], [])], [memory])
    remaining = reader.log_remaining(out[5:8], reader.contexts(Written([a.id], [-1]), 3))
    assert memory.last == (a.id, 1) and pause == pytest.approx(-np.expm1(remaining.sum()))


def test_windows_keep_the_pauses_of_their_words():
    ids = VOCABULARY.ids("▁a c ▁b [ENDP]")
    pauses = (0.1, 0.2, 0.9, 0.0)
    one = Hypothesis(tuple(ids), (3, 4, 9, 12), (0.0,) * 4, 0.0, 0.0, pauses)
    assert [unit.pauses for unit in units_of(one, VOCABULARY.all, 0)] == [(0.1, 0.2), (0.9,), (0.0,)]
    merger = Merger(VOCABULARY.all, TASKS, 0.04, constraints_for(TASKS, TASKS.names, VOCABULARY))
    merger.add(0, 40, one)
    assert merger.pauses() == pauses
    merger.add(40, 80, dataclasses.replace(one, pauses=(0.3, 0.4, 0.5, 0.0)))
    assert merger.pauses() == (*pauses, 0.3, 0.4, 0.5, 0.0)


def test_a_transcript_tells_pauses_only_where_they_were_asked_for():
    pieces = ["▁a", "c", "▁b", "[ENDP]", "▁a"]
    args = (pieces, (1, 2, 5, 8, 12), (-0.1,) * 5, 0.1, None, -1.0, 1.25, "call")
    without = TASKS.reader.read_tokens(*args)
    assert without.pauses is None
    assert "pauses" not in without.to_dict() and "pauses" not in without.to_record()
    heard = TASKS.reader.read_tokens(*args, (0.0, 0.25, 0.75, 0.0, 0.5))
    assert [dataclasses.astuple(pause) for pause in heard.pauses] == [
        (1, 0.3, 0.5, 0.25),
        (2, 0.6, 1.2, 0.75),
        (3, 1.25, 1.25, 0.5),
    ]
    assert Transcript.from_json(heard.to_json()) == heard
    again = Transcript.from_record(heard.to_record(), TASKS)
    assert again.pauses == heard.pauses and not again.others
    asr = know("asr").reader.read_tokens(["▁a"], (1,), (-0.1,), 0.1, None, -1.0, 1.25, "call", (0.5,))
    assert "pauses" not in asr.to_dict()
