"""recipes/human_speech/word_lists.py: what it writes is what the search reads."""

import importlib.util

import pytest
from click.testing import CliRunner
from experiment_grids import ROOT

from tokenverse_pp.decoding.ngram import read_words


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("word_lists", ROOT / "recipes" / "human_speech" / "word_lists.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_most_frequent_words_of_each_language(script, tmp_path):
    wordfreq = pytest.importorskip("wordfreq")
    done = CliRunner().invoke(script.main, [str(tmp_path / "words"), "--languages", "nl,cs", "--most", "500"])
    assert done.exit_code == 0, done.output
    for code, known in (("nl", "het"), ("cs", "není")):
        words = read_words(tmp_path / "words" / f"{code}.tsv")
        assert 400 < len(words) <= 500 and not any(any(map(str.isdigit, word)) for word in words)
        assert words[known] == pytest.approx(wordfreq.word_frequency(known, code, "best") * 1e6, rel=5e-3)


def test_a_language_without_words_is_named(script, tmp_path):
    pytest.importorskip("wordfreq")
    done = CliRunner().invoke(script.main, [str(tmp_path), "--languages", "xx"])
    assert done.exit_code == 1 and "wordfreq has no words of 'xx'" in done.output
