"""What foreign folders, manifests and pages must not do: run code, open what is not a file, or leave their folder.

Each test has something hostile that would leave a canary: a file that is not there afterwards.
"""

import io
import json
import shutil
import sys
import tarfile
from html.parser import HTMLParser

import pytest
import torch
import yaml
from command_lines import run, run_ok
from corpus.packages import _extract_member
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_cuts import make_cut
from lhotse import CutSet
from tiny_models import write_model
from toy_runs import assert_one_line, call, call_ok, toy_options

from tokenverse_pp import TokenVerse
from tokenverse_pp.base.config import EncoderConfig
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.base.files import aligned, check_links
from tokenverse_pp.cli.transcribing import file_name
from tokenverse_pp.data.hypotheses import read_hypotheses
from tokenverse_pp.data.importing.rows import BadRow
from tokenverse_pp.data.importing.tables import _downloaded
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.evaluation.report import write_report
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.models.encoders import kinds
from tokenverse_pp.models.stored_features import _file_key
from tokenverse_pp.onnx.folder import read_folder
from tokenverse_pp.runtime.__main__ import main as runtime
from tokenverse_pp.tasks import REGISTRY, load_plugins

TASK = """
from tokenverse_pp.tasks.scd import SpeakerChange

class Emotion(SpeakerChange):
    name = "emo"
    token = "[EMO]"
"""
RATE = 16000


# --- Code that a model names -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emotion_model(tiny_corpus, tmp_path_factory):
    """A model with a task from outside, as its author has it."""
    folder = tmp_path_factory.mktemp("emotion")
    (folder / "tasks.py").write_text(TASK)
    before = dict(REGISTRY._outside)
    load_plugins([str(folder / "tasks.py")])
    try:
        return write_model(tiny_corpus, folder / "model", tasks__names=["asr", "emo"], tasks__languages=[])
    finally:
        REGISTRY._outside = before


