"""The configuration: typed dataclasses, read from YAML with ``--section.key value`` overrides (jsonargparse)."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import yaml

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.spec_augment import SpecAugmentConfig


@dataclass
class DataConfig:
    """What is trained on. Paths are of lhotse CutSets (JSONL, plain or gzipped)."""

    train: List[str] = field(default_factory=list)
    valid: List[str] = field(default_factory=list)
    stored_features: bool = False  # cuts carry features of the frozen encoder (`tokenverse-pp manifest store-features`)
    max_duration: float = 120.0  # seconds of audio in a batch, per rank
    max_cuts: Optional[int] = None  # cuts in a batch, per rank
    num_buckets: int = 20  # of similar duration, for the dynamic bucketing sampler; 1 = one shuffled stream
    buffer_size: int = 20000  # cuts that the sampler holds
    shuffle: bool = True
    num_workers: int = 1  # processes that load batches; 0 = in the training process
    min_seconds: float = 0.1  # shorter cuts are left out, by name
    max_seconds: float = 30.0  # longer ones too
    validate: bool = True  # see to labels and audio files of all cuts before training starts


@dataclass
class TasksConfig:
    """Which tasks the model knows, and which are active for a training utterance."""

    names: List[str] = field(default_factory=lambda: ["asr"])
    languages: List[str] = field(default_factory=list)  # for lid: codes such as fr
    entity_types: List[str] = field(default_factory=list)  # for ner: none = untyped [NE]
    activation: str = "labelled"  # labelled | subset | bernoulli
    activation_prob: float = 0.5  # bernoulli: chance of each labelled task
    full_only: bool = False  # TokenVerse (v1): only cuts labelled for every task

    def options(self) -> Dict[str, Dict[str, Any]]:
        """Options by task, for `tokenverse_pp.tasks.build_tasks`."""
        return {"lid": {"languages": self.languages}, "ner": {"types": self.entity_types}}


@dataclass
class TokenizerConfig:
    """SentencePiece."""

    model: Optional[str] = None  # an existing model file; none = train one on data.train
    vocab_size: int = 500


@dataclass
class VectorsConfig:
    """Task vectors."""

    placement: str = "features"  # none | features | encoder | both
    strategy: str = "sum"  # sum | combination


@dataclass
class LossConfig:
    """The pruned RNN-T loss (Kuang et al., 2022); defaults as icefall's zipformer recipe."""

    backend: str = "auto"  # auto | k2 | native
    prune_range: int = 5
    lm_scale: float = 0.25
    am_scale: float = 0.0
    rnnt_type: str = "regular"  # regular | modified | constrained
    delay_penalty: float = 0.0
    simple_scale: float = 0.5  # weight of the simple loss after warm-up
    ctc_scale: float = 0.0  # weight of an auxiliary CTC loss on the encoder; helps encoders that start at random
    warm_steps: int = 2000  # simple 1 -> simple_scale, pruned 0.1 -> 1


