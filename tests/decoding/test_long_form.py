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
from scripts import ROOT, load_script
from toy_runs import read_cuts, toy_parts
from vocabulary import ALL, Vocabulary, know

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.long_form import Merger, Unit, decode_long, matches, windows_of
from tokenverse_pp.decoding.recognizer import Recognizer, search
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.tasks import parse
from tokenverse_pp.tasks.transcript import is_task_token, word_spans

TASKS = know(*ALL)
WORDS = [f"▁{letter}" for letter in "abcdefghij"]
VOCABULARY = Vocabulary(TASKS, ["▁", *WORDS, "x", "y", "z"])
PIECES, ID = VOCABULARY.all, VOCABULARY.id_of
SHIFT = 0.04  # seconds
SECOND = 25  # frames
WINDOW, OVERLAP = 28 * SECOND, 6 * SECOND
CONSTRAINTS = constraints_for(TASKS, TASKS.names, VOCABULARY, force_language=False)
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
            after = CONSTRAINTS.after([ID(each)], state)
            if after is not None:
                moved = frame - start + rng.randint(-jitter, jitter)
                found.append((max([0, moved, *[f for f, _ in found[-1:]]]), each))
                state = after
    return hypothesis(found)


def hypothesis(said):
    """Of [(frame, piece)]."""
    tokens, frames = tuple(ID(piece) for _, piece in said), tuple(frame for frame, _ in said)
    return Hypothesis(tokens, frames, (-0.1,) * len(said), -1.0, -1.0)


def merged(windows, constraints=CONSTRAINTS):
    merger = Merger(PIECES, TASKS, SHIFT, constraints)
    for window in windows:
        merger.add(*window)
    tokens, frames, log_probs = merger.result()
    assert len(tokens) == len(frames) == len(log_probs) and list(frames) == sorted(frames)
    return [PIECES[token] for token in tokens], list(frames)


def chopped(said, seconds, rng, edge=0, jitter=0):
    for start in itertools.count(0, WINDOW - OVERLAP):
        last = start + WINDOW >= seconds * SECOND
        end = seconds * SECOND if last else start + WINDOW
        yield start, end, heard(said, start, end, rng, edge, jitter, last)
        if last:
            return


# Always the same examples: in one recording of some thousand all that two windows have in common is wrong.
@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 10**6), st.integers(29, 200), st.sampled_from([(0, 0), (SECOND, 0), (SECOND, 1), (SECOND, 2)]))
def test_errors_near_the_edges_of_windows_leave_no_trace(seed, seconds, errors):
    rng, (edge, jitter) = random.Random(seed), errors
    said = speech(rng, seconds)
    pieces, frames = merged(chopped(said, seconds, rng, edge, jitter))
    assert pieces == [piece for _, piece in said]
    limit = 2 * jitter + 1 if edge else 0
    assert all(abs(found - frame) <= limit for found, (frame, _) in zip(frames, said))


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_whatever_windows_say_the_whole_is_well_formed(seed):
    """Hypotheses that have nothing to do with each other, each well-formed."""
    rng = random.Random(seed)
    windows = []
    for start in range(0, 4 * (WINDOW - OVERLAP), WINDOW - OVERLAP):
        said = speech(rng, 28)[: rng.choice([0, 1, 5, 1000])]
        windows.append((start, start + WINDOW, hypothesis(said)))
    pieces, _ = merged(windows)
    assert CONSTRAINTS.allows([ID(piece) for piece in pieces])
    words = [text for text, _, _ in word_spans(pieces)]
    rendered = TASKS.render(parse(" ".join(words), TASKS)).split()
    assert [w for w in words if not is_task_token(w)] == [w for w in rendered if not is_task_token(w)]


def window(start, text):
    """Pieces with their frames in the recording, such as ``▁a 550 [NE] 560``."""
    pieces, frames = text.split()[::2], text.split()[1::2]
    return start, start + WINDOW, hypothesis([(int(f) - start, piece) for f, piece in zip(frames, pieces)])


