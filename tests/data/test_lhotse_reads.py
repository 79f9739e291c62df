"""lhotse's own commands read what the manifest commands write."""

import pytest
from command_lines import run, run_ok
from lhotse import CutSet
from lhotse.bin.modes import *  # noqa: F403  (registers lhotse's commands)
from lhotse.bin.modes.cli_base import cli as lhotse


@pytest.fixture(scope="module")
def written(tiny_corpus, tmp_path_factory):
    """Command -> what it wrote from the toy."""
    folder = tmp_path_factory.mktemp("written")
    train, dev = tiny_corpus / "cuts_train.jsonl.gz", tiny_corpus / "cuts_dev.jsonl.gz"
    words = [cut.supervisions[0].text.split()[0] for cut in CutSet.from_file(dev)]
    (folder / "words.tsv").write_text("".join(f"{word}\tX\n" for word in words))
    commands = {
        "label": (train, folder / "label.jsonl.gz", "--gazetteer", folder / "words.tsv", "--replace-labels"),
        "mix": (train, dev, folder / "mix.jsonl.gz", "--prefix"),
        "split": (train, folder / "split", "--shares", "train=0.8,dev=0.2", "--by", "recording"),
        "subset": (train, folder / "subset.jsonl", "--cuts", 5, "--keep-labels", "ner=0.5"),
        "to-shar": (train, folder / "shar"),
    }
    for command, options in commands.items():
        run_ok("manifest", command, *options)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.jsonl*")}
    assert sorted(paths) == sorted(NAMES)
    return paths


NAMES = ("label.jsonl.gz", "mix.jsonl.gz", "split/cuts_train.jsonl.gz", "split/cuts_dev.jsonl.gz", "subset.jsonl",
         "shar/cuts.000000.jsonl.gz")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_lhotse_validates_and_describes(written, name):
    assert run("manifest", "validate", written[name]).exit_code == 0
    audio = ["--read-data"] if name == "subset.jsonl" else []
    result = run("validate", *audio, written[name], group=lhotse)
    assert result.exit_code == 0 and "failed" not in result.output, result.output
    result = run("cut", "describe", written[name], group=lhotse)
    assert result.exit_code == 0 and "Cuts count" in result.output, result.output
