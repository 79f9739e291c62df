"""Several processes: whatever the encoder's kind, each trained parameter has a gradient in every step, as DDP wants."""

import importlib.util
import json
import os
import shutil

import pytest
import torch
import torch.distributed as dist
from lhotse import CutSet
from runs import train_on_ranks
from torch.distributed import fsdp
from toy_runs import read_cuts, toy_options, toy_parts

from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data import distributed
from tokenverse_pp.data.distributed import DistributedContext, gathered, unsharded
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.optim import FreezeSchedule, make_optimizer
from tokenverse_pp.training.steps import Stepper

# name -> options of model.encoder; the encoder has four layers.
KINDS = {
    "finetune": {},
    "finetune, lower layers frozen": {"freeze_layers": 2, "freeze_feature_encoder": "true", "stack": 2},
    "finetune, adapters": {"lora_rank": 2},
    "frozen": {"kind": "frozen", "layers": [2, -1]},
    "split, final norm": {"kind": "split", "split_layer": 2, "layers": [3, -1]},
    "split, layer of the seam": {"kind": "split", "split_layer": 2, "layers": [2]},
    "split, one layer": {"kind": "split", "split_layer": 1, "layers": [2]},
    "split, inner layers": {"kind": "split", "split_layer": 1, "layers": [2, 3], "gradient_checkpointing": "true"},
    "split, top without its norm": {"kind": "split", "split_layer": 0, "layers": [4, 1]},
    "split, adapters": {"kind": "split", "split_layer": 1, "layers": [1, 2], "lora_rank": 2},
    "split, all adapters": {
        "kind": "split",
        "split_layer": 1,
        "layers": [-1],
        "lora_rank": 2,
        "lora_feed_forward": "true",
    },
}
CONTEXT = {"context_layers": 1, "context_dim": 16, "context_heads": 2, "context_ffn": 24, "context_kernel": 5}


def save_sizes(folder, stable):
    """The folder of a tiny wav2vec2 of four layers: only its sizes."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    front = {"conv_dim": [8, 8], "conv_kernel": [80, 8], "conv_stride": [40, 8], "num_feat_extract_layers": 2}
    style = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"], **sizes, **front, **style, **positions}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(
    scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["final norm", "no final norm"]
)
def encoder(request, tmp_path_factory):
    return save_sizes(tmp_path_factory.mktemp("wav2vec2"), request.param)


def options_of(kind, folder):
    options = {"name": folder, **CONTEXT, **KINDS[kind]}
    if options.get("lora_rank") and importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    return {f"model__encoder__{key}": value for key, value in options.items()}


@pytest.fixture
def alone(tmp_path):
    """A process group of one: DDP finds parameters without a gradient there too."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_steps_with_every_kind_of_encoder(tiny_corpus, encoder, alone, kind):
    parts = toy_parts(tiny_corpus, **options_of(kind, encoder), model__loss__ctc_scale=0.3)
    trained = {name for name, parameter in parts.model.named_parameters() if parameter.requires_grad}
    model = torch.nn.parallel.DistributedDataParallel(parts.model.train())
    optimizer = make_optimizer(parts.model, parts.config.optim, ())
    stepper = Stepper(model, optimizer, parts.config, DistributedContext())
    cuts = sorted(read_cuts(tiny_corpus), key=lambda cut: cut.duration)[:2]
    for step in range(3):
        assert not stepper([parts.dataset[CutSet.from_cuts(cuts)]], step).skipped
    counts = {len(stepper.optimizer.state[p]) for p in stepper.parameters}
    assert counts == {3} and trained  # step and two moments: AdamW has a state where it has seen a gradient


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("split")])
def test_nothing_above_the_highest_wanted_layer_is_trained_or_saved(tiny_corpus, encoder, kind):
    options = options_of(kind, encoder)
    model = toy_parts(tiny_corpus, **options).model
    layers, seam = options["model__encoder__layers"], options["model__encoder__split_layer"]
    top = 4 if -1 in layers else max(layers)
    numbers = {
        int(name.split(".layers.")[1].split(".")[0])
        for name in model.checkpoint_state()
        if name.startswith("encoder.backbone.") and ".layers." in name
    }
    assert numbers == set(range(seam, top))
    saved_norm = any(name.startswith("encoder.backbone.encoder.layer_norm.") for name in model.checkpoint_state())
    stable = model.encoder.backbone.final_norm is not None
    assert saved_norm == (stable and -1 in layers and not options.get("model__encoder__lora_rank"))
    # Older versions saved these: they load, and are not taken for something else.
    old = {f"encoder.backbone.encoder.layers.{number}.final_layer_norm.bias": torch.ones(16) for number in range(4)}
    if stable:
        old["encoder.backbone.encoder.layer_norm.bias"] = torch.ones(16)
    for name, value in old.items():
        read = int(name.split(".")[4]) < top if ".layers." in name else -1 in layers
        problem = model.load_checkpoint_state({**{name: value}, **model.checkpoint_state()})
        assert (problem is None) == (not read or name in model.checkpoint_state()), name
    whole = {name for name, p in model.encoder.backbone.named_parameters() if p.requires_grad}
    if whole:  # the schedule counts from the highest layer that runs
        FreezeSchedule(model, [[0, 1]]).apply(0)
        now = {name for name, p in model.encoder.backbone.named_parameters() if p.requires_grad}
        assert now == {name for name in whole if f".layers.{top - 1}." in name or "encoder.layer_norm." in name}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "frozen", "split, inner layers", "split, adapters"])
