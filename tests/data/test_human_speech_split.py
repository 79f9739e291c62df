import random

from corpus.clips import Clip
from corpus.split import SPLITS, assign, connected, near_duplicates, split_clips
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = "red green blue fish boat seven nine house river mountain".split()
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
numbers = frozenset({"seven", "nine"})


def clip(number, corpus, language, text, group):
    return Clip(f"{corpus}-{number}", corpus, language, "s", "p", text, "k", group=group)


@st.composite
def corpora(draw):
    clips = []
    for number, text in enumerate(draw(st.lists(texts, min_size=1, max_size=40))):
        corpus = draw(st.sampled_from(["a", "b", "game"]))
        group = draw(st.sampled_from(["level1", "level2", "level3"])) if corpus == "game" else ""
        clips.append(clip(number, corpus, draw(st.sampled_from(["nl", "cs"])), text, group))
    return clips


def test_near_duplicates_ignore_order_numbers_and_letters():
    same = ["press seven for the letter q", "for the letter z press nine", "the letter for press"]
    other = ["a wholly different sentence", "press the key"]
    assert near_duplicates(same + other, numbers) == [(0, 1), (0, 2), (1, 2)]


def test_near_duplicates_see_spelling_variants():
    assert near_duplicates(["the conference is now unlocked", "the conferences is now unlocked"]) == [(0, 1)]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_the_closure_of_the_pairs(pairs):
    component = connected(20, pairs)
    reach = {i: {i} for i in range(20)}
    for _ in range(20):
        for a, b in pairs:
            reach[a] |= reach[b]
            reach[b] |= reach[a]
    assert component == [min(reach[i]) for i in range(20)]


@settings(deadline=None, max_examples=60)
@given(corpora(), st.integers(0, 5))
def test_no_near_duplicate_crosses_sets(clips, seed):
    result = split_clips(clips, lambda c: (0.6, 0.2, 0.2), lambda language: numbers, seed)
    for language in ("nl", "cs"):
        members = [c for c in clips if c.language == language and c.id in result]
        for a, b in near_duplicates([c.text for c in members], numbers):
            assert result[members[a].id] == result[members[b].id]
    for a in clips:
        for b in clips:
            if a.id in result and b.id in result and (a.text == b.text or (a.group and a.group == b.group)):
                assert result[a.id] == result[b.id]


@settings(deadline=None, max_examples=20)
@given(corpora(), st.integers(0, 5), st.randoms())
def test_split_does_not_depend_on_the_order_of_clips(clips, seed, rng):
    shuffled = list(clips)
    rng.shuffle(shuffled)
    split = lambda items: split_clips(items, lambda c: (0.6, 0.2, 0.2), lambda language: numbers, seed)
    assert split(clips) == split(shuffled)


def test_shares_are_met_and_large_groups_go_to_train():
    weights = {f"g{i}": 1.0 for i in range(200)}
    weights["giant"] = 50.0
    result = assign(weights, (0.85, 0.05, 0.10), random.Random(1))
    assert result["giant"] == "train"
    filled = {split: sum(w for g, w in weights.items() if result[g] == split) / 250 for split in SPLITS}
    assert abs(filled["train"] - 0.85) < 0.01 and abs(filled["dev"] - 0.05) < 0.01 and abs(filled["test"] - 0.1) < 0.01


def test_closed_class_prompts_take_no_part():
    one = Clip("x", "a", "nl", "s", "p", "red", "k", closed=True)
    assert split_clips([one], lambda c: (0.8, 0.1, 0.1), lambda language: numbers, 0) == {}
