"""recipes/*/prepare.sh, as a shell runs them, on miniatures in the layouts that they name."""

import os
import subprocess
import sys

import mini_corpora
import numpy as np
import pytest
import yaml
from lhotse import CutSet
from mini_corpora import make_commonvoice, sentence, speech, write, write_text
from toy_runs import ROOT, environment

COMMAND = f"""#!{sys.executable}
from tokenverse_pp.cli.main import cli
cli()
"""


def prepare(name, tmp_path, *args):
    """`recipes/NAME/prepare.sh ARGS` -> what it printed."""
    command = tmp_path / "bin" / "tokenverse-pp"
    write_text(command, COMMAND)
    command.chmod(0o755)
    env = {**environment(), "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    script = ROOT / "recipes" / name / "prepare.sh"
    done = subprocess.run(["bash", script, *map(str, args)], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_common_voice_hundred_hours_of_five_languages(tmp_path, monkeypatch):
    for locale in ("be", "ca", "es", "it"):
        monkeypatch.setitem(mini_corpora.WORDS, locale, [word + locale for word in mini_corpora.WORDS["fr"]])
    corpus_dir = make_commonvoice(tmp_path / "cv", ("be", "ca", "es", "fr", "it"), (2, 1, 1))
    assert "cuts_train100_it.jsonl.gz: valid" in prepare("commonvoice", tmp_path, corpus_dir, tmp_path / "data")
    for locale in ("be", "ca", "es", "fr", "it"):
        assert (
            len(CutSet.from_file(tmp_path / "data" / "commonvoice" / f"cuts_train100_{locale}.jsonl.gz").to_eager())
            == 2
        )


def make_own(root):
    """Three calls with STM and RTTM, and a table of sentences with entities."""
    table = ["recording,audio"]
    for number in range(3):
        name = f"call{number}"
        pieces, stm, rttm, time = [], [], [], 0.0
        for i in range(4):
            text = sentence("en", number + i)
            samples = np.concatenate([speech(text, 16000), np.zeros(4800, np.float32)])
            speaker, end = f"{name}-{'ab'[i % 2]}", time + len(samples) / 16000 - 0.3
            stm.append(f"{name} 1 {speaker} {time:.2f} {end:.2f} {text.capitalize()}{'.,'[i == 2]}")
            rttm.append(f"SPEAKER {name} 1 {time:.2f} {end - time:.2f} <NA> <NA> {speaker} <NA> <NA>")
            pieces.append(samples)
            time += len(samples) / 16000
        write(root / "conversations" / f"{name}.wav", np.concatenate(pieces), 16000)
        write_text(root / "conversations" / "stm" / f"{name}.stm", "\n".join(stm) + "\n")
        write_text(root / "conversations" / "rttm" / f"{name}.rttm", "\n".join(rttm) + "\n")
        table.append(f"{name},{name}.wav")
    write_text(root / "conversations" / "recordings.csv", "\n".join(table) + "\n")
    table = ["audio,text,speaker"]
    for number in range(6):
        first, *others = sentence("en", number).split()
        write(root / "entities" / f"{number}.wav", speech(sentence("en", number), 16000), 16000)
        table.append(f"{number}.wav,[{first.capitalize()}](PER) {' '.join(others)},s{number % 3}")
    write_text(root / "entities" / "table.csv", "\n".join(table) + "\n")


@pytest.mark.slow
def test_own_data_gives_the_files_of_its_configuration(tmp_path):
    make_own(tmp_path)
    make_commonvoice(tmp_path / "cv", ("fr",), (4, 2, 2))
    stdout = prepare("own_data", tmp_path, "conversations", "cv", "entities", "data")
    config = yaml.safe_load((ROOT / "recipes" / "own_data" / "conf" / "three_corpora.yaml").read_text(encoding="utf-8"))
    labelled = []
    for file in config["data"]["train"] + config["data"]["valid"]:
        cuts = list(CutSet.from_file(tmp_path / file))
        assert cuts
        labelled.append(sorted({task for cut in cuts for task in cut.custom["tasks"]}))
        assert {sup.language for cut in cuts for sup in cut.supervisions} <= set(config["tasks"]["languages"])
    assert labelled == [["asr", "endp", "lid", "scd"], ["asr", "lid"], ["asr", "lid", "ner"]] * 2
    windows = list(CutSet.from_file(tmp_path / "data" / "own" / "windows.jsonl.gz"))
    assert [[sup.custom["endpoint"] for sup in cut.supervisions] for cut in windows] == [[True, True, False, True]] * 3
    assert "entities" in stdout and "scd" in stdout
