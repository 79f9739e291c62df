"""Read configurations from command lines and YAML, check them, and write them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import yaml

from tokenverse_pp.base.config import Config, DataConfig, EncoderConfig, ModelConfig, TasksConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text, yaml_of
from tokenverse_pp.base.languages import canonical_tag, language_problem
from tokenverse_pp.base.options import nested_option_help

# jsonargparse's message on a value that is not among the choices of a `Literal`.
_NO_CHOICE = re.compile(r'Parser key "(?P<name>[\w.]+)":.*?Literal\[(?P<choices>.*?)\]\. Got value: (?P<value>.*)')
# Its other messages that users see most.
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<name>[\w.]+)": Expected a <class \'(?P<type>\w+)\'>\. Got value: (?P<value>.*)'
)
_NO_UNION = re.compile(
    r'Parser key "(?P<name>[\w.]+)": Does not validate .* Subtypes: \[(?P<types>.*?)\] Errors: .*'
    r"Given value: (?P<value>.*)"
)
_NO_SECTION = re.compile(r'Parser key "(?P<name>[\w.]+)": Unable to load config \'(?P<value>.*?)\'')
_UNKNOWN = (
    re.compile(r"Option '(?P<name>[\w.]+)' is not accepted"),
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<name>[\w.-]+)"),
)
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "[a, b, ..]",
    "NoneType": "null",
}

# Options whose defaults differ from the behaviour before they existed, with values for that behaviour.
BEFORE: Dict[str, Any] = {"model.vectors.masked": False, "model.spec_augment.fill": "zero"}

# Defaults of a run that continues from a model (`training.init_from`). Options of these sections come from the model,
CONTINUED_SECTIONS = ("model", "tasks.names", "tasks.languages", "tasks.entity_types", "tasks.settings")
# except these, which depend on the machine, or are derived from the model (`transfer.continue_vectors`).
NOT_CONTINUED = (
    *("model.vectors.masked", "model.loss.backend", "model.loss.warm_steps"),
    *("model.encoder.gradient_checkpointing", "model.encoder.checkpoint_layers"),
)
# Short warm-up to half the learning rates of a new model, as the weights are already close to good ones.
CONTINUED = {
    "model.loss.warm_steps": 1,
    "optim.lr": 5e-4,
    "optim.encoder_lr": 5e-5,
    "optim.vector_lr": 5e-3,
    "optim.warmup_steps": 20,
}


def parse_config(
    argv: Optional[Sequence[str]] = None,
    description: str = "",
    find_model: Optional[Callable[[Config], Path]] = None,
) -> Config:
    """Read a configuration from the command line: ``--config FILE`` and overrides.

    Args:
        argv: the arguments; None: those of the command line.
        description: for ``--help``.
        find_model: finds the folder of the model that ``training.init_from`` names, whose configuration then gives
            defaults (`CONTINUED_SECTIONS`); None: the defaults are those of the dataclasses.

    Raises:
        UserError: for an unknown option or a value of the wrong type.
    """
    parser = _parser(description)
    words = list(sys.argv[1:] if argv is None else argv)
    _check_files(words)
    with type_errors():
        if find_model:
            plain = [word for word in words if not word.startswith("--print_config")]
            config = _read(parser, plain)
            if config.training.init_from:
                parser = make_parser(description)  # with its own defaults
                parser.set_defaults(continued_defaults(find_model(config), config.training.train_only == "all"))
        if not find_model or config.training.init_from or words != plain:
            config = _read(parser, words)
        check_null(config)
        check_config(config)
    # Only before training: models that were trained otherwise still load.
    check_activation(config)
    check_adapters(config.model.encoder)
    check_layer_decay(config)
    check_languages(config.tasks)
    return config


def _check_files(words: Sequence[str]) -> None:
    """Check that each file of ``--config`` is YAML with options (raises UserError naming it)."""
    for word, following in zip(words, [*words[1:], ""]):
        path = following if word == "--config" else word[9:] if word.startswith("--config=") else ""
        if not os.path.isfile(path):
            continue
        try:
            data = yaml_of(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}: expected a mapping such as `optim: {{lr: 0.001}}`, found {repr(data)[:60]}")


def _read(parser: Any, words: Sequence[str]) -> Config:
    return from_dict(parser.dump(parser.parse_args(words), skip_none=False))


def continued_defaults(folder: Path, whole: bool) -> Dict[str, Any]:
    """Defaults of a run that continues from the model in a folder, by dotted name.

    Args:
        whole: whether the run trains all parameters; otherwise the learning rates are those of a new model.

    Raises:
        UserError: the configuration cannot be read.
    """
    values = {name: value for name, value, _ in options_of(load_config(folder / "config.yaml"))}
    taken = {
        name: value
        for name, value in values.items()
        if any(f"{name}.".startswith(f"{section}.") for section in CONTINUED_SECTIONS) and name not in NOT_CONTINUED
    }
    return {**taken, **(CONTINUED if whole else {})}


def make_parser(description: str = "") -> Any:
    """Return a jsonargparse parser of all options; their help is the fields' docstrings, and errors are raised."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False, print_config="--print_config")
    about = "YAML file with any of the options below; may be given several times, later files win"
    parser.add_argument("--config", action=ActionConfigFile, help=about)
    parser.add_class_arguments(Config, None, fail_untyped=True)
    # Not by jsonargparse's own setting for attribute docstrings, which is global and was renamed between releases.
    help_of = nested_option_help(Config())
    for action in parser._actions:
        if action.dest in help_of:
            action.help = help_of[action.dest].replace("%", "%%")
    return parser


