"""SentencePiece with the task tokens as user-defined symbols. The blank is id 0."""

from __future__ import annotations

import hashlib
import importlib
import io
from pathlib import Path
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import sentencepiece as spm

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.transcript import is_task_token, word_spans

BLANK = "<blk>"
BLANK_ID = 0
UNK = "<unk>"
UNK_ID = 1


class Piece(NamedTuple):
    """An entry of a SentencePiece model; ``kind``: NORMAL, UNKNOWN, CONTROL or USER_DEFINED."""

    text: str
    score: float
    kind: str


class Tokenizer:
    """Text with task tokens <-> ids.

    The words between two task tokens are encoded separately, so that a task token takes one id, without an extra
    space sign ``▁``.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.processor = spm.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(model)

    @classmethod
    def load(cls, path: Union[str, Path]) -> Tokenizer:
        """Read a SentencePiece model file."""
        try:
            tokenizer = cls(Path(path).read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such tokenizer model") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except RuntimeError:
            raise UserError(f"{path}: not a SentencePiece model") from None
        if tokenizer.processor.IdToPiece(BLANK_ID) != BLANK:
            raise UserError(f"{path}: id 0 must be the blank {BLANK}; was it trained by tokenverse_pp?")
        if tokenizer.processor.unk_id() != UNK_ID:  # models of icefall have <sos/eos> there
            raise UserError(f"{path}: id {UNK_ID} must be {UNK}; was it trained by tokenverse_pp?")
        return tokenizer

    @classmethod
    def of_pieces(cls, pieces: Sequence[Piece], kind: str) -> Tokenizer:
        """Make a SentencePiece model from known pieces: the blank, ``<unk>``, then any.

        Args:
            pieces: the pieces in the order of their ids.
            kind: ``bpe`` or ``unigram``.

        Raises:
            UserError: if protobuf is not installed, or the pieces make no valid model.
        """
        schema = _schema()
        proto = schema.ModelProto()
        for piece in pieces:
            kinds = schema.ModelProto.SentencePiece
            proto.pieces.add(piece=piece.text, score=piece.score, type=getattr(kinds, piece.kind))
        spec = proto.trainer_spec
        spec.model_type = getattr(schema.TrainerSpec, kind.upper())
        spec.vocab_size = len(pieces)
        spec.pad_id, spec.pad_piece, spec.unk_id, spec.unk_piece = BLANK_ID, BLANK, UNK_ID, UNK
        spec.bos_id = spec.eos_id = -1
        proto.normalizer_spec.name = "identity"
        proto.normalizer_spec.add_dummy_prefix = True
        proto.normalizer_spec.remove_extra_whitespaces = True
        proto.normalizer_spec.escape_whitespaces = True
        try:
            return cls(proto.SerializeToString())
        except RuntimeError as error:
            raise UserError(f"these pieces are no SentencePiece model: {one_line(error)}") from None

    def save(self, path: Union[str, Path]) -> None:
        """Write the SentencePiece model file."""
        Path(path).write_bytes(self.model)

    @property
    def vocab_size(self) -> int:
        """The size V of the vocabulary, including the blank."""
        return int(self.processor.GetPieceSize())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model file: two checkpoints share a vocabulary only if these are equal."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> List[int]:
        """Text with task tokens -> ids (raises UserError for a task token that is not in the vocabulary)."""
        ids: List[int] = []
        words: List[str] = []
        for word in text.split():
            if is_task_token(word):
                ids.extend(self._encode_words(words))
                ids.append(self.id_of(word))
                words = []
            else:
                words.append(word)
        return ids + self._encode_words(words)

    def _encode_words(self, words: Sequence[str]) -> List[int]:
        return list(self.processor.EncodeAsIds(" ".join(words))) if words else []

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text with task tokens."""
        return " ".join(text for text, _, _ in word_spans(self.pieces(ids)))

    def pieces(self, ids: Optional[Sequence[int]] = None) -> List[str]:
        """The piece of each id (of all, in order), with ``▁`` where a word starts."""
        return [self.processor.IdToPiece(int(i)) for i in (range(self.vocab_size) if ids is None else ids)]

    def id_of(self, symbol: str) -> int:
        """The id of a task token (raises UserError if it is not in the vocabulary)."""
        index = int(self.processor.PieceToId(symbol))
        if index == UNK_ID:
            raise UserError(f"the tokenizer has no symbol {symbol}: it was trained for other tasks or languages")
        return index

    def bias_of(self, options: SearchOptions) -> np.ndarray:
        """Return what ``token_bias`` adds to the logits, (V,) float32 (raises UserError for an unknown token)."""
        added = np.zeros(self.vocab_size, dtype=np.float32)
        for token, number in options.token_bias:
            try:
                added[self.id_of(token)] += number
            except UserError as error:
                raise UserError(f"search option 'token_bias': {error}") from None
        return added

    def extends(self, other: Tokenizer) -> bool:
        """Whether this vocabulary is the other one, possibly with pieces appended."""
        ours, theirs = (_entries(tokenizer.processor) for tokenizer in (self, other))
        return ours[: len(theirs)] == theirs

    def extended(self, symbols: Iterable[str], texts: Iterable[str] = ()) -> Tokenizer:
        """This vocabulary with pieces appended; existing ids and the pieces of old texts do not change.

        Args:
            symbols: task tokens; missing ones are added in this order.
            texts: plain words; each missing character becomes a piece (in order of code points), so that a language in
                another script is not written as ``<unk>``. Longer pieces are not learnt.

        Raises:
            UserError: if protobuf, which comes with tensorboard, is not installed.
        """
        known = {piece for piece, *_ in _entries(self.processor)}
        new_symbols = [symbol for symbol in dict.fromkeys(symbols) if symbol not in known]
        characters = sorted({c for text in texts for word in text.split() for c in word}.difference(known))
        if not new_symbols and not characters:
            return self
        schema = _schema()
        proto = schema.ModelProto.FromString(self.model)
        lowest = min(piece.score for piece in proto.pieces)
        kinds = schema.ModelProto.SentencePiece
        for symbol in new_symbols:
            proto.pieces.add(piece=symbol, score=0.0, type=kinds.USER_DEFINED)
        for number, character in enumerate(characters, start=1):
            proto.pieces.add(piece=character, score=lowest - number, type=kinds.NORMAL)
        proto.trainer_spec.user_defined_symbols.extend(new_symbols)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        return Tokenizer(proto.SerializeToString())

    def check(self, tasks: TaskSet) -> None:
        """Check that every token of ``tasks`` is in the vocabulary (raises UserError)."""
        for symbol in tasks.symbols:
            self.id_of(symbol)


