"""ARPA files, against the back-off rule applied to the text of the file."""

import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.errors import UserError
from tokenverse_pp.search.arpa import read_arpa

PIECES = ["<blk>", "<unk>", "▁a", "b", "▁"]
TEXT = """made by hand

\\data\\
ngram 1=6
ngram 2=4
ngram 3=2

\\1-grams:
-99\t<s>\t-0.5
-0.9\t</s>
-0.7\t▁a\t-0.3
-0.8\tb\t-0.2
-1.1\tzebra\t-0.1
-1.5\t▁

\\2-grams:
-0.2\t<s> ▁a\t-0.4
-0.6\t▁a b\t-0.1
-0.4\tb </s>
-0.3\tzebra b

\\3-grams:
-0.05\t<s> ▁a b
-0.15\t▁a b </s>

\\end\\
"""


def by_hand(tokens, context):
    """log10 P by the rule of ARPA files, over the strings of TEXT."""
    probability, weight = {}, {}
    for line in TEXT.split("\n"):
        parts = line.split()
        if len(parts) < 2 or not line.startswith("-"):
            continue
        last = parts[-1].startswith("-0") and len(parts) > 2
        gram = tuple(parts[1:-1] if last else parts[1:])
        probability[gram], weight[gram] = float(parts[0]), float(parts[-1]) if last else 0.0
    gram = (*context, tokens)
    if gram in probability:
        return probability[gram]
    return weight.get(context, 0.0) + by_hand(tokens, context[1:])


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["▁a", "b", "▁"]), max_size=5))
def test_probabilities_are_those_of_the_file(tmp_path_factory, history):
    path = tmp_path_factory.mktemp("arpa") / "lm.arpa"
    path.write_text(TEXT, encoding="utf-8")
    model = read_arpa(path, PIECES)
    state, names = model.start, [*PIECES, "<s>", "</s>"]
    for piece in history:
        state = model.advance(state, PIECES.index(piece))
    row = model.row(state) / math.log(10)
    context = ("<s>", *history)[-2:]
    for piece in ("▁a", "b", "▁", "</s>"):
        assert row[names.index(piece)] == pytest.approx(by_hand(piece, context))
    assert row[names.index("<s>")] == -math.inf
    # What the file does not hold is as rare as its rarest, after backing off.
    assert row[0] == pytest.approx(row[1]) and row[1] <= row[4]


def test_a_packed_file_and_one_without_sentence_starts(tmp_path):
    path = tmp_path / "lm.arpa.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\\data\\\nngram 1=2\n\\1-grams:\n-0.3 ▁a\n-0.3 b\n\\end\\\nrest\n")
    model = read_arpa(path, PIECES)
    assert np.exp(model.row(model.start))[2:4] == pytest.approx([10**-0.3] * 2)


def test_n_grams_whose_beginning_is_missing_are_left_out(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text("\\1-grams:\n-0.3 ▁a\n-0.5 b\n\\2-grams:\n-0.1 ▁ b\n\\end\\\n", encoding="utf-8")
    assert len(read_arpa(path, PIECES)) == 3  # with <s>


@pytest.mark.parametrize("line", ["-0.3 ▁a b", "-0.3", "x ▁a", "-0.3 ▁a -0.1 -0.2"])
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "lm.arpa"
    path.write_text(f"\\1-grams:\n-0.5 b\n{line}\n\\end\\\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lm\.arpa, line 3: no 1-gram of the ARPA format"):
        read_arpa(path, PIECES)


@pytest.mark.parametrize("content", [b"", b"\\1-grams:\n-1 <s>\n-1 the\n\\end\\\n", b"\\1-grams:\n\xff", None])
def test_a_file_without_our_pieces_is_refused(tmp_path, content):
    path = tmp_path / "lm.arpa"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"lm\.arpa: "):
        read_arpa(path, PIECES)
