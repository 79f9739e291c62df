"""Hotwords and the length bonus: what is earned, kept and given back, and what the beam makes of it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import MOST_HOTWORDS, SearchOptions
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding.context_graph import ContextGraph, read_hotwords
from tokenverse_pp.decoding.scorer import bonus_for
from tokenverse_pp.decoding.search import search_frames
from tokenverse_pp.tasks import build_tasks

PIECES = ["<blk>", "<unk>", "[NE]", "[/NE]", "▁a", "▁b", "c", "d", "▁"]
BEGIN = [i for i, piece in enumerate(PIECES) if piece.startswith("▁")]
WRITTEN = range(2, len(PIECES))
CLOSE = {"abs": 2e-4, "rel": 2e-5}

phrases = st.lists(
    st.tuples(
        st.builds(lambda first, rest: (first, *rest), st.sampled_from(BEGIN), st.lists(st.integers(4, 8), max_size=3)),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    max_size=6,
)
texts = st.lists(st.sampled_from(WRITTEN), max_size=14)


def rule(phrases, tokens):
    """The documented rule, straight: at each start the largest bonus, for whole words, without task tokens."""
    tokens = [t for t in tokens if not PIECES[t].startswith("[")]
    total = 0.0
    for start in range(len(tokens)):
        here = [(start + len(p), b * len(p)) for p, b in phrases if tuple(tokens[start : start + len(p)]) == p]
        total += max((b for end, b in here if end == len(tokens) or tokens[end] in BEGIN), default=0.0)
    return total


@settings(max_examples=300)
@given(phrases, texts)
def test_a_finished_hypothesis_keeps_what_the_rule_says(phrases, tokens):
    bonus = ContextGraph(phrases, PIECES)
    gains, kept = bonus.walk(tokens)
    assert kept == pytest.approx(rule(phrases, tokens))
    # Score is conserved: had it ended anywhere before, it would have kept what the rule says there.
    for end in range(len(tokens)):
        assert bonus.walk(tokens[:end])[1] == pytest.approx(rule(phrases, tokens[:end]))
    assert len(gains) == len(tokens)


@settings(max_examples=100)
@given(phrases, texts, st.sampled_from([0.0, -0.3, 1.5]))
def test_rows_are_the_gains_of_all_tokens(phrases, tokens, length_bonus):
    bonus = ContextGraph(phrases, PIECES, length_bonus)
    state, states = 0, []
    for token in tokens:
        states.append(state)
        state = bonus.advance(state, token)
    states.append(state)
    rows = bonus.look_up(states, torch.device("cpu"))
    expected = [[bonus.gain(state, token) for token in range(len(PIECES))] for state in states]
    torch.testing.assert_close(rows, torch.tensor(expected))
    assert not rows[:, 0].any()
    assert bonus.walk(tokens)[1] == pytest.approx(rule(phrases, tokens) + length_bonus * len(tokens))


def test_partial_matches_earn_at_once_and_give_back():
    bonus = ContextGraph([((4, 6, 5), 1.0)], PIECES)  # "▁a c ▁b"
    assert bonus.walk([4, 6]) == ([1.0, 1.0], 0.0)
    assert bonus.walk([4, 6, 4]) == ([1.0, 1.0, -1.0], 0.0)  # two given back, one for the new "▁a"
    assert bonus.walk([4, 6, 7]) == ([1.0, 1.0, -2.0], 0.0)
    assert bonus.walk([4, 6, 5]) == ([1.0, 1.0, 1.0], 3.0)
    assert bonus.walk([4, 6, 5, 6])[1] == 0.0  # "▁b c" is another word than "▁b"
    assert bonus.walk([4, 6, 2, 5, 3, 4])[1] == 3.0  # an entity begins within the phrase


def test_phrases_within_a_phrase():
    bonus = ContextGraph([((4,), 1.0), ((4, 5), 1.0), ((5,), 1.0)], PIECES)
    assert bonus.walk([4])[1] == 1.0
    assert bonus.walk([4, 5])[1] == 3.0  # "a b" from the one start, "b" from the other
    assert max(bonus.walk([4, 5, 4, 5])[0]) <= 2.0


def test_rows_that_are_no_longer_kept_are_made_again(monkeypatch):
    monkeypatch.setattr("tokenverse_pp.decoding.context_graph.ROWS_KEPT", 4)
    bonus = ContextGraph([((4, 5, 6, 4, 5), 1.0)], PIECES)
    cpu = torch.device("cpu")
    first = bonus.look_up(range(3), cpu).clone()
    bonus.look_up([3, 4], cpu)
    torch.testing.assert_close(bonus.look_up([2, 1, 0], cpu), first.flip(0))
    assert len(bonus.look_up([0, 1, 2, 3, 4, 5], cpu)) == 6


def run(model, bonus=None, **options):
    return search_frames(*model, SearchOptions(**options), None, bonus)


WORDS = ["<blk>", *(f"▁{letter}" for letter in "abcdefgh")]


def reference_with_bonus(model, reference, utterance, beam, bonus):
    """Modified beam search with everything recomputed from the tokens -> {tokens: log-probability}."""
    hypotheses = {(): 0.0}
    for t in range(int(model.lens[utterance])):
        candidates = []
        for tokens, total in hypotheses.items():
            for v, p in enumerate(reference.log_probs_at(model, utterance, t, tokens)):
                longer = (*tokens, v) if v else tokens
                candidates.append((total + float(p) + sum(bonus.walk(longer)[0]), total + float(p), longer))
        candidates.sort(key=lambda c: -c[0])
        hypotheses = {}
        for _, total, tokens in candidates[:beam]:
            old = hypotheses.get(tokens, -math.inf)
            hypotheses[tokens] = max(old, total) + math.log1p(math.exp(-abs(total - old)))
    return hypotheses


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("phrases, length_bonus", [([((2, 3, 4), 2.0), ((3, 3), 1.0), ((5,), 3.0)], 0.0), ([], 0.8)])
def test_beam_is_the_plain_search_with_bonuses(tiny, reference, seed, phrases, length_bonus):
    model, bonus = tiny(seed, lens=[8, 5]), ContextGraph(phrases, WORDS, length_bonus)
    options = {"hotwords": ("a",) if phrases else None, "length_bonus": length_bonus}
    found = run(model, bonus, beam=4, nbest=4, length_norm=False, **options)
    for utterance, hypotheses in enumerate(found):
        expected = reference_with_bonus(model, reference, utterance, 4, bonus)
        assert {h.tokens for h in hypotheses} == set(expected)
        for h in hypotheses:
            # log_prob and log_probs stay the model's own.
            assert h.log_prob == pytest.approx(expected[h.tokens], **CLOSE)
            assert h.score == pytest.approx(expected[h.tokens] + bonus.walk(h.tokens)[1], **CLOSE)
            for i, (token, t) in enumerate(zip(h.tokens, h.frames)):
                own = reference.log_probs_at(model, utterance, t, h.tokens[:i])[token]
                assert h.log_probs[i] == pytest.approx(float(own), **CLOSE)


@pytest.mark.parametrize("method", ["beam", "full_beam"])
def test_where_nothing_is_pruned_bonuses_only_change_the_order(tiny, method):
    model, bonus = tiny(4, V=4, lens=[4, 3]), ContextGraph([((1, 2), 3.0), ((3,), 1.5)], WORDS[:4], 0.7)
    options = {"method": method, "max_symbols": 1, "beam": 400, "nbest": 400, "length_norm": False}
    plain = run(model, **options)
    boosted = run(model, bonus, hotwords=("a",), length_bonus=0.7, **options)
    for without, found in zip(plain, boosted):
        own = {h.tokens: h for h in without}
        assert {h.tokens for h in found} == set(own) and found[0].tokens != without[0].tokens
        for h in found:
            assert h.log_prob == pytest.approx(own[h.tokens].log_prob, **CLOSE)
            assert h.score == pytest.approx(own[h.tokens].log_prob + bonus.walk(h.tokens)[1], **CLOSE)


def test_a_batch_with_bonuses_gives_what_each_utterance_gives_alone(tiny):
    model, bonus = tiny(5, lens=[3, 14, 9]), ContextGraph([((2, 3), 2.0), ((4, 4, 4), 2.0)], WORDS)
    options = {"hotwords": ("a",), "beam": 4, "nbest": 4}
    together = run(model, bonus, **options)
    for i, n in enumerate(model.lens.tolist()):
        alone = model._replace(encoder_out=model.encoder_out[i : i + 1, :n], lens=model.lens[i : i + 1])
        (expected,) = run(alone, bonus, **options)
        assert [(h.tokens, h.frames) for h in together[i]] == [(h.tokens, h.frames) for h in expected]


def test_a_bonus_brings_its_phrase_in_and_a_length_bonus_lengthens(tiny):
    model = tiny(2, lens=[20], blank_bias=2.0)
    plain = run(model)[0][0].tokens
    absent = next(p for p in itertools.product(range(1, 9), repeat=2) if str(p)[1:-1] not in str(plain)[1:-1])
    boosted = run(model, ContextGraph([(absent, 6.0)], WORDS), hotwords=("a",))[0][0].tokens
    assert str(absent)[1:-1] in str(boosted)[1:-1]
    lengths = [
        len(run(model, ContextGraph([], WORDS, value), length_bonus=value, length_norm=False)[0][0].tokens)
        for value in (-3.0, 1.0, 3.0)
    ]
    assert lengths[0] < len(plain) <= lengths[1] < lengths[2]


@pytest.fixture(scope="module")
def tokenizer():
    tasks = build_tasks(["asr", "ner"])
    return train_tokenizer(["bonjour amélie poulain oui je vous écoute"] * 2, tasks, 32)


def test_phrases_are_encoded_like_text(tokenizer):
    options = SearchOptions(hotwords=("amélie poulain", ("Bonjour, Amélie!", 4.0)), hotword_score=0.5)
    bonus = bonus_for(options, tokenizer)
    first, second = tokenizer.encode("amélie poulain"), tokenizer.encode("bonjour amélie")
    assert bonus.walk(first)[1] == pytest.approx(0.5 * len(first))
    assert bonus.walk(second)[1] == pytest.approx(4 * len(second))
    entity = tokenizer.encode("je vous [NE] amélie poulain [/NE] oui")
    assert bonus.walk(entity)[1] == pytest.approx(0.5 * len(first))
    assert bonus_for(SearchOptions(), tokenizer) is None


@pytest.mark.parametrize("phrase, said", [("[NE] oui", "task token"), ("Ωmega", "'Ωmega'.*lacks"), ("?!", "lacks")])
def test_phrases_that_cannot_be_written_are_refused(tokenizer, phrase, said):
    with pytest.raises(UserError, match=said):
        bonus_for(SearchOptions(hotwords=(phrase,)), tokenizer)


def test_ten_thousand_phrases_cost_a_bounded_number_of_rows(tokenizer):
    generator = torch.Generator().manual_seed(0)
    every = torch.randint(4, 32, (MOST_HOTWORDS, 6), generator=generator).tolist()
    bonus = ContextGraph([(tokens, 1.5) for tokens in every], tokenizer.pieces(range(32)))
    assert len(bonus) > 3 * MOST_HOTWORDS
    for start in range(0, 12 * 500, 500):
        bonus.look_up(range(start, start + 500), torch.device("cpu"))
    assert len(bonus._rows._rows) <= 4096


def test_wrong_options_are_refused_by_name():
    wrong = [
        ({"hotwords": "one"}, "hotwords"),
        ({"hotwords": ("",)}, "hotwords"),
        ({"hotwords": (("a", 0.0),)}, "hotwords"),
        ({"hotwords": (("a", math.nan),)}, "hotwords"),
        ({"hotwords": (("a", 1.0, 2.0),)}, "hotwords"),
        ({"hotwords": (3,)}, "hotwords"),
        ({"hotwords": ("a",) * (MOST_HOTWORDS + 1)}, "hotwords"),
        ({"hotwords": ("a",), "method": "greedy"}, "hotwords"),
        ({"hotword_score": -1}, "hotword_score"),
        ({"length_bonus": math.inf}, "length_bonus"),
        ({"length_bonus": 1, "method": "greedy"}, "length_bonus"),
    ]
    for options, name in wrong:
        with pytest.raises(UserError, match=f"search option '{name}'"):
            SearchOptions(**options)
    assert SearchOptions(hotwords=["a", ["b", 2]]).hotwords == ("a", ("b", 2))
    assert SearchOptions(hotwords=()).hotwords is None


def test_files_hold_a_phrase_a_line(tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("amélie poulain\n\nle fabuleux destin\t2.5\n", encoding="utf-8")
    assert read_hotwords(path) == ("amélie poulain", ("le fabuleux destin", 2.5))
    for line in ("a\tb", "\t2", "a\t-1", "a\tinf"):
        path.write_text(f"fine\n{line}\n")
        with pytest.raises(UserError, match=f"{path}, line 2"):
            read_hotwords(path)
    with pytest.raises(UserError, match="none"):
        read_hotwords(tmp_path / "none")


def test_a_search_is_told_when_bonus_and_options_do_not_agree(tiny):
    with pytest.raises(ValueError, match="go together"):
        run(tiny(0), hotwords=("a",))
    with pytest.raises(ValueError, match="go together"):
        run(tiny(0), ContextGraph([], WORDS, 1.0))
