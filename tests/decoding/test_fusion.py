"""Shallow fusion: what hotwords, length and a language model add to a hypothesis, and what the beam makes of it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import know

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import MOST_HOTWORDS, SearchOptions
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding import language_models
from tokenverse_pp.decoding.context_graph import ContextGraph, FusedScorers, read_hotwords
from tokenverse_pp.decoding.language_models import LanguageModel, bonus_for
from tokenverse_pp.decoding.ngram import ngrams_of_words
from tokenverse_pp.decoding.recognizer import search_frames

PIECES = ["<blk>", "<unk>", "[FR]", "[NL]", "▁a", "▁b", "c", "d", "▁"]
V = len(PIECES)
BEGIN = [i for i, piece in enumerate(PIECES) if piece.startswith("▁")]
TASK = [i for i, piece in enumerate(PIECES) if piece.startswith("[")]
CLOSE = {"abs": 2e-4, "rel": 2e-5}
CPU = torch.device("cpu")
FRENCH = [((4, 6), 9.0), ((4, 6, 7), 2.0), ((5,), 4.0)]
DUTCH = [((5, 7), 9.0), ((5, 7, 7), 1.0)]

phrases = st.lists(
    st.tuples(
        st.builds(lambda first, rest: (first, *rest), st.sampled_from(BEGIN), st.lists(st.integers(4, 8), max_size=3)),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    max_size=6,
)
texts = st.lists(st.integers(1, V - 1), max_size=14)


def kept_bonus(phrases, tokens):
    """The documented rule of hotwords: at each start the largest bonus, for whole words, without task tokens."""
    tokens = [t for t in tokens if t not in TASK]
    total = 0.0
    for start in range(len(tokens)):
        here = [(start + len(p), b * len(p)) for p, b in phrases if tuple(tokens[start : start + len(p)]) == p]
        total += max((b for end, b in here if end == len(tokens) or tokens[end] in BEGIN), default=0.0)
    return total


@settings(max_examples=300)
@given(phrases, texts, st.sampled_from([0.0, -0.3, 1.5]))
def test_a_hypothesis_keeps_the_bonus_of_its_phrases(phrases, tokens, length_bonus):
    bonus = ContextGraph(phrases, PIECES, length_bonus)
    # Wherever it ends: what was given on the way and is not kept is taken back.
    for end in range(len(tokens) + 1):
        gains, kept = bonus.walk(tokens[:end])
        assert len(gains) == end and kept == pytest.approx(kept_bonus(phrases, tokens[:end]) + length_bonus * end)


def test_partial_matches_earn_at_once_and_give_back():
    bonus = ContextGraph([((4, 6, 5), 1.0)], PIECES)  # "▁a c ▁b"
    assert bonus.walk([4, 6]) == ([1.0, 1.0], 0.0)
    assert bonus.walk([4, 6, 4]) == ([1.0, 1.0, -1.0], 0.0)  # two given back, one for the new "▁a"
    assert bonus.walk([4, 6, 7]) == ([1.0, 1.0, -2.0], 0.0)
    nested = ContextGraph([((4,), 1.0), ((4, 5), 1.0), ((5,), 1.0)], PIECES)
    assert max(nested.walk([4, 5, 4, 5])[0]) <= 2.0


def by_language(scale=0.4, bonus=0.7):
    models = {"[FR]": (ngrams_of_words(FRENCH, V), True), "[NL]": (ngrams_of_words(DUTCH, V), True)}
    return LanguageModel(models, PIECES, scale, bonus)


def log_prob_of(tokens, model):
    """log P(<s> tokens </s>), from the n-gram model alone."""
    state, total = model.start, 0.0
    for token in (*tokens, model.end):
        total += model.row(state)[token]
        state = model.advance(state, token)
    return total


@settings(max_examples=150, deadline=None)
@given(texts)
def test_a_hypothesis_earns_the_log_probability_of_its_words(tokens):
    """The first language token chooses the model; what is written before it earns nothing."""
    language = next((t for t in tokens if t in TASK), None)
    spoken = [t for t in tokens[tokens.index(language) :] if t not in TASK] if language else []
    words = []
    for token in spoken:
        if token in BEGIN or not words:
            words.append([])
        words[-1].append(token)
    model = ngrams_of_words(FRENCH if language == 2 else DUTCH, V)
    gains, kept = by_language().walk(tokens)
    assert kept == pytest.approx(sum(0.4 * log_prob_of(word, model) for word in words) + 0.7 * len(spoken))
    assert not any(gain for gain, token in zip(gains, tokens) if token in TASK)


def test_one_model_for_all_and_models_of_text():
    """One model needs no language token, and a model of text goes on across words."""
    alone = LanguageModel({"": (ngrams_of_words(FRENCH, V), True)}, PIECES, 0.4, 0.7)
    assert alone.walk([4, 6])[1] == pytest.approx(by_language().walk([2, 4, 6])[1])
    model = ngrams_of_words([((4, 6, 5), 1.0)], V)  # here a whole sentence
    text = LanguageModel({"": (model, False)}, PIECES, 1.0, 0.0)
    assert text.walk([4, 3, 6, 5])[1] == pytest.approx(log_prob_of((4, 6, 5), model))


@settings(max_examples=100, deadline=None)
@given(phrases, texts, st.sampled_from(["hotwords", "lm", "both"]))
def test_rows_are_the_gains_of_all_tokens_and_both_at_once_are_the_sum(phrases, tokens, kind):
    one, other = ContextGraph(phrases, PIECES, 0.3), by_language()
    both = FusedScorers(one, other)
    bonus = {"hotwords": one, "lm": other, "both": both}[kind]
    states = [0]
    for token in tokens:
        states.append(bonus.advance(states[-1], token))
        assert 0 <= states[-1] < bonus.states
    rows = bonus.look_up(states, CPU)
    torch.testing.assert_close(rows[-1], bonus.row(states[-1]))
    expected = [[bonus.gain(state, token) for token in range(V)] for state in states]
    torch.testing.assert_close(rows, torch.tensor(expected))
    assert not rows[:, 0].any()
    gains, kept = bonus.walk(tokens)
    assert bonus.at_end(states[-1]) == pytest.approx(kept - sum(gains))
    if kind == "both":
        (mine, my_kept), (theirs, their_kept) = one.walk(tokens), other.walk(tokens)
        assert gains == pytest.approx([a + b for a, b in zip(mine, theirs)])
        assert kept == pytest.approx(my_kept + their_kept)


def test_rows_that_are_no_longer_kept_are_made_again(monkeypatch):
    monkeypatch.setattr("tokenverse_pp.decoding.scorer.ROWS_KEPT", 4)
    bonus = ContextGraph([((4, 5, 6, 4, 5), 1.0)], PIECES)
    first = bonus.look_up(range(3), CPU).clone()
    bonus.look_up([3, 4], CPU)
    torch.testing.assert_close(bonus.look_up([2, 1, 0], CPU), first.flip(0))
    assert len(bonus.look_up([0, 1, 2, 3, 4, 5], CPU)) == 6


@pytest.mark.slow
def test_ten_thousand_phrases_cost_a_bounded_number_of_rows():
    generator = torch.Generator().manual_seed(0)
    every = torch.randint(4, 32, (MOST_HOTWORDS, 6), generator=generator).tolist()
    bonus = ContextGraph([(tokens, 1.5) for tokens in every], [f"▁{i}" for i in range(32)])
    assert bonus.states > 3 * MOST_HOTWORDS
    for start in range(0, 12 * 500, 500):
        bonus.look_up(range(start, start + 500), CPU)
    assert len(bonus._rows._rows) <= 4096


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
@pytest.mark.parametrize("kind", ["hotwords", "lm"])
def test_where_nothing_is_pruned_bonuses_only_change_the_order(tiny, method, kind):
    if kind == "hotwords":
        bonus, asked = ContextGraph([((1, 2), 3.0), ((3,), 1.5)], WORDS[:4], 0.7), {"hotwords": ("a",)}
    else:
        ngrams = ngrams_of_words([((1, 3), 5.0), ((2,), 1.0)], 4)
        bonus, asked = LanguageModel({"": (ngrams, True)}, ["<blk>", "▁a", "▁b", "c"], 2.0, 1.0), {"lm": "any.tsv"}
    model = tiny(4, V=4, lens=[4, 3])
    options = {"method": method, "max_symbols": 1, "beam": 400, "nbest": 400, "length_norm": False}
    for without, found in zip(run(model, **options), run(model, bonus, **asked, **options)):
        own = {h.tokens: h for h in without}
        assert {h.tokens for h in found} == set(own) and found[0].tokens != without[0].tokens
        for h in found:
            assert h.log_prob == pytest.approx(own[h.tokens].log_prob, **CLOSE)
            assert h.score == pytest.approx(own[h.tokens].log_prob + bonus.walk(h.tokens)[1], **CLOSE)


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


def test_words_of_a_list_are_preferred_the_more_the_larger_the_scale(tiny):
    pieces = ["<blk>", *(f"▁{x}" for x in "abcd"), *"efgh"]
    listed = set(itertools.product(range(1, 5), (5, 6)))
    ngrams = ngrams_of_words([(word, 1.0) for word in sorted(listed)], len(pieces))
    shares = []
    for scale in (0.01, 0.5, 2.0):
        bonus, words = LanguageModel({"": (ngrams, True)}, pieces, scale, 3.5 * scale), []
        for best, *_ in run(tiny(3, lens=[40] * 6), bonus, lm="any.tsv", beam=8):
            starts = [i for i, token in enumerate(best.tokens) if i == 0 or token < 5]
            words += [best.tokens[start:end] for start, end in zip(starts, [*starts[1:], len(best.tokens)])]
        shares.append(np.mean([word in listed for word in words]))
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("options, bonus", [({"hotwords": ("a",)}, None), ({}, ContextGraph([], WORDS, 1.0))])
def test_a_search_is_told_when_bonus_and_options_do_not_agree(tiny, options, bonus):
    with pytest.raises(ValueError, match="go together"):
        run(tiny(0), bonus, **options)


@pytest.fixture(scope="module")
def tasks():
    return know("asr", "lid", "ner", languages=("fr", "nl"))


@pytest.fixture(scope="module")
def tokenizer(tasks):
    texts = ["bonjour amélie poulain oui je vous écoute", "goedemorgen ik luister"]
    return train_tokenizer(texts * 2, tasks, 48)


def test_phrases_are_encoded_like_text(tokenizer):
    options = SearchOptions(hotwords=("amélie poulain", ("Bonjour, Amélie!", 4.0)), hotword_score=0.5)
    bonus = bonus_for(options, tokenizer)
    first, second = tokenizer.encode("amélie poulain"), tokenizer.encode("bonjour amélie")
    assert bonus.walk(first)[1] == pytest.approx(0.5 * len(first))
    assert bonus.walk(second)[1] == pytest.approx(4 * len(second))
    entity = tokenizer.encode("je vous [NE] amélie poulain [/NE] oui")
    assert bonus.walk(entity)[1] == pytest.approx(0.5 * len(first))
    assert bonus_for(SearchOptions(), tokenizer) is None


@pytest.mark.parametrize("name", ["lm_scale", "lm_bonus"])
def test_a_scale_without_a_language_model_is_refused(tokenizer, name):
    with pytest.raises(UserError, match=f"search option '{name}': has no effect without a language model"):
        bonus_for(SearchOptions(**{name: 0.5}), tokenizer)


@pytest.mark.parametrize("phrase, said", [("[NE] oui", "task token"), ("Ωmega", "'Ωmega'.*lacks"), ("?!", "lacks")])
def test_phrases_that_cannot_be_written_are_refused(tokenizer, phrase, said):
    with pytest.raises(UserError, match=said):
        bonus_for(SearchOptions(hotwords=(phrase,)), tokenizer)


@pytest.mark.parametrize(
    "wrong, name",
    [
        *(
            ({"hotwords": value}, "hotwords")
            for value in ("one", ("",), (("a", 0.0),), (("a", math.nan),), (("a", 1.0, 2.0),), (3,))
        ),
        ({"hotwords": ("a",) * (MOST_HOTWORDS + 1)}, "hotwords"),
        ({"hotwords": ("a",), "method": "greedy"}, "hotwords"),
        ({"hotword_score": -1}, "hotword_score"),
        ({"length_bonus": math.inf}, "length_bonus"),
        ({"length_bonus": 1, "method": "greedy"}, "length_bonus"),
        ({"lm_scale": 0.0}, "lm_scale"),
        ({"lm_scale": math.inf}, "lm_scale"),
        ({"lm_bonus": math.nan}, "lm_bonus"),
        ({"lm": "words.tsv", "method": "greedy"}, "lm"),
    ],
)
def test_wrong_options_are_refused_by_name(wrong, name):
    with pytest.raises(UserError, match=f"search option '{name}'"):
        SearchOptions(**wrong)
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


def write(path, *words):
    path.write_text("".join(f"{word}\t{10 - i}\n" for i, word in enumerate(words)), encoding="utf-8")
    return path


def test_a_folder_holds_a_file_a_language(tmp_path, tasks, tokenizer):
    write(tmp_path / "fr.tsv", "Bonjour", "écoute", "d'accord", "Ω")  # normalised; what cannot be written is left out
    write(tmp_path / "nl.tsv", "goedemorgen", "luister")
    model = bonus_for(SearchOptions(lm=str(tmp_path)), tokenizer, tasks)
    french, dutch = ([tokenizer.id_of(token)] for token in ("[FR]", "[NL]"))
    word = list(tokenizer.encode("bonjour"))
    assert model.walk(french + word)[1] > model.walk(dutch + word)[1]
    # Changed files are read anew, the same ones are not.
    assert bonus_for(SearchOptions(lm=str(tmp_path)), tokenizer, tasks).models[0][0] is model.models[0][0]
    assert isinstance(bonus_for(SearchOptions(lm=str(tmp_path), length_bonus=0.5), tokenizer, tasks), FusedScorers)


def test_only_the_languages_that_may_be_written_are_read(tmp_path, tasks, tokenizer):
    write(tmp_path / "fr.tsv", "bonjour")
    (tmp_path / "nl.tsv").write_text("no table of words")
    with pytest.raises(UserError, match=r"nl\.tsv, line 1"):
        bonus_for(SearchOptions(lm=str(tmp_path)), tokenizer, tasks)
    assert len(bonus_for(SearchOptions(lm=str(tmp_path), languages=("fr",)), tokenizer, tasks).models) == 1


def test_scale_and_bonus_are_stored_with_the_lists(tmp_path, tasks, tokenizer):
    def both(**options):
        model = bonus_for(SearchOptions(lm=str(path), **options), tokenizer, tasks)
        return model.scale, model.bonus

    path = write(tmp_path / "all.tsv", "bonjour")
    assert both() == (0.4, 1.5)
    (tmp_path / "lm.json").write_text('{"lm_scale": 0.25}')
    assert both() == (0.25, 1.5) and both(lm_bonus=1.0) == (0.25, 1.0)
    (tmp_path / "lm.json").write_text('{"lm_scale": 0.25, "lm_bonus": 2}')
    assert both() == (0.25, 2.0) and both(lm_scale=0.5) == (0.5, 2.0)
    for wrong, said in [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"scale": 1}', "expected a JSON object"),
    ]:
        (tmp_path / "lm.json").write_text(wrong)
        with pytest.raises(UserError, match=f"lm.json: {said}"):
            both()
    (tmp_path / "lm.json").write_text('{"lm_scale": 0}')
    with pytest.raises(UserError, match="lm_scale: expected a number above 0"):
        both()


def test_large_files_are_kept_in_the_cache(tmp_path, tasks, tokenizer, monkeypatch, caplog):
    """The model is the same; a changed file, a damaged cache and a full one are noticed."""
    monkeypatch.setenv("TOKENVERSE_PP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(language_models, "SMALLEST", 1)
    caplog.set_level("INFO", "tokenverse_pp")
    path, kept = write(tmp_path / "all.tsv", "bonjour", "oui", "écoute"), tmp_path / "cache" / "ngrams"

    def read():
        caplog.clear()
        language_models._read.cache_clear()
        (model,) = bonus_for(SearchOptions(lm=str(path)), tokenizer, tasks).models
        return model[0], "reading the language model" in caplog.text

    made, told = read()
    (file,) = kept.iterdir()
    assert told
    loaded, told = read()
    assert not told and loaded.states == made.states and loaded.start == made.start
    for state in range(made.states):
        np.testing.assert_array_equal(made.row(state), loaded.row(state))
        assert [made.advance(state, t) for t in range(made.size)] == [
            loaded.advance(state, t) for t in range(made.size)
        ]
    file.write_bytes(file.read_bytes()[:-40])
    mended, told = read()
    assert told and mended.states == made.states
    write(path, "bonjour", "oui", "écoute", "vous")
    changed, told = read()
    assert told and changed.states > made.states and len(list(kept.iterdir())) == 2
    monkeypatch.setattr(language_models, "MOST_CACHED", 0)
    write(path, "oui")
    assert read()[1] and not list(kept.iterdir())
    (kept.rmdir(), kept.write_text("a file"))
    assert read()[1] and "cannot be written" in caplog.text


def test_files_that_do_not_fit_are_refused_by_name(tmp_path, tasks, tokenizer):
    def refuse(path, said, for_tasks=tasks):
        with pytest.raises(UserError, match=said):
            bonus_for(SearchOptions(lm=str(path)), tokenizer, for_tasks)

    refuse(tmp_path, "holds no language model")
    refuse(write(tmp_path / "words.txt", "a"), "expected a language model named")
    refuse(tmp_path / "none.tsv", "none.tsv: cannot read a language model: no such file")
    refuse(tmp_path / "gone", "gone: cannot read a language model: no such file or folder")
    refuse(write(tmp_path / "greek.tsv", "Ω", "ψ"), "greek.tsv: none of its words can be written")
    folder = tmp_path / "lms"
    folder.mkdir()
    write(folder / "fr.tsv", "bonjour")
    refuse(folder, "has no language model for nl")
    assert bonus_for(SearchOptions(lm=str(folder), languages=("fr",)), tokenizer, tasks) is not None
    refuse(folder, "needs the task lid, which is not decoded", tasks.subset(["asr", "ner"]))
    write(folder / "de.tsv", "hallo")
    refuse(folder, "de.tsv: the model has no language 'de'")


def test_an_arpa_file_is_a_model_of_text(tmp_path, tasks, tokenizer):
    piece = tokenizer.pieces(tokenizer.encode("ik"))[0]
    path = tmp_path / "lm.arpa"
    path.write_text(f"\\data\\\n\\1-grams:\n-0.5 {piece}\n-2 </s>\n\\end\\\n", encoding="utf-8")
    model = bonus_for(SearchOptions(lm=str(path), lm_scale=1.0, lm_bonus=0.0), tokenizer, tasks)
    assert model.walk([tokenizer.id_of(piece)])[1] == pytest.approx(-2.5 * math.log(10))
