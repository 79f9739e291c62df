"""Tasks from outside the package: those of docs/new_task.md, by file, module and entry point; and what is refused."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from command_lines import run
from lhotse import CutSet
from outside_task import write_cuts, write_plugin
from scripts import ROOT
from toy_runs import assert_one_line, call, environment, toy_options

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.tasks import REGISTRY, build_tasks, load_plugins, register, registry, render, transcript_of
from tokenverse_pp.tasks.registry import BUILT_IN, load_plugins_for
from tokenverse_pp.tasks.transcript import split_marks


@pytest.fixture(autouse=True)
def same_registry(monkeypatch):
    """Whatever a test registers is gone after it."""
    list(REGISTRY)  # entry points are read before
    monkeypatch.setattr(REGISTRY, "_outside", {})


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The file of the document."""
    return write_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def labelled(tiny_corpus, tmp_path_factory):
    """The tiny corpus labelled for the document's tasks: paths by split."""
    return write_cuts(tiny_corpus, tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def tasks(plugin):
    load_plugins([str(plugin)])
    return build_tasks(["emo", "num", "scd"])


def test_text_of_labels_and_back(tasks, labelled):
    assert tasks.names == ("asr", "scd", "emo", "num")
    for cut in CutSet.from_file(labelled["train"]):
        assert check_cut(cut, tasks) == []
        transcript = transcript_of(cut, tasks)
        text = render(transcript, tasks)
        words = text.split()
        assert words[0] in ("[HAPPY]", "[SAD]")
        assert sum(word == "[NUM]" for word in words) == sum(len(t.custom["numbers"]) for t in cut.supervisions)
        assert tasks.read(*split_marks(words)).answers == transcript.answers


def test_right_hypotheses_score_one_and_empty_ones_nothing(tasks, labelled):
    cuts = list(CutSet.from_file(labelled["train"]))
    right = [{"id": cut.id, "text": render(transcript_of(cut, tasks), tasks)} for cut in cuts]
    for known in (tasks, None):  # with the model's tasks, and with those that the hypotheses show
        scores = score_hypotheses(cuts, right, known)
        assert scores["wer"]["all"]["wer"] == 0 and scores["emo"]["accuracy"] == 1
        assert scores["emo"]["all"]["f1"] == scores["num"]["exact"]["f1"] == 1
    scores = score_hypotheses(cuts, [{"id": cut.id, "text": ""} for cut in cuts], tasks)
    assert scores["emo"]["accuracy"] == scores["num"]["exact"]["recall"] == 0


def test_an_import_labels_the_cuts_that_have_the_field(plugin, tmp_path):
    load_plugins([str(plugin)])
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.float32), 16000)
    table = tmp_path / "t.csv"
    table.write_text("audio,text,mood\na.wav,oui,happy\na.wav,non,\n")
    rows = ["--table", table, "--column", "custom.emotion=mood"]
    done = run("manifest", "import", tmp_path / "cuts.jsonl", *rows)
    assert done.exit_code == 0 and "labelled for asr 2, emo 1:" in done.stdout, done.output
    assert [cut.custom["tasks"] for cut in CutSet.from_file(tmp_path / "cuts.jsonl")] == [["asr", "emo"], ["asr"]]
    table.write_text("audio,text,mood\na.wav,oui,angry\n")
    refused = run("manifest", "import", tmp_path / "more.jsonl", *rows)
    assert refused.exit_code == 2 and "expected one of happy, sad, found 'angry'" in refused.stderr


@pytest.mark.slow
def test_command_line_knows_the_tasks_of_a_plugin(plugin, labelled, tmp_path):
    """In processes of their own: nothing that this one has registered helps."""

    def tokenverse(*args):
        command = [sys.executable, "-m", "tokenverse_pp.cli.main", *map(str, args)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)

    refused = tokenverse("manifest", "validate", labelled["test"])
    assert refused.returncode == 2 and "unknown task 'emo'" in refused.stderr
    accepted = tokenverse("--plugin", plugin, "manifest", "validate", labelled["test"])
    assert accepted.returncode == 0, accepted.stderr
    cut = next(iter(CutSet.from_file(labelled["test"])))
    shown = tokenverse("--plugin", plugin, "manifest", "show", cut.id, "--cuts", labelled["test"])
    assert "emotion" in shown.stdout and "[NUM]" in shown.stdout + str(cut.supervisions[0].custom["numbers"])


def test_statistics_count_the_tokens(plugin, labelled):
    load_plugins([str(plugin)])
    counted = run("manifest", "stats", labelled["train"])
    assert counted.exit_code == 0
    (line,) = [line for line in counted.stdout.splitlines() if line.startswith("emo ") and " all " in line]
    assert line.split()[-1] == "16"


