"""Training on the toy corpus, as small as it gets (pytest puts this folder on the path, because of its conftest.py)."""

import contextlib
import copy
import io
import os
import subprocess
import sys
from collections import namedtuple
from functools import cache
from pathlib import Path

from lhotse import CutSet

from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.dataset import Activation, TransducerDataset
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.models.bundle import build_model, tasks_of
from tokenverse_pp.training.validation import training_chunks

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 50
Failure = namedtuple("Failure", "code stderr")
Parts = namedtuple("Parts", "config tasks tokenizer model dataset")


# An encoder whose lower layer alone runs, and is trained; with a small context network.
SPLIT = {
    "model__encoder__kind": "split",
    "model__encoder__split_layer": 0,
    "model__encoder__layers": [1],
    "model__encoder__context_layers": 1,
    "model__encoder__context_dim": 16,
    "model__encoder__context_heads": 2,
    "model__encoder__context_ffn": 24,
    "model__encoder__context_kernel": 5,
}


def toy_options(corpus, exp_dir, **changes):
    """Options of recipes/train.py; a change is named ``section__key``."""
    values = {
        "data.train": [f"{corpus}/cuts_train.jsonl.gz"],
        "data.valid": [f"{corpus}/cuts_dev.jsonl.gz"],
        "data.max_cuts": 8,
        "data.num_buckets": 1,
        "data.num_workers": 0,
        "tasks.names": ["asr", "scd", "endp", "ner", "lid"],
        "tasks.languages": ["qaa", "qab"],
        "tokenizer.vocab_size": VOCABULARY,
        "model.encoder.name": f"{corpus}/encoder",
        "model.encoder.random_init": "true",
        "model.encoder.freeze_feature_encoder": "true" if changes.get("model__encoder__lora_rank") else "false",
        "model.spec_augment.time_share": 0,
        "model.spec_augment.channel_share": 0,
        "model.loss.warm_steps": 10,
        "model.predictor_dim": 32,
        "model.joiner_dim": 32,
        "optim.lr": 1e-3,
        "optim.encoder_lr": 1e-3,
        "optim.warmup_steps": 3,
        "training.exp_dir": exp_dir,
        "training.max_steps": 10,
        "training.log_every": 1,
        "training.valid_every": 5,
        "training.save_every": 4,
        "training.threads": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [word for key, value in values.items() for word in (f"--{key}", _text(value))]


def _text(value):
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


@cache
def _parsed(*options):
    return parse_config(options)


def toy_parts(corpus, **changes):
    """Configuration, tasks, tokenizer, model (in eval mode) and dataset, without the command line."""
    config = copy.deepcopy(_parsed(*toy_options(corpus, "unused", **changes)))  # of the caller, who may change it
    tasks = tasks_of(config.tasks)
    texts = [sup.text for cut in read_cuts(corpus) for sup in cut.supervisions]
    tokenizer = train_tokenizer(texts, tasks, config.tokenizer.vocab_size)
    model = build_model(config, tasks, tokenizer).eval()
    t = config.tasks
    activation = Activation(t.activation, t.activation_prob, config.training.seed, t.paired)
    dataset = TransducerDataset(tasks, tokenizer, activation, config.data.stored_features, training_chunks(config))
    return Parts(config, tasks, tokenizer, model, dataset)


def read_cuts(corpus, split="train"):
    """The cuts of a split, in a list."""
    return list(CutSet.from_file(Path(corpus) / f"cuts_{split}.jsonl.gz"))


def environment():
    """For a subprocess: one thread, no network, and the package importable."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


def start(script, *args, ranks=1):
    """A recipe through its real command line, under torchrun for several ranks; stderr is a pipe of text."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launcher, str(ROOT / "recipes" / script), *map(str, args)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process, timeout=300):
    """Wait for a process -> Failure (code 0 if it is none)."""
    try:
        _, stderr = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    return Failure(process.returncode, stderr)


def call(main, *args, **options):
    """``main(args)`` in this process, as the script's last lines call it -> Failure."""
    stderr = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            with report_errors():
                main([str(arg) for arg in args], **options)
        except SystemExit as exit_:
            code = exit_.code or 0
    return Failure(code, stderr.getvalue())


def call_ok(main, *args, **options):
    """What `call` gives, of a script that succeeds."""
    done = call(main, *args, **options)
    assert done.code == 0, done.stderr
    return done


def assert_one_line(failure, *said):
    """Exit code 2, and on stderr one line that says all of this."""
    assert failure.code == 2, failure
    assert failure.stderr.startswith("error: ") and failure.stderr.count("\n") == 1, failure.stderr
    for part in said:
        assert str(part) in failure.stderr, (part, failure.stderr)


def save_frozen_encoder(corpus, folder):
    """The toy's wav2vec2 with random weights, saved by transformers: something to be frozen -> options for it."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(5)
    AutoModel.from_config(AutoConfig.from_pretrained(f"{corpus}/encoder")).save_pretrained(folder)
    return {
        "model__encoder__name": folder,
        "model__encoder__kind": "frozen",
        "model__encoder__random_init": "false",
        "model__encoder__layers": [1, -1],
        "model__encoder__stack": 2,
        "model__encoder__context_layers": 1,
        "model__encoder__context_dim": 32,
        "model__encoder__context_heads": 2,
        "model__encoder__context_ffn": 32,
        "model__encoder__context_kernel": 5,
    }
