"""The scan of the worst batches before the first step."""

import pytest
import torch
from toy_runs import call, read_cuts, toy_options, toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import TrainSampler
from tokenverse_pp.data.sources import open_rounds
from tokenverse_pp.models.compat import is_out_of_memory
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.steps import scan, worst_batches


def build(corpus, **changes):
    parts = toy_parts(corpus, data__max_cuts=3, **changes)
    return parts, TrainSampler(open_rounds(parts.config.data, 1), parts.config.data, 1, DistributedContext())


def test_worst_batches_are_those_of_the_longest_cut_and_target(tiny_corpus):
    parts, sampler = build(tiny_corpus)
    worst = worst_batches(sampler, parts.dataset)
    cuts = read_cuts(tiny_corpus)
    longest = max(cuts, key=lambda cut: cut.duration)
    assert longest.id in [cut.id for cut in worst["longest cut"]]
    assert len(worst["most cuts"]) == 3
    tokens = parts.dataset[worst["most tokens"]]
    assert tokens["tokens"].numel() >= parts.dataset[worst["longest cut"]]["tokens"].numel()


def test_scan_leaves_no_trace_and_reports_memory(tiny_corpus):
    parts, sampler = build(tiny_corpus, model__vectors__strategy="combination")
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    lines = scan(parts.model.train(), sampler, parts.dataset, parts.config, DistributedContext())
    assert lines and all(line.startswith("scan, ") and "peak" in line and " MB" in line for line in lines)
    assert all(torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())
    assert all(p.grad is None for p in parts.model.parameters())


def test_batch_that_does_not_fit_is_named_before_the_first_step(tiny_corpus, monkeypatch):
    parts, sampler = build(tiny_corpus)
    most = max(read_cuts(tiny_corpus), key=lambda cut: cut.duration)
    whole = parts.model.forward

    def small_machine(inputs, *arguments, **options):
        if inputs.shape[1] >= most.num_samples:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return whole(inputs, *arguments, **options)

    monkeypatch.setattr(parts.model, "forward", small_machine)
    with pytest.raises(UserError, match="out of memory on a batch") as caught:
        scan(parts.model, sampler, parts.dataset, parts.config, DistributedContext())
    assert most.id in str(caught.value)


def test_run_is_the_same_with_a_scan(train_script, tiny_corpus, tmp_path):
    logs = []
    for wanted in ("true", "false"):
        changes = {"data__valid": [], "training__scan": wanted, "training__max_steps": 2}
        done = call(train_script.main, *toy_options(tiny_corpus, tmp_path / wanted, **changes))
        assert done.code == 0 and ("scan, most audio" in done.stderr) == (wanted == "true")
        logs.append([r["loss"] for r in read_log(tmp_path / wanted / "log.jsonl") if r["kind"] == "train"])
    assert logs[0] == logs[1] and len(logs[0]) == 2


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