_parser = functools.lru_cache(maxsize=4)(make_parser)  # for callers that do not change its defaults


@contextlib.contextmanager
def type_errors() -> Iterator[None]:
    """Turn jsonargparse's errors into a UserError of one line."""
    from jsonargparse import ArgumentError

    try:
        yield
    except OverflowError as error:  # a whole number too large for a float
        raise UserError(f"a number is too large: {error}") from None
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(_plain(" ".join(lines)) or " ".join(lines[:3])) from None


def _plain(said: str) -> Optional[str]:
    """Jsonargparse's message in the form of ours; None if its form is unknown."""
    found = _NO_CHOICE.search(said)
    if found:
        choices = found["choices"].replace("'", "")
        return f"--{found['name']}={found['value']}: expected one of {choices}"
    found = _WRONG_TYPE.search(said)
    if found:
        why = f"expected {_TYPES.get(found['type'], found['type'])}"
        if found["type"] == "str" and found["value"] in ("True", "False"):
            why += "; YAML reads no, off, yes and on as false and true: write them in quotes"
        return f"--{found['name']}={found['value']}: {why}"
    found = _NO_UNION.search(said)
    if found:
        types = re.findall(r"'(\w+)'", found["types"])
        return f"--{found['name']}={found['value']}: expected {' or '.join(_TYPES.get(name, name) for name in types)}"
    found = _NO_SECTION.search(said)
    if found:
        return f"--{found['name']}={found['value']}: expected a mapping of options"
    for form in _UNKNOWN:
        found = form.search(said)
        if found:
            given = ".".join(found.groupdict().values())  # in the order of the pattern
            names = [name for name, _, _ in options_of(Config())]
            same = [name for name in names if name.rsplit(".", 1)[-1] == given.replace("-", "_")]
            near = same or difflib.get_close_matches(given, names, 1)
            return f"unknown option --{given}{f': is --{near[0]} meant?' if near else ''}"
    return None


def from_dict(source: Union[str, Dict[str, Any]]) -> Config:
    """Build a configuration from YAML text or nested dictionaries (raises UserError for an unknown key)."""
    data = yaml_of(source) if isinstance(source, str) else source
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != "config"}
    return _build(Config, data, "")


def _build(cls: Any, data: Any, where: str) -> Any:
    """Build nested dataclasses from nested dictionaries; sections are fields with a dataclass as default."""
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