@pytest.fixture(scope="module")
def plain_model(tiny_corpus, tmp_path_factory):
    return write_model(tiny_corpus, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture
def hostile(emotion_model, tmp_path, canary, fresh_registry):
    """A copy of it whose file, in the model's folder, writes the canary when it is run."""
    folder = tmp_path / "hostile"
    shutil.copytree(emotion_model, folder, ignore=shutil.ignore_patterns("checksums.json"))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n{TASK}")
    name_plugins(folder, [str(folder / "evil.py")])
    return folder


def name_plugins(folder, plugins):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["tasks"]["plugins"] = plugins
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


COMMANDS = {
    "transcribe": "transcribe {audio} --model {model}",
    "list": "transcribe --list-tasks --model {model}",
    "serve": "serve --model {model} --port 0",
    "export": "export {model} --output-dir {out}",
    "calibrate": "calibrate --model {model} --hyps {out} --cuts {out}",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_do_not_run_a_models_file(command, hostile, canary, tiny_corpus, tmp_path):
    if command == "serve":
        pytest.importorskip("aiohttp")
    audio = next((tiny_corpus / "audio").glob("*.flac"))
    words = COMMANDS[command].format(model=hostile, audio=audio, out=tmp_path / "out").split()
    refused = run(*words)
    assert refused.exit_code == 2 and refused.stderr.count("error: ") == 1 == refused.stderr.count("\n"), refused.stderr
    for said in (hostile, "task 'emo'", hostile / "evil.py", "is not run", "--plugin FILE", "--trust-plugins"):
        assert str(said) in refused.stderr
    assert not canary.exists()


def test_ones_own_file_stands_for_the_models(hostile, canary, tiny_corpus, tmp_path):
    (tmp_path / "mine.py").write_text(TASK)
    audio = next((tiny_corpus / "audio").glob("*.flac"))
    for words in (
        ("transcribe", audio, "--method", "greedy", "--model", hostile, "--plugin", tmp_path / "mine.py"),
        ("--plugin", tmp_path / "mine.py", "transcribe", "--list-tasks", "--model", hostile),
    ):
        run_ok(*words)
    assert not canary.exists()
    assert "emo" in TokenVerse.from_pretrained(hostile, plugins=[tmp_path / "mine.py"]).tasks
    assert not canary.exists()


def test_a_models_file_is_run_where_it_is_trusted(hostile, canary):
    name_plugins(hostile, ["evil.py"])  # looked for in the model's folder first
    with pytest.raises(UserError, match=r"'evil.py', which the model names for it, is not run"):
        TokenVerse.from_pretrained(hostile)
    assert not canary.exists()
    assert "emo" in TokenVerse.from_pretrained(hostile, trust_plugins=True).tasks
    assert canary.exists()


def test_a_trusting_command_runs_it(hostile, canary):
    done = run("transcribe", "--list-tasks", "--model", hostile, "--trust-plugins")
    assert done.exit_code == 0 and "[EMO]" in done.stdout and canary.exists()


def test_modules_are_code_too(hostile, canary, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(canary)!r}, 'w').close()\n{TASK}")
    monkeypatch.syspath_prepend(str(tmp_path))
    name_plugins(hostile, ["evil_module"])
    with pytest.raises(UserError, match=r"'evil_module'.* is not run"):
        load_model(hostile)
    assert not canary.exists() and "evil_module" not in sys.modules


def test_a_file_of_no_task_that_is_needed_is_left_alone(plain_model, tmp_path, canary):
    folder = shutil.copytree(plain_model, tmp_path / "plain")
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()")
    name_plugins(folder, [str(tmp_path / "evil.py")])
    load_model(folder)
    assert not canary.exists()


def test_decoding_and_training_do_not_run_it(hostile, canary, tiny_corpus, tmp_path, decode_script, train_script):
    cuts = f"{tiny_corpus}/cuts_test.jsonl.gz"
    words = ["--model", hostile, "--cuts", cuts, "--output-dir", tmp_path / "out", "--method", "greedy", "--first", 1]
    assert_one_line(call(decode_script.main, *words, standalone_mode=True), "task 'emo'", "evil.py", "--plugin FILE")
    options = toy_options(tiny_corpus, tmp_path / "exp", training__init_from=hostile)
    assert_one_line(call(train_script.main, *options), "task 'emo'", "evil.py", "tasks.plugins")
    assert not canary.exists() and not (tmp_path / "exp").exists()
    (tmp_path / "mine.py").write_text(TASK)
    done = call(decode_script.main, *words, "--plugin", tmp_path / "mine.py", standalone_mode=True)
    assert done.code == 0 and not canary.exists(), done.stderr


@pytest.mark.slow
def test_ones_own_run_goes_on_with_the_files_of_its_configuration(train_script, tiny_corpus, tmp_path, fresh_registry):
    (tmp_path / "mine.py").write_text(TASK)
    changes = {"tasks__names": ["asr", "emo"], "tasks__plugins": [tmp_path / "mine.py"], "tasks__languages": []}
    changes.update(data__valid=[], training__save_every=1)
    for steps in (1, 2):
        options = toy_options(tiny_corpus, tmp_path / "exp", **changes, training__max_steps=steps)
        call_ok(train_script.main, *options)


def test_runtime_takes_a_file_of_ones_own(tmp_path, canary, capsys, fresh_registry):
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w').close()\n{TASK}")
    assert runtime([str(tmp_path), "a.wav", "--plugin", str(tmp_path / "mine.py")]) == 2  # no exported model
    assert canary.exists() and "emo" in REGISTRY and "no exported model" in capsys.readouterr().err


# --- The configuration -------------------------------------------------------------------------------------------


def test_a_configuration_imports_nothing(tmp_path, canary, monkeypatch):
    (tmp_path / "evil_class.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass A: pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "config.yaml"
    path.write_text("tasks: {names: [asr, emo], settings: {emo: {a: {class_path: evil_class.A, init_args: {}}}}}")
    assert load_config(path).tasks.settings["emo"]["a"]["class_path"] == "evil_class.A"
    assert not canary.exists()


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
HOSTILE_YAML = {
    "call": ("tasks: !!python/object/apply:os.system ['touch CANARY']", "constructor for the tag"),
    "new": ("tasks: !!python/object/new:os.system ['touch CANARY']", "constructor for the tag"),
    "module": ("tasks: !!python/module:antigravity", "constructor for the tag"),
    "deep": ("[" * 600, "nested too deeply"),
    "itself": ("tasks: &a {settings: {emo: *a}}", "nested too deeply"),
    "bomb": (BOMB, "more than 100000 values"),
    "digits": ("training: {max_steps: " + "9" * 5000 + "}", "config.yaml: "),
    "no bool": ("tasks: !!bool x", "not YAML: 'x'"),
    "no time": ("tasks: !!timestamp x", "not YAML: "),
    "no int": ("tasks: !!int ''", "not YAML: "),
    "date": ("tasks: {names: [2001-99-99]}", "config.yaml: "),
    "no mapping": ("tasks: {settings: {emo: [1]}}", "tasks.settings"),
    "escape": ("tasks: {names: [asr], x\x1b: 1}", "config.yaml: "),
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_one_line(tmp_path, canary, kind):
    content, said = HOSTILE_YAML[kind]
    path = tmp_path / "config.yaml"
    path.write_text(content.replace("CANARY", str(canary)))
    with pytest.raises(UserError, match=said) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value) and not canary.exists()


# --- Pretrained encoders -----------------------------------------------------------------------------------------


def encoder_folder(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return EncoderConfig(name=str(folder), random_init=True)


def test_code_of_an_encoder_is_not_run(tmp_path, canary, monkeypatch):
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    options = encoder_folder(tmp_path / "enc", model_type="evil", auto_map=names)
    (tmp_path / "enc" / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # nobody is asked
    with pytest.raises(UserError, match=r"code of its own \(auto_map\), which is not run"):
        kinds.load_backbone(options)
    assert not canary.exists()


def test_kernels_of_an_encoder_are_not_fetched(tmp_path):
    options = encoder_folder(tmp_path / "enc", model_type="wav2vec2", _attn_implementation="someone/kernel")
    with pytest.raises(UserError, match=r"encoder.name: .*"):
        kinds.load_backbone(options)


def test_pickled_weights_of_a_foreign_encoder(tiny_corpus, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(f"{tiny_corpus}/encoder")
    model = AutoModel.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path / "enc")
    torch.save(model.state_dict(), tmp_path / "enc" / "pytorch_model.bin")
    options = EncoderConfig(name=str(tmp_path / "enc"))
    monkeypatch.setattr(kinds, "UNPICKLES_SAFELY", False)  # as with torch 2.5
    with pytest.raises(UserError, match="cannot load folder"):
        kinds.load_backbone(options, foreign=True)
    monkeypatch.undo()
    if kinds.UNPICKLES_SAFELY:
        kinds.load_backbone(options, foreign=True)


# --- Folders, links and archives ---------------------------------------------------------------------------------


def test_links_out_of_a_model_are_not_copied(plain_model, tiny_corpus, tmp_path):
    folder = shutil.copytree(plain_model, tmp_path / "model")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["encoder"]["name"] = "encoder"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "encoder").mkdir()
    for path in (tiny_corpus / "encoder").iterdir():
        (folder / "encoder" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "secret").write_text("secret")
    (folder / "encoder" / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"vocab.json: a link to .*secret"):
        TokenVerse.from_pretrained(folder).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (folder / "encoder" / "vocab.json").unlink()
    (folder / "encoder" / "vocab.json").symlink_to("config.json")  # inside: fine
    TokenVerse.from_pretrained(folder).save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "encoder" / "vocab.json").is_file()


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blob").write_text("")
    (snapshot / "config.json").symlink_to("../../blob")
    check_links(snapshot.iterdir())
    (snapshot / "other").symlink_to(tmp_path / "models--c")
    with pytest.raises(UserError, match="other: a link"):
        check_links(snapshot.iterdir())


def test_members_of_a_package_stay_in_its_folder(tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("../canary.txt", "a/../../canary.txt", "/canary.txt", "good.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            _extract_member(tar, member, tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["out", "out/canary.txt", "out/good.txt"]  # an absolute name becomes one in the folder


def test_an_exported_model_names_files_of_its_folder(tmp_path):
    names = ("tokenizer.model", "encoder.onnx", "predictor.onnx", "joiner.onnx")
    values = dict(tokenverse_pp="1", tasks=["asr"], task_options={}, symbols=[], vocab_size=3, blank=0, joiner_dim=2)
    values.update(
        context_size=2, frame_shift=0.04, input="audio", min_samples=1, max_samples=None, normalise=True, vectors={}
    )
    for outside in ("../secret", "/dev/zero", "a/b"):
        files = {name: {"bytes": 1, "sha256": ""} for name in (*names, outside)}
        export = {**values, "precision": "float32", "files": files, "format": 1}
        (tmp_path / "export.json").write_text(json.dumps(export))
        with pytest.raises(UserError, match="is not the name of a file in the folder"):
            read_folder(tmp_path)


IDS = st.text(st.sampled_from("a./\\\0\x1b\n:éА 文-_~$%"), min_size=1, max_size=20)


@settings(max_examples=200)
@given(IDS, IDS)
def test_ids_name_files_in_one_folder(one, other):
    for name in (file_name(one), _file_key(one)):
        assert not set("/\\\0\x1b\n") & set(name)
        assert name not in ("..",) or (name + ".txt") != ".."  # an ending follows
    assert (_file_key(one) == _file_key(other)) == (one == other)


def test_scripts_of_hugging_face_data_sets_are_not_run(tmp_path, canary):
    pytest.importorskip("datasets")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.csv").write_text("audio,text\na.wav,hi\n")
    (folder / "data.py").write_text(f"open({str(canary)!r}, 'w').close()")
    words = ("manifest", "import", tmp_path / "cuts.jsonl", "--hf", folder)
    refused = run(*words)
    assert refused.exit_code == 2 and "data.py: a loading script, which is not run" in refused.stderr
    (folder / "data.py").unlink()
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: https://example.org/x.csv\n---\n")
    refused = run(*words)
    assert refused.exit_code == 2 and "which are not fetched" in refused.stderr and not canary.exists()


# --- What is shown -----------------------------------------------------------------------------------------------

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;${title}"


class Elements(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.handlers = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_texts_in_pages_are_no_elements(tmp_path):
    said = EVIL.replace(" ", "_")
    entity = {"start": 0, "end": len(said), "type": EVIL}
    turn = {"text": said, "speaker": EVIL, "language": "qaa", "entities": [entity]}
    cut = make_cut(EVIL, [turn], ["asr"], corpus=EVIL)
    word = {"text": said, "start": 0.0, "end": 1.0, "confidence": 0.4}
    span = {"text": EVIL, "start": 0.0, "end": 1.0, "type": EVIL}
    hyp = {"id": EVIL, "text": said, "words": [word], "turns": [span], "entities": [span], "language": EVIL}
    scores = {**score_hypotheses([cut], [hyp]), "options": {EVIL: EVIL}}
    write_report(tmp_path / "r.html", [cut], [hyp], scores, [{"id": EVIL, "reason": EVIL}])
    page = Elements()
    page.feed((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1 and "img" not in page.tags and not page.handlers


def test_files_do_not_steer_a_terminal(tmp_path):
    evil = "a\x1b]0;title\x07\x1b[2J\x9b1m\u202eb"
    cut = make_cut("c1", [{"text": "bon", "speaker": evil, "language": "qaa"}], ["asr"], corpus=evil)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    shown = run("manifest", "show", "c1", "--cuts", tmp_path / "cuts.jsonl")
    counted = run("manifest", "stats", tmp_path / "cuts.jsonl")
    missing = run("manifest", "show", evil, "--cuts", tmp_path / "cuts.jsonl")
    validated = run("manifest", "validate", tmp_path / f"{evil[:3]}.jsonl")
    for result in (shown, counted, missing, validated):
        assert not set("\x1b\x07\x9b\u202e") & set(result.stdout + result.stderr), result
    assert missing.exit_code == 2 and "\\x1b" in missing.stderr
    assert aligned([[evil]]) == printable(evil) == str(UserError(evil)) == "a\\x1b]0;title\\x07\\x1b[2J\\x9b1m\\u202eb"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"id": "a", "text": "b", "times": [' + "9" * 400 + "]}", "9" * 5000]
)
def test_hostile_json_is_one_line(tmp_path, content):
    path = tmp_path / "hyps.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"hyps.jsonl, line 1: "):
        read_hypotheses(path)
    for name in ("export.json", "calibration.json", "checksums.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError):
        read_folder(tmp_path)


def test_numbers_that_no_float_holds():
    cut = make_cut("c", [{"text": "a"}], ["asr"])
    cut.supervisions[0].start = 10**400
    assert "expected seconds" in check_cut(cut)[0]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"tasks": {"names": None}}, "tasks.names: expected a value, found null"),
        ({"training": {"keep_last": None}}, "training.keep_last: expected a value, found null"),
        ({"data": {"max_duration": 10**400}}, "too large"),
    ],
)
def test_values_that_no_option_has(tmp_path, section, said):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(section))
    with pytest.raises(UserError, match=said):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("name", "content"),
    [("scores.json", '{"speed": {"rtf": "x"}}'), ("scores.json", "[" * 9999), ("failures.jsonl", "1")],
)
def test_what_lies_beside_hypotheses_is_looked_at(tmp_path, name, content):
    hyps, cuts, page = (tmp_path / file for file in ("hyps.jsonl", "cuts.jsonl", "r.html"))
    hyps.write_text('{"id": "c", "text": "a"}')
    CutSet.from_cuts([make_cut("c", [{"text": "a"}], ["asr"])]).to_file(cuts)
    (tmp_path / name).write_text(content)
    refused = run("report", "--hyps", hyps, "--cuts", cuts, "--output", page)
    assert refused.exit_code == 2 and f"{tmp_path / name}: " in refused.stderr and not page.exists()


def test_a_data_set_of_the_hub_names_only_files_that_were_downloaded(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.wav").write_bytes(b"theirs")
    (tmp_path / "cache" / "link.wav").symlink_to(tmp_path / "secret.wav")
    assert _downloaded(tmp_path / "cache" / "a.wav") == b"theirs"
    for name in ("secret.wav", "cache/link.wav", "cache/../secret.wav", "/dev/zero", "a.wav"):
        with pytest.raises(BadRow, match="not among the downloaded files"):
            _downloaded(tmp_path / name)
    with pytest.raises(BadRow, match="No such file"):
        _downloaded(tmp_path / "cache" / "none.wav")
