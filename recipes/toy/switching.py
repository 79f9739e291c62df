"""Does a model stop writing a task's tokens when the task is switched off? Some forms of the task vectors, compared.

    python recipes/toy/switching.py                       # about a minute for each row and seed
    python recipes/toy/switching.py --rows "centred, paired" --seeds 1

Trains TokenVerse++ on made-up features, as of a frozen encoder: a word is a vector for some frames, a speaker and a
corpus are offsets, noise is added. As in the recipes for speech, whole corpora lack labels: one of three has no
``lid``, another no ``endp``. Then utterances of another seed are decoded with all tasks active and
with ``asr`` alone, greedily, and the search may write the tokens of any task. The table has the WER of both, and for
each task the tokens that were written with it and without it, as shares of those in the reference.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import click
import numpy as np
import torch
from prepare import ENCODER
from torch import Tensor

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import from_dict
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.dataset import Activation, Batch, collate
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.tokenizer import Tokenizer, train_tokenizer
from tokenverse_pp.decoding.recognizer import Recognizer
from tokenverse_pp.metrics.error_rates import error_rates
from tokenverse_pp.models.bundle import ModelBundle, build_model
from tokenverse_pp.tasks import TaskSet, build_tasks
from tokenverse_pp.tasks.transcript import Answers
from tokenverse_pp.training.optim import make_optimizer
from tokenverse_pp.training.steps import Stepper

TASKS = ("asr", "endp", "lid")
SWITCHED = TASKS[1:]
LANGUAGES = ("qaa", "qab")
CORPORA = (TASKS, ("asr", "lid"), ("asr", "endp"))  # what each corpus is labelled for
DIM = 64
LETTERS = ("b", "d", "g", "k", "m", "n", "p", "t"), ("a", "e", "i", "o", "u")
UTTERANCES, TEST, BATCH = 1500, 100, 16
# Options that differ from `conf`: what is compared.
ROWS: Dict[str, Dict[str, Dict[str, Any]]] = {
    "masks first, zeros, binary": {"vectors": {"masked": False}, "spec_augment": {"fill": "zero"}},
    "zeros, binary": {"spec_augment": {"fill": "zero"}},
    "binary": {},
    "centred": {"vectors": {"code": "centred"}},
    "vectors x 5": {"vectors": {"scale": 5.0}},
    "centred, paired": {"vectors": {"code": "centred"}, "tasks": {"paired": True}},
}


class Utterance(NamedTuple):
    """Features (T, F), words and answers, and the tasks that it is labelled for."""

    id: str
    features: Tensor
    transcript: Answers
    tasks: Tuple[str, ...]


class Row(NamedTuple):
    """WER, and each task's tokens / those in the reference: with all tasks (on), with ``asr`` alone (off)."""

    wer: float
    wer_alone: float
    on: Dict[str, float]
    off: Dict[str, float]


