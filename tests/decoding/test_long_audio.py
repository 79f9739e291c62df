"""Long audio: windows are merged to what was said, and only a few of them are ever in memory."""

import itertools
import random
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import Recording

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.long_form import Merger, Unit, Window, decode_long, matches, windows_of
from tokenverse_pp.tasks import build_tasks, parse
from tokenverse_pp.tasks.transcript import is_task_token, word_spans

TASKS = build_tasks(["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["fr", "nl"]}})
WORDS = [f"▁{letter}" for letter in "abcdefghij"]
PIECES = ["<blk>", "<unk>", *TASKS.symbols, "▁", *WORDS, "x", "y", "z"]
ID = {piece: i for i, piece in enumerate(PIECES)}
SHIFT = 0.04  # seconds
SECOND = 25  # frames
WINDOW, OVERLAP = 28 * SECOND, 6 * SECOND


class Vocabulary:
    """A tokenizer of few pieces."""

    vocab_size = len(PIECES)

    def id_of(self, symbol):
        return ID[symbol]

    def pieces(self, ids):
        return [PIECES[i] for i in ids]


RULES = constraints_for(TASKS, TASKS.names, Vocabulary(), force_language=False)
FREE = SearchOptions(force_language=False)  # a window in the middle may start with a word


def speech(rng, seconds):
    """What is said: [(frame, piece)], with turns, pauses, and entities of up to a second and a half."""
    said, frame, entity_until = [(1, "[FR]")], 3, None
    while frame < seconds * SECOND - 40:
        if entity_until is None and rng.random() < 0.15:
            said.append((frame, "[NE]"))
            frame, entity_until = frame + 1, frame + rng.randrange(10, 30)
        said.append((frame, rng.choice(WORDS)))
        if rng.random() < 0.4:
            said += [(frame + 2, rng.choice("xyz")), *([(frame + 4, rng.choice("xyz"))] if rng.random() < 0.3 else [])]
        frame = said[-1][0] + rng.randrange(2, 12)
        if entity_until is not None and frame > entity_until:
            said.append((frame, "[/NE]"))
            frame, entity_until = frame + 1, None
        if entity_until is None and rng.random() < 0.15:
            said.append((frame, "[ENDP]"))
            if rng.random() < 0.6:
                said.append((frame + 2, "[SCD]"))
            frame += rng.choice([4, 20, 60])
    if entity_until is not None:
        said.append((frame, "[/NE]"))
    return said


def heard(said, start, end, rng, edge, jitter, last):
    """A window's hypothesis: words near its inner edges are wrong, missing or doubled, and times are a little off."""
    found, state = [], 0
    for frame, piece in [(start, "[FR]"), *said] if start else said:
        if not start <= frame < end:
            continue
        at_edge = (start and frame < start + edge and piece != "[FR]") or (not last and frame >= end - edge)
        pieces = [piece]
        if at_edge and piece in ("[NE]", "[/NE]"):
            pieces = [] if frame < start + edge else rng.choice([[], [piece]])
        elif at_edge:
            pieces = rng.choice([[], [piece], [rng.choice(WORDS)], [piece, rng.choice(WORDS)], ["[SCD]"], ["[ENDP]"]])
        for each in pieces:
            if RULES.weights[state, ID[each]] == 0:
                moved = frame - start + rng.randint(-jitter, jitter)
                found.append((max([0, moved, *[f for f, _ in found[-1:]]]), ID[each]))
                state = int(RULES.following[state, ID[each]])
    return hypothesis([token for _, token in found], [frame for frame, _ in found])


def hypothesis(tokens, frames):
    return Hypothesis(tuple(tokens), tuple(frames), (-0.1,) * len(tokens), -1.0, -1.0)


def merged(windows):
    merger = Merger(PIECES, TASKS, SHIFT, RULES)
    for window in windows:
        merger.add(window)
    tokens, frames, log_probs = merger.result()
    assert len(tokens) == len(frames) == len(log_probs) and list(frames) == sorted(frames)
    return [PIECES[token] for token in tokens], list(frames)


def chopped(said, seconds, rng, edge=0, jitter=0):
    for start in itertools.count(0, WINDOW - OVERLAP):
        last = start + WINDOW >= seconds * SECOND
        end = seconds * SECOND if last else start + WINDOW
        yield Window(start, end, heard(said, start, end, rng, edge, jitter, last))
        if last:
            return


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(29, 200))
def test_windows_without_errors_give_the_original(seed, seconds):
    rng = random.Random(seed)
    said = speech(rng, seconds)
    pieces, frames = merged(chopped(said, seconds, rng))
    assert pieces == [piece for _, piece in said]
    assert frames == [frame for frame, _ in said]


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(29, 150), st.integers(0, 2))
def test_errors_near_the_edges_of_windows_leave_no_trace(seed, seconds, jitter):
    rng = random.Random(seed)
    said = speech(rng, seconds)
    pieces, frames = merged(chopped(said, seconds, rng, edge=SECOND, jitter=jitter))
    assert pieces == [piece for _, piece in said]
    assert all(abs(found - (frame)) <= 2 * jitter + 1 for found, (frame, _) in zip(frames, said))


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_whatever_windows_say_the_whole_is_well_formed(seed):
    """Hypotheses that have nothing to do with each other, each well-formed."""
    rng = random.Random(seed)
    windows = []
    for start in range(0, 4 * (WINDOW - OVERLAP), WINDOW - OVERLAP):
        said = speech(rng, 28)[: rng.choice([0, 1, 5, 1000])]
        windows.append(Window(start, start + WINDOW, hypothesis([ID[p] for _, p in said], [f for f, _ in said])))
    pieces, _ = merged(windows)
    assert RULES.allows([ID[piece] for piece in pieces])
    words = [text for text, _, _ in word_spans(pieces)]
    rendered = TASKS.render(parse(" ".join(words), TASKS)).split()
    assert [w for w in words if not is_task_token(w)] == [w for w in rendered if not is_task_token(w)]