@pytest.mark.slow
def test_trained_model_finds_its_tasks_again(train_script, plugin, labelled, tiny_corpus, tmp_path, monkeypatch):
    copy = tmp_path / "my_tasks.py"
    copy.write_bytes(plugin.read_bytes())
    monkeypatch.chdir(tmp_path)
    changes = {"tasks__names": ["asr", "emo", "num"], "tasks__plugins": ["my_tasks.py"], "data__valid": []}
    changes.update(data__train=[labelled["train"]], training__max_steps=1, tasks__languages=[])
    done = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **changes))
    assert done.code == 0, done.stderr
    assert str(copy) in (tmp_path / "exp" / "model" / "config.yaml").read_text()
    command = [sys.executable, ROOT / "recipes" / "decode.py", "--model", tmp_path / "exp", "--cuts", labelled["test"]]
    command += ["--output-dir", tmp_path / "out", "--method", "greedy"]

    def decode(*more):
        words = [str(word) for word in (*command, *more)]
        return subprocess.run(words, env=environment(), capture_output=True, text=True, cwd="/")

    refused = decode()  # a model's code is not run
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "task 'emo'" in refused.stderr and str(copy) in refused.stderr and "--plugin FILE" in refused.stderr
    assert decode("--trust-plugins").returncode == 0
    assert {"emo", "num", "wer"} <= set(json.loads((tmp_path / "out" / "scores.json").read_text()))
    record = json.loads((tmp_path / "out" / "hyps.jsonl").read_text().split("\n")[0])
    assert record["tasks"] == ["asr", "emo", "num"] and isinstance(record["numbers"], list)
    copy.unlink()
    lost = decode("--no-resume", "--trust-plugins")
    assert lost.returncode == 2 and lost.stderr.count("\n") == 1
    assert "task 'emo'" in lost.stderr and str(copy) in lost.stderr and "--plugin" in lost.stderr
    assert decode("--no-resume", "--plugin", plugin).returncode == 0  # the task's name tells it, not the file's


def test_entry_points_are_tasks(monkeypatch, tasks, tmp_path):
    """A package in a folder on the path, as pip would install it."""
    (tmp_path / "my_package.py").write_bytes(open(registry.origin(type(tasks["emo"])), "rb").read())
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = "emo = my_package:Emotion\nnum = my_package:Nothing\nother = my_package:Numbers\n"
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{points}")
    code = "from tokenverse_pp.tasks import REGISTRY, build_tasks; print(list(REGISTRY)); build_tasks(['num'])"
    env = {**environment(), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert found.stdout.strip() == str([*BUILT_IN, "emo"])
    assert "unknown task 'num'" in found.stderr and "entry point num: my_package:Nothing cannot be imp" in found.stderr


def test_order_does_not_depend_on_who_came_first():
    scd = BUILT_IN["scd"]
    for name in ("zeta", "alpha"):
        register(type("Outside", (scd,), {"name": name, "token": f"[{name.upper()}]"}))
    assert list(REGISTRY) == [*BUILT_IN, "alpha", "zeta"]


def test_task_of_a_file_goes_to_another_process_and_back(tasks):
    assert pickle.loads(pickle.dumps(tasks)) == tasks


def test_options_reach_the_task():
    @register
    class Mood(BUILT_IN["scd"]):
        name = "mood"
        token = "[M]"

        def __init__(self, classes=()):
            self.classes = classes

    assert build_tasks(["mood"], {"mood": {"classes": ["a"]}})["mood"].classes == ["a"]
    with pytest.raises(UserError, match="options of task mood"):
        build_tasks(["mood"], {"mood": {"kinds": 3}})


BAD_FILES = {
    "none": (None, "no such file"),
    "broken": ("1 / 0", "cannot be imported: ZeroDivisionError"),
    "no syntax": ("class", "cannot be imported: SyntaxError"),
    "empty": ("", "defines no task"),
    "taken name": ("from tokenverse_pp.tasks.scd import SpeakerChange\nclass A(SpeakerChange):\n    pass", "scd"),
    "bad name": (
        "from tokenverse_pp.tasks.scd import SpeakerChange\nclass A(SpeakerChange):\n    name = 'wer'",
        "task name 'wer'",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_plugin_is_one_line(train_script, tiny_corpus, tmp_path, kind):
    content, said = BAD_FILES[kind]
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", tasks__plugins=[path]))
    assert_one_line(failure, said, path)
    assert not (tmp_path / "exp").exists()


def test_tokens_are_bracketed_and_of_one_task_only():
    scd = BUILT_IN["scd"]
    register(type("A", (scd,), {"name": "a", "token": "[ENDP]"}))
    register(type("B", (scd,), {"name": "b", "token": "laugh"}))
    with pytest.raises(UserError, match=r"token \[ENDP\] belongs to several tasks: endp, a"):
        build_tasks(["a", "endp"])
    with pytest.raises(UserError, match="task b: token 'laugh'"):
        build_tasks(["b"])


def test_second_definition_of_a_task_is_refused(plugin, tmp_path):
    load_plugins([str(plugin)])
    load_plugins([str(plugin)])  # the same file again is none
    copy = tmp_path / "copy.py"
    copy.write_bytes(plugin.read_bytes())
    with pytest.raises(UserError, match="'emo' is defined already"):
        load_plugins([str(copy)])
    load_plugins_for(["asr", "emo"], [str(copy)])  # a saved model takes what is there


def test_settings_are_of_listed_tasks(train_script, tiny_corpus, tmp_path):
    options = toy_options(tiny_corpus, tmp_path / "exp")
    failure = call(train_script.main, *options, "--tasks.settings", "{emo: {classes: [a]}}")
    assert_one_line(failure, "tasks.settings", "'emo'", "tasks.names")
    failure = call(train_script.main, *options, "--tasks.settings", "{lid: {languages: [fr]}}")
    assert_one_line(failure, "tasks.settings", "tasks.languages")


def test_model_of_unknown_tasks_says_which(finished_run, tmp_path):
    model = shutil.copytree(finished_run / "model", tmp_path / "model")
    config = (model / "config.yaml").read_text().replace("plugins: []", "plugins: [/gone/my_tasks.py]")
    (model / "config.yaml").write_text(config.replace("  - scd\n", "  - scd\n  - emo\n"))
    with pytest.raises(UserError, match=r"task .emo.: tasks.plugins: /gone/my_tasks.py: no such file"):
        load_model(model, trust_plugins=True)
    with pytest.raises(UserError, match=r"task .emo. is not known, and '/gone/my_tasks.py', .* is not run"):
        load_model(model)
