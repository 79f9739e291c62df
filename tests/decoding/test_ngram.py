"""N-gram models: ARPA files against the back-off rule applied to their text, word lists against Witten and Bell."""

import gzip
import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.ngram import ngrams_of_words, read_arpa, read_words

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
    # What the file does not hold is as rare as its rarest piece, after backing off.
    assert row[0] == pytest.approx(row[1]) and row[1] <= row[4]


def test_a_piece_that_is_not_in_the_file_is_as_rare_as_the_rarest_that_is(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(TEXT.replace("-0.3\tzebra b", "-4.5\t▁a ▁a"), encoding="utf-8")
    assert read_arpa(path, PIECES).row(0)[[0, 1]] == pytest.approx(-1.5 * math.log(10))  # that of ▁


def test_a_packed_file_without_sentence_starts_and_n_grams_whose_beginning_is_missing(tmp_path):
    path = tmp_path / "lm.arpa.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\\data\\\nngram 1=2\nngram 2=1\n\\1-grams:\n-0.3 ▁a\n-0.3 b\n\\2-grams:\n-0.1 ▁ b\n\\end\\\nrest\n")
    model = read_arpa(path, PIECES)
    assert len(model.token) == 3  # with <s>
    assert np.exp(model.row(model.start))[2:4] == pytest.approx([10**-0.3] * 2)


HEAD = "\\data\\\nngram 1=4\nngram 2=4\n\n\\1-grams:\n-99\t<s>\t-0.3\n-1\t</s>\n-0.5\t▁a\t-0.3\n-0.5\tb\t-0.3\n\n"
TWO = "\\2-grams:\n-0.1\t▁a b\n-0.2\tb ▁a\n-0.2\t<s> ▁a\n-0.2\tb </s>\n\n"
END = "\\end\\\n"


