"""A tokenizer of few pieces, and what makes a hypothesis well-formed (pytest puts this folder on the path)."""

import numpy as np

from tokenverse_pp.decoding.constraints import Constraints
from tokenverse_pp.tasks import build_tasks, parse
from tokenverse_pp.tasks.transcript import is_task_token, word_spans

ALL = ["asr", "scd", "endp", "ner", "lid"]
PIECES = ["▁", "▁a", "▁b", "c"]


class Vocabulary:
    """A tokenizer of few pieces."""

    def __init__(self, tasks, pieces=PIECES):
        self.all = ["<blk>", "<unk>", *tasks.symbols, *pieces]
        self.vocab_size = len(self.all)

    def id_of(self, symbol):
        return self.all.index(symbol)

    def pieces(self, ids=None):
        return self.all if ids is None else [self.all[i] for i in ids]

    def ids(self, text):
        return [self.all.index(piece) for piece in text.split()]


def know(*names, languages=("fr", "nl"), types=()):
    return build_tasks(names, {"lid": {"languages": list(languages)}, "ner": {"types": list(types)}})


def begun(constraints, tokens):
    """Constraints on what may follow these tokens."""
    state = constraints.after(tokens)
    weights, following = constraints.weights, constraints.following + 1
    return Constraints(np.concatenate([weights[[state]], weights]), np.concatenate([following[[state]], following]))


def kept_text(words):
    """What `parse` keeps of a hypothesis: neither a span that is open at the end nor a change after the last word."""
    opened = [i for i, word in enumerate(words) if word.startswith("[NE")]
    if opened and "[/NE]" not in words[opened[-1] :]:
        words = words[: opened[-1]] + words[opened[-1] + 1 :]
    last_word = max((i for i, word in enumerate(words) if not is_task_token(word)), default=-1)
    return " ".join(w for i, w in enumerate(words) if w != "[SCD]" or i < last_word)


def is_well_formed(found, vocabulary, active_tasks):
    """Whether a hypothesis is possible, says nothing of tasks that are not active, and is read as it stands."""
    words = [text for text, _, _ in word_spans(vocabulary.pieces(found.tokens))]
    return (
        found.log_prob > -float("inf")
        and all(w in active_tasks.symbols for w in words if is_task_token(w))
        and active_tasks.render(parse(" ".join(words), active_tasks)) == kept_text(words)
    )
