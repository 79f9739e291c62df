"""Every configuration of the recipes parses, and names tasks that exist."""

import shlex
from pathlib import Path

import pytest
from command_parsers import trainings
from doc_commands import DOCUMENTS, commands_of
from lhotse import CutSet
from scripts import ROOT
from toy_runs import call_ok, read_cuts
from transformers import WhisperConfig

from tokenverse_pp.base.config_files import load_config, parse_config
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models.bundle import build_model, tasks_of
from tokenverse_pp.models.checkpoint import WEIGHTS, read_tensors
from tokenverse_pp.training.transfer import read_source, start_from

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
HUMAN = RECIPES / "human_speech"
PACKAGED = RECIPES.parent / "tokenverse_pp" / "pretrained" / "human_speech"
STARTED = "tokenverse_pp/pretrained/human_speech"
CORPORA = ("mls", "commonvoice", "ami", "callhome", "own_data")
FOR_XLSR = sorted(
    path.relative_to(RECIPES).as_posix() for name in CORPORA for path in (RECIPES / name).glob("conf/*.yaml")
)
# Given after base.yaml and others.
AFTER = {
    "streaming.yaml": ("tokenverse_pp.yaml",),
    "whole.yaml": ("tokenverse_pp.yaml",),
    "english.yaml": ("tokenverse_pp.yaml",),
    "punct.yaml": ("tokenverse_pp.yaml",),
    "punct_whole.yaml": ("tokenverse_pp.yaml", "whole.yaml"),
    "from_audio.yaml": ("tokenverse_pp.yaml",),
    "transfer_ner_new.yaml": ("transfer_ner.yaml",),
}
KINDS = {"whole.yaml": "split", "punct_whole.yaml": "split", "from_audio.yaml": "finetune"}
ON_AUDIO = ("from_audio.yaml", "whole.yaml", "punct_whole.yaml")
OVER_BASE = sorted(path.name for path in (HUMAN / "conf").glob("*.yaml") if path.name != "base.yaml")


def read(*paths):
    return parse_config([word for path in paths for word in ("--config", str(path))])


def test_toy():
    assert tasks_of(read(RECIPES / "toy" / "conf" / "toy.yaml").tasks).names == ("asr", "scd", "endp", "ner", "lid")


@pytest.mark.parametrize("name", OVER_BASE)
def test_human_speech(name):
    before = [HUMAN / "conf" / other for other in AFTER.get(name, ())]
    config = read(HUMAN / "conf" / "base.yaml", *before, HUMAN / "conf" / name)
    assert tasks_of(config.tasks).names[0] == "asr"
    if "lid" in config.tasks.names:
        # Labels are checked before cuts are chosen, so every language of the files must be known.
        assert config.tasks.languages == ["cs", "en", "es", "fr", "it", "nl", "ru"]
    assert config.model.encoder.kind == KINDS.get(name, "frozen")
    assert config.data.stored_features == (name not in ON_AUDIO)
    assert config.training.exp_dir.endswith(name[: -len(".yaml")])
    # The papers' two older models have no vectors.
    assert (config.model.vectors.placement == "none") == (name in ("xlsr_transducer.yaml", "tokenverse.yaml"))


@pytest.mark.parametrize("name", FOR_XLSR)
def test_corpora(name):
    folder, _, file = name.split("/")
    # What is for streaming is given after another configuration.
    before = [RECIPES / folder / "conf" / "tokenverse_pp.yaml"] if file == "streaming.yaml" else []
    config = read(*before, RECIPES / name)
    assert bool(config.model.streaming.chunk_ms) == (file == "streaming.yaml")
    known = tasks_of(config.tasks).names
    assert known[0] == "asr" and config.model.encoder.name == "facebook/wav2vec2-large-xlsr-53"
    assert config.training.exp_dir.startswith(f"exp/{folder}/")
    # Only TokenVerse++ has vectors, only the plain transducer knows no other task.
    assert (config.model.vectors.placement == "none") == (file in ("xlsr_transducer.yaml", "tokenverse.yaml"))
    assert (known == ("asr",)) == (file == "xlsr_transducer.yaml")
    # Every file's language is one that the model can write.
    codes = {path.split("_")[-1].split(".")[0] for path in config.data.train + config.data.valid} - {"train", "dev"}
    assert "lid" not in known or codes <= set(config.tasks.languages)
    readme = (RECIPES / folder / "README.md").read_text(encoding="utf-8")
    assert file in readme and "recipes/train.py" in readme and "recipes/decode.py" in readme