def test_two_ranks_train_every_kind_of_encoder(tiny_corpus, tmp_path, kind):
    folder = save_sizes(tmp_path, stable=True)
    changes = {"data__valid": [], "data__max_cuts": 2, "training__max_steps": 3, **options_of(kind, folder)}
    done = train_on_ranks(toy_options(tiny_corpus, tmp_path / "exp", **changes))
    assert done.code == 0, done.stderr
    assert (tmp_path / "exp" / "model" / checkpoint.WEIGHTS).is_file()


def tensors_of(folder):
    """The tensors of a checkpoint, by file and name."""
    return {
        (file, name): tensor
        for file in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.AVERAGE)
        if (folder / file).is_file()
        for name, tensor in checkpoint.read_tensors(folder / file).items()
    }


def assert_same(ours, theirs):
    """Equal but for rounding, which AdamW turns into steps where a gradient is zero: in a few single weights."""
    assert list(ours) == list(theirs)
    for (file, name), tensor in theirs.items():
        assert ours[file, name].shape == tensor.shape and ours[file, name].dtype == tensor.dtype
        apart = (ours[file, name].double() - tensor.double()).abs()
        if file == checkpoint.OPTIMIZER:
            assert apart.max() <= 1e-4 * tensor.abs().max() + 1e-7, name
        else:
            assert (apart > 1e-5).sum() <= 10 and apart.max() < 4e-3, name


def losses_of(exp_dir):
    return [record["loss"] for record in read_log(exp_dir / "log.jsonl") if record["kind"] == "train"]