def check_types(config: Config) -> None:
    """Check the types of all values (raises UserError).

    `tasks.settings` is checked only here: its values may have any type, and jsonargparse would import the module that a
    ``class_path`` in them names.
    """
    values = dataclasses.asdict(config)
    settings = values["tasks"].pop("settings")
    if not isinstance(settings, dict) or not all(isinstance(options, dict) for options in settings.values()):
        raise UserError(f"tasks.settings: expected mappings of options by task, found {repr(settings)[:200]}")
    if not all(isinstance(key, str) for options in [settings, *settings.values()] for key in options):
        raise UserError("tasks.settings: expected names of tasks and options")
    check_null(config)
    _parse_values(_Values(repr(values), values))


def check_null(config: Config) -> None:
    """Check that null, which jsonargparse accepts everywhere, is only where an option may have no value."""
    for name, value, option in options_of(config):
        if value is None and "Optional" not in str(option.type):
            raise UserError(f"{name}: expected a value, found null")


@dataclasses.dataclass(frozen=True)
class _Values:
    """The values of a configuration. Two are equal if they are written the same: 1, 1.0 and true differ."""

    written: str
    values: Dict[str, Any] = dataclasses.field(compare=False)


# Making a parser and checking 130 options takes a tenth of a second, and a model's configuration is read several times.
@functools.lru_cache(maxsize=64)
def _parse_values(given: _Values) -> None:
    with type_errors():
        make_parser().parse_object(given.values)


def options_of(section: Any, where: str = "") -> Iterator[Tuple[str, Any, dataclasses.Field[Any]]]:
    """Yield dotted name, value and field of every option."""
    for option in dataclasses.fields(section):
        value = getattr(section, option.name)
        if dataclasses.is_dataclass(value):
            yield from options_of(value, f"{where}{option.name}.")
        else:
            yield f"{where}{option.name}", value, option


def save_config(config: Config, path: Union[str, Path]) -> None:
    """Write the resolved configuration as YAML."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def load_config(path: Union[str, Path]) -> Config:
    """Read a file that `save_config` wrote, and that may have been edited since.

    Options missing in it did not exist when it was written: they get their defaults, or the values of `BEFORE`.

    Raises:
        UserError: naming the file, if it is missing, not YAML, or has an unknown key or a value of the wrong type.
    """
    try:
        data = yaml_of(Path(path).read_text(encoding="utf-8"))
        config = from_dict(data)
        _set_before(config, data)
        check_types(config)
        return check_config(config)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _set_before(config: Config, data: Dict[str, Any]) -> None:
    """Set the options of `BEFORE` that a saved configuration (``data``, read as ``config``) does not have."""
    for name, value in BEFORE.items():
        *path, last = name.split(".")
        section: Any = config
        given: Any = data
        for part in path:
            section, given = getattr(section, part), given.get(part, {})
        if last not in given:
            setattr(section, last, value)


def check_config(config: Config) -> Config:
    """Check that values are in range and consistent (raises UserError naming the option)."""
    for name, value, option in options_of(config):
        least, most = option.metadata.get("least"), option.metadata.get("most")
        if most is not None and not least <= value <= most:
            raise UserError(f"--{name}={value}: expected {least} to {most}")
        if least is not None and value is not None and not value >= least:  # also NaN
            raise UserError(f"--{name}={value}: expected at least {least}")
    if not config.optim.clip > 0:
        raise UserError(f"--optim.clip={config.optim.clip}: expected more than 0; a large number for no clipping")
    if not 0 < config.optim.layer_decay <= 1:
        raise UserError(f"--optim.layer_decay={config.optim.layer_decay}: expected more than 0, at most 1")
    if config.training.average_last > config.training.keep_last:
        raise UserError(
            f"--training.average_last={config.training.average_last}: only the last "
            f"--training.keep_last={config.training.keep_last} checkpoints are there to average"
        )
    for name, value in (("keep_best", config.training.keep_best), ("patience", config.training.patience)):
        if value and not config.data.valid:
            raise UserError(f"--training.{name}={value}: needs --data.valid, to know the best by")
    check_data(config.data)
    if config.tasks.paired and config.data.max_cuts == 1:
        raise UserError("--data.max_cuts=1: expected at least 2 with --tasks.paired=true, where each cut counts twice")
    check_freeze(config.training.freeze)
    if config.training.strategy == "fsdp" and config.training.precision == "fp16":
        raise UserError("--training.precision=fp16: expected fp32 or bf16 with --training.strategy=fsdp")
    if config.training.strategy == "fsdp" and config.model.encoder.checkpoint_layers == "auto":
        raise UserError("--model.encoder.checkpoint_layers=auto: expected a number with --training.strategy=fsdp")
    check_transducer(config)
    check_model(config.model)
    check_settings(config.tasks)
    if "lid" in config.tasks.names and not config.tasks.languages:
        raise UserError("--tasks.languages: the task lid needs the languages, e.g. '[en, fr]'")
    if config.data.stored_features and config.model.encoder.kind == "finetune":
        raise UserError(
            "--data.stored_features=true needs --model.encoder.kind=frozen or split: only frozen features can be stored"
        )
    return config


def check_transducer(config: Config) -> None:
    """Check that a pretrained predictor and joiner get the encoder's output as in their training (raises UserError)."""
    encoder = config.model.encoder
    if config.model.transducer != "pretrained":
        return
    wrong = {"kind": encoder.kind != "finetune", "stack": encoder.stack != 1}
    # A saved model has set its sizes, and all weights are in its folder.
    is_saved = bool(config.training.init_from) or config.model.predictor_layers > 0
    wrong["random_init"] = encoder.random_init and not is_saved
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise UserError(
            f"--model.encoder.{name}={str(getattr(encoder, name)).lower()}: --model.transducer=pretrained takes the "
            "whole checkpoint over: expected kind finetune, stack 1 and no random_init"
        )


