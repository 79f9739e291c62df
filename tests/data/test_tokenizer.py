"""The tokenizer: everything survives the way there and back, and task tokens cost one id each."""

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.tokenizer import BLANK, BLANK_ID, Tokenizer, train_tokenizer
from tokenverse_pp.tasks import build_tasks

LANGUAGES = {"lid": {"languages": ["cs", "fr", "ru"]}, "ner": {"types": ["NUM", "PER"]}}
TASKS = build_tasks(["asr", "scd", "endp", "ner", "lid"], LANGUAGES)
TEXTS = [
    "oui je vous écoute c'est l'été à la mer",
    "příliš žluťoučký kůň úpěl ďábelské ódy",
    "съешь же ещё этих мягких французских булок да выпей чаю",
    "o' one two 3 4 five-six",
    "oui oui oui oui oui oui",
] * 3
LETTERS = sorted(set("".join(TEXTS)) - {" "})
WORDS = st.text(alphabet=LETTERS, min_size=1, max_size=8)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TASKS, 120)


# Hypothesis refuses fixtures of a function's scope only; this one is the module's.
@given(words=st.lists(st.one_of(WORDS, st.sampled_from(TASKS.symbols)), max_size=20))
def test_random_texts_with_task_tokens_survive(tokenizer, words):
    text = " ".join(words)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert BLANK_ID not in ids
    pieces = tokenizer.pieces(ids)
    assert [piece for piece in pieces if piece in TASKS.symbols] == [word for word in words if word in TASKS.symbols]


@given(left=st.lists(WORDS, max_size=3), right=st.lists(WORDS, max_size=3), symbol=st.sampled_from(TASKS.symbols))
def test_a_task_token_costs_one_id_and_changes_no_other(tokenizer, left, right, symbol):
    before, after = tokenizer.encode(" ".join(left)), tokenizer.encode(" ".join(right))
    whole = tokenizer.encode(" ".join([*left, symbol, *right]))
    assert whole == [*before, tokenizer.id_of(symbol), *after]


def test_blank_is_id_zero_and_vocabulary_is_as_large_as_asked(tokenizer):
    assert tokenizer.vocab_size == 120
    assert tokenizer.pieces([0]) == [BLANK]
    assert sorted(tokenizer.pieces(range(120))).count(BLANK) == 1


def test_training_gives_the_same_model_every_time(tokenizer, tmp_path):
    again = train_tokenizer(iter(TEXTS), TASKS, 120)
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(TEXTS, TASKS, 121).fingerprint != tokenizer.fingerprint
    tokenizer.save(tmp_path / "t.model")
    loaded = Tokenizer.load(tmp_path / "t.model")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("[FR] oui [ENDP]") == tokenizer.encode("[FR] oui [ENDP]")


def test_unknown_symbol_is_refused(tokenizer):
    for text in ("[DE] ja", "oui [NO-SUCH]"):
        with pytest.raises(UserError, match=r"no symbol \[(DE|NO-SUCH)\]"):
            tokenizer.encode(text)
    with pytest.raises(UserError, match=r"\[DE\]"):
        tokenizer.check(build_tasks(["lid"], {"lid": {"languages": ["fr", "de"]}}))
    tokenizer.check(TASKS)


@pytest.mark.parametrize("size", [3, 20, 100_000])
def test_impossible_vocabulary_size_is_one_line(size):
    with pytest.raises(UserError, match=f"tokenizer.vocab_size={size} ") as caught:
        train_tokenizer(TEXTS, TASKS, size)
    message = str(caught.value)
    assert "\n" not in message and "src/" not in message and "--" not in message
    assert any(character.isdigit() for character in message.split(":", 1)[1]), message  # what would do


def test_no_text_is_refused():
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([" ", ""], TASKS, 100)


def test_missing_and_foreign_model_files_are_named(tmp_path):
    foreign = tmp_path / "foreign.model"
    with pytest.raises(UserError, match=r"foreign\.model: no such"):
        Tokenizer.load(foreign)
    for content in (b"", b"not a model", b"\x00" * 100):
        foreign.write_bytes(content)
        with pytest.raises(UserError, match=r"foreign\.model"):
            Tokenizer.load(foreign)
    with foreign.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(TEXTS), model_writer=file, model_type="bpe", vocab_size=100, minloglevel=2
        )
    with pytest.raises(UserError, match="id 0 must be the blank"):
        Tokenizer.load(foreign)
    with foreign.open("wb") as file:  # as icefall's, where a task token would be <unk>
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(TEXTS), model_writer=file, model_type="bpe", vocab_size=100, minloglevel=2,
            user_defined_symbols=["<blk>", "<sos/eos>"], unk_id=2, bos_id=-1, eos_id=-1,
        )  # fmt: skip
    with pytest.raises(UserError, match="id 1 must be <unk>"):
        Tokenizer.load(foreign)
    with pytest.raises(UserError, match="directory"):
        Tokenizer.load(tmp_path)
