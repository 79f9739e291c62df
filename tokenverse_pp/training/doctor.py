"""Checks of a machine and a configuration before a run: what works, what fails, and what to do about it."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Generator, Iterator, Literal, Optional

import numpy as np
import soundfile
import torch
import torch.distributed as dist

from tokenverse_pp.base.config import Config, EncoderConfig
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.storage import working_folder
from tokenverse_pp.data.audio.reader import read_audio
from tokenverse_pp.data.distributed import DistributedContext, set_threads
from tokenverse_pp.data.labels import find_problems
from tokenverse_pp.data.samplers import SamplerState, load_cuts, open_rounds, open_source, train_batches
from tokenverse_pp.losses.devices import peak_memory, reset_peak_memory, triton_problem
from tokenverse_pp.losses.entry import pruned_transducer_loss, resolve_backend
from tokenverse_pp.losses.k2 import k2_problem
from tokenverse_pp.models.bundle import build_model, get_tokenizer, pretrained_prefixes
from tokenverse_pp.models.encoders import build_encoder
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.tasks import build_tasks, load_plugins
from tokenverse_pp.training.estimate import estimate
from tokenverse_pp.training.failures import naming_memory
from tokenverse_pp.training.inputs import ALONE, Inputs, check_sample, has_features, make_inputs
from tokenverse_pp.training.memory import memory_limit, memory_of_updates, pick_recomputed
from tokenverse_pp.training.optim import make_optimizer
from tokenverse_pp.training.steps import Stepper, different_batches, scan, worst_batches
from tokenverse_pp.training.storage import RUNS

Verdict = Literal["ok", "warning", "failed", "skipped"]
SAMPLE = 1000  # cuts of each file whose labels and audio are checked
SENTENCES = 20_000  # texts for the tokenizer that the checks train
MANY_SENTENCES = 2_000_000  # texts for which training a tokenizer takes long
REDUCED = 64 * 2**20  # float32 numbers in the all-reduce on GPUs: 256 MB, a fifth of XLSR-53's gradients
WAIT = 120.0  # seconds in which processes must start and finish the all-reduce
LOAD_SECONDS = 10.0  # seconds of loading batches
LOAD_BATCHES = 200
HEADROOM = 1.2  # factor by which loading should be faster than training


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was found, and what to do if it is not fine."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""

    def line(self) -> str:
        """One line for the terminal."""
        return f"{self.verdict:8} {self.name:10} {self.found}" + (f" -> {self.advice}" if self.advice else "")


Check = Generator[Finding, None, Any]  # yields its findings, and returns what later checks need, None if it failed


def examine(config: Optional[Config] = None, encoder: str = "", gpus: int = 0) -> Iterator[Finding]:
    """Run all checks, one after another; each yields its findings when it is done.

    Args:
        config: configuration of a run; None: check only the machine.
        encoder: name or folder of an encoder to load, if there is no configuration.
        gpus: ranks that the run will have; 0: the GPUs of this machine.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    gpus = gpus or max(1, torch.cuda.device_count())
    precision = config.training.precision if config else "fp32"
    backend = config.model.loss.backend if config else "auto"
    nccl = "see NCCL_DEBUG=INFO; try NCCL_P2P_DISABLE=1, NCCL_IB_DISABLE=1"
    yield from _guarded("torch", check_torch())
    yield from _guarded("gpu", check_gpus(precision))
    yield from _guarded("all-reduce", check_all_reduce(), nccl)
    yield from _guarded("loss", check_loss(device, backend), "try --model.loss.backend torch")
    yield from _guarded("audio", check_audio())
    if config is not None:
        yield from check_run(config, device, gpus)
    elif encoder:
        yield from _guarded("encoder", check_encoder(EncoderConfig(name=encoder)), ENCODER_ADVICE)


ENCODER_ADVICE = "set --model.encoder.name to its folder, or download it on a machine with network: hf download NAME"


def _guarded(name: str, check: Check, advice: str = "") -> Check:
    """Run a check; an exception becomes a failed finding."""
    try:
        return (yield from check)
    except Exception as error:  # libraries and drivers raise errors of any type
        yield Finding(name, "failed", one_line(error), advice)