@pytest.mark.parametrize(
    "left, right, expected",
    [
        # The left window ends within an entity, and the right one begins within another.
        (
            "▁a 550 [NE] 560 ▁b 561 ▁c 575 [/NE] 580 ▁d 600 [NE] 690 ▁e 691",
            "▁c 575 ▁d 600 ▁j 640 [NE] 690 ▁e 691 ▁f 720 [/NE] 725",
            "▁a [NE] ▁b ▁c [/NE] ▁d ▁j [NE] ▁e ▁f [/NE]",
        ),
        # The left window opens an entity that it never closes: what the right one closes is its own.
        (
            "▁a 540 [NE] 545 ▁b 560 ▁c 600 ▁d 640 ▁e 680",
            "▁b 560 ▁c 600 ▁d 640 ▁e 680 [NE] 900 ▁f 905 [/NE] 910 ▁j 950",
            "▁a ▁b ▁c ▁d ▁e [NE] ▁f [/NE] ▁j",
        ),
        # An entity covers nearly all of the overlap: the left window has it whole.
        (
            "▁a 540 [NE] 545 ▁b 560 ▁c 600 ▁d 660 [/NE] 670 ▁e 680 ▁j 690",
            "▁b 560 ▁c 600 ▁d 660 ▁e 680 ▁f 720",
            "▁a [NE] ▁b ▁c ▁d [/NE] ▁e ▁f",
        ),
        # Task tokens at a seam are not doubled.
        ("▁a 600 [ENDP] 615 [SCD] 622", "[ENDP] 628 [SCD] 630 ▁b 660", "▁a [ENDP] [SCD] ▁b"),
        ("▁a 600 [ENDP] 615 [SCD] 622 ▁b 630", "▁a 600 ▁b 630 ▁c 660", "▁a [ENDP] [SCD] ▁b ▁c"),
        # A word of the right window that lacks the space sign does not join the one before it.
        ("▁a 540 y 590", "x 660 y 662 ▁b 690", "▁a y ▁ x y ▁b"),
    ],
)
def test_seams(left, right, expected):
    assert " ".join(merged([window(0, left), window(550, right)])[0]) == expected


def test_the_language_is_that_of_the_first_window_with_words():
    silent, second = window(0, "[NL] 20"), window(1100, "[NL] 1105 ▁b 1300")
    assert merged([silent, window(550, "[FR] 555 ▁a 700"), second]) == (["[FR]", "▁a", "▁b"], [555, 700, 1300])
    assert merged([silent, window(550, "[FR] 560")]) == (["[NL]"], [20])
    assert merged([window(0, "▁a 10"), second]) == (["▁a", "▁b"], [10, 1300])
    assert merged([window(0, ""), window(550, "")]) == ([], [])


def test_the_language_stays_if_all_words_are_those_of_the_next_window():
    """Where speech begins at the end of a window; a language must come first, so all would be lost without it."""
    forced = constraints_for(TASKS, TASKS.names, VOCABULARY)
    right = "[NL] 660 ▁a 672 ▁b 680 ▁c 720 [NE] 790 ▁d 800 [/NE] 810"
    for left, first in (("[FR] 670 ▁a 672 ▁b 680", 670), ("[FR] 690 ▁j 692", 672)):
        windows = window(0, left), window(550, right), window(1100, "[NL] 1101 ▁e 1300")
        said = ["[FR]", "▁a", "▁b", "▁c", "[NE]", "▁d", "[/NE]", "▁e"], [first, 672, 680, 720, 790, 800, 810, 1300]
        assert merged(windows, forced) == merged(windows) == said
    # Nothing is heard in the next window: the words were none.
    assert merged([window(0, "[FR] 690 ▁j 692"), window(550, "")], forced) == (["[FR]"], [690])


def test_equal_words_meet_themselves():
    """All words are the same, and each window lacks two: more pairs could be made by shifting."""
    units = [Unit((5,), (frame,), (0.0,), True) for frame in range(0, 50, 5)]
    assert matches(units[:8], units[2:], 12) == [(i, i - 2) for i in range(2, 8)]


SAMPLES = 640  # a frame
LEVELS = 64
DEAF = 12  # frames at each edge