class Toy:
    """A corpus of features: its sounds depend on a seed, and are the same for all sets."""

    def __init__(self, seed: int = 0):
        random = np.random.default_rng(seed)
        words = [a + b + c + d for a in LETTERS[0] for b in LETTERS[1] for c in LETTERS[0] for d in LETTERS[1]]
        chosen = random.permutation(words)[:20].tolist()
        self.words = dict(zip(LANGUAGES, (chosen[:10], chosen[10:])))
        sounds = [*chosen, "speaker 0", "speaker 1", "end", "pause", *(f"corpus {i}" for i in range(len(CORPORA)))]
        self.sounds = {name: random.standard_normal(DIM) for name in sounds}

    def utterance(self, number: int, random: np.random.Generator) -> Utterance:
        """One or two turns of two to four words in one language."""
        corpus, language = number % len(CORPORA), LANGUAGES[number // len(CORPORA) % 2]
        words: List[str] = []
        ends, frames = [], [self.sounds["pause"]] * 2
        for _ in range(int(random.integers(1, 3))):
            speaker = int(random.integers(2))
            said = random.choice(self.words[language], int(random.integers(2, 5))).tolist()
            for word in said:
                frames += [1.5 * self.sounds[word] + 0.7 * self.sounds[f"speaker {speaker}"]] * 4 + [
                    self.sounds["pause"]
                ]
            words += said
            if random.random() < 0.6:
                ends.append(len(words))
                frames += [self.sounds["end"]] * 3
        noisy = (
            np.stack(frames) + 0.3 * self.sounds[f"corpus {corpus}"] + 0.5 * random.standard_normal((len(frames), DIM))
        )
        features = torch.nn.functional.layer_norm(torch.from_numpy(noisy).float(), (DIM,))  # as at the seam
        transcript = Answers(tuple(words), {"endp": tuple(ends), "lid": language})
        return Utterance(f"u{number}", features, transcript, CORPORA[corpus])

    def utterances(self, count: int, seed: int) -> List[Utterance]:
        """So many utterances, the corpora and languages in turn."""
        random = np.random.default_rng((seed, count))
        return [self.utterance(number, random) for number in range(count)]


def conf(encoder: Path, steps: int, seed: int, changes: Dict[str, Dict[str, Any]]) -> Config:
    """The configuration of a row."""
    data: Dict[str, Any] = {
        "data": {"stored_features": True},
        "tasks": {
            **{"names": list(TASKS), "languages": list(LANGUAGES), "activation": "bernoulli", "activation_prob": 0.8},
            **changes.get("tasks", {}),
        },
        "model": {
            "encoder": {
                **{"name": str(encoder), "kind": "frozen", "random_init": True, "layers": [-1]},
                **{"context_layers": 2, "context_dim": 64, "context_heads": 2, "context_ffn": 128, "context_kernel": 5},
            },
            "vectors": {"placement": "features", **changes.get("vectors", {})},
            "spec_augment": {
                **{"time_share": 0.2, "time_span": 8, "channel_share": 0.1, "channel_span": 8},
                **changes.get("spec_augment", {}),
            },
            "loss": {"warm_steps": 100, "ctc_scale": 4.0},
            **{"predictor_dim": 64, "predictor_dropout": 0.2, "joiner_dim": 64},
        },
        "optim": {"lr": 6e-3, "warmup_steps": 50},
        "training": {"max_steps": steps, "seed": seed},
    }
    return from_dict(data)


def batch_of(items: Sequence[Utterance], tasks: TaskSet, tokenizer: Tokenizer, draw: Activation, epoch: int) -> Batch:
    """A training batch, as `tokenverse_pp.data.dataset.TransducerDataset` makes of cuts."""
    rows = [(item, names) for item in items for names in draw.sets(item.tasks, item.id, epoch)]
    texts = [tasks.subset(names).render(item.transcript) for item, names in rows]
    inputs, lens = collate([item.features for item, _ in rows])
    tokens, token_lens = collate([torch.tensor(tokenizer.encode(text)) for text in texts])
    active = torch.tensor([tasks.mask(names) for _, names in rows], dtype=torch.float32)
    ids = [item.id for item, _ in rows]
    return {
        **{"inputs": inputs, "lens": lens, "active": active, "tokens": tokens, "token_lens": token_lens},
        **{"cut_ids": ids, "seconds": 0.0, "chunks": None},
    }


def train(config: Config, toy: Toy) -> ModelBundle:
    """Train a model; the batches and their active tasks depend on the seed."""
    c, seed = config.tasks, config.training.seed
    tasks = build_tasks(c.names, c.options())
    data = toy.utterances(UTTERANCES, seed)
    tokenizer = train_tokenizer([item.transcript.text for item in data], tasks, 70)
    model = build_model(config, tasks, tokenizer).train()
    draw = Activation(c.activation, c.activation_prob, seed, c.paired)
    stepper = Stepper(model, make_optimizer(model, config.optim, ()), config, DistributedContext())
    size = BATCH // 2 if c.paired else BATCH
    random, order = np.random.default_rng(seed), []
    epoch = -1
    for step in range(config.training.max_steps):
        if len(order) < size:
            order, epoch = random.permutation(len(data)).tolist(), epoch + 1
        items = [data[order.pop()] for _ in range(size)]
        result = stepper([batch_of(items, tasks, tokenizer, draw, epoch)], step)
        if result.skipped:
            raise UserError(f"step {step}: the loss is not finite")
    return ModelBundle(config, tasks, tokenizer, model.eval())


def decode(loaded: ModelBundle, items: Sequence[Utterance], active: Sequence[str]) -> List[List[str]]:
    """Words and task tokens of each utterance, with these tasks active; the tokens of others are not suppressed."""
    search = SearchOptions("greedy", force_language=False)
    weights = torch.tensor(loaded.tasks.mask(active), dtype=torch.float32)
    recognizer = Recognizer(loaded, DecodeOptions(search, stored_features=True), weights)
    texts = []
    for item, best in zip(items, recognizer.recognize([item.features for item in items])):
        if best is None:  # left out, it would shift all that follow against their references
            raise UserError(f"{item.id}: the encoder gave NaN or infinity")
        texts.append(loaded.tokenizer.decode(best[0].tokens).split())
    return texts


def measure(loaded: ModelBundle, items: Sequence[Utterance]) -> Row:
    """Decode with all tasks and with ``asr`` alone."""
    tasks = loaded.tasks
    references = [tasks.render(item.transcript).split() for item in items]
    wers, shares = [], []
    for active in (TASKS, TASKS[:1]):
        texts = decode(loaded, items, active)
        plain = [[word for word in text if word not in tasks.symbols] for text in texts]
        wers.append(float(error_rates([(i.transcript.words, words) for i, words in zip(items, plain)])["wer"]))
        shares.append({name: count(texts, tasks, name) / count(references, tasks, name) for name in SWITCHED})
    return Row(*wers, *shares)


def count(texts: Sequence[Sequence[str]], tasks: TaskSet, name: str) -> int:
    """The tokens of a task in some texts."""
    return sum(word in tasks[name].symbols for text in texts for word in text)


def run(name: str, seed: int, steps: int) -> Row:
    """Train and measure one row of the table."""
    toy = Toy()
    with tempfile.TemporaryDirectory() as folder:
        # Only its shape is used: the features are made up.
        shape = {**ENCODER, "hidden_size": DIM, "num_hidden_layers": 1, "intermediate_size": DIM}
        (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        loaded = train(conf(Path(folder), steps, seed, ROWS[name]), toy)
    return measure(loaded, toy.utterances(TEST, seed + 1000))


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--rows", multiple=True, type=click.Choice(list(ROWS)), help="What to compare. [default: all]")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each row.")
@click.option("--steps", default=300, show_default=True, type=click.IntRange(10), help="Steps of each training.")
def main(rows: Tuple[str, ...], seeds: int, steps: int) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    table = [["vectors", "seed", "WER %", "asr alone", *(f"{name} on, off %" for name in SWITCHED)]]
    for name in rows or ROWS:
        for seed in range(1, seeds + 1):
            row = run(name, seed, steps)
            shares = [f"{100 * row.on[task]:.0f}, {100 * row.off[task]:.0f}" for task in SWITCHED]
            table.append([name, str(seed), f"{100 * row.wer:.1f}", f"{100 * row.wer_alone:.1f}", *shares])
            click.echo(", ".join(table[-1]), err=True)
    click.echo(aligned(table))


if __name__ == "__main__":
    with report_errors():
        main(standalone_mode=True)