def check_torch() -> Check:
    """Report versions and CPU cores."""
    found = f"{torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores"
    old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1)
    advice = "torch 2.1 or later has compiled layers, streaming, export and serving" if old else ""
    yield Finding("torch", "warning" if old else "ok", found, advice)


def check_gpus(precision: str) -> Check:
    """Check for each GPU a matrix product, its free memory, and support for the run's precision."""
    if not torch.cuda.is_available():
        if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
            advice = "install a torch for this driver (docs/install.md), and check that nvidia-smi works"
            found = f"there is an NVIDIA driver, but torch (built for {built}) finds no GPU"
            yield Finding("gpu", "failed", found, advice)
        else:
            yield Finding("gpu", "warning", "none: steps run on the CPU", "fine for the tutorial and for trials")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        properties = torch.cuda.get_device_properties(device)
        x = torch.ones(512, 512, device=device)
        if not bool((x @ x == 512).all()):
            found = f"{number}: {properties.name}: a matrix product is wrong"
            yield Finding("gpu", "failed", found, "leave this GPU out")
            continue
        free, total = torch.cuda.mem_get_info(device)
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        found = f"{number}: {properties.name}, {memory}, CUDA {torch.version.cuda}"
        if precision == "bf16" and properties.major < 8:
            yield Finding("gpu", "failed", f"{found}, without bf16", "set --training.precision fp16")
        elif free < 0.9 * total:
            yield Finding("gpu", "warning", found, "another process holds memory: see nvidia-smi")
        else:
            yield Finding("gpu", "ok", found)


def check_all_reduce() -> Check:
    """Run an all-reduce as in DDP: with NCCL, one process per GPU, or with two gloo processes on the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 1:
        yield Finding("all-reduce", "skipped", "one GPU")
        return
    backend, ranks = ("nccl", count) if count else ("gloo", 2)
    milliseconds = run_all_reduce(backend, ranks)
    found = f"{backend}, {ranks} processes"
    if backend == "nccl":
        found += f", {4 * REDUCED / 2**20:.0f} MB in {milliseconds:.1f} ms; XLSR-53's gradients are 1260 MB"
    yield Finding("all-reduce", "ok", found)


def run_all_reduce(backend: str, ranks: int, wait: float = WAIT) -> float:
    """Return the milliseconds of an all-reduce of ``ranks`` new processes (raises UserError if it fails or hangs)."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        context: Any = mp.spawn(_reduce, (backend, ranks, folder), nprocs=ranks, join=False)
        end = time.monotonic() + wait
        try:
            while not context.join(timeout=1.0):
                if time.monotonic() > end:
                    raise UserError(f"{backend}: {ranks} processes did not add up within {wait:g} s")
        except mp.ProcessRaisedException as error:
            raise UserError(f"{backend}: {str(error).strip().splitlines()[-1]}") from None
        finally:
            for process in context.processes:
                process.kill()
        return max(float(path.read_text()) for path in Path(folder).glob("rank-*"))


def _reduce(rank: int, backend: str, ranks: int, folder: str) -> None:
    """One process of `run_all_reduce`; writes its milliseconds to a file."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    numbers = torch.full((REDUCED if backend == "nccl" else 1000,), float(rank + 1), device=device)
    dist.all_reduce(numbers)  # the first one connects the processes
    if not bool((numbers == ranks * (ranks + 1) / 2).all()):
        raise ValueError("the sum is wrong")
    milliseconds = _milliseconds(lambda: dist.all_reduce(numbers), device)
    Path(folder, f"rank-{rank}").write_text(str(milliseconds))
    dist.destroy_process_group()


def _milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return the time of a call, including its work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - began)


def check_loss(device: torch.device, backend: str) -> Check:
    """Check that the run's backend and PyTorch agree on a small loss and its gradients."""
    chosen = resolve_backend(backend, device)
    there = []
    if device.type == "cuda":
        problem = triton_problem(device)
        there.append(f"Triton: {problem}" if problem else "Triton works")
    problem = k2_problem(device)
    there.append(f"k2: {problem}" if problem else "k2 works")
    losses = {name: _small_loss(device, name) for name in dict.fromkeys(("torch", chosen))}
    if not torch.allclose(losses[chosen], losses["torch"], rtol=1e-3):
        yield Finding("loss", "failed", f"{chosen} differs from torch", "set --model.loss.backend torch, and report it")
    elif device.type == "cuda" and chosen == "torch":
        yield Finding("loss", "warning", f"torch on a GPU is slow; {'; '.join(there)}", "pip install triton")
    else:
        yield Finding("loss", "ok", f"{chosen}; {'; '.join(there)}")


