"""NIST's notation of transcripts: which tokens are words, which are marks, and how marks are resolved."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.data.importing.notation import KEEP, REFUSE, RESOLVE, read_word, read_words, split_label
from tokenverse_pp.data.importing.rows import BadRow

RESOLVED = [
    ("{ uh / um } hello (%HESITATION)", "uh hello"),
    ("{ um / uh / @ } as far as i'm concerned", "um as far as i'm concerned"),
    ("so { @ / uh } yes", "so yes"),
    ("OR NOT { je / e / { fr / sdg } }", "OR NOT je"),
    ("{ { a / b } c / d } e", "a c e"),
    ("{he is / he has} just", "he is just"),
    ("{um/uh} well", "um well"),
    ("{ um / uh} well", "um well"),
    ("{ a seventy-two / seventy two } { m g / m_g }", "a seventy-two m g"),
    ("{ {lktAb / AlktAb } jdyd", "{lktAb jdyd"),
    ("(you know) it ((was there)) (( now ))", "you know it was there now"),
    ("(%hesitation) (uh) yes", "uh yes"),
    ("(%\u062a\u0631\u062f\u0651\u062f) x", "x"),
    ("%um %AH yes %eh", "um AH yes eh"),
    ("[noise] a {BREATH} b <sil> c [door slam] d {lipsmack}", "a b c d"),
    ("[laughter-yeah] the(2) end(12)", "yeah the end"),
    ("<B_ASIDE> come in <E_ASIDE> so", "come in so"),
    ("[[a comment]] a", "a"),
    ("@ a", "a"),
]
REFUSED = [
    *("(( )) a", "(())", "<unk> a", "a <unk>", "[inaudible]", "{unintelligible} x", "%BCACK", "%bcnack a"),
    *("{ um", "um }", "(um", "um)", "((um) x", "[um", "um]", "{ um }", "{ / um }", "{ um / }"),
    *("w[ord]- a", "[bidness/business] a", "<FOREIGN> a", "</foreign>", '<foreign language="x"> a', "<unk>a"),
    *("%sEAl", "%\u0633\u0639\u0627\u0644", "{lktAb h*A qAr}", "{lktAb}", "(" * 60 + "a" + ")" * 60),
]
WORDS = [
    "<n h*A Alrjl >mr qAl",  # Buckwalter's transliteration
    "AlmA} $y} {lktAb &l <lY bd>",
    "wor- -rd e- -",
    "étudiant(e)s (s)he 5% %50 % and / or",
    "10\u00a0000 a\u2009b \u3000",
    "a < b >c x>y",
    "AT&T *star* +plus+ #hash ~A.",
]


@pytest.mark.parametrize(("text", "words"), RESOLVED)
def test_marks_are_resolved_refused_or_kept(text, words):
    assert read_words(text, RESOLVE) == words.split(" ")
    assert read_words(text, KEEP) == text.split(" ")
    with pytest.raises(BadRow, match=r"is NIST notation \(.*--nist-notation resolve .*--nist-notation keep"):
        read_words(text, REFUSE)


@pytest.mark.parametrize("text", REFUSED)
def test_what_nobody_wrote_down_and_broken_marks_are_refused(text):
    for notation in (RESOLVE, REFUSE):
        with pytest.raises(BadRow, match="field 'text'"):
            read_words(text, notation)
    assert read_words(text, KEEP) == text.split(" ")


@pytest.mark.parametrize("text", WORDS)
def test_words_are_no_marks(text):
    for notation in (REFUSE, RESOLVE, KEEP):
        assert read_words(text, notation) == text.split(" ")


@pytest.mark.parametrize(
    ("text", "label", "rest"),
    [
        ("<o,f0,male> a b", "o,f0,male", "a b"),
        ("<O>", "O", ""),
        ("<fr> bonjour", "fr", "bonjour"),
        ("<n h*A >mr", None, "<n h*A >mr"),
        ("<unk> a", None, "<unk> a"),
        ("<sil>", None, "<sil>"),
        ("a <o> b", None, "a <o> b"),
        ("<bdA> Alrjl", None, "<bdA> Alrjl"),
        ("<o,F0,maleA> Alrjl", "o,F0,maleA", "Alrjl"),
        ("", None, ""),
    ],
)
def test_a_label_is_one_field_in_angle_brackets(text, label, rest):
    assert split_label(text) == (label, rest)


@pytest.mark.parametrize("text", ["<o, f0, male> a", "<o,f0,male>a b", "<o,f0"])
def test_a_label_with_spaces_does_not_become_words(text):
    with pytest.raises(BadRow, match="expected a label without spaces"):
        split_label(text)


def test_types_of_words():
    for kind in ("lex", "FRAG", "fp", "for-lex", "propernoun", None):
        assert read_word("wor-", kind, REFUSE) == "wor-"
    assert read_word("%uh", "fp", RESOLVE) == "uh" and read_word("guess", "un-lex", RESOLVE) == "guess"
    assert read_word("{laugh", "non-lex", RESOLVE) is None and read_word("(%hesitation)", "fp", RESOLVE) is None
    assert read_word("a", "noscore", KEEP) == "a"
    for kind, notation in (("non-lex", REFUSE), ("un-lex", REFUSE), ("noscore", RESOLVE), ("misc", RESOLVE)):
        with pytest.raises(BadRow):
            read_word("a", kind, notation)
    with pytest.raises(BadRow, match="expected a type of word such as lex"):
        read_word("a", "york", KEEP)


TOKENS = st.sampled_from(
    [*"{}/@()", "((", "))", "uh", "um", "(uh)", "%uh", "<sil>", "<n", ">m", "{a", "b}", "[x", "y]", "[noise]", "a(2)"]
)


@settings(max_examples=150)
@given(st.lists(TOKENS, max_size=12))
def test_no_word_appears_or_is_joined(tokens):
    """Whatever the marks: words are among the tokens without their signs, in their order, or the text is refused."""
    text = " ".join(tokens)
    assert read_words(text, KEEP) == tokens
    try:
        assert read_words(text, REFUSE) == tokens
    except BadRow:
        pass
    try:
        words = read_words(text, RESOLVE)
    except BadRow:
        return
    bare = iter("".join(char for char in token if char not in "()%").replace("2", "") for token in tokens)
    assert all("".join(c for c in word if c not in "()%2") in bare for word in words)
