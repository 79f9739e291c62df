"""A mixture written by `tokenverse-pp manifest mix` is trained on as it stands, as a second --config."""

import pytest
from command_lines import run
from lhotse import CutSet
from toy_runs import call, read_cuts, toy_options

from tokenverse_pp.training.log import read_log


def test_mixture_of_unequally_labelled_corpora(train_script, tiny_corpus, tmp_path):
    labels = {"talks": ["asr", "scd", "endp"], "sentences": ["asr", "lid"], "names": ["asr", "ner"]}
    files = []
    for number, (corpus, tasks) in enumerate(labels.items()):
        cuts = [
            cut.with_id(f"{corpus}-{cut.id}").with_custom("tasks", tasks).with_custom("corpus", corpus)
            for cut in read_cuts(tiny_corpus)[number::3]
        ]
        files.append(tmp_path / f"{corpus}.jsonl.gz")
        CutSet.from_cuts(cuts).to_file(files[-1])
    mixture = tmp_path / "mix.yaml"
    done = run("manifest", "mix", *files, mixture, "--weights", "2,1,1")
    assert done.exit_code == 0, done.output
    options = toy_options(tiny_corpus, tmp_path / "exp", training__max_steps=6)
    where = options.index("--data.train")
    done = call(train_script.main, "--config", mixture, *options[:where], *options[where + 2 :])
    assert done.code == 0, done.stderr
    records = [r["corpora"] for r in read_log(tmp_path / "exp" / "log.jsonl") if r["kind"] == "drawn"]
    cuts = {corpus: sum(record.get(corpus, {"cuts": 0})["cuts"] for record in records) for corpus in labels}
    assert cuts["talks"] / sum(cuts.values()) == pytest.approx(0.5, abs=0.1)
    for corpus, tasks in labels.items():  # each trains its own tasks and no others
        active = [task for record in records for task, n in record.get(corpus, {"active": {}})["active"].items() if n]
        assert set(active) == set(tasks)
    assert all(corpus in done.stderr for corpus in labels)  # the table at the end
