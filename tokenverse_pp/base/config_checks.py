"""Which values a configuration may have."""

from __future__ import annotations

import math
from typing import Any, Dict, List

from tokenverse_pp.base.config import Config, DataConfig, StreamingConfig, TasksConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import canonical_tag, language_problem

CHOICES = {
    "tasks.activation": ("labelled", "subset", "bernoulli"),
    "model.vectors.placement": ("none", "features", "encoder", "both"),
    "model.vectors.strategy": ("sum", "combination"),
    "model.loss.backend": ("auto", "k2", "native"),
    "model.loss.rnnt_type": ("regular", "modified", "constrained"),
    "optim.decay": ("constant", "inverse_sqrt", "cosine"),
    "training.best_by": ("loss", "wer"),
    "training.precision": ("fp32", "bf16", "fp16"),
    "training.train_only": ("all", "new", "new_and_joiner"),
}
AT_LEAST = {
    "data.max_duration": 0.1,
    "data.max_cuts": 1,
    "data.num_buckets": 1,
    "data.buffer_size": 1,
    "data.num_workers": 0,
    "data.epoch_cuts": 1,
    "data.round_cuts": 1,
    "model.loss.prune_range": 2,
    "model.predictor_dim": 1,
    "model.joiner_dim": 1,
    "model.context_size": 1,
    "model.spec_augment.time_span": 1,
    "model.spec_augment.channel_span": 1,
    "data.max_tokens": 1,
    "training.accumulate": 1,
    "training.epochs": 1,
    "training.max_steps": 1,
    "training.log_every": 1,
    "training.valid_every": 1,
    "training.save_every": 1,
    "training.keep_last": 1,
    "training.average_last": 1,
    "training.keep_best": 0,
    "training.average_period": 0,
    "training.max_bad_steps": 1,
    "training.peer_timeout": 5,
    "tokenizer.vocab_size": 3,
}
SHARES = (  # from 0 to 1
    "data.max_unk_share",
    "tasks.activation_prob",
    "model.predictor_dropout",
    "model.encoder.context_dropout",
    "model.spec_augment.time_share",
    "model.spec_augment.channel_share",
)


def get_option(config: Any, name: str) -> Any:
    """The value of a dotted option such as ``model.loss.backend``."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def check_config(config: Config) -> Config:
    """See that values are possible (raises UserError naming the option)."""
    for name, allowed in CHOICES.items():
        if get_option(config, name) not in allowed:
            raise UserError(f"--{name}={get_option(config, name)}: expected one of {', '.join(allowed)}")
    for name, least in AT_LEAST.items():
        value = get_option(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name}={value}: expected at least {least}")
    for name in SHARES:
        if not 0 <= get_option(config, name) <= 1:
            raise UserError(f"--{name}={get_option(config, name)}: expected 0 to 1")
    if not 0 < config.optim.layer_decay <= 1:
        raise UserError(f"--optim.layer_decay={config.optim.layer_decay}: expected more than 0, at most 1")
    if config.training.average_last > config.training.keep_last:
        raise UserError(
            f"--training.average_last={config.training.average_last}: only the last "
            f"--training.keep_last={config.training.keep_last} checkpoints are there to average"
        )
    if config.training.keep_best and not config.data.valid:
        raise UserError(f"--training.keep_best={config.training.keep_best}: needs --data.valid, to know the best by")
    check_weights(config.data)
    check_freeze(config.training.freeze)
    check_streaming(config.model.streaming)
    check_settings(config.tasks)
    if "lid" in config.tasks.names and not config.tasks.languages:
        raise UserError("--tasks.languages: the task lid needs the languages, e.g. '[en, fr]'")
    if config.data.stored_features and config.model.encoder.kind == "finetune":
        raise UserError(
            "--data.stored_features=true needs --model.encoder.kind=frozen or split: only frozen features can be stored"
        )
    return config


def check_activation(config: Config) -> None:
    """See that a model that is not told which tasks are active is trained with all of them (raises UserError).

    Without vectors, a task's tokens that are there in one cut and missing from the next are noise: a TokenVerse so
    trained on recipes/human_speech, with a chance of 0.8, missed four speaker changes in ten.
    """
    told = config.model.vectors.placement != "none" or set(config.tasks.names) == {"asr"}
    if not told and config.tasks.activation != "labelled":
        raise UserError(
            f"--tasks.activation={config.tasks.activation}: with --model.vectors.placement=none nothing tells the "
            "model which tasks are active; expected labelled"
        )


def check_languages(tasks: TasksConfig) -> None:
    """See that the languages of what is to be trained are codes, of languages that differ (raises UserError)."""
    known: Dict[str, str] = {}
    for code in tasks.languages:
        problem = language_problem(code, registered=False)
        if problem:
            raise UserError(f"--tasks.languages: {problem}")
        other = known.setdefault(canonical_tag(code) or code, code)
        if other != code:
            raise UserError(f"--tasks.languages: {other} and {code} are the same language: expected one of them")


def check_settings(tasks: TasksConfig) -> None:
    """See that options are of tasks that are listed, and not given twice (raises UserError)."""
    for name, own in (("lid", "tasks.languages"), ("ner", "tasks.entity_types")):
        if name in tasks.settings:
            raise UserError(f"--tasks.settings: the option of {name} is --{own}")
    unlisted = [name for name in tasks.settings if name not in tasks.names]
    if unlisted:
        raise UserError(f"--tasks.settings: task {unlisted[0]!r} is not among --tasks.names")


def check_weights(data: DataConfig) -> None:
    """See that there is a positive weight for each file to train on, or none at all (raises UserError)."""
    if data.weights and len(data.weights) != len(data.train):
        raise UserError(
            f"--data.weights: expected one for each of the {len(data.train)} files, got {len(data.weights)}"
        )
    wrong = [weight for weight in data.weights if not (math.isfinite(weight) and weight > 0)]
    if wrong:
        raise UserError(f"--data.weights: expected positive numbers, got {wrong[0]:g}")
    if data.epoch_cuts is not None and not data.weights:
        raise UserError("--data.epoch_cuts: without --data.weights an epoch is every cut once")


def check_freeze(stages: List[List[int]]) -> None:
    """See that the stages of a freeze schedule are pairs whose steps rise from 0 (raises UserError)."""
    if any(len(stage) != 2 or stage[1] < -1 for stage in stages):
        raise UserError(f"--training.freeze={stages}: expected pairs [step, layers], layers from -1 on")
    steps = [stage[0] for stage in stages]
    if stages and (steps[0] != 0 or steps != sorted(set(steps))):
        raise UserError(f"--training.freeze={stages}: expected steps that rise from 0")


def check_streaming(streaming: StreamingConfig) -> None:
    """See that there is something to draw from, and nothing impossible in it (raises UserError)."""
    for name, least in (("chunk_ms", 0), ("left_chunks", -1), ("sinks", 0)):
        values = getattr(streaming, name)
        if name != "chunk_ms" and not values:
            raise UserError(f"--model.streaming.{name}: expected at least one number")
        if any(value < least for value in values):
            raise UserError(f"--model.streaming.{name}={values}: expected numbers from {least} on")