def _small_loss(device: torch.device, backend: str) -> torch.Tensor:
    """Return the pruned loss of two utterances and the norm of a gradient: (3,)."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 20, 30), (2, 6, 30), (2, 20, 16), (2, 6, 16))
    am_simple, lm_simple, am, lm = (
        torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes
    )
    output = torch.nn.Linear(16, 30)
    with torch.no_grad():
        output.weight.copy_(torch.randn(30, 16, generator=generator) / 4)
        output.bias.zero_()
    symbols = torch.randint(1, 30, (2, 5), generator=generator).to(device)
    loss = pruned_transducer_loss(am_simple, lm_simple, am, lm, output.to(device), symbols, backend=backend)
    (loss.simple + loss.pruned).sum().backward()
    return torch.cat([loss.pruned.detach().cpu(), am.grad.norm().cpu()[None]])  # type: ignore[union-attr]


def check_audio() -> Check:
    """Check that files of the common formats can be written and decoded."""
    samples = 0.5 * np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000).astype(np.float32)
    works, fails = [], []
    formats = soundfile.available_formats()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, subtype in (
            ("wav", "WAV", "PCM_16"),
            ("flac", "FLAC", "PCM_16"),
            ("ogg", "OGG", "VORBIS"),
            ("opus", "OGG", "OPUS"),
            ("mp3", "MP3", "MPEG_LAYER_III"),
        ):
            path = Path(folder, f"a.{name}")
            try:
                if kind not in formats or subtype not in soundfile.available_subtypes(kind):
                    raise UserError("libsndfile is too old")
                soundfile.write(path, samples, 16000, format=kind, subtype=subtype)
                heard, rate = read_audio(path)
                if rate not in (16000, 48000) or abs(heard.size / rate - 1) > 0.1:
                    raise UserError(f"{heard.size} samples at {rate} Hz, expected 1 s")
                works.append(name)
            except Exception as error:  # decoders raise errors of any type
                fails.append(f"{name} ({one_line(error)})")
    others = [name for name in ("ffmpeg", "sph2pipe") if shutil.which(name)]
    try:
        import av

        others.insert(0, f"PyAV {av.__version__}")
    except ImportError:
        pass
    found = f"{', '.join(works)} by soundfile {soundfile.__version__}; also there: {', '.join(others) or 'nothing'}"
    if {"wav", "flac"} - set(works):
        yield Finding("audio", "failed", "; ".join(fails), "pip install --upgrade soundfile")
    elif fails:
        yield Finding("audio", "warning", f"{found}; not: {', '.join(fails)}", "pip install --upgrade soundfile")
    else:
        yield Finding("audio", "ok", found)


def check_encoder(config: EncoderConfig) -> Check:
    """Check that the encoder is found and its weights fit; return True."""
    encoder = build_encoder(config)
    size = sum(p.numel() for p in encoder.parameters())
    weights = "random weights" if config.random_init else "pretrained"
    yield Finding("encoder", "ok", f"{config.name}, {size / 1e6:.1f} M parameters, {weights}, kind {config.kind}")
    return True


def check_run(config: Config, device: torch.device, gpus: int) -> Check:
    """Check what a configuration needs: data, encoder, tokenizer, disk, and memory and time of its batches."""
    load_plugins(config.tasks.plugins)
    has_data = yield from _guarded("data", check_files(config))
    if has_data and config.data.stored_features is None:
        config = replace(config, data=replace(config.data, stored_features=has_features(config)))
    has_encoder = yield from _guarded("encoder", check_encoder(config.model.encoder), ENCODER_ADVICE)
    if not (has_data and has_encoder):
        yield Finding("memory", "skipped", "needs the data and the encoder")
        return
    parts = yield from _guarded("tokenizer", make_parts(config, device))
    if parts is None:
        return
    model, inputs = parts
    yield from _guarded("disk", check_disk(config, model))
    rate = yield from _guarded("memory", check_memory(config, model, inputs, device, gpus))
    if rate is None:
        return
    yield from _guarded("loader", check_loader(config, inputs, rate))
    yield Finding("time", "ok", estimate(config, gpus, rate=rate).describe().replace("as given", "measured here"))


def check_files(config: Config) -> Check:
    """Check the files of data.train and data.valid: number of cuts, and labels and audio of a sample.

    Returns whether all are fine.
    """
    tasks, fine = build_tasks(config.tasks.names, config.tasks.options()), True
    if not config.data.train:
        raise UserError("--data.train: expected at least one CutSet file")
    for path in (*config.data.train, *config.data.valid):
        try:
            source = open_source(path)
            problem = next(iter(find_problems(source.spread(SAMPLE), tasks)), None)
            if problem:
                raise UserError(f"{path}: cut {problem[0]}: {problem[1]}")
            check_sample(path, config, ALONE, SAMPLE)
            yield Finding("data", "ok", f"{path}: {source.count} cuts, {min(SAMPLE, source.count)} looked at")
        except UserError as error:
            fine = False
            yield Finding("data", "failed", str(error), "see docs/manifests.md; `manifest validate` lists all problems")
    return fine


def make_parts(config: Config, device: torch.device) -> Check:
    """Check the tokenizer; return the model, on the device, and its training inputs."""
    tasks = build_tasks(config.tasks.names, config.tasks.options())
    rounds = open_rounds(config.data, config.training.seed)
    cuts = sum(source.count for source in rounds.sources)
    wanted = config.tokenizer.sentences or cuts
    found = "given" if config.tokenizer.model else f"that of {config.model.encoder.name}, extended"
    if not config.tokenizer.model and config.model.transducer == "new":
        sentences = min(wanted, SENTENCES) if wanted > SENTENCES else config.tokenizer.sentences
        config = replace(config, tokenizer=replace(config.tokenizer, sentences=sentences))
        found = f"trained on {min(wanted, SENTENCES)} cuts for these checks"
        if wanted > SENTENCES:  # the run's may have more characters
            config = replace(config, data=replace(config.data, max_unk_share=1.0))
    tokenizer = get_tokenizer(config, tasks)
    found = f"{tokenizer.vocab_size} tokens, {found}"
    if not config.tokenizer.model and wanted > MANY_SENTENCES and config.model.transducer == "new":
        advice = "set tokenizer.sentences, and make it once with `tokenverse-pp tokenizer`"
        yield Finding("tokenizer", "warning", f"{found}; the run's is trained on {wanted}", advice)
    else:
        yield Finding("tokenizer", "ok", found)
    model = build_model(config, tasks, tokenizer).to(device)
    set_threads(config.training.threads, model)
    valid = load_cuts(config.data.valid, "data.valid") if config.data.valid else []
    return model, make_inputs(config, DistributedContext(device=device), tasks, tokenizer, model.encoder, rounds, valid)


def check_disk(config: Config, model: Transducer) -> Check:
    """Check the room for checkpoints: weights, AdamW's two moments, and the running average in float64."""
    t = config.training
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    each = sum(v.numel() * v.element_size() for v in model.checkpoint_state().values()) + 8 * trained
    each += 8 * trained if t.average_period else 0
    needed = each * (t.keep_last + t.keep_best + 1)
    folder = working_folder(t.exp_dir, RUNS).absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "failed", f"{folder} cannot be written to", "set --training.exp_dir")
        return
    free = shutil.disk_usage(folder).free
    kept = f"{t.keep_last + t.keep_best} checkpoints and one that is being written"
    found = f"{t.exp_dir}: {needed / 1e9:.1f} GB for {kept}, {free / 1e9:.1f} GB free"
    few = "lower --training.keep_last, or set --training.exp_dir to another disk"
    yield Finding("disk", "failed" if needed > free else "ok", found, few if needed > free else "")