def model_of(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    model = read_arpa(path, PIECES)
    return [array.tolist() for array in (model.token, model.log_prob, model.back_off, model.suffix, model.first)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + TWO[:30], "line 13: the file states 4 2-grams, 2 are there; the file ends here, as if it was cut off"),
        (HEAD, "line 10: the file ends here, as if it was cut off; expected \\2-grams:"),
        (HEAD + TWO, "line 16: the file ends here, as if it was cut off; expected \\end"),
        (HEAD + END, "line 11: expected \\2-grams:, found"),
        (HEAD[:28] + END, "line 5: expected `ngram 3=COUNT` or"),
        ((HEAD + TWO).replace("-0.1", "nan") + END, "line 12: expected finite numbers, found 'nan"),
        ((HEAD + TWO).replace("-0.1", "-inf") + END, "line 12: expected finite numbers"),
        ((HEAD + TWO).replace("-0.1", "-1e999") + END, "line 12: expected finite numbers"),
        ((HEAD + TWO).replace("b\t-0.3", "b\t-nan") + END, "line 9: expected finite numbers"),
        ((HEAD + TWO).replace("-0.1", "0.1") + END, "line 12: a log-probability above 0"),
        ((HEAD + TWO).replace("-0.1", "-1_0") + END, "line 12: no 2-gram of the ARPA format"),
        ((HEAD + TWO).replace("-0.1", "-\u0661") + END, "line 12: no 2-gram of the ARPA format"),
        ((HEAD + TWO).replace("▁a b", "▁a\u00a0b") + END, "line 12: no 2-gram of the ARPA format"),
        ((HEAD + TWO).replace("▁a b", "▁a b\t-0.5") + END, "line 12: a back-off weight of an n-gram of the highest"),
        ((HEAD + TWO).replace("-0.1\t▁a b", "-0.1 ▁a -0.3") + END, "line 12: no 2-gram of the ARPA format"),
        ((HEAD + TWO).replace("b ▁a\n", "▁a b\n") + END, "line 13: 2-gram '▁a b' is there twice"),
        ((HEAD + TWO).replace("1=4", "1=5") + END, "line 11: the file states 5 1-grams, 4 are there"),
        ((HEAD + TWO).replace("1=4", "1=3") + END, "line 9: the file states 3 1-grams, this is one more"),
        ((HEAD + TWO).replace("ngram 2=4\n", "") + END, "the file states no 2-grams, but has them"),
        ((HEAD + TWO).replace("ngram 2", "ngram 3") + END, "line 3: expected `ngram 2=COUNT`"),
        ((HEAD + TWO).replace("\\2-grams", "\\3-grams") + END, "line 11: expected \\2-grams:, found"),
        ("remarks\n" * 3, "not an ARPA file: no line \\data\\ in its 3 lines"),
        ((HEAD + TWO).replace("-0.5", "-99") + END, "all pieces have the log-probability -99"),
        ((HEAD + TWO).replace("-1\t", "-99\t") + END, "</s> has the log-probability -99: no hypothesis could end"),
        *(
            (f"\\1-grams:\n-0.5 b\n{line}\n\\end\\\n", "line 3: no 1-gram of the ARPA format")
            for line in ("-0.3 ▁a b", "-0.3", "x ▁a", "-0.3 ▁a -0.1 -0.2")
        ),
        ("\\1-grams:\n-1 <s>\n-1 the\n\\end\\\n", ""),
        (b"\\1-grams:\n\xff", ""),
        ("", ""),
    ],
)
def test_a_file_that_is_not_whole_is_refused_with_line_and_reason(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        model_of(tmp_path / "lm.arpa", text)
    assert str(tmp_path / "lm.arpa") in str(error.value) and said in str(error.value)


def test_files_as_tools_write_them(tmp_path):
    expected = model_of(tmp_path / "lm.arpa", HEAD + TWO + END)
    # KenLM: 0 for <s>, <unk>, 0 as the weight of what nothing follows; SRILM and pocketsphinx: remarks before the data.
    for text in (
        (HEAD + TWO).replace("-99\t<s>", "0\t<s>") + END,
        "# a remark\nngrams of text\n\n" + HEAD + TWO + END + "anything\nat all",
        (HEAD + TWO).replace("\t", " ") + END,
        (HEAD + TWO).replace("\n", "\r\n") + END,
        (HEAD + TWO).replace("</s>\n", "</s>\t0\n").replace("▁a b\n", "▁a b\t0 \n") + END,
        (HEAD + TWO).replace("ngram 1=4", "ngram  1 = 4").replace("ngram 2=4", "ngram 2=4\nngram 3=0") + END,
        (HEAD + TWO).replace("2=4", "2=4\nngram 3=0") + "\\3-grams:\n\n" + END,
        "\ufeff" + HEAD + TWO + END,
    ):
        assert model_of(tmp_path / "lm.arpa", text) == expected, text
    with_unknown = HEAD.replace("1=4", "1=5").replace("-99\t<s>", "-1.7\t<unk>\t0\n0\t<s>") + TWO + END
    assert model_of(tmp_path / "lm.arpa", with_unknown)[0][0] == PIECES.index("<unk>")


JUNK = [b"junk", b"-1 x y z w", b"\\data\\", b"\\4-grams:", b"nan\tb", b"\xff", b"\0"]
NO_CELLS = [b"", b"NaN", b"-inf", b"1_0", b"x y z w v"]


@st.composite
def mutated(draw):
    """The bytes of TEXT, cut off or with lines that are deleted, doubled, moved or replaced."""
    whole = TEXT.encode()
    if draw(st.booleans()):
        return whole[: draw(st.integers(0, len(whole)))]
    lines = whole.split(b"\n")
    for _ in range(draw(st.integers(1, 2))):
        at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        change, line = draw(st.sampled_from(["delete", "double", "move", "swap", "junk", "word", "bytes"])), lines[at]
        if change in ("delete", "move"):
            del lines[at]
        if change in ("double", "move"):
            lines.insert(other, line)
        elif change == "swap":
            lines[at], lines[other] = lines[other], line
        elif change == "junk":
            lines[at] = draw(st.sampled_from(JUNK))
        elif change == "word":
            cells = line.split(b"\t")
            cells[draw(st.integers(0, len(cells) - 1)) // 2 * 2] = draw(st.sampled_from(NO_CELLS))
            lines[at] = b"\t".join(cells)
        elif change == "bytes":
            lines[at] += draw(st.sampled_from([b"\t", b" ", b"\r", b" b"]))
    return b"\n".join(lines)


def check_mutation(folder, expected, data):
    try:
        assert model_of(folder / "lm.arpa", data) == expected
    except UserError as error:
        assert str(folder / "lm.arpa") in str(error)
        assert "line " in str(error) or "not an ARPA file" in str(error) or "</s> has" in str(error), error


@pytest.fixture
def whole(tmp_path):
    return model_of(tmp_path / "lm.arpa", TEXT)


FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(mutated())
def test_a_changed_file_gives_the_same_model_or_is_refused(tmp_path, whole, data):
    check_mutation(tmp_path, whole, data)


@pytest.mark.slow
def test_ten_thousand_changed_files(tmp_path, whole):
    settings(FEW, max_examples=10_000)(given(mutated())(lambda data: check_mutation(tmp_path, whole, data)))()


def test_a_packed_file_cut_off_at_any_byte_is_refused(tmp_path):
    packed = gzip.compress(TEXT.encode())
    for length in range(0, len(packed), 11):
        (tmp_path / "lm.arpa.gz").write_bytes(packed[:length])
        with pytest.raises(UserError, match=r"lm\.arpa\.gz: "):
            read_arpa(tmp_path / "lm.arpa.gz", PIECES)


V = 4
BEGIN_ID, END_ID = V, V + 1
word_lists = st.lists(
    st.tuples(st.lists(st.integers(0, V - 1), min_size=1, max_size=5), st.sampled_from([0.5, 1.0, 3.0, 20.0])),
    min_size=1,
    max_size=8,
)


def witten_bell(given_words, token, context):
    """(c + T P(token | shorter)) / (C + T) by counting; ``<s>`` is never predicted."""
    lower = witten_bell(given_words, token, context[1:]) if context else 1 / (V + 1)
    counts = {}
    for ids, weight in given_words:
        sentence = (BEGIN_ID, *ids, END_ID)
        for i in range(1, len(sentence)):
            if i >= len(context) and sentence[i - len(context) : i] == context:
                counts[sentence[i]] = counts.get(sentence[i], 0.0) + weight
    kinds = len(counts)
    return (counts.get(token, 0.0) + kinds * lower) / (sum(counts.values()) + kinds) if kinds else lower


@settings(max_examples=60, deadline=None)
@given(word_lists, st.integers(1, 5), st.lists(st.integers(0, V - 1), max_size=5))
def test_probabilities_are_those_of_witten_and_bell_and_sum_to_one(given_words, order, history):
    model = ngrams_of_words(given_words, V, order)
    state = model.start
    for token in history:
        state = model.advance(state, token)
    found = np.exp(model.row(state))
    context = (BEGIN_ID, *history)[-(order - 1) :] if order > 1 else ()
    expected = [0.0 if token == BEGIN_ID else witten_bell(given_words, token, context) for token in range(V + 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert found.sum() == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(word_lists, st.integers(2, 5))
def test_states_are_told_apart_by_what_follows_alone(given_words, order):
    """A state is the longest suffix that the model holds, so histories with the same last tokens meet in it."""
    model = ngrams_of_words(given_words, V, order)
    met = {}
    for history in itertools.product(range(V), repeat=3):
        state = 0
        for token in history:
            state = model.advance(state, token)
        assert 0 <= state < model.states
        met.setdefault(state, []).append(model.row(state))
    for rows in met.values():
        assert all((row == rows[0]).all() for row in rows)


def test_words_are_read_from_plain_and_packed_lists(tmp_path):
    plain, packed = tmp_path / "en.tsv", tmp_path / "en.tsv.gz"
    text = "the\t50000\ncat\t3.5\n\nthe\t2\n"
    plain.write_text(text, encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write(text)
    assert read_words(plain) == read_words(packed) == {"the": 50002.0, "cat": 3.5}


@pytest.mark.parametrize("sum_", [1, 0.6, 1.01, 100, 149])
def test_shares_weigh_as_much_as_rates_per_million(tmp_path, sum_):
    path, words = tmp_path / "en.tsv", {"the": 0.5153, "cat": 0.4846, "sat": 1e-4}
    path.write_text("".join(f"{word}\t{sum_ * share}\n" for word, share in words.items()), encoding="utf-8")
    assert read_words(path) == pytest.approx({word: 1e6 * share for word, share in words.items()})


@pytest.mark.parametrize("counts", [{"the": 1.0, "cat": 1.0}, {"the": 100.0, "cat": 50.0}, {"the": 150.0, "cat": 0.5}])
def test_counts_and_rates_stay_as_they_are(tmp_path, counts):
    path = tmp_path / "en.tsv"
    path.write_text("".join(f"{word}\t{count:g}\n" for word, count in counts.items()), encoding="utf-8")
    assert read_words(path) == counts


@pytest.mark.parametrize("line", ["the", "the\tmany", "the\t0", "the\t-1", "the\tnan", "the\tinf", "the cat\t3", "\t3"])
def test_a_line_that_is_no_word_is_named(tmp_path, line):
    path = tmp_path / "en.tsv"
    path.write_text(f"a\t1\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"en\.tsv, line 2: expected 'word TAB number above 0'"):
        read_words(path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("none", None),
        ("a.tsv", b"\xff\xfe\t1"),
        ("b.tsv", b""),
        ("c.tsv.gz", gzip.compress(b"the\t1\n" * 1000, mtime=0)[:20]),
    ],
)
def test_a_file_without_words_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: "):
        read_words(tmp_path / name)
