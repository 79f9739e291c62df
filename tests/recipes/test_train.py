"""recipes/train.py: what it writes, and bad input; tests/faults kills it."""

import gzip
import json
import os
import shutil

import pytest
import soundfile
import torch
from command_lines import run_ok
from lhotse import CutSet
from safetensors.torch import load_file
from toy_runs import assert_one_line, call, call_ok, finish, read_cuts, start, toy_options

from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.training.log import read_log

LOSSES = ("loss", "simple", "pruned", "frames", "tokens", "grad_norm")


def losses(exp_dir, kind="train"):
    """{step: what was summed over its batches}"""
    return {r["step"]: {k: r[k] for k in LOSSES} for r in read_log(exp_dir / "log.jsonl") if r["kind"] == kind}


def assert_same_losses(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=tolerance), step


def write_cuts(cuts, folder):
    path = folder / "cuts.jsonl"
    CutSet.from_cuts(cuts).to_file(path)
    return path


def test_finished_run_leaves_a_model_and_learns(finished_run):
    log = losses(finished_run)
    assert list(log) == list(range(1, 11))
    assert log[10]["simple"] < 0.5 * log[1]["simple"]
    assert [r["step"] for r in read_log(finished_run / "log.jsonl") if r["kind"] == "valid"] == [5, 10]
    assert sorted(path.name for path in (finished_run / "model").iterdir()) == [
        "checksums.json", "config.yaml", "model.safetensors", "tokenizer.model",
    ]  # fmt: skip
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == [
        "step-00000004", "step-00000008", "step-00000010",
    ]  # fmt: skip


def test_accumulated_batches_give_the_losses_of_the_doubled_batch(train_script, tiny_corpus, tmp_path, finished_run):
    changes = {"data__max_cuts": 4, "training__accumulate": 2, "training__epochs": 2, "data__num_workers": 1}
    call_ok(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **changes))
    expected = {step: values for step, values in losses(finished_run).items() if step <= 4}  # two steps an epoch
    assert_same_losses(losses(tmp_path / "exp"), expected)


def test_finished_run_started_again_trains_no_further(train_script, tiny_corpus, tmp_path, finished_run):
    exp_dir = tmp_path / "exp"
    shutil.copytree(finished_run, exp_dir)
    shutil.rmtree(exp_dir / "model")
    assert call(train_script.main, *toy_options(tiny_corpus, exp_dir)).code == 0
    assert losses(exp_dir) == losses(finished_run)
    assert len(list((exp_dir / "checkpoints").iterdir())) == 3
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (exp_dir, finished_run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_init_from_starts_with_the_weights_of_a_model(train_script, tiny_corpus, tmp_path, finished_run):
    options = toy_options(
        tiny_corpus,
        tmp_path / "exp",
        training__init_from=finished_run,
        tokenizer__model=finished_run / "tokenizer.model",
        training__max_steps=1,
        optim__lr=0,
        optim__encoder_lr=0,
        optim__vector_lr=0,
    )
    assert call(train_script.main, *options).code == 0
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "exp", finished_run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_too_long_target_is_named_and_left_out(train_script, tiny_corpus, tmp_path):
    cuts = read_cuts(tiny_corpus)
    short = cuts[0].truncate(duration=0.3, preserve_id=True)
    short.supervisions[0].text = "ba di gu ka mu ibi uda bam dig gak kun nid mab ukim agi dun " * 4
    short.supervisions[0].custom["entities"] = []
    manifest = write_cuts([short, *cuts[1:8]], tmp_path)
    changes = {"data__train": [manifest], "data__valid": [], "training__max_steps": 1, "data__validate": "false"}
    done = call_ok(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **changes))
    (line,) = [line for line in done.stderr.splitlines() if "left out" in line]
    assert short.id in line and "too long" in line
    assert losses(tmp_path / "exp")[1]["tokens"] > 0


def test_a_vocabulary_that_lacks_too_much_stops_the_run_before_it_writes(
    train_script, toy_tasks, tiny_corpus, tmp_path
):
    texts = [turn.text.replace("k", "") for cut in read_cuts(tiny_corpus) for turn in cut.supervisions]
    train_tokenizer(texts, toy_tasks, vocab_size=40).save(tmp_path / "no_k.model")
    changes = {"tokenizer__model": tmp_path / "no_k.model", "training__max_steps": 1}
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **changes))
    assert_one_line(failure, "--data.train: ", "lacks 'k' (U+006B)", "toy-train-0", "--data.max_unk_share=0.01")
    assert not (tmp_path / "exp").exists()