@dataclass
class ModelConfig:
    """The network."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    predictor_dim: int = 512
    predictor_dropout: float = 0.0
    context_size: int = 2
    joiner_dim: int = 512


@dataclass
class OptimConfig:
    """AdamW with three learning rates and one schedule."""

    lr: float = 1e-3  # all but what follows
    encoder_lr: float = 1e-4  # pretrained encoder
    # Task vectors. They start at zero beside frames of norm sqrt(dimension): at 1e-3 they reached 3% of it in 4500
    # steps of recipes/human_speech, and the model did not heed them.
    vector_lr: float = 1e-2
    weight_decay: float = 0.01  # not on biases, norms and task vectors
    warmup_steps: int = 500
    decay: str = "cosine"  # constant | inverse_sqrt | cosine (to zero at training.max_steps)
    clip: float = 5.0  # gradient norm


@dataclass
class TrainingConfig:
    """The run."""

    exp_dir: str = "exp"
    epochs: int = 1000000  # whichever of epochs and max_steps ends first
    max_steps: int = 10000
    accumulate: int = 1  # batches per step and rank
    precision: str = "fp32"  # fp32 | bf16 | fp16 (autocast)
    seed: int = 42
    log_every: int = 50  # steps
    valid_every: int = 500  # steps
    save_every: int = 500  # steps
    keep_last: int = 5  # checkpoints
    average_last: int = 5  # checkpoints averaged into the final model; they must be kept
    resume: bool = True  # go on from the newest checkpoint in exp_dir, if there is one
    init_from: Optional[str] = None  # a model folder: start from its weights (the vocabulary must be the same)
    threads: int = 0  # CPU threads of torch; 0 = torch's choice


@dataclass
class Config:
    """Everything. The resolved form is saved with every model."""

    data: DataConfig = field(default_factory=DataConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


CHOICES = {
    "tasks.activation": ("labelled", "subset", "bernoulli"),
    "model.vectors.placement": ("none", "features", "encoder", "both"),
    "model.vectors.strategy": ("sum", "combination"),
    "model.loss.backend": ("auto", "k2", "native"),
    "model.loss.rnnt_type": ("regular", "modified", "constrained"),
    "optim.decay": ("constant", "inverse_sqrt", "cosine"),
    "training.precision": ("fp32", "bf16", "fp16"),
}
AT_LEAST = {
    "data.max_duration": 0.1,
    "data.max_cuts": 1,
    "data.num_buckets": 1,
    "data.buffer_size": 1,
    "data.num_workers": 0,
    "tasks.activation_prob": 0,
    "model.loss.prune_range": 2,
    "model.context_size": 1,
    "model.spec_augment.time_span": 1,
    "model.spec_augment.channel_span": 1,
    "training.accumulate": 1,
    "training.epochs": 1,
    "training.max_steps": 1,
    "training.log_every": 1,
    "training.valid_every": 1,
    "training.save_every": 1,
    "training.keep_last": 1,
    "training.average_last": 1,
    "tokenizer.vocab_size": 3,
}


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
    if config.training.average_last > config.training.keep_last:
        raise UserError(
            f"--training.average_last={config.training.average_last}: only the last "
            f"--training.keep_last={config.training.keep_last} checkpoints are there to average"
        )
    if "lid" in config.tasks.names and not config.tasks.languages:
        raise UserError("--tasks.languages: the task lid needs the languages, e.g. '[en, fr]'")
    if config.data.stored_features and config.model.encoder.kind != "frozen":
        raise UserError(
            "--data.stored_features=true needs --model.encoder.kind=frozen: only frozen features can be stored"
        )
    return config


def parse_config(argv: Optional[Sequence[str]] = None, description: str = "") -> Config:
    """Command line -> configuration: ``--config FILE`` and overrides.

    Raises:
        UserError: for an unknown option or a value of the wrong type.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False, print_config="--print_config")
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of the options below")
    parser.add_class_arguments(Config, None, fail_untyped=True)
    try:
        parsed = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        return check_config(from_dict(parser.dump(parsed, skip_none=False)))
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(" ".join(lines[:3])) from None


def from_dict(source: Union[str, Dict[str, Any]]) -> Config:
    """YAML text or nested dictionaries -> configuration.

    Raises:
        UserError: for a key that no section has.
    """
    data = yaml.safe_load(source) if isinstance(source, str) else source
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != "config"}
    return _build(Config, data, "")


def _build(cls: Any, data: Any, where: str) -> Any:
    """Nested dictionaries -> nested dataclasses; sections are known by their defaults being dataclasses."""
    if not isinstance(data, dict):
        raise UserError(f"configuration section {where or 'root'!r}: expected a mapping, found {data!r}")
    sections = {f.name: f.default_factory for f in dataclasses.fields(cls)}
    values = {}
    for key, value in data.items():
        if key not in sections:
            raise UserError(f"configuration: unknown key {where}{key}")
        section = sections[key]
        values[key] = _build(section, value, f"{where}{key}.") if dataclasses.is_dataclass(section) else value
    return cls(**values)


def save_config(config: Config, path: Union[str, Path]) -> None:
    """Write the resolved configuration as YAML."""
    Path(path).write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def load_config(path: Union[str, Path]) -> Config:
    """Read what `save_config` wrote."""
    try:
        return check_config(from_dict(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
