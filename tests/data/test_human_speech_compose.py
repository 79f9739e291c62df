import random

import numpy as np
from corpus.clips import Clip, Example, Turn, example_seconds, turn_of
from corpus.compose import ClosedPool, compose_asterisk, compose_level, compose_tuxpaint
from corpus.fillets import Level
from corpus.render import mix
from hypothesis import given, settings
from hypothesis import strategies as st

SECONDS = st.floats(0.3, 22.0)


def line(number, speaker):
    name = f"l{number}"
    return Clip(name, "fillets", "nl", speaker, "p", f"text {number}", name, group="cave", endpoint=True)


@st.composite
def levels(draw):
    parts = st.sampled_from(["fillets-nl-small", "fillets-nl-big", "fillets-nl-cave-crab"])
    clips = {f"l{i}": line(i, draw(parts)) for i in range(draw(st.integers(1, 14)))}
    place = st.lists(st.sampled_from(sorted(clips)), min_size=1, max_size=2)
    runs = draw(st.lists(st.lists(place, min_size=1, max_size=8), max_size=4))
    durations = {name: draw(SECONDS) for name in clips}
    return Level("cave", "nl", clips, runs), durations


def clips_of(example):
    return [clip for turn in example.turns for clip in turn.clips]


@settings(deadline=None, max_examples=50)
@given(levels(), st.integers(0, 2), st.sampled_from([None, 0.1]))
def test_conversations_keep_the_rules(level_and_durations, composition, speed_range):
    level, durations = level_and_durations
    examples = compose_level(level, "train", level.clips, durations, composition, 3, speed_range)
    for example in examples:
        assert 1 <= len(example.turns) <= 6 and len(example.gaps) == len(example.turns) - 1
        assert example_seconds(list(example.turns), list(example.gaps), durations, example.speed) <= 20.0
        assert all(0.05 <= gap <= 0.6 for gap in example.gaps)
        speakers = [turn.speaker for turn in example.turns]
        assert all(a != b or a.endswith(("small", "big")) for a, b in zip(speakers, speakers[1:]))
    used = [clip.id for example in examples for clip in clips_of(example)]
    assert len(used) == len(set(used))
    assert set(used) >= {name for name, seconds in durations.items() if seconds < 20 / 1.2}
    assert examples == compose_level(level, "train", level.clips, durations, composition, 3, speed_range)


def test_script_order_is_kept_and_comes_first():
    clips = {f"l{i}": line(i, ("fillets-nl-small", "fillets-nl-big")[i % 2]) for i in range(6)}
    level = Level("cave", "nl", clips, [[["l4"], ["l1"], ["l2"]]])
    examples = compose_level(level, "train", clips, dict.fromkeys(clips, 1.0), 0, 1)
    order = [clip.id for example in examples for clip in clips_of(example)]
    assert order[:3] == ["l4", "l1", "l2"] and sorted(order) == sorted(clips)


def test_compositions_differ():
    clips = {f"l{i}": line(i, ("fillets-nl-small", "fillets-nl-big")[i % 2]) for i in range(30)}
    level = Level("cave", "nl", clips, [])
    first, second = (
        [
            tuple(c.id for c in clips_of(e))
            for e in compose_level(level, "train", clips, dict.fromkeys(clips, 2.0), n, 1)
        ]
        for n in (0, 1)
    )
    together = [c for c in first if len(c) > 1]
    assert not set(together) & set(second)


def prompt(key, text, closed=False):
    return Clip(f"en-{key}", "asterisk", "en", "ann", "p", text, key, closed=closed, entities=())


CLOSED = [prompt(f"digits/{n}", word, True) for n, word in enumerate("zero one two three".split())] + [
    prompt("digits/20", "twenty", True),
    prompt("digits/day-1", "monday", True),
    prompt("digits/mon-4", "may", True),
    prompt("digits/oclock", "o'clock", True),
    prompt("letters/q", "q", True),
    prompt("minutes", "minutes", True),
]


@settings(deadline=None, max_examples=50)
@given(st.lists(SECONDS, min_size=1, max_size=20), st.integers(0, 3), st.sampled_from(["train", "test"]))
def test_chains_keep_the_rules(lengths, seed, split):
    sentences = [prompt(f"s{n}", f"sentence number {n}") for n in range(len(lengths))]
    durations = {c.id: s for c, s in zip(sentences, lengths)}
    durations.update({c.id: 0.5 for c in CLOSED})
    examples = compose_asterisk(sentences, CLOSED, "en", split, durations, 0, seed)
    used = [c for e in examples for c in clips_of(e)]
    assert sorted(c.id for c in used if not c.closed) == sorted(c.id for c in sentences if durations[c.id] <= 20)
    for example in examples:
        assert 1 <= len(example.turns) <= 4
        assert example_seconds(list(example.turns), list(example.gaps), durations) <= 20.0
        assert example.tasks == ("asr", "lid", "ner") and len(example.gaps) == len(example.turns) - 1
        if split == "test":
            assert any(not c.closed for c in clips_of(example))
    if split == "train":
        assert {c.id for c in used if c.closed} == {c.id for c in CLOSED}


def test_phrases_are_one_entity_where_they_should_be():
    pool = ClosedPool(CLOSED, random.Random(1))
    digits, date, time = pool.phrase("digit"), pool.phrase("month"), pool.phrase("clock")
    assert digits.entities == ((0, len(digits.text), "NUM"),)
    assert [kind for _, _, kind in date.entities] == ["WEEKDAY", "NUM", "MONTH"]
    assert time.entities == ((0, len(time.text), "TIME"),) and time.text.endswith("o'clock")


def test_descriptions_stay_single_unless_very_short():
    clips = [Clip(f"t{n}", "tuxpaint", "fr", "s", "p", f"un {n}", f"k{n}") for n in range(20)]
    long = compose_tuxpaint(clips, "fr", "train", dict.fromkeys((c.id for c in clips), 1.5), 0, 1)
    short = compose_tuxpaint(clips, "fr", "train", dict.fromkeys((c.id for c in clips), 0.6), 0, 1)
    assert {len(e.turns) for e in long} == {1} and len(long) == 20
    assert {len(e.turns) for e in short} == {2} and all(e.tasks == ("asr", "lid") for e in long + short)


def test_mix_says_where_each_turn_is():
    a, b, c = (prompt(f"x{n}", "word") for n in range(3))
    sounds = {
        a.id: np.full(1600, 0.1, np.float32),
        b.id: np.full(3200, 0.2, np.float32),
        c.id: np.full(800, 0.3, np.float32),
    }
    example = Example("e", "train", (Turn((a, b), "word word", (0.05,)), turn_of(c)), (0.1,))
    samples, spans = mix(example, lambda clip: sounds[clip.id])
    assert spans == [(0, 1600 + 800 + 3200), (1600 + 800 + 3200 + 1600, 800)]
    assert np.all(samples[1600:2400] == 0) and np.all(samples[-800:] == np.float32(0.3)) and len(samples) == 8000
    faster, moved = mix(Example("e", "train", example.turns, example.gaps, speed=1.25), lambda clip: sounds[clip.id])
    assert len(faster) == 6400 and moved == [(0, 4480), (5760, 640)]
