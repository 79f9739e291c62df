"""Going on from a checkpoint: which one, what is refused, and that nothing damaged or foreign is ever loaded."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_runs import SPLIT, assert_one_line, call, call_ok, toy_options

from tokenverse_pp.base.config_files import from_dict
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model
from tokenverse_pp.models.encoders import kinds as split
from tokenverse_pp.models.encoders.base import Backbone
from tokenverse_pp.training.checkpoints import find_start, set_later_aside

SMALL = {"data__valid": [], "training__save_every": 2, "data__max_cuts": 4}


@pytest.fixture(scope="module")
def run_of_six(train_script, tiny_corpus, tmp_path_factory):
    """A finished run: checkpoints of steps 2, 4 and 6."""
    exp_dir = tmp_path_factory.mktemp("six") / "exp"
    call_ok(train_script.main, *toy_options(tiny_corpus, exp_dir, **SMALL, training__max_steps=6))
    return exp_dir


@pytest.fixture
def exp_dir(run_of_six, tmp_path):
    return Path(shutil.copytree(run_of_six, tmp_path / "exp"))


def resume(script, corpus, exp_dir, **changes):
    return call(script.main, *toy_options(corpus, exp_dir, **{**SMALL, "training__max_steps": 6, **changes}))


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wish(exp_dir, resume="auto"):
    return from_dict({"training": {"exp_dir": str(exp_dir), "resume": resume}})


def test_damaged_newest_is_passed_over_and_written_again(train_script, tiny_corpus, exp_dir, run_of_six):
    newest = exp_dir / "checkpoints" / "step-00000006"
    content = bytearray((newest / checkpoint.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (newest / checkpoint.WEIGHTS).write_bytes(content)
    done = resume(train_script, tiny_corpus, exp_dir)
    assert done.code == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "is skipped" in line]
    assert "step-00000006" in line and checkpoint.WEIGHTS in line
    assert "resuming from step-00000004" in done.stderr
    assert (exp_dir / "checkpoints" / "step-00000006.aside").is_dir()
    for name in ("model/model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        ours, theirs = load_file(exp_dir / name), load_file(run_of_six / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_drawn_table_has_the_cuts_between_the_last_log_line_and_the_checkpoint(train_script, tiny_corpus, tmp_path):
    changes = {"training__log_every": 3, "training__max_steps": 4, "data__max_cuts": 2}
    first = resume(train_script, tiny_corpus, tmp_path, **changes)
    assert first.code == 0, first.stderr
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")  # as if killed in step 4
    again = resume(train_script, tiny_corpus, tmp_path, **changes)
    tables = [done.stderr[done.stderr.index("drawn from") :].splitlines()[:3] for done in (first, again)]
    assert tables[0] == tables[1] and "resuming from step-00000002" in again.stderr


def test_vectors_keep_their_code_and_scale(train_script, tiny_corpus, exp_dir):
    for name, value, old in (("code", "centred", "binary"), ("scale", 2.0, "1.0")):
        failure = resume(train_script, tiny_corpus, exp_dir, **{f"model__vectors__{name}": value})
        assert_one_line(failure, f"--model.vectors.{name}={old}", "init_from")


def test_other_tasks_and_sizes_of_the_model_are_named(train_script, tiny_corpus, exp_dir):
    failure = resume(train_script, tiny_corpus, exp_dir, tasks__names="[asr, scd]")
    assert_one_line(failure, "its tasks are asr, scd, endp, ner, lid, not asr, scd")
    failure = resume(train_script, tiny_corpus, exp_dir, model__joiner_dim=16)
    assert_one_line(failure, "changed since then: model.joiner_dim: ", "-> 16", "another --training.exp_dir")


@pytest.mark.parametrize("resumes", ["auto", "false"])
def test_the_folder_of_a_saved_model_is_refused_and_stays(train_script, tiny_corpus, exp_dir, resumes):
    before = files_of(exp_dir / "model")
    failure = resume(train_script, tiny_corpus, exp_dir / "model", training__resume=resumes)
    assert_one_line(failure, "holds a model", "--training.init_from")
    assert files_of(exp_dir / "model") == before


def test_another_size_of_the_vocabulary_is_refused(train_script, tiny_corpus, exp_dir):
    failure = resume(train_script, tiny_corpus, exp_dir, tokenizer__vocab_size=48)
    assert_one_line(failure, "its vocabulary was made by --tokenizer.vocab_size 50, not 48", "--training.exp_dir")
    tokenizer = exp_dir / "checkpoints" / "step-00000006" / checkpoint.TOKENIZER
    done = resume(train_script, tiny_corpus, exp_dir, tokenizer__vocab_size=48, tokenizer__model=tokenizer)
    assert done.code == 0 and "nothing left to train after step 6" in done.stderr


def test_modes_of_resume(exp_dir, tmp_path):
    newest = exp_dir / "checkpoints" / "step-00000006"
    older = exp_dir / "checkpoints" / "step-00000004"
    assert find_start(wish(exp_dir), print) == find_start(wish(exp_dir, True), print) == newest
    assert find_start(wish(tmp_path / "other", str(older)), print) == older
    assert find_start(wish(tmp_path / "none"), print) is None is find_start(wish(tmp_path / "none", False), print)
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_start(wish(tmp_path / "none", True), print)
    with pytest.raises(UserError, match="holds checkpoints"):
        find_start(wish(exp_dir, False), print)
    with pytest.raises(UserError, match="no such folder"):
        find_start(wish(exp_dir, "/no/such/folder"), print)
    (newest / checkpoint.STATE).write_text("{}")
    with pytest.raises(UserError, match=r"--training\.resume=True: .*state\.json"):
        find_start(wish(exp_dir, True), print)
    said = []
    assert find_start(wish(exp_dir), said.append) == older and len(said) == 1
    for folder in checkpoint.list_checkpoints(exp_dir):
        (folder / checkpoint.CHECKSUMS).unlink()
    with pytest.raises(UserError, match="none of its 3 checkpoints is intact"):
        find_start(wish(exp_dir), said.append)


def test_later_checkpoints_are_set_aside_not_deleted(exp_dir):
    for _ in range(2):
        set_later_aside(exp_dir, 4)
        shutil.copytree(exp_dir / "checkpoints" / "step-00000004", exp_dir / "checkpoints" / "step-00000006")
    set_later_aside(exp_dir, 4)
    names = sorted(path.name for path in (exp_dir / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004", *(f"step-00000006.aside{n}" for n in ("", 2, 3))]


def test_checkpoint_of_another_folder_is_gone_on_from(train_script, tiny_corpus, run_of_six, tmp_path):
    start = run_of_six / "checkpoints" / "step-00000002"
    done = resume(train_script, tiny_corpus, tmp_path / "exp", training__resume=start)
    assert done.code == 0 and "resuming from step-00000002" in done.stderr, done.stderr
    ours, theirs = (
        load_file(d / "checkpoints/step-00000006" / checkpoint.WEIGHTS) for d in (tmp_path / "exp", run_of_six)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_changed_corpus_is_refused_unless_allowed(train_script, tiny_corpus, exp_dir, tmp_path):
    manifest = shutil.copy(tiny_corpus / "cuts_dev.jsonl.gz", tmp_path / "cuts.jsonl.gz")
    before = files_of(exp_dir)
    changes = {"data__train": [manifest], "training__max_steps": 7}
    failure = resume(train_script, tiny_corpus, exp_dir, **changes)
    assert_one_line(failure, "step-00000006", "--data.train", manifest, "has changed", "training.allow_changed_data")
    assert files_of(exp_dir) == before
    allowed = resume(train_script, tiny_corpus, exp_dir, **changes, training__allow_changed_data="true")
    assert allowed.code == 0 and "options changed since step-00000006: data.train" in allowed.stderr, allowed.stderr


def test_other_rounds_are_gone_on_from_at_the_same_share_of_the_epoch(train_script, tiny_corpus, exp_dir, tmp_path):
    def said(folder, round_cuts, steps):
        done = resume(train_script, tiny_corpus, folder, data__round_cuts=round_cuts, training__max_steps=steps)
        assert done.code == 0, done.stderr
        return done.stderr

    folder = tmp_path / "rounds"
    said(folder, 4, 3)  # 16 cuts in rounds of 4: a batch each
    newest = checkpoint.list_checkpoints(folder)[-1]
    assert checkpoint.read_state(newest)["round"] == 2
    text = said(folder, 8, 4)
    assert (
        "has 4 rounds an epoch, now 2: going on at the beginning of round 1; its cuts that were drawn come again"
        in text
    )
    assert "resuming from step-00000003: epoch 0, round 1, batch 0" in text


def test_moved_corpus_is_the_same(train_script, tiny_corpus, exp_dir, tmp_path):
    manifest = shutil.copy(tiny_corpus / "cuts_train.jsonl.gz", tmp_path / "moved.jsonl.gz")
    assert resume(train_script, tiny_corpus, exp_dir, data__train=[manifest], training__max_steps=7).code == 0


def test_other_tasks_are_refused(train_script, tiny_corpus, exp_dir):
    failure = resume(
        train_script, tiny_corpus, exp_dir, tasks__names=["asr", "scd", "endp", "ner"], training__max_steps=7
    )
    assert_one_line(failure, "step-00000006")


def sign(folder):
    """Make the list of checksums true again, as one who forges a checkpoint would."""
    checkpoint.write_checksums(folder)


def foreign(key, tensor):
    def change(folder):
        path = folder / checkpoint.OPTIMIZER
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        tensors[key] = tensor
        save_file(tensors, path)

    return change


FOREIGN = {
    "optimiser of more parameters": foreign("9999.exp_avg", torch.zeros(1)),
    "optimiser of other shapes": foreign("0.exp_avg", torch.zeros(1, 2, 3)),
    "names that are no parameters": foreign("hello", torch.zeros(1)),
    "another optimiser": foreign("0.momentum", torch.zeros(())),
    "state without numbers": lambda folder: (folder / checkpoint.STATE).write_text('{"step": "six"}'),
    "state that is a list": lambda folder: (folder / checkpoint.STATE).write_text("[]"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_checkpoint_with_true_sums_is_refused(train_script, tiny_corpus, exp_dir, what):
    folder = exp_dir / "checkpoints" / "step-00000006"
    FOREIGN[what](folder)
    sign(folder)
    assert_one_line(resume(train_script, tiny_corpus, exp_dir, training__max_steps=7), folder)


def test_other_trained_parameters_are_refused_with_what_to_do(train_script, tiny_corpus, exp_dir):
    failure = resume(train_script, tiny_corpus, exp_dir, model__encoder__freeze_layers=1, training__max_steps=7)
    assert_one_line(failure, "optimizer.safetensors", "--training.init_from")


def test_another_language_is_refused_with_what_to_do(train_script, tiny_corpus, exp_dir, run_of_six):
    more = {"tasks__languages": ["qaa", "qab", "fr"]}
    failure = resume(train_script, tiny_corpus, exp_dir, **more)
    assert_one_line(failure, exp_dir / "checkpoints" / "step-00000006", "[FR]", "--training.init_from")
    given = run_of_six / "model" / checkpoint.TOKENIZER
    failure = resume(train_script, tiny_corpus, exp_dir, **more, tokenizer__model=given)
    assert_one_line(failure, f"--tokenizer.model={given}", "[FR]")


def test_damaged_model_is_refused_but_an_edited_configuration_is_not(exp_dir):
    model = exp_dir / "model"
    (model / checkpoint.CONFIG).write_text((model / checkpoint.CONFIG).read_text() + "\n# mine\n")
    load_model(model)
    content = bytearray((model / checkpoint.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (model / checkpoint.WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_model(model)
    (model / checkpoint.CHECKSUMS).unlink()
    load_model(model)  # a folder of an older version has no sums


def test_folder_that_cannot_be_written_is_one_line_and_leaves_the_old(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    checkpoint.write_folder(folder, {}, {"a": b"1"})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="model: cannot be written: No space left"):
        checkpoint.write_folder(folder, {}, {"a": b"2"})
    assert (folder / "a").read_bytes() == b"1" and [path.name for path in tmp_path.iterdir()] == ["model"]


# Before, all layers above the seam counted as trained, whether anything read them or not.
AVERAGED = {**SPLIT, "optim__decay": "constant", "training__average_period": 1}


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_checkpoint_with_layers_that_nothing_reads_loads_and_resumes(
    train_script, tiny_corpus, tmp_path, monkeypatch, lora_rank
):
    if lora_rank:
        pytest.importorskip("peft")
    options = {**AVERAGED, "model__encoder__lora_rank": lora_rank, "data__max_cuts": 1}
    with monkeypatch.context() as patch:
        patch.setattr(split.SplitEncoder, "unread_prefixes", lambda self: ())
        if lora_rank:
            add = split.add_lora
            patch.setattr(split, "add_lora", lambda backbone, config, first, last: add(backbone, config, first))
        else:
            everything = lambda self, first, wanted: [*self.layers, self.final_norm]
            patch.setattr(Backbone, "upper", everything)
        for name, steps in (("whole", 3), ("old", 2)):
            done = resume(train_script, tiny_corpus, tmp_path / name, **options, training__max_steps=steps)
            assert done.code == 0, done.stderr
    old = tmp_path / "old" / "checkpoints" / "step-00000002"
    assert any(".layers.1." in name for name in load_file(old / checkpoint.WEIGHTS) if "backbone" in name)
    load_model(old)
    done = resume(train_script, tiny_corpus, tmp_path / "old", **options, training__max_steps=3)
    assert done.code == 0 and "resuming from step-00000002" in done.stderr, done.stderr
    name = "model/model.safetensors"
    ours, theirs = (load_file(tmp_path / run / name) for run in ("old", "whole"))
    assert len(ours) < len(theirs) and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    load_model(tmp_path / "old")


def test_freezing_does_not_change_which_layers_of_a_split_encoder_are_saved(train_script, tiny_corpus, tmp_path):
    options = {**AVERAGED, "model__encoder__layers": [-1], "data__max_cuts": 1, "training__save_every": 1}
    options.update(training__freeze="[[0, 1], [1, -1]]", training__average_period=0)
    for steps in (2, 3):  # the model of each is the average of both stages
        done = resume(train_script, tiny_corpus, tmp_path / "exp", **options, training__max_steps=steps)
        assert done.code == 0, done.stderr
    assert "resuming from step-00000002" in done.stderr
    folders = checkpoint.list_checkpoints(tmp_path / "exp")
    names = [set(checkpoint.read_names(folder / checkpoint.WEIGHTS)) for folder in folders]
    assert len(names) == 3 and names[0] == names[1] == names[2]
    assert sum("layers.0.attention.q_proj.weight" in name for name in names[0]) == 1
    load_model(folders[0])


def test_optimiser_with_parameters_that_nothing_reads_is_numbered_anew(tmp_path):
    kept = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    unread = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    before = torch.optim.AdamW([unread[0], kept[0], unread[1], kept[1]], lr=0.1)
    (kept[0].sum() + 2 * kept[1].square().sum()).backward()
    before.step()
    tensors = checkpoint.optimizer_tensors(before)
    after = torch.optim.AdamW(kept, lr=0.1)
    checkpoint.load_optimizer(after, tensors, had_unread=True)
    for parameter in kept:
        assert torch.equal(after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"])
    with pytest.raises(UserError, match="start a new run from its weights"):
        checkpoint.load_optimizer(torch.optim.AdamW(kept[:1], lr=0.1), tensors, had_unread=True)
    checkpoint.load_optimizer(torch.optim.AdamW(kept, lr=0.1), {}, had_unread=True)  # before the first update