def check_memory(config: Config, model: Transducer, inputs: Inputs, device: torch.device, gpus: int) -> Check:
    """Run the largest batches, and steps on the one with the most audio.

    Returns the rate of these, in seconds of audio, including padding, per second.
    """
    if config.training.strategy == "fsdp" and gpus > 1:
        advice = "set --training.scan true in the run"
        yield Finding("memory", "skipped", "training.strategy fsdp needs its ranks", advice)
        return None
    world, sampler, dataset = DistributedContext(device=device), inputs.sampler, inputs.dataset
    optimizer = make_optimizer(model, config.optim, pretrained_prefixes(config))
    if config.model.encoder.checkpoint_layers == "auto":
        picked = pick_recomputed(model, optimizer, sampler, dataset, config, world)
        yield Finding("memory", "ok", picked or "checkpoint_layers auto: memory is not measured on a CPU")
    for line in scan(model, sampler, dataset, config, world):
        yield Finding("memory", "ok", line[len("scan, ") :])
    name, cuts = different_batches(worst_batches(sampler, dataset))[0]
    batch = dataset[cuts]
    stepper = Stepper(model, optimizer, config, world)
    reset_peak_memory(device)
    with naming_memory(batch):
        stepper([batch], 0)  # makes AdamW's moments; compiles kernels
        stepper([batch], 1)
        times = [_milliseconds(partial(stepper, [batch], number), device) for number in (2, 3)]
    seconds = len(batch["cut_ids"]) * max(cut.duration for cut in cuts)
    limit = memory_limit(device, config)
    # The peak includes AdamW's moments, but not DDP's buckets and accumulated gradients.
    peak = peak_memory(device) + memory_of_updates(model, optimizer, config, DistributedContext(0, gpus, device))
    found = f"a step on {name}, {seconds:.0f} s of audio with padding: {min(times):.0f} ms, peak {peak:.0f} MB"
    if limit is None:
        yield Finding("memory", "ok", f"{found} of this process")
    elif peak > limit:
        advice = "lower --data.max_duration, or set --model.encoder.checkpoint_layers auto (docs/training.md, Memory)"
        yield Finding("memory", "failed", f"{found} with {gpus} ranks, more than {limit:.0f} MB", advice)
    else:
        yield Finding("memory", "ok", f"{found} with {gpus} ranks, of {limit:.0f} MB")
    return 1000 * seconds / min(times)


