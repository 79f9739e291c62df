"""Shallow fusion: what a hypothesis earns, which language's model earns it, and what the beam makes of it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import know

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding.context_graph import ContextGraph
from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram import ngrams_of_words
from tokenverse_pp.decoding.scorer import SumScorer, bonus_for
from tokenverse_pp.decoding.search import search_frames

PIECES = ["<blk>", "<unk>", "[FR]", "[NL]", "[SCD]", "▁a", "▁b", "c", "d"]
V = len(PIECES)
FRENCH = [((5, 7), 9.0), ((5, 7, 8), 2.0), ((6,), 4.0)]
DUTCH = [((6, 8), 9.0), ((6, 8, 8), 1.0)]
CLOSE = {"abs": 2e-4, "rel": 2e-5}
texts = st.lists(st.integers(1, V - 1), max_size=10)


def by_language(scale=0.4, bonus=0.7):
    models = {"[FR]": (ngrams_of_words(FRENCH, V), True), "[NL]": (ngrams_of_words(DUTCH, V), True)}
    return LanguageModel(models, PIECES, scale, bonus)


def log_prob_of(word, words):
    """log P(<s> pieces </s>) of one word, from the n-gram model alone."""
    model = ngrams_of_words(words, V)
    state, total = model.start, 0.0
    for token in (*word, model.end):
        total += model.row(state)[token]
        state = model.advance(state, token)
    return total


@settings(max_examples=150, deadline=None)
@given(texts)
def test_a_finished_hypothesis_earns_its_words(tokens):
    language = next((t for t in tokens if t in (2, 3)), None)
    heard = tokens[tokens.index(language) + 1 :] if language else []
    heard = [t for t in heard if not PIECES[t].startswith("[")]
    words = []
    for token in heard:
        if PIECES[token].startswith("▁") or not words:
            words.append([])
        words[-1].append(token)
    expected = sum(0.4 * log_prob_of(word, FRENCH if language == 2 else DUTCH) for word in words) + 0.7 * len(heard)
    gains, kept = by_language().walk(tokens)
    assert kept == pytest.approx(expected)
    assert [gain for gain, token in zip(gains, tokens) if PIECES[token].startswith("[")] == [0.0] * (
        len(tokens) - sum(not PIECES[t].startswith("[") for t in tokens)
    )


@settings(max_examples=60, deadline=None)
@given(texts)
def test_rows_are_the_gains_of_all_tokens_and_both_at_once_are_the_sum(tokens):
    one, other = ContextGraph([((5, 7), 2.0)], PIECES, 0.3), by_language()
    both = SumScorer(one, other)
    states = [0]
    for token in tokens:
        states.append(both.advance(states[-1], token))
        assert 0 <= states[-1] < both.states
    rows = both.look_up(states, torch.device("cpu"))
    expected = [[both.gain(state, token) for token in range(V)] for state in states]
    torch.testing.assert_close(rows, torch.tensor(expected))
    assert not rows[:, 0].any()
    (gains, kept), (mine, my_kept), (theirs, their_kept) = both.walk(tokens), one.walk(tokens), other.walk(tokens)
    assert gains == pytest.approx([a + b for a, b in zip(mine, theirs)])
    assert kept == pytest.approx(my_kept + their_kept)
    assert both.at_end(states[-1]) == pytest.approx(kept - sum(gains))


def test_the_first_language_token_chooses_and_one_model_needs_none():
    model = by_language()
    assert model.walk([5, 7]) == ([0.0, 0.0], 0.0)
    assert model.walk([2, 6])[1] > model.walk([3, 6])[1]
    assert model.walk([2, 3, 6]) == ([0.0, *model.walk([2, 6])[0]], model.walk([2, 6])[1])
    assert model.walk([]) == ([], 0.0) and model.walk([2])[1] == 0.0
    alone = LanguageModel({"": (ngrams_of_words(FRENCH, V), True)}, PIECES, 0.4, 0.7)
    assert alone.walk([5, 7])[1] == pytest.approx(model.walk([2, 5, 7])[1])


def test_text_models_go_on_across_words():
    model = ngrams_of_words([((5, 7, 6), 1.0)], V)  # here a whole sentence
    text = LanguageModel({"": (model, False)}, PIECES, 1.0, 0.0)
    state, expected = model.start, 0.0
    for token in (5, 7, 6, model.end):
        expected += model.row(state)[token]
        state = model.advance(state, token)
    assert text.walk([5, 4, 7, 6])[1] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["beam", "full_beam"])
def test_where_nothing_is_pruned_it_only_changes_the_order(tiny, method):
    pieces = ["<blk>", "▁a", "▁b", "c"]
    earnings = LanguageModel({"": (ngrams_of_words([((1, 3), 5.0), ((2,), 1.0)], 4), True)}, pieces, 2.0, 1.0)
    model = tiny(4, V=4, lens=[4, 3])
    options = {"method": method, "max_symbols": 1, "beam": 400, "nbest": 400, "length_norm": False}
    plain = search_frames(*model, SearchOptions(**options), None, None)
    fused = search_frames(*model, SearchOptions(lm="any.tsv", **options), None, earnings)
    for without, found in zip(plain, fused):
        own = {h.tokens: h for h in without}
        assert {h.tokens for h in found} == set(own) and found[0].tokens != without[0].tokens
        for h in found:
            assert h.log_prob == pytest.approx(own[h.tokens].log_prob, **CLOSE)
            assert h.score == pytest.approx(own[h.tokens].log_prob + earnings.walk(h.tokens)[1], **CLOSE)


@pytest.fixture(scope="module")
def tasks():
    return know("asr", "lid", "ner", languages=("fr", "nl"))


@pytest.fixture(scope="module")
def tokenizer(tasks):
    return train_tokenizer(["bonjour je vous écoute", "goedemorgen ik luister"] * 2, tasks, 48)


def write(path, *words):
    path.write_text("".join(f"{word}\t{10 - i}\n" for i, word in enumerate(words)), encoding="utf-8")
    return path


def options(path, **more):
    return SearchOptions(lm=str(path), **more)


def test_a_folder_holds_a_file_a_language(tmp_path, tasks, tokenizer):
    write(tmp_path / "fr.tsv", "Bonjour", "écoute", "d'accord", "Ω")  # normalised; what cannot be written is left out
    write(tmp_path / "nl.tsv", "goedemorgen", "luister")
    model = bonus_for(options(tmp_path), tokenizer, tasks)
    french, dutch = ([tokenizer.id_of(token)] for token in ("[FR]", "[NL]"))
    word = list(tokenizer.encode("bonjour"))
    assert model.walk(french + word)[1] > model.walk(dutch + word)[1]
    # Changed files are read anew, the same ones are not.
    assert bonus_for(options(tmp_path), tokenizer, tasks).models[0][0] is model.models[0][0]
    assert isinstance(bonus_for(options(tmp_path, length_bonus=0.5), tokenizer, tasks), SumScorer)


def test_files_that_do_not_fit_are_refused_by_name(tmp_path, tasks, tokenizer):
    def refuse(path, said, for_tasks=tasks, **more):
        with pytest.raises(UserError, match=said):
            bonus_for(options(path, **more), tokenizer, for_tasks)

    refuse(tmp_path, "holds no language model")
    refuse(write(tmp_path / "words.txt", "a"), "expected a language model named")
    refuse(tmp_path / "none.tsv", "none.tsv: cannot read a language model: no such file")
    refuse(write(tmp_path / "greek.tsv", "Ω", "ψ"), "greek.tsv: the model's vocabulary can write none")
    folder = tmp_path / "lms"
    folder.mkdir()
    write(folder / "fr.tsv", "bonjour")
    refuse(folder, "has no language model for nl")
    assert bonus_for(options(folder, languages=("fr",)), tokenizer, tasks) is not None
    refuse(folder, "chosen by the task lid, which is not decoded", tasks.subset(["asr", "ner"]))
    write(folder / "de.tsv", "hallo")
    refuse(folder, "de.tsv: the model has no language 'de'")


def test_an_arpa_file_is_a_model_of_text(tmp_path, tasks, tokenizer):
    piece = tokenizer.pieces(tokenizer.encode("ik"))[0]
    path = tmp_path / "lm.arpa"
    path.write_text(f"\\data\\\n\\1-grams:\n-0.5 {piece}\n-2 </s>\n\\end\\\n", encoding="utf-8")
    model = bonus_for(options(path, lm_scale=1.0, lm_bonus=0.0), tokenizer, tasks)
    assert model.walk([tokenizer.id_of(piece)])[1] == pytest.approx(-2.5 * math.log(10))


def test_wrong_options_are_refused_by_name():
    for wrong, name in [
        ({"lm_scale": 0.0}, "lm_scale"),
        ({"lm_scale": math.inf}, "lm_scale"),
        ({"lm_bonus": math.nan}, "lm_bonus"),
        ({"lm": "words.tsv", "method": "greedy"}, "lm"),
    ]:
        with pytest.raises(UserError, match=f"search option '{name}'"):
            SearchOptions(**wrong)


def test_a_word_of_the_list_is_preferred(tiny):
    """What is written is drawn to the words of the list, the more so the larger the scale."""
    pieces = ["<blk>", *(f"▁{x}" for x in "abcd"), *"efgh"]
    listed = [((a, b), 1.0) for a, b in itertools.product(range(1, 5), (5, 6))]
    ngrams = ngrams_of_words(listed, len(pieces))
    good = {tuple(word) for word, _ in listed}
    shares = []
    for scale in (0.01, 0.5, 2.0):
        earnings = LanguageModel({"": (ngrams, True)}, pieces, scale, 3.5 * scale)
        found = search_frames(*tiny(3, lens=[40] * 6), SearchOptions(lm="any.tsv", beam=8), None, earnings)
        words = [w for (best, *_) in found for w in split_words(best.tokens)]
        shares.append(np.mean([word in good for word in words]))
    assert shares[0] < shares[1] < shares[2]


def split_words(tokens):
    words = []
    for token in tokens:
        if token < 5 or not words:
            words.append(())
        words[-1] += (token,)
    return words