def window(start, *said):
    return Window(
        start, start + WINDOW, hypothesis([ID[piece] for piece, _ in said], [frame - start for _, frame in said])
    )


def test_an_entity_that_crosses_a_window_is_whole():
    """The left window ends within it, and the right one begins within another."""
    left = [
        ("▁a", 550),
        ("[NE]", 560),
        ("▁b", 561),
        ("▁c", 575),
        ("[/NE]", 580),
        ("▁d", 600),
        ("[NE]", 690),
        ("▁e", 691),
    ]
    right = [("▁c", 575), ("▁d", 600), ("▁j", 640), ("[NE]", 690), ("▁e", 691), ("▁f", 720), ("[/NE]", 725)]
    pieces, _ = merged([window(0, *left), window(550, *right)])
    assert " ".join(pieces) == "▁a [NE] ▁b ▁c [/NE] ▁d ▁j [NE] ▁e ▁f [/NE]"
    # One that covers nearly all of the overlap: the left window has it whole.
    left = [("▁a", 540), ("[NE]", 545), ("▁b", 560), ("▁c", 600), ("▁d", 660), ("[/NE]", 670), ("▁e", 680), ("▁j", 690)]
    right = [("▁b", 560), ("▁c", 600), ("▁d", 660), ("▁e", 680), ("▁f", 720)]
    pieces, _ = merged([window(0, *left), window(550, *right)])
    assert " ".join(pieces) == "▁a [NE] ▁b ▁c ▁d [/NE] ▁e ▁f"


def test_task_tokens_at_a_seam_are_not_doubled():
    left = [("▁a", 600), ("[ENDP]", 615), ("[SCD]", 622)]
    right = [("[ENDP]", 628), ("[SCD]", 630), ("▁b", 660)]
    pieces, _ = merged([window(0, *left), window(550, *right)])
    assert " ".join(pieces) == "▁a [ENDP] [SCD] ▁b"
    pieces, _ = merged([window(0, *left, ("▁b", 630)), window(550, ("▁a", 600), ("▁b", 630), ("▁c", 660))])
    assert " ".join(pieces) == "▁a [ENDP] [SCD] ▁b ▁c"


def test_the_language_is_that_of_the_first_window_with_words():
    silent = window(0, ("[NL]", 20))
    first, second = window(550, ("[FR]", 555), ("▁a", 700)), window(1100, ("[NL]", 1105), ("▁b", 1300))
    assert merged([silent, first, second]) == (["[FR]", "▁a", "▁b"], [555, 700, 1300])
    assert merged([silent, window(550, ("[FR]", 560))]) == (["[NL]"], [20])
    assert merged([window(0, ("▁a", 10)), second]) == (["▁a", "▁b"], [10, 1300])
    assert merged([window(0), window(550)]) == ([], [])


