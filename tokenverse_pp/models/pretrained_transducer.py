"""Predictor, joiner and vocabulary of a pretrained transducer: Parakeet RNN-T and TDT, Nemotron (transformers).

Their blank is the last token; ours is the first, followed by ``<unk>``. Their tokens and the rows of their weights are
reordered accordingly (`Vocabulary.order`). The rows of the durations of a TDT checkpoint are left out.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from tokenverse_pp.base.config import ModelConfig
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.data.tokenizer import BLANK, UNK, Piece, Tokenizer
from tokenverse_pp.models.encoders.kinds import NO_CODE, from_pretrained, load_weights

# ``model_type`` of config.json -> the class in transformers.
CLASSES = {
    "parakeet_rnnt": "ParakeetForRNNT",
    "parakeet_tdt": "ParakeetForTDT",
    "nemotron_asr_streaming": "NemotronAsrStreamingForRNNT",
}
OPTION = "--model.transducer=pretrained"


class Vocabulary(NamedTuple):
    """The tokens of a checkpoint; ``order`` (V,): the checkpoint's id of each of our tokens."""

    tokenizer: Tokenizer
    order: List[int]


def config_of(name: str) -> Any:
    """The configuration of a checkpoint (raises UserError if it is not a transducer)."""
    config = from_pretrained(AutoConfig.from_pretrained, name, **NO_CODE)
    if config.model_type not in CLASSES:
        raise UserError(
            f"{OPTION}: {name} has type {config.model_type}, which has no predictor and joiner to take over: expected "
            f"{', '.join(CLASSES)}"
        )
    return config


def set_sizes(model: ModelConfig) -> None:
    """Set the sizes of predictor and joiner to those of the checkpoint ``model.encoder.name``, unless they are set.

    Raises UserError if it has none, or a joiner activation other than relu and tanh.
    """
    if model.transducer != "pretrained" or model.predictor_layers:
        return
    config = config_of(model.encoder.name)
    if config.hidden_act not in ("relu", "tanh"):
        raise UserError(f"{OPTION}: {model.encoder.name}: its joiner has {config.hidden_act}, expected relu or tanh")
    model.predictor_layers = config.num_decoder_layers
    model.predictor_dim = model.joiner_dim = config.decoder_hidden_size
    model.joiner_activation = config.hidden_act
    model.symbols_per_frame = config.max_symbols_per_step


def read_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a checkpoint, as a SentencePiece model with our blank (raises UserError)."""
    config = config_of(name)
    theirs: Any = from_pretrained(AutoTokenizer.from_pretrained, name, **NO_CODE)
    blank, unknown = config.blank_token_id, theirs.unk_token_id
    try:
        data = json.loads(theirs.backend_tokenizer.to_str())
        model, kind = data["model"], data["model"]["type"]
        added = {token["id"]: (token["content"], bool(token["special"])) for token in data["added_tokens"]}
        scores = _scores(model)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{OPTION}: {name}: its tokenizer.json cannot be read: {one_line(error)}") from None
    if kind not in ("BPE", "Unigram") or not any(piece.startswith("▁") for piece in scores):
        raise UserError(f"{OPTION}: {name}: expected a tokenizer as SentencePiece makes them, found {kind}")
    if unknown is None or unknown == blank:
        raise UserError(f"{OPTION}: {name}: its tokenizer has no token for what it cannot write (unk_token)")
    order = [blank, unknown, *(i for i in range(config.vocab_size) if i not in (blank, unknown))]
    known = theirs.convert_ids_to_tokens(range(min(config.vocab_size, len(theirs))))
    pieces = [Piece(BLANK, 0.0, "CONTROL"), Piece(UNK, 0.0, "UNKNOWN")]
    for i in order[2:]:
        text = known[i] if i < len(known) and known[i] else f"<unused{i}>"
        kinds = {True: "CONTROL", False: "USER_DEFINED"}
        if i in added or text not in scores or (text.startswith("<") and text.endswith(">")):
            pieces.append(Piece(text, 0.0, kinds[added.get(i, ("", True))[1]]))
        else:
            pieces.append(Piece(text, scores[text], "NORMAL"))
    return Vocabulary(Tokenizer.of_pieces(pieces, kind.lower()), order)


def _scores(model: Dict[str, Any]) -> Dict[str, float]:
    """The score of each piece of a tokenizer.json: as given (Unigram), or by the rank of its merge (BPE)."""
    if model["type"] == "Unigram":
        return {piece: float(score) for piece, score in model["vocab"]}
    scores: Dict[str, float] = {}
    for rank, merge in enumerate(model["merges"]):
        scores.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), -float(rank))
    for piece, i in model["vocab"].items():
        scores.setdefault(piece, -float(len(model["merges"]) + i))
    return scores


def read_weights(name: str, order: List[int]) -> Dict[str, Tensor]:
    """The weights of predictor and joiner, by their names in `Transducer`, float32 (raises UserError)."""
    config = config_of(name)
    model_class: Optional[Any] = getattr(transformers, CLASSES[config.model_type], None)
    if model_class is None:
        raise UserError(f"{OPTION}: transformers {transformers.__version__} has no {CLASSES[config.model_type]}")
    config.encoder_config.num_hidden_layers = 0  # `kinds.load_backbone` has read the encoder's weights
    theirs = load_weights(model_class.from_pretrained, name, False, config=config).state_dict()
    parts = {
        "decoder.embedding.": "predictor.embedding.",
        "decoder.lstm.": "predictor.lstm.",
        "decoder.decoder_projector.": "joiner.predictor_proj.",
        "encoder_projector.": "joiner.encoder_proj.",
        "joint.head.": "joiner.output.",
    }
    found = {}
    for prefix, ours in parts.items():
        for key, value in theirs.items():
            if key.startswith(prefix):
                rows = torch.tensor(order) if ours in ("predictor.embedding.", "joiner.output.") else slice(None)
                found[ours + key[len(prefix) :]] = value[rows].detach().clone()
    return found