@pytest.fixture
def talker(monkeypatch):
    """A `ModelBundle` whose recognizer hears which token each frame of audio stands for, but nothing near its edges."""

    def recognize(self, items, strip):
        loaded.heard.append([len(audio) for audio in items])
        found = []
        for audio in items:
            frames = audio[: len(audio) // SAMPLES * SAMPLES].view(-1, SAMPLES).mean(-1)
            said, state = [], 0
            for t, token in list(enumerate((frames * LEVELS).round().int().tolist()))[DEAF:-DEAF]:
                after = self.constraints.after([token], state)
                if token and after is not None:
                    state = after
                    said.append((t, PIECES[token]))
            found.append([hypothesis(said)])
        return found

    model = torch.nn.Linear(1, 1)
    model.encoder, model.predictor = SimpleNamespace(output_frame_shift=SHIFT), SimpleNamespace(context_size=1)
    model.feature_vectors = model.encoder_vectors = model.joiner = None
    loaded = SimpleNamespace(model=model, config=Config(), tasks=TASKS, tokenizer=VOCABULARY, folder=None, heard=[])
    monkeypatch.setattr(Recognizer, "recognize", recognize)
    return loaded


def record(path, said, seconds):
    """Audio whose frames are the tokens said."""
    levels = np.zeros(round(seconds * SECOND), dtype=np.float32)
    for frame, piece in said:
        levels[frame] = ID(piece) / LEVELS
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for block in np.array_split(levels, max(1, len(levels) // 1000)):
            file.write(np.repeat(block, SAMPLES))
    return Recording.from_file(path).to_cut()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_recording_through_windows_is_what_was_said(talker, tmp_path, batch, monkeypatch):
    said = [(frame + 15, piece) for frame, piece in speech(random.Random(batch), 99)]
    cut = record(tmp_path / "a.flac", said, 100.5)
    found = decode_long(talker, cut, TASKS, FREE, batch=batch)
    assert [PIECES[token] for token in found.tokens] == [piece for _, piece in said]
    assert list(found.frames) == [frame for frame, _ in said]
    assert found.log_prob == pytest.approx(-0.1 * len(said))
    assert max(map(len, talker.heard)) <= batch
    recognizer, told = Recognizer(talker, DecodeOptions(FREE, TASKS.names)), []
    recognizer.on_windows = lambda part, *counts: told.append((part.id, *counts))
    texts, whole = [], recognizer.transcript(cut, found).written_text()
    recognizer.on_settled = lambda part, text: texts.append(text)
    monkeypatch.setattr(Recognizer, "transcript", None)  # one for each window would take longer than its search
    assert recognizer.recognize_long(cut, batch) == found
    assert len(texts) == len(range(batch, 5, batch)) and all(map(whole.startswith, texts)) and texts[-1]
    assert told == [(cut.id, done, 5) for done in (*range(0, 5, batch), 5)]
    assert decode_long(talker, tmp_path / "a.flac", TASKS, FREE).tokens == found.tokens
    # A part of the recording has its own clock.
    found = decode_long(talker, cut.truncate(offset=10 * SHIFT * SECOND, duration=60), TASKS, FREE)
    inside = [(frame - 250, p) for frame, p in said if 250 + DEAF <= frame < 1750 - DEAF and p in WORDS]
    words = [(f, PIECES[t]) for f, t in zip(found.frames, found.tokens) if PIECES[t] in WORDS]
    assert words == inside


@pytest.mark.slow
def test_an_hour_is_never_in_memory_at_once(talker, tmp_path):
    said = [(frame + 15, piece) for frame, piece in speech(random.Random(1), 3590)]
    cut = record(tmp_path / "hour.flac", said, 3600)
    tracemalloc.start()
    try:
        found = decode_long(talker, cut, TASKS, FREE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [PIECES[token] for token in found.tokens] == [piece for _, piece in said]
    samples = list(itertools.chain.from_iterable(talker.heard))
    assert max(samples) == 28 * 16000 and len(samples) == 164
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


def untrained(corpus):
    """A model that says all kinds of things."""
    parts = toy_parts(corpus)
    torch.manual_seed(3)
    torch.nn.init.normal_(parts.model.joiner.output.weight, std=0.1)
    return ModelBundle(parts.config, parts.tasks, parts.tokenizer, parts.model.eval())


@pytest.fixture(scope="module")
def real(tiny_corpus):
    return untrained(tiny_corpus)


def test_short_audio_is_decoded_as_ever(real, tiny_corpus):
    options = SearchOptions(blank_penalty=2.0, length_bonus=0.1)
    for cut in read_cuts(tiny_corpus)[:3]:
        ((plain,),) = search(real, [load_inputs(cut)], None, options)
        assert decode_long(real, cut, real.tasks, options) == plain
        assert plain.tokens


def test_a_real_model_over_real_windows(real, tiny_corpus):
    """Its words hang on all it hears, but they are well-formed, in time, and the same in any batch."""
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


def test_hardly_any_audio_and_broken_models(real, tiny_corpus, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(80), 16000)
    assert decode_long(real, tmp_path / "short.wav", real.tasks).tokens == ()
    soundfile.write(tmp_path / "long.wav", np.zeros(48000), 16000)
    broken = untrained(tiny_corpus)
    with torch.no_grad():
        next(broken.model.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"cut long: .*NaN"):
        decode_long(broken, tmp_path / "long.wav", real.tasks, window=2.0, overlap=0.5)


def test_the_benchmark_times_each_way_by_its_own_audio():
    benchmark = load_script(ROOT / "benchmarks" / "long_audio.py", "long_audio_benchmark")
    one = {"long": (["a"], ["a"]), "parts": (["a"], []), "audio": 30.0, "audio_parts": 20.0}
    found = benchmark.record("nl", [{**one, "time_long": 3.0, "time_parts": 1.0}] * 2)
    assert (found["seconds"], found["rtf_long"], found["rtf_parts"]) == (60.0, 0.1, 0.05)
    assert (found["wer_long"], found["wer_parts"]) == (0.0, 1.0)