def check_data(data: DataConfig) -> None:
    """Check the limits on seconds, the weights, one per training file or none, and data.augment (raises UserError)."""
    if data.min_seconds > data.max_seconds:
        raise UserError(
            f"--data.min_seconds={data.min_seconds}: expected at most --data.max_seconds={data.max_seconds}"
        )
    if data.weights and len(data.weights) != len(data.train):
        raise UserError(
            f"--data.weights: expected one for each of the {len(data.train)} files, got {len(data.weights)}"
        )
    wrong = [weight for weight in data.weights if not (math.isfinite(weight) and weight > 0)]
    if wrong:
        raise UserError(f"--data.weights: expected positive numbers, got {wrong[0]:g}")
    if data.epoch_cuts is not None and not data.weights:
        raise UserError("--data.epoch_cuts: without --data.weights an epoch is every cut once")
    a = data.augment
    for speed in a.speed:
        if not 0.5 <= speed <= 2:
            raise UserError(f"--data.augment.speed={a.speed}: expected factors from 0.5 to 2, such as [0.9, 1.0, 1.1]")
    for name, values in (("noise_snr", a.noise_snr), ("volume_db", a.volume_db)):
        if (values or name == "noise_snr") and not (len(values) == 2 and -100 <= values[0] <= values[1] <= 100):
            raise UserError(f"--data.augment.{name}={values}: expected the lowest and the highest dB")
    if a.enabled and data.stored_features:
        raise UserError(
            "--data.augment: changes audio, but --data.stored_features=true reads features that were stored before: "
            "expected false, or `tokenverse-pp manifest store-features --speed`"
        )


def check_activation(config: Config) -> None:
    """Check that a model without task vectors is trained with all tasks active (raises UserError).

    Such a model cannot know which tasks are active, so task tokens that appear only sometimes are noise: with bernoulli
    activation of 0.8 on recipes/human_speech, a TokenVerse missed four of ten speaker changes.
    """
    told = config.model.vectors.placement != "none" or set(config.tasks.names) == {"asr"}
    wrong = {"paired": config.tasks.paired, "activation": config.tasks.activation}
    for name, fine in (("activation", "labelled"), ("paired", False)):
        if not told and wrong[name] != fine:
            raise UserError(
                f"--tasks.{name}={str(wrong[name]).lower()}: with --model.vectors.placement=none nothing tells the "
                f"model which tasks are active; expected {str(fine).lower()}"
            )