def check_loader(config: Config, inputs: Inputs, rate: float) -> Check:
    """Load batches as in training for some seconds, and compare the speed with the rate of the steps."""
    loaded = 0.0
    batches: Any = train_batches(inputs.sampler, inputs.dataset, config.data, SamplerState())
    with closing(batches):  # stops the workers
        first = next(batches, None)  # starts the workers
        if first is None:
            raise UserError("--data.train: no cut is left to train on")
        began = time.perf_counter()
        count = 0
        for _, batch in islice(batches, LOAD_BATCHES):
            loaded += batch["seconds"]
            count += 1
            if time.perf_counter() - began > LOAD_SECONDS:
                break
        elapsed = time.perf_counter() - began
    if not count:
        yield Finding("loader", "skipped", "all training data is one batch")
        return
    speed, workers = loaded / elapsed, config.data.num_workers
    found = f"{speed:.0f} s of audio per second and rank with num_workers {workers}; steps need {rate:.0f}"
    if speed >= HEADROOM * rate:
        yield Finding("loader", "ok", found)
        return
    wanted = math.ceil(max(1, workers) * HEADROOM * rate / speed)
    cores = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    if wanted <= cores:
        advice = f"set --data.num_workers {wanted}"
    else:
        advice = "too few cores per rank: use shards (manifest to-shar), or FLAC instead of MP3 and Opus"
    yield Finding("loader", "warning", found, advice)