def test_committed_checkpoint_belongs_together():
    config = load_config(PACKAGED / "config.yaml")
    tasks, tokenizer = tasks_of(config.tasks), Tokenizer.load(PACKAGED / "tokenizer.model")
    tokenizer.check(tasks)
    weights = read_tensors(PACKAGED / WEIGHTS)
    assert weights["joiner.output.weight"].shape[0] == tokenizer.vocab_size == config.tokenizer.vocab_size
    assert weights["feature_vectors.table"].shape[0] == len(tasks.tasks)
    # Of Whisper's encoder there are the adapters, no weights of its own.
    assert all(".lora_" in key for key in weights if key.startswith("encoder.backbone."))
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 15e6


def described_runs():
    """The trainings that documents and heads of configurations describe: one of each list of configurations.

    All that start from the model of the repository are among them. Encoders of 300 M parameters, and the one that the
    toy corpus makes, are not built.
    """
    commands = trainings([command for document in DOCUMENTS for command in commands_of(document) if command.whole])
    found = {}
    for command in sorted(commands, key=lambda command: STARTED not in command.words):
        files = [value for word, value in zip(command.words, command.words[1:]) if word == "--config"]
        if files[0].startswith("recipes/human_speech/"):
            if STARTED in command.words or tuple(files) not in {key[1:] for key in found}:
                found.setdefault((command.document, *files), command)
    return list(found.values())


@pytest.fixture(scope="module")
def whisper_base(tmp_path_factory):
    """Whisper-base's sizes without its weights."""
    folder = tmp_path_factory.mktemp("whisper-base")
    sizes = dict(encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, d_model=512)
    WhisperConfig(**sizes, architectures=["WhisperModel"]).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("command", described_runs(), ids=lambda command: command.document)
def test_described_runs_can_start(command, whisper_base, monkeypatch):
    """The model is built, and started from what `init_from` names where the repository holds it."""
    monkeypatch.chdir(ROOT)
    config = parse_config(command.words[1:])
    if config.model.encoder.name == "data/whisper-base":
        config.model.encoder.name, config.model.encoder.random_init = whisper_base, True
    tasks = tasks_of(config.tasks)
    source = None
    if config.training.init_from and Path(config.training.init_from).is_dir():
        source = read_source(config, tasks)
    theirs = config.tokenizer.model and Path(config.tokenizer.model).is_file()
    tokenizer = Tokenizer.load(config.tokenizer.model if theirs else PACKAGED / "tokenizer.model")
    if config.training.init_from:  # whose vocabulary gains what is new
        tokenizer = tokenizer.extended(tasks.symbols)
    tokenizer.check(tasks)
    model = build_model(config, tasks, tokenizer)
    if source is not None:
        start_from(source, model, tasks, tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) > 1e6


def test_runs_from_the_packaged_model_are_among_them():
    assert {command.document for command in described_runs() if STARTED in command.words} == {
        "recipes/human_speech/RESULTS.md",
        "recipes/human_speech/conf/whole.yaml",
    }


@pytest.mark.slow
def test_command_at_the_head_of_whole_yaml_trains_on_from_the_packaged_model(
    train_script, tiny_corpus, whisper_base, tmp_path
):
    """The command as it stands, but for the data, and for an encoder of Whisper-base's sizes with random weights."""
    pytest.importorskip("peft")
    head = (HUMAN / "conf" / "whole.yaml").read_text(encoding="utf-8").partition("\ndata:")[0]
    command = head[head.rindex("python recipes/train.py") :].replace("#", " ").replace("\\\n", " ")
    words = [str(RECIPES.parent / w) if "/" in w else w for w in shlex.split(command)[2:]]
    assert words.count("--config") == 3 and "--training.init_from" in words
    cuts = sorted(read_cuts(tiny_corpus), key=lambda cut: cut.duration)[:2]
    for cut in cuts:
        for turn in cut.supervisions:
            turn.language = "en"
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    ours = {
        "data.train": f"[{tmp_path}/cuts.jsonl]",
        "data.weights": "[1]",
        "data.epoch_cuts": 4,
        "data.valid": "[]",
        "data.validate": "false",
        "data.num_workers": 0,
        "model.encoder.name": whisper_base,
        "model.encoder.random_init": "true",
        "training.max_steps": 1,
        "training.precision": "fp32",
        "training.threads": 1,
        "training.exp_dir": tmp_path / "exp",
    }
    done = call_ok(train_script.main, *words, *(word for key, value in ours.items() for word in (f"--{key}", value)))
    # All its weights are there: adapters and CTC head too.
    assert not any(word in done.stderr for word in ("it lacks", "left out")), done.stderr