def check_adapters(encoder: EncoderConfig) -> None:
    """Check that no option contradicts adapters: all layers have them, nothing else trains (raises UserError)."""
    if encoder.kind != "finetune" or not encoder.lora_rank:
        return
    if encoder.freeze_layers:
        raise UserError(
            f"--model.encoder.freeze_layers={encoder.freeze_layers}: does nothing with --model.encoder.lora_rank, "
            "whose adapters are in all layers: expected 0, or kind split with --model.encoder.split_layer"
        )
    if not encoder.freeze_feature_encoder:
        raise UserError(
            "--model.encoder.freeze_feature_encoder=false: does nothing with --model.encoder.lora_rank, which trains "
            "adapters only: expected true"
        )


def check_layer_decay(config: Config) -> None:
    """Check that ``optim.layer_decay`` has pretrained layers to act on (raises UserError)."""
    encoder = config.model.encoder
    why = {
        "random_init": encoder.random_init and not config.training.init_from,
        "lora_rank": encoder.lora_rank > 0,
        "kind": encoder.kind == "frozen",
    }
    for name in (name for name, is_so in why.items() if is_so and config.optim.layer_decay != 1):
        raise UserError(
            f"--optim.layer_decay={config.optim.layer_decay}: does nothing with --model.encoder.{name}="
            f"{str(getattr(encoder, name)).lower()}: no pretrained layer is trained; expected 1"
        )


def check_languages(tasks: TasksConfig) -> None:
    """Check that the languages to train are codes of different languages (raises UserError)."""
    known: Dict[str, str] = {}
    for code in tasks.languages:
        problem = language_problem(code, registered=False)
        if problem:
            raise UserError(f"--tasks.languages: {problem}")
        other = known.setdefault(canonical_tag(code) or code, code)
        if other != code:
            raise UserError(f"--tasks.languages: {other} and {code} are the same language: expected one of them")


def check_settings(tasks: TasksConfig) -> None:
    """Check that options belong to listed tasks and are given once (raises UserError)."""
    for name, own in (("lid", "tasks.languages"), ("ner", "tasks.entity_types")):
        if name in tasks.settings:
            raise UserError(f"--tasks.settings: the option of {name} is --{own}")
    unlisted = [name for name in tasks.settings if name not in tasks.names]
    if unlisted:
        raise UserError(f"--tasks.settings: task {unlisted[0]!r} is not among --tasks.names")


def check_freeze(stages: List[List[int]]) -> None:
    """Check that the stages of a freeze schedule are pairs whose steps rise from 0 (raises UserError)."""
    if any(len(stage) != 2 or stage[1] < -1 for stage in stages):
        raise UserError(f"--training.freeze={stages}: expected pairs [step, layers], layers from -1 on")
    steps = [stage[0] for stage in stages]
    if stages and (steps[0] != 0 or steps != sorted(set(steps))):
        raise UserError(f"--training.freeze={stages}: expected steps that rise from 0")


def check_model(model: ModelConfig) -> None:
    """Check scale and code of the task vectors, and the lists of chunk options to draw from (raises UserError)."""
    vectors = model.vectors
    if not (math.isfinite(vectors.scale) and vectors.scale > 0):
        raise UserError(f"--model.vectors.scale={vectors.scale:g}: expected a number above 0")
    if vectors.code == "centred" and vectors.strategy != "sum":
        raise UserError(f"--model.vectors.code=centred: expected --model.vectors.strategy=sum, got {vectors.strategy}")
    for name, least in (("chunk_ms", 0), ("left_chunks", -1), ("sinks", 0)):
        values = getattr(model.streaming, name)
        if name != "chunk_ms" and not values:
            raise UserError(f"--model.streaming.{name}: expected at least one number")
        if any(value < least for value in values):
            raise UserError(f"--model.streaming.{name}={values}: expected numbers from {least} on")
