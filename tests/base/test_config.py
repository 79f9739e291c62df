"""The configuration: files, overrides, and what is refused."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import yaml

from tokenverse_pp.base.config import Config, DataConfig, OptimConfig
from tokenverse_pp.base.config_files import check_config, from_dict, load_config, parse_config, save_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import yaml_of


def test_defaults_are_possible_and_survive_a_file(tmp_path):
    assert check_config(Config()) == Config()
    config = parse_config(["--optim.lr", "0.5", "--tasks.names", "[asr, lid]", "--tasks.languages", "[fr]"])
    assert (config.optim.lr, config.tasks.names, config.tasks.languages) == (0.5, ["asr", "lid"], ["fr"])
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert parse_config(["--config", str(tmp_path / "c.yaml")]) == config
    assert parse_config([]) == Config()


def test_later_files_and_options_win_and_leave_the_rest(tmp_path):
    (tmp_path / "a.yaml").write_text("optim: {lr: 0.1, clip: 2}\nmodel: {encoder: {stack: 2}}")
    (tmp_path / "b.yaml").write_text("optim: {lr: 0.2}")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = parse_config([*files, "--model.encoder.name", "x"])
    assert (config.optim.lr, config.optim.clip) == (0.2, 2)
    assert (config.model.encoder.stack, config.model.encoder.name) == (2, "x")
    assert parse_config([*files, "--optim.lr", "0.3"]).optim.lr == 0.3


@contextlib.contextmanager
def one_line(said):
    """Expect a UserError of one line that says this."""
    with pytest.raises(UserError) as caught:
        yield
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("trainning: {max_steps: 4}", "unknown option --trainning.max_steps: is --training.max_steps meant?"),
        ("model: {encoder: {nme: x}}", "unknown option --model.encoder.nme: is --model.encoder.name meant?"),
        ("model: {encoder: wav2vec2}", "--model.encoder=wav2vec2: expected a mapping of options"),
        ("data: {train: }", "data.train: expected a value, found null"),
        ("optim: {lr: 1}\ntraining: {}\noptim: {clip: 2}", "key 'optim' in line 1 and again in line 3"),
        ("optim:\n  lr: 1\n  clip: 2\n  lr: 3", "key 'lr' in line 2 and again in line 4"),
    ],
)
def test_mistakes_in_a_file_are_told_in_a_line(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with one_line(said):
        parse_config(["--config", str(tmp_path / "c.yaml")])


def test_a_merged_mapping_may_override_its_keys():
    text = "optim: &a {lr: 0.1, clip: 3}\nmodel: {}\n"
    assert yaml_of(text + "x: &b {<<: *a, lr: 0.2}\ny: {<<: *b, clip: 4}")["y"] == {"lr": 0.2, "clip": 4}


def test_every_option_can_be_given_on_the_command_line():
    def options(section, prefix):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                yield from options(value, f"{prefix}{field.name}.")
            else:
                text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
                yield f"--{prefix}{field.name}={text.splitlines()[0] if text else ''}"

    assert parse_config(list(options(Config(), ""))) == Config()


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--optim.lrr=1", "unknown option --optim.lrr: is --optim.lr meant?"),
        ("--max_steps=1", "unknown option --max_steps: is --training.max_steps meant?"),
        ("--xyzzy=1", "unknown option --xyzzy"),
        ("--optim.lr=fast", "--optim.lr=fast: expected a number"),
        ("--training.max_steps=1.5", "--training.max_steps=1.5: expected a whole number"),
        ("--data.max_cuts=None", "--data.max_cuts=None: expected a whole number or null"),
        ("--data.train=3", "data.train"),
        ("--tasks.languages=[no]", "write them in quotes"),  # Norwegian, which YAML reads as false
        ("--data.min_seconds=40", "--data.min_seconds=40.0: expected at most --data.max_seconds=30.0"),
        ("--data.shuffle=maybe", "data.shuffle"),
        ("--tasks.activation=all", "labelled, subset, bernoulli"),
        ("--model.vectors.placement=middle", "none, features, encoder, both"),
        ("--model.vectors.strategy=product", "sum, combination"),
        ("--model.vectors.code=gray", "binary, centred"),
        ("--model.vectors.scale=0", "--model.vectors.scale=0: expected a number above 0"),
        ("--model.vectors.scale=-1", "above 0"),
        ("--model.encoder.kind=molten", "--model.encoder.kind=molten: expected one of finetune, frozen, split"),
        ("--optim.decay=linear", "constant, inverse_sqrt, cosine"),
        ("--training.precision=fp8", "fp32, bf16, fp16"),
        ("--training.average_last=9", "--training.keep_last=5"),
        ("--training.average_last=0", "at least 1"),
        ("--data.max_cuts=0", "at least 1"),
        ("--model.predictor_dropout=2", "expected 0 to 1"),
        ("--data.num_workers=-1", "at least 0"),
        ("--model.spec_augment.time_span=0", "at least 1"),
        ("--tokenizer.vocab_size=2", "at least 3"),
        ("--tasks.names=[asr,lid]", "--tasks.languages"),
        ("--data.stored_features=true", "--model.encoder.kind=frozen"),
        ("--config=/no/such/file.yaml", "/no/such/file.yaml"),
    ],
)
def test_impossible_values_are_refused_in_one_line(argument, said):
    with one_line(said):
        parse_config([argument])


@pytest.mark.parametrize(
    "text, said",
    [
        ("optim: {lrr: 1}", "optim.lrr"),
        ("sound: {}", "sound"),
        ("optim: 3", "optim"),
        ("- optim", "mapping"),
        ("", "mapping"),
        ("optim: [1", "not YAML"),
        ("optim: {decay: linear}", "optim.decay"),
    ],
)
def test_saved_configuration_that_was_spoilt_is_refused(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with one_line(said):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="no such"):
        load_config(tmp_path / "d.yaml")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"optim:\n  lr: 1\n lr: 2",
            "c.yaml: not YAML: expected <block end>, but found '<block mapping start>' in line 3",
        ),
        (b"training: {max_step: 3}", "max_step"),
        (b"- a", "c.yaml: expected a mapping"),
        (b"# nothing", "c.yaml: expected a mapping"),
        (b"[" * 10_000, "c.yaml: YAML nested too deeply"),  # a reader in C crashes
        ("# \u00e9t\u00e9".encode("latin-1"), "c.yaml: not UTF-8"),
    ],
)
def test_a_broken_file_on_the_command_line_is_refused_in_one_line(tmp_path, data, said):
    (tmp_path / "c.yaml").write_bytes(data)
    for words in (["--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        with pytest.raises(UserError) as caught:
            parse_config(words)
        assert said in str(caught.value) and "\n" not in str(caught.value)


PACKAGED = Path(__file__).resolve().parents[2] / "tokenverse_pp" / "pretrained" / "human_speech"


def continued(*words):
    return parse_config(["--training.init_from", "human-speech", *words], find_model=lambda config: PACKAGED)


def test_a_continued_run_has_the_options_of_its_model():
    theirs = load_config(PACKAGED / "config.yaml")
    config = continued("--model.spec_augment.time_share", "0.5", "--optim.vector_lr", "1e-5")
    assert config.tasks.names == theirs.tasks.names and config.tasks.languages == theirs.tasks.languages
    assert config.model.encoder == theirs.model.encoder and config.model.streaming == theirs.model.streaming
    assert config.model.spec_augment.time_share == 0.5 and config.model.spec_augment.channel_share == 0.1
    assert config.model.vectors.masked is None and config.model.loss.warm_steps == 1
    assert (config.optim.lr, config.optim.encoder_lr, config.optim.vector_lr) == (5e-4, 5e-5, 1e-5)
    assert config.data == DataConfig() and config.tasks.activation == "labelled" and config.tasks.plugins == []
    # New parameters alone start from nothing, and need the rates of a new model.
    assert continued("--training.train_only", "new").optim == OptimConfig()
    # Other runs have the usual defaults.
    assert parse_config([], find_model=lambda config: PACKAGED) == Config()


def test_from_dict_does_not_change_its_argument():
    source = {"config": None, "optim": {"lr": 1.0}}
    assert from_dict(source).optim.lr == 1.0
    assert source == {"config": None, "optim": {"lr": 1.0}}


@pytest.mark.parametrize(
    "options, said",
    [
        (["--data.train=[a,b]", "--data.weights=[1]"], "one for each of the 2 files, got 1"),
        (["--data.train=[a]", "--data.weights=[0]"], "positive numbers, got 0"),
        (["--data.train=[a]", "--data.epoch_cuts=5"], "without --data.weights"),
        (["--training.keep_best=2"], "needs --data.valid"),
        (
            ["--model.vectors.code=centred", "--model.vectors.strategy=combination"],
            "--model.vectors.code=centred: expected --model.vectors.strategy=sum",
        ),
        (
            ["--tasks.names=[asr, scd]", "--model.vectors.placement=none", "--tasks.activation=subset"],
            "expected labelled",
        ),
        (
            ["--tasks.names=[asr, scd]", "--model.vectors.placement=none", "--tasks.paired=true"],
            "tasks.paired=true: .* expected false",
        ),
        (["--tasks.paired=true", "--data.max_cuts=1"], "expected at least 2"),
        (
            ["--model.encoder.lora_rank=2", "--model.encoder.freeze_layers=-1"],
            "--model.encoder.freeze_layers=-1: does nothing with --model.encoder.lora_rank",
        ),
        (
            ["--model.encoder.lora_rank=2", "--model.encoder.freeze_feature_encoder=false"],
            "--model.encoder.freeze_feature_encoder=false: does nothing with --model.encoder.lora_rank",
        ),
        *(
            (["--optim.layer_decay=0.9", f"--model.encoder.{what}"], f"layer_decay=0.9: does nothing with .*{what}")
            for what in ("random_init=true", "lora_rank=2", "kind=frozen")
        ),
        (["--optim.clip=0"], "--optim.clip=0.*: expected more than 0"),
        (["--optim.clip=.nan"], "--optim.clip=nan: expected more than 0"),
        (["--optim.lr=.nan"], "--optim.lr=nan: expected at least 0"),
        (["--optim.encoder_lr=-1e-4"], "--optim.encoder_lr=-0.0001: expected at least 0"),
        (["--optim.weight_decay=-1"], "--optim.weight_decay=-1.0: expected at least 0"),
        (["--model.loss.delay_penalty=-0.1"], "--model.loss.delay_penalty=-0.1: expected at least 0"),
        (["--model.encoder.lora_dropout=1.5"], "--model.encoder.lora_dropout=1.5: expected 0 to 1"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        parse_config(options)


def test_a_saved_model_with_frozen_layers_and_adapters_is_read(tmp_path):
    config = from_dict({"model": {"encoder": {"lora_rank": 2, "freeze_layers": 1}}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    split = ["--model.encoder.lora_rank=2", "--model.encoder.kind=split"]
    parse_config([*split, "--model.encoder.freeze_layers=1", "--model.encoder.freeze_feature_encoder=false"])


def test_a_saved_model_with_layer_decay_and_random_weights_is_read_and_continued(tmp_path):
    config = from_dict({"model": {"encoder": {"random_init": True}}, "optim": {"layer_decay": 0.9}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    continued = ["--training.init_from=old", "--model.encoder.random_init=true", "--optim.layer_decay=0.9"]
    assert parse_config(continued).optim.layer_decay == 0.9


def test_without_vectors_asr_alone_may_have_any_activation():
    config = parse_config(["--tasks.names=[asr]", "--model.vectors.placement=none", "--tasks.activation=subset"])
    assert config.tasks.activation == "subset"