def save_wavlm(folder):
    """Sizes of a tiny WavLM: its lowest layer has a table that is read outside of that layer."""
    config = json.loads((save_sizes(folder, stable=True) / "config.json").read_text())
    config.update(model_type="wavlm", architectures=["WavLMModel"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="torch 2.6")
@pytest.mark.parametrize(
    "kind",
    [
        "finetune",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("finetune, adapters", "frozen", "split, inner layers", "wavlm")
        ),
    ],
)
def test_sharded_steps_are_plain_steps(tiny_corpus, tmp_path, alone, kind):
    """In a process group of one, whatever the encoder: losses, norms, weights, moments, and the gathered forward."""
    cuts = sorted(read_cuts(tiny_corpus), key=lambda cut: cut.duration)[:2]
    if kind == "wavlm":
        options = {"model__encoder__name": save_wavlm(tmp_path)}
    else:
        options = options_of(kind, save_sizes(tmp_path, stable=True))
    runs = []
    for strategy in ("ddp", "fsdp"):
        parts = toy_parts(tiny_corpus, **options, model__vectors__placement="both", training__precision="bf16")
        world, model = DistributedContext(), parts.model
        if strategy == "fsdp":
            world.shard(model, model.encoder.backbone.shardable_layers)
            assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        batch = parts.dataset[CutSet.from_cuts(cuts)]
        optimizer = make_optimizer(model, parts.config.optim, ())
        stepper = Stepper(model.train(), optimizer, parts.config, world)
        results = []
        for step in range(3):
            with unsharded(model), torch.no_grad():  # also before the first step
                out, _ = model.eval().encode(batch["inputs"], batch["lens"], batch["active"], chunks=batch["chunks"])
            model.train()
            results.append(stepper([batch] * (1 + step % 2), step))
        tensors = {(checkpoint.WEIGHTS, k): v for k, v in gathered(model.checkpoint_state()).items()}
        moments = gathered(checkpoint.optimizer_tensors(optimizer))
        tensors.update({(checkpoint.OPTIMIZER, k): v for k, v in moments.items()})
        runs.append((out, [(r.loss, r.grad_norm) for r in results], tensors))
    (out, numbers, tensors), (sharded_out, sharded_numbers, sharded_tensors) = runs
    torch.testing.assert_close(sharded_out, out, atol=1e-4, rtol=1e-4)
    assert torch.tensor(sharded_numbers).allclose(torch.tensor(numbers), rtol=1e-5)
    assert_same(sharded_tensors, tensors)


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="torch 2.6")
def test_lengths_of_a_sharded_model_stay_on_the_cpu(alone, monkeypatch):
    """On a GPU, FSDP moves all tensors that its root module is called with."""

    def fully_shard(module, **options):
        move = lambda module, inputs: tuple(x.to("meta") if isinstance(x, torch.Tensor) else x for x in inputs)
        module.register_forward_pre_hook(move, prepend=True)

    class Model(torch.nn.Module):
        def forward(self, inputs, lens, stored):
            return inputs.device.type, lens.device.type, stored

    monkeypatch.setattr(fsdp, "fully_shard", fully_shard)
    model = Model()
    DistributedContext().shard(model, [])
    assert model(torch.zeros(2, device="meta"), torch.ones(2), False) == ("meta", "cpu", False)


def test_fsdp_that_cannot_be_is_refused(alone, monkeypatch):
    with pytest.raises(UserError, match=r"training\.precision=fp16"):
        parse_config(["--training.strategy", "fsdp", "--training.precision", "fp16"])
    with pytest.raises(UserError, match=r"checkpoint_layers=auto"):
        parse_config(["--training.strategy", "fsdp", "--model.encoder.checkpoint_layers", "auto"])
    monkeypatch.delattr(fsdp, "fully_shard", raising=False)
    with pytest.raises(UserError, match=r"training\.strategy=fsdp: needs torch 2"):
        DistributedContext().shard(torch.nn.Linear(2, 2), [])


@pytest.mark.slow
def test_fsdp_trains_rows_of_new_tokens_as_ddp(tiny_corpus, tmp_path):
    small = {"data__valid": [], "data__max_cuts": 2, "training__max_steps": 2}
    before = {"tasks__names": ["asr", "lid"], "tasks__full_only": "false"}
    done = train_on_ranks(toy_options(tiny_corpus, tmp_path / "before", **small, **before), ranks=1)
    assert done.code == 0, done.stderr
    small.update(training__init_from=tmp_path / "before", training__train_only="new")
    for strategy in ("ddp", "fsdp"):
        options = toy_options(tiny_corpus, tmp_path / strategy, **small, training__strategy=strategy)
        done = train_on_ranks(options)
        assert done.code == 0, done.stderr
    assert losses_of(tmp_path / "fsdp") == pytest.approx(losses_of(tmp_path / "ddp"), rel=1e-5)
    ours, theirs = (tensors_of(tmp_path / name / "checkpoints" / "step-00000002") for name in ("fsdp", "ddp"))
    assert_same(ours, theirs)