def test_equal_words_meet_themselves():
    """All words are the same, and each window lacks two: more pairs could be made by shifting."""
    units = [Unit((5,), (frame,), (0.0,), True) for frame in range(0, 50, 5)]
    assert matches(units[:8], units[2:], 12) == [(i, i - 2) for i in range(2, 8)]


SAMPLES = 640  # a frame
LEVELS = 64


class Talker:
    """A transducer whose encoder hears which token each frame of audio stands for, but nothing near its edges."""

    def __init__(self, deaf=12):
        size = len(PIECES)
        self.deaf = deaf
        self.encoder = SimpleNamespace(output_frame_shift=SHIFT, feature_lens=lambda lens: lens // SAMPLES)
        self.predictor = SimpleNamespace(context_size=1)
        self.heard = []
        self.size = size

    def parameters(self):
        return iter([torch.zeros(1)])

    def encode(self, audio, lens, active, stored, chunks):
        self.heard.append(tuple(audio.shape))
        frames = audio[:, : audio.size(1) // SAMPLES * SAMPLES].unflatten(1, (-1, SAMPLES)).mean(-1)
        tokens = (frames * LEVELS).round().long()
        for row, n in zip(tokens, (lens // SAMPLES).tolist()):
            row[: self.deaf], row[n - self.deaf : n] = 0, 0
        return torch.nn.functional.one_hot(tokens, self.size).float(), lens // SAMPLES


@pytest.fixture
def talker(monkeypatch):
    """A `ModelBundle` of a talker; the search writes what the frames say, as far as the rules allow."""
    model = Talker()

    def search_frames(predictor, joiner, out, lens, options, constraints, bonus):
        results = []
        for frames, n in zip(out, lens.tolist()):
            found, state = [], 0
            for t, token in enumerate(frames[:n].argmax(-1).tolist()):
                if token and constraints.weights[state, token] == 0:
                    state = int(constraints.following[state, token])
                    found.append((t, token))
            results.append([hypothesis([token for _, token in found], [t for t, _ in found])])
        return results

    model.joiner = None
    monkeypatch.setattr("tokenverse_pp.decoding.recognizer.search_frames", search_frames)
    return SimpleNamespace(model=model, tasks=TASKS, tokenizer=Vocabulary(), folder=None)


def record(path, said, seconds):
    """Audio whose frames are the tokens said."""
    levels = np.zeros(round(seconds * SECOND), dtype=np.float32)
    for frame, piece in said:
        levels[frame] = ID[piece] / LEVELS
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for block in np.array_split(levels, max(1, len(levels) // 1000)):
            file.write(np.repeat(block, SAMPLES))
    return Recording.from_file(path).to_cut()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_recording_through_windows_is_what_was_said(talker, tmp_path, batch):
    said = [(frame + 15, piece) for frame, piece in speech(random.Random(batch), 99)]
    cut = record(tmp_path / "a.flac", said, 100.5)
    found = decode_long(talker, cut, TASKS, FREE, batch=batch)
    assert [PIECES[token] for token in found.tokens] == [piece for _, piece in said]
    assert list(found.frames) == [frame for frame, _ in said]
    assert found.log_prob == pytest.approx(-0.1 * len(said))
    assert max(len(shape) and shape[0] for shape in talker.model.heard) <= batch
    assert decode_long(talker, tmp_path / "a.flac", TASKS, FREE).tokens == found.tokens


def test_part_of_a_recording_is_decoded_on_its_own_clock(talker, tmp_path):
    said = [(frame + 15, piece) for frame, piece in speech(random.Random(7), 90)]
    cut = record(tmp_path / "a.flac", said, 92).truncate(offset=10 * SHIFT * SECOND, duration=60)
    found = decode_long(talker, cut, TASKS, FREE)
    inside = [(frame - 250, piece) for frame, piece in said if 250 + 12 <= frame < 1750 - 12 and piece in WORDS]
    words = [(f, PIECES[t]) for f, t in zip(found.frames, found.tokens) if PIECES[t] in WORDS]
    assert words == inside


@pytest.mark.slow
def test_an_hour_is_never_in_memory_at_once(talker, tmp_path, monkeypatch):
    said = [(frame + 15, piece) for frame, piece in speech(random.Random(1), 3590)]
    cut = record(tmp_path / "hour.flac", said, 3600)
    longest = []

    def counting(part, convert):
        samples = load_inputs(part, convert=convert)
        longest.append(len(samples))
        return samples

    monkeypatch.setattr("tokenverse_pp.decoding.recognizer.load_inputs", counting)
    tracemalloc.start()
    try:
        found = decode_long(talker, cut, TASKS, FREE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [PIECES[token] for token in found.tokens] == [piece for _, piece in said]
    assert max(longest) == 28 * 16000 and len(longest) == 164
    assert peak < 40e6  # bytes; the hour has 230 million


def test_windows_start_on_frames_and_cover_everything(tmp_path):
    cut = record(tmp_path / "a.wav", [], 101.3)
    for shift in (0.02, 0.04, 0.0625):
        windows = list(windows_of(cut, 28.0, 6.0, shift))
        ends = [start * shift + part.duration for start, part in windows]
        for (start, part), end, (following, _) in zip(windows, ends, windows[1:]):
            assert part.start == pytest.approx(start * shift)
            assert 5.9 <= end - following * shift <= 6.1
        assert ends[-1] == pytest.approx(cut.duration)
        assert 6 <= windows[-1][1].duration <= 28.1


def test_wrong_windows_and_files_are_refused(talker, tmp_path):
    cut = record(tmp_path / "a.wav", [], 2)
    for more, said in (({"window": 0.0}, "window"), ({"overlap": 14.0}, "overlap"), ({"overlap": -1.0}, "overlap")):
        with pytest.raises(UserError, match=said):
            decode_long(talker, cut, TASKS, **more)
    (tmp_path / "empty.wav").touch()
    for name in ("none.wav", "empty.wav"):
        with pytest.raises(UserError, match=name):
            decode_long(talker, tmp_path / name, TASKS)


@pytest.fixture(scope="module")
def real(tiny_corpus):
    """An untrained model that says all kinds of things."""
    from toy_runs import toy_parts

    from tokenverse_pp.models.bundle import ModelBundle

    parts = toy_parts(tiny_corpus)
    torch.manual_seed(3)
    torch.nn.init.normal_(parts.model.joiner.output.weight, std=0.1)
    return ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model.eval())


def test_short_audio_is_decoded_as_ever(real, tiny_corpus):
    from toy_runs import read_cuts

    from tokenverse_pp.decoding.search import search

    options = SearchOptions(blank_penalty=2.0, length_bonus=0.1)
    for cut in read_cuts(tiny_corpus)[:3]:
        ((plain,),) = search(real, [load_inputs(cut)], None, options)
        assert decode_long(real, cut, real.tasks, options) == plain
        assert plain.tokens


def test_a_real_model_over_real_windows(real, tiny_corpus):
    """Its words hang on all it hears, but they are well-formed, in time, and the same in any batch."""
    from toy_runs import read_cuts

    cut = max(read_cuts(tiny_corpus), key=lambda cut: cut.duration)
    options = SearchOptions(blank_penalty=2.0)
    found = decode_long(real, cut, real.tasks, options, window=2.0, overlap=0.9)
    alone = decode_long(real, cut, real.tasks, options, window=2.0, overlap=0.9, batch=1)
    assert (found.tokens, found.frames) == (alone.tokens, alone.frames)
    assert constraints_for(real.tasks, real.tasks.names, real.tokenizer).allows(found.tokens)
    assert list(found.frames) == sorted(found.frames)
    assert found.frames[-1] * real.model.encoder.output_frame_shift < cut.duration
    assert found.score == pytest.approx(found.log_prob / (len(found.tokens) + real.config.model.context_size))


@pytest.mark.parametrize("name, rate, channels", [("a.wav", 8000, 2), ("a.mp3", 44100, 1), ("a.ogg", 48000, 2)])
def test_files_of_other_rates_channels_and_formats(real, tmp_path, name, rate, channels):
    noise = np.random.default_rng(0).normal(0, 0.1, (5 * rate, channels))
    soundfile.write(tmp_path / name, noise, rate)
    found = decode_long(real, tmp_path / name, real.tasks, SearchOptions(blank_penalty=2.0), window=2.0, overlap=0.9)
    assert 4 < found.frames[-1] * real.model.encoder.output_frame_shift < 5.1


def test_hardly_any_audio_and_broken_models(real, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(80), 16000)
    assert decode_long(real, tmp_path / "short.wav", real.tasks).tokens == ()
    soundfile.write(tmp_path / "long.wav", np.zeros(48000), 16000)
    weight = next(real.model.encoder.parameters())
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(UserError, match=r"cut long: .*NaN"):
            decode_long(real, tmp_path / "long.wav", real.tasks, window=2.0, overlap=0.5)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
