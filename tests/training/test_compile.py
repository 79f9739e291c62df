"""Compiled encoder layers: the same losses, gradients and checkpoints, with few compilations."""

import importlib.util
import shutil
from functools import partial

import pytest
import torch
import torch.distributed as dist
from lhotse import CutSet
from safetensors.torch import load_file
from toy_runs import assert_one_line, call, finish, start, toy_options, toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import compiled_layer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.optim import FreezeSchedule
from tokenverse_pp.training.steps import forward

pytestmark = pytest.mark.slow

NEW = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 1)
needs_compile = pytest.mark.skipif(not NEW, reason="layers are compiled from torch 2.1 on")
CONTEXT = {
    "context_layers": 1,
    "context_dim": 16,
    "context_heads": 2,
    "context_ffn": 24,
    "context_kernel": 5,
    "context_dropout": 0,
}
ENCODERS = {
    "finetune": {},
    "one layer recomputed": {"checkpoint_layers": 1},
    "all layers recomputed": {"gradient_checkpointing": "true"},
    "frozen below": {"freeze_layers": 1, "freeze_feature_encoder": "true"},
    "adapters": {"lora_rank": 2},
    "frozen": {"kind": "frozen", **CONTEXT},
    "split": {"kind": "split", "split_layer": 1, "checkpoint_layers": 2, **CONTEXT},
}
FAST = ("finetune", "one layer recomputed", "adapters")  # the others run with the slow tests
CPU = torch.device("cpu")


@pytest.fixture
def counted():
    """A backend that traces forward and backward without generating code, and the graphs it was given."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return aot_eager(graph, inputs, **options)

    torch._dynamo.reset()
    yield backend, graphs
    torch._dynamo.reset()


def build(corpus, **changes):
    """Parts without dropout: generated code draws other random numbers."""
    parts = toy_parts(corpus, **changes)
    for module in parts.model.train().modules():
        for name, value in vars(module).items():
            if name in ("p", "dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
    return parts


def losses_and_gradients(parts, rows, wrapped=None):
    """Of batches of cuts, by number."""
    cuts = sorted(CutSet.from_file(parts.config.data.train[0]), key=lambda cut: cut.duration)
    found = []
    for numbers in rows:
        torch.manual_seed(3)
        batch = parts.dataset[CutSet.from_cuts([cuts[i] for i in numbers])]
        losses = forward(wrapped or parts.model, batch, False)
        (losses.simple + losses.pruned).sum().backward()
        found += [losses.simple.detach(), losses.pruned.detach()]
    return found, {name: p.grad.clone() for name, p in parts.model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert (found[1][name] - grad).norm() <= 1e-5 * (1 + grad.norm()), name


ROWS = [(0,), (3, 4)]  # a batch without padding, and one with it
OTHERS = [(7, 9, 11), (2,), (12, 13, 14, 15)]  # other sizes


@needs_compile
@pytest.mark.parametrize(
    "encoder", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in ENCODERS]
)
def test_losses_and_gradients_are_the_same_with_few_compilations(tiny_corpus, counted, encoder):
    if "lora_rank" in ENCODERS[encoder] and importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    changes = {f"model__encoder__{key}": value for key, value in ENCODERS[encoder].items()}
    expected = losses_and_gradients(build(tiny_corpus, **changes), ROWS + OTHERS)
    parts = build(tiny_corpus, **changes)
    names = list(parts.model.state_dict())
    parts.model.encoder.compile_layers(compiled_layer(CPU, counted[0]))
    counted[1].clear()
    first = losses_and_gradients(parts, ROWS)
    compiled = len(counted[1])
    others = losses_and_gradients(parts, OTHERS)  # the gradients add up
    assert_same((first[0] + others[0], others[1]), expected)
    assert 1 <= compiled == len(counted[1]) <= 10
    assert list(parts.model.state_dict()) == names
    with torch.no_grad():  # validation runs the layers as they are
        parts.model.encoder(torch.randn(2, 4000), torch.tensor([4000, 3000]))
        parts.model.eval().encoder(torch.randn(2, 4000), torch.tensor([4000, 3000]))
    assert len(counted[1]) == compiled


@needs_compile
def test_layers_may_be_frozen_and_wrapped_for_ddp_between_steps(tiny_corpus, tmp_path, counted):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        found = []
        for compiled in (False, True):
            parts = build(tiny_corpus)
            if compiled:
                parts.model.encoder.compile_layers(compiled_layer(CPU, counted[0]))
            freezing = FreezeSchedule(parts.model, [[0, 0], [1, 1], [2, -1]])
            for step in range(3):
                assert freezing.apply(step)
                parts.model.zero_grad()
                wrapped = torch.nn.parallel.DistributedDataParallel(parts.model)
                found.append(losses_and_gradients(parts, ROWS, wrapped))
        for step in range(3):
            assert_same(found[3 + step], found[step])
        assert len({len(grads) for _, grads in found}) == 3
    finally:
        dist.destroy_process_group()


@needs_compile
def test_run_writes_the_checkpoints_of_one_that_is_not_compiled(
    tiny_corpus, tmp_path, train_script, counted, monkeypatch
):
    monkeypatch.setattr("tokenverse_pp.training.trainer.compiled_layer", partial(compiled_layer, backend=counted[0]))
    weights = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        changes = {"training__compile": compiled, "training__max_steps": 4, "training__scan": compiled}
        call(train_script.main, *toy_options(tiny_corpus, folder, **changes))
        weights.append(load_file(folder / "model" / checkpoint.WEIGHTS))
    assert len(counted[1]) > 1 and weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@needs_compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_generated_code_gives_the_same(tiny_corpus):
    torch._dynamo.reset()
    expected = losses_and_gradients(build(tiny_corpus), ROWS)
    parts = build(tiny_corpus)
    parts.model.encoder.compile_layers(compiled_layer(CPU))
    assert_same(losses_and_gradients(parts, ROWS), expected)
    torch._dynamo.reset()


@pytest.mark.slow
@needs_compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_two_ranks_train_with_generated_code(tiny_corpus, tmp_path):
    changes = {"training__compile": "true", "model__encoder__checkpoint_layers": 1, "data__max_batch_tokens": 60}
    limits = {"data__valid": [], "data__max_cuts": 2, "training__max_steps": 3}
    done = finish(start("train.py", *toy_options(tiny_corpus, tmp_path / "exp", **changes, **limits), ranks=2))
    assert done.code == 0, done.stderr
    assert (tmp_path / "exp" / "model" / checkpoint.WEIGHTS).is_file()


@pytest.mark.parametrize("broken", ["version", pytest.param("compiler", marks=needs_compile)])
def test_compilation_that_is_impossible_is_refused(tiny_corpus, tmp_path, train_script, monkeypatch, broken):
    def fail(*arguments, **options):
        raise RuntimeError("no C++ compiler\nwas found")

    if broken == "version":
        monkeypatch.setattr(torch, "__version__", "2.0.1")
    else:
        monkeypatch.setattr(torch, "compile", fail)
    failure = call(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", training__compile="true"))
    assert_one_line(failure, "--training.compile", "2.0.1" if broken == "version" else "no C++ compiler was found")
    assert not (tmp_path / "exp" / "checkpoints").exists()
    with pytest.raises(UserError, match=r"--training\.compile"):
        compiled_layer(CPU)
