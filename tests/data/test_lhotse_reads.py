"""lhotse's own commands read what the manifest commands write."""

import pytest
from command_lines import run
from lhotse import CutSet
from lhotse.bin.modes import *  # noqa: F403  (registers lhotse's commands)
from lhotse.bin.modes.cli_base import cli as lhotse


@pytest.fixture(scope="module")
def written(tiny_corpus, tmp_path_factory):
    """Command -> what it wrote from the toy."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "words.tsv").write_text(
        "".join(
            f"{cut.supervisions[0].text.split()[0]}\tX\n" for cut in CutSet.from_file(tiny_corpus / "cuts_dev.jsonl.gz")
        )
    )
    train, dev = tiny_corpus / "cuts_train.jsonl.gz", tiny_corpus / "cuts_dev.jsonl.gz"
    commands = {
        "label": (train, folder / "label.jsonl.gz", "--gazetteer", folder / "words.tsv", "--overwrite"),
        "mix": (train, dev, folder / "mix.jsonl.gz", "--prefix"),
        "split": (train, folder / "split", "--shares", "train=0.8,dev=0.2", "--by", "recording"),
        "subset": (train, folder / "subset.jsonl", "--cuts", 5, "--keep-labels", "ner=0.5"),
        "to-shar": (train, folder / "shar"),
    }
    for command, options in commands.items():
        result = run("manifest", command, *options)
        assert result.exit_code == 0, result.stderr
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.jsonl*")}


NAMES = ("label.jsonl.gz", "mix.jsonl.gz", "split/cuts_train.jsonl.gz", "split/cuts_dev.jsonl.gz", "subset.jsonl",
         "shar/cuts.000000.jsonl.gz")  # fmt: skip


def test_all_is_looked_at(written):
    assert sorted(written) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_lhotse_validates_and_describes(written, name):
    assert run("manifest", "validate", written[name]).exit_code == 0
    result = run("validate", written[name], group=lhotse)
    assert result.exit_code == 0 and "failed" not in result.output, result.output
    result = run("cut", "describe", written[name], group=lhotse)
    assert result.exit_code == 0 and "Cuts count" in result.output, result.output


def test_lhotse_reads_the_audio(written):
    result = run("validate", "--read-data", written["subset.jsonl"], group=lhotse)
    assert result.exit_code == 0 and "failed" not in result.output, result.output