@pytest.mark.slow
def test_fsdp_of_two_ranks_is_ddp(tiny_corpus, tmp_path):
    """Losses and checkpoints, with accumulation, frozen layers, recomputed layers and uneven validation."""
    changes = {
        "data__max_cuts": 2,
        "data__valid": [f"{tmp_path}/one.jsonl.gz"],
        "model__encoder__gradient_checkpointing": "true",
        "model__vectors__placement": "both",
        "model__loss__ctc_scale": 0.3,
        "training__accumulate": 2,
        "training__freeze": [[0, 0], [1, 1], [3, -1]],
        "training__scan": "true",
        "training__valid_every": 2,
        "training__save_every": 2,
        "training__average_period": 2,
        "training__max_steps": 4,
    }
    CutSet.from_cuts(read_cuts(tiny_corpus, "dev")[:1]).to_file(tmp_path / "one.jsonl.gz")  # none for rank 1

    def run(name, strategy, ranks=2, **more):
        options = toy_options(tiny_corpus, tmp_path / name, training__strategy=strategy, **{**changes, **more})
        done = train_on_ranks(options, ranks)
        assert done.code == 0, done.stderr
        return done

    def same(name, step):
        ours, theirs = (tensors_of(tmp_path / n / "checkpoints" / f"step-{step:08d}") for n in (name, "ddp"))
        assert_same(ours, theirs)

    run("ddp", "ddp")
    said = run("fsdp", "fsdp").stderr
    assert said.count("scan, ") == 4  # as many on each rank
    assert losses_of(tmp_path / "fsdp") == pytest.approx(losses_of(tmp_path / "ddp"), rel=1e-5)
    for step in (2, 4):
        same("fsdp", step)
    for name, first, second in (("there", "ddp", "fsdp"), ("back", "fsdp", "ddp")):
        shutil.copytree(tmp_path / first, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000004")
        assert f"training.strategy: {first} -> {second}" in run(name, second).stderr
        same(name, 4)
        assert losses_of(tmp_path / name) == pytest.approx(losses_of(tmp_path / "ddp"), rel=1e-5)
    before = checkpoint.read_tensors(tmp_path / "fsdp" / "model" / checkpoint.WEIGHTS)
    again = run("fsdp", "fsdp", training__scan="false").stderr  # no forward of training: the average is validated
    assert "average of the last checkpoints: " in again
    after = checkpoint.read_tensors(tmp_path / "fsdp" / "model" / checkpoint.WEIGHTS)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    run("fsdp", "fsdp", ranks=1, training__max_steps=5)


@pytest.fixture
def threads_of(monkeypatch):
    """``set_threads`` in a process with these environment variables on four cores -> (torch's number, line)."""
    monkeypatch.setattr(distributed, "cpu_cores", lambda: 4)
    before = torch.get_num_threads()

    def run(parameters, given=0, **environment):
        for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        torch.set_num_threads(3)  # as torch may have chosen
        line = distributed.set_threads(given, torch.nn.Linear(parameters, 1, bias=False, device="meta"))
        return torch.get_num_threads(), line

    yield run
    torch.set_num_threads(before)


def test_threads_fit_the_model_and_the_processes(threads_of):
    large, small = distributed.LARGE, distributed.LARGE - 1
    assert threads_of(small) == (1, "CPU threads: 1 (more would slow down a model of this size)")
    assert threads_of(large) == (4, "CPU threads: 4 (4 cores)")
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}
    assert threads_of(large, **torchrun, LOCAL_WORLD_SIZE="2") == (2, "CPU threads: 2 (4 cores, 2 processes)")
    assert threads_of(large, **torchrun, LOCAL_WORLD_SIZE="8")[0] == 1


def test_a_given_number_of_threads_wins(threads_of):
    assert threads_of(distributed.LARGE, OMP_NUM_THREADS="1") == (3, "CPU threads: 3 (OMP_NUM_THREADS)")
    assert threads_of(1, given=2, OMP_NUM_THREADS="1") == (2, "CPU threads: 2 (as given)")
    with pytest.raises(UserError, match="threads: expected at most 4096 CPU threads, got 100000"):
        threads_of(1, given=100000)


def test_cores_are_at_most_the_processors():
    assert 1 <= distributed.cpu_cores() <= os.cpu_count()