def bad_cuts(folder, corpus, kind):
    """A manifest whose third cut is bad -> (path, what the message must name)."""
    cuts = read_cuts(corpus)[:4]
    cut = cuts[2]
    source = cut.recording.sources[0]
    if kind == "missing":
        source.source = str(folder / "gone.flac")
    elif kind in ("truncated wav", "truncated flac"):
        audio, rate = soundfile.read(source.source)
        source.source = str(folder / f"short.{kind[-4:].strip()}")
        soundfile.write(source.source, audio, rate, subtype="PCM_16")
        size = os.path.getsize(source.source)
        with open(source.source, "r+b") as file:
            file.truncate(size // 2)
    elif kind == "wrong rate":
        audio, _ = soundfile.read(source.source)
        source.source = str(folder / "slow.wav")
        soundfile.write(source.source, audio, 8000)
        cut.recording.sampling_rate = 8000
        cut.recording.duration *= 2
    elif kind == "wrong label":
        cut.supervisions[0].custom["entities"] = [{"start": 0, "end": 10_000, "type": "PER"}]
        return write_cuts(cuts, folder), [cut.id, "entities"]
    elif kind == "no tasks":
        del cut.custom["tasks"]
        return write_cuts(cuts, folder), [cut.id, "custom.tasks"]
    return write_cuts(cuts, folder), [cut.id, source.source]


@pytest.mark.parametrize("kind", ["missing", "truncated wav", "wrong rate", "wrong label", "no tasks"])
def test_bad_cut_is_one_line_before_anything_is_written(train_script, tiny_corpus, tmp_path, kind):
    manifest, said = bad_cuts(tmp_path, tiny_corpus, kind)
    options = toy_options(tiny_corpus, tmp_path / "exp", data__train=[manifest])
    assert_one_line(call(train_script.main, *options), *said)
    assert not (tmp_path / "exp").exists()


@pytest.mark.slow
def test_bad_audio_in_a_worker_process_is_one_line(tiny_corpus, tmp_path):
    # A truncated FLAC file has a whole header: only decoding shows it.
    manifest, said = bad_cuts(tmp_path, tiny_corpus, "truncated flac")
    options = toy_options(tiny_corpus, tmp_path / "exp", data__train=[manifest], data__num_workers=1)
    failure = finish(start("train.py", *options))
    lines = [line for line in failure.stderr.splitlines() if not line.startswith("tasks ")]
    assert_one_line(failure._replace(stderr="\n".join(lines) + "\n"), *said)
    assert not (tmp_path / "exp" / "checkpoints").exists() and not (tmp_path / "exp" / "model").exists()


@pytest.mark.slow
def test_bad_audio_on_one_of_two_ranks_stops_both(tiny_corpus, tmp_path):
    manifest, said = bad_cuts(tmp_path, tiny_corpus, "truncated flac")
    changes = {"data__train": [manifest], "data__max_cuts": 2, "data__num_workers": 1, "data__valid": []}
    failure = finish(start("train.py", *toy_options(tiny_corpus, tmp_path / "exp", **changes), ranks=2))
    assert failure.code != 0
    (line,) = [line for line in failure.stderr.splitlines() if "error: cut" in line]
    assert all(part in line for part in said)


BAD_OPTIONS = {
    "unknown task": ({"tasks__names": ["asr", "sing"]}, ["sing", "scd"]),
    "unknown encoder": ({"model__encoder__name": "/no/such/folder"}, ["/no/such/folder"]),
    "missing manifest": ({"data__train": ["/no/such/cuts.jsonl"]}, ["--data.train", "/no/such/cuts.jsonl"]),
    "missing valid": ({"data__valid": ["/no/such/cuts.jsonl"]}, ["--data.valid", "/no/such/cuts.jsonl"]),
    "impossible value": ({"training__accumulate": 0}, ["--training.accumulate=0"]),
    "unknown language": ({"tasks__languages": ["qaa"]}, ["qab"]),
    "vocabulary too large": ({"tokenizer__vocab_size": 5000}, ["tokenizer.vocab_size=5000"]),
    "missing tokenizer": ({"tokenizer__model": "/no/such.model"}, ["/no/such.model"]),
}


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_bad_option_is_one_line_before_anything_is_written(train_script, tiny_corpus, tmp_path, what):
    changes, said = BAD_OPTIONS[what]
    assert_one_line(call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", **changes)), *said)
    assert not (tmp_path / "exp").exists()


def test_refused_resume_changes_nothing(train_script, tiny_corpus, tmp_path, finished_run):
    exp_dir = tmp_path / "exp"
    shutil.copytree(finished_run, exp_dir)
    before = {path: path.read_bytes() for path in exp_dir.rglob("*") if path.is_file()}
    for changes in ({"training__resume": "false"}, {"model__joiner_dim": 16}, {"tokenizer__model": exp_dir}):
        failure = call(train_script.main, *toy_options(tiny_corpus, exp_dir, **changes))
        assert_one_line(failure, exp_dir)
    assert {path: path.read_bytes() for path in exp_dir.rglob("*") if path.is_file()} == before


def test_resolved_configuration_is_saved(finished_run):
    config = load_config(finished_run / "model" / "config.yaml")
    assert config.training.max_steps == 10 and config.model.joiner_dim == 32
    state = json.loads((finished_run / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert [state[key] for key in ("step", "epoch", "round", "batch", "world_size")] == [10, 4, 0, 2, 1]
    assert state["tasks"] == ["asr", "scd", "endp", "ner", "lid"] and state["bad_steps"] == 0
    (corpus,) = state["corpora"]
    assert corpus["path"].endswith("cuts_train.jsonl.gz") and corpus["bytes"] > 100 and len(corpus["sha256"]) == 64
    assert state["versions"]["torch"] == torch.__version__ and set(state["valid"]) >= {"loss", "wer"}


def unvalidated(folder, corpus, kind):
    """A manifest whose third cut is wrong -> (path, what the message must name)."""
    cuts = read_cuts(corpus)[:4]
    if kind == "entities":
        cuts[2].supervisions[0].custom["entities"] = [{"start": 0, "end": 10_000, "type": "PER"}]
    elif kind == "text":
        cuts[2].supervisions[0].text = 7
    elif kind == "custom":
        cuts[2].supervisions[0].custom = "none"
    path = write_cuts(cuts, folder)
    if kind == "line":
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], lines[2][:100], lines[3]]))
        return path, [f"{path}, line 3: not JSON"]
    if kind == "gzip":
        packed = gzip.compress(path.read_bytes() * 500)
        path = path.with_suffix(".jsonl.gz")
        path.write_bytes(packed[: len(packed) // 2])
        return path, [f"{path}: cannot be read after line"]
    if kind == "custom":  # lhotse itself refuses it
        return path, [f"{path}, line 3: not a lhotse cut"]
    return path, [f"cut {cuts[2].id}: ", "field 'text'" if kind == "text" else "labels that cannot be read"]


@pytest.mark.parametrize("kind", ["entities", "text", "custom", "line", "gzip"])
def test_a_bad_cut_is_one_line_without_validation_too(train_script, tiny_corpus, tmp_path, kind):
    path, said = unvalidated(tmp_path, tiny_corpus, kind)
    options = toy_options(tiny_corpus, tmp_path / "exp", data__train=[path], data__valid=[], data__validate="false")
    failure = call(train_script.main, *options)
    lines = [line for line in failure.stderr.splitlines() if not line.startswith("tasks ")]
    assert_one_line(failure._replace(stderr="\n".join(lines) + "\n"), *said)
    assert not (tmp_path / "exp" / "model").exists()


@pytest.mark.slow
def test_a_mixture_of_unequally_labelled_corpora(train_script, tiny_corpus, tmp_path):
    """As `tokenverse-pp manifest mix` writes it: a second --config."""
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
    done = run_ok("manifest", "mix", *files, mixture, "--weights", "2,1,1")
    options = toy_options(tiny_corpus, tmp_path / "exp", training__max_steps=6)
    where = options.index("--data.train")
    done = call_ok(train_script.main, "--config", mixture, *options[:where], *options[where + 2 :])
    records = [r["corpora"] for r in read_log(tmp_path / "exp" / "log.jsonl") if r["kind"] == "drawn"]
    cuts = {corpus: sum(record.get(corpus, {"cuts": 0})["cuts"] for record in records) for corpus in labels}
    assert cuts["talks"] / sum(cuts.values()) == pytest.approx(0.5, abs=0.1)
    for corpus, tasks in labels.items():  # each trains its own tasks and no others
        active = [task for record in records for task, n in record.get(corpus, {"active": {}})["active"].items() if n]
        assert set(active) == set(tasks)
    assert all(corpus in done.stderr for corpus in labels)  # the table at the end