def _schema() -> Any:
    """The classes of a SentencePiece model's protocol buffer (raises UserError)."""
    try:
        return importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise UserError(f"to add to a vocabulary: pip install protobuf ({error})") from None


def _entries(processor: spm.SentencePieceProcessor) -> List[Tuple[str, float, bool]]:
    """Each piece with its score, and whether it is neither control nor unknown."""
    return [
        (processor.IdToPiece(i), processor.GetScore(i), not (processor.IsControl(i) or processor.IsUnknown(i)))
        for i in range(processor.GetPieceSize())
    ]


def train_tokenizer(texts: Iterable[str], tasks: TaskSet, vocab_size: int = 500) -> Tokenizer:
    """Train BPE on plain texts (without task tokens).

    Args:
        tasks: their tokens become user-defined symbols.
        vocab_size: V, with the blank, ``<unk>`` and the task tokens.

    Raises:
        UserError: if the texts cannot fill, or do not fit, ``vocab_size``.
    """
    out = io.BytesIO()
    lines = [line for line in texts if line.strip()]
    if not lines:
        raise UserError("no text to train a tokenizer on")
    try:
        spm.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            user_defined_symbols=list(tasks.symbols),
            pad_id=BLANK_ID,
            pad_piece=BLANK,
            unk_id=UNK_ID,
            bos_id=-1,
            eos_id=-1,
            normalization_rule_name="identity",  # the manifests' normaliser has done this
            num_threads=1,  # the same model every time
            minloglevel=2,
        )
    except RuntimeError as error:
        # "Internal: src/trainer_interface.cc(638) [(condition)] Vocabulary size is ..", then advice on other options.
        reason = str(error).rsplit("] ", 1)[-1].split(" or decrease character_coverage")[0].strip()
        raise UserError(f"tokenizer.vocab_size={vocab_size} does not suit the training texts: {reason}") from None
    return Tokenizer(out.getvalue())
