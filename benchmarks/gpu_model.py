"""The sections of benchmarks/gpu.py about whole models: training step, decoding rate, a toy training."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import soundfile
import torch
from gpu_run import GpuRun, Marks, Record, import_script, median_parts, peak_mb, timed
from lhotse import CutSet, Recording
from torch import Tensor
from train_step_worker import TASKS, TINY, WORD, XLSR

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.data.dataset import load_inputs
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.decoding.recognizer import DecodeOptions, Recognizer
from tokenverse_pp.decoding.run import decode_all
from tokenverse_pp.losses.devices import autocast, compiled_layer
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders import build_encoder
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.optim import make_optimizer
from tokenverse_pp.training.trainer import Stepper

ROOT = Path(__file__).resolve().parent.parent
SAMPLES_A_SECOND = 16000
TOKENS_A_SECOND = 5


def make_bundle(run: GpuRun, checkpointing: bool = False) -> ModelBundle:
    """A TokenVerse++ model with random weights and an encoder of XLSR-53's size, for all five tasks."""
    config, vocabulary = Config(), 60 if run.dry else 500
    with tempfile.TemporaryDirectory() as folder:
        from transformers import Wav2Vec2Config

        Wav2Vec2Config(**(TINY if run.dry else XLSR)).save_pretrained(folder)
        encoder = config.model.encoder
        encoder.name, encoder.random_init, encoder.gradient_checkpointing = folder, True, checkpointing
        config.tasks.names, config.tasks.languages = list(TASKS), ["en", "fr"]
        config.training.precision = "bf16"
        tasks = build_tasks(config.tasks.names, config.tasks.options())
        # Random words: no piece is frequent, so that the tokenizer fills its vocabulary.
        random = np.random.default_rng(0)
        texts = ["".join(random.choice(list(WORD), 6)) for _ in range(4000)]
        tokenizer = train_tokenizer(texts, tasks, vocabulary)
        torch.manual_seed(0)
        model = Transducer(config.model, build_encoder(encoder), len(tasks.tasks), vocabulary)
    return ModelBundle(config, tasks, tokenizer, model.to(run.device))


class TrainStep:
    """A model, a batch of full utterances of noise, and a training step in parts."""

    def __init__(self, run: GpuRun, batch: int, seconds: float, checkpointing: bool, compiled: bool = False):
        self.run, self.batch, self.seconds = run, batch, seconds
        self.bundle = make_bundle(run, checkpointing)
        self.model = self.bundle.model.train()
        if compiled:
            self.model.encoder.compile_layers(compiled_layer(run.device, "eager" if run.dry else "inductor"))
        self.optimizer = make_optimizer(self.model, self.bundle.config.optim, ("encoder.backbone.",))
        samples, targets = round(seconds * SAMPLES_A_SECOND), round(seconds * TOKENS_A_SECOND)
        torch.manual_seed(1)
        vocabulary = self.bundle.tokenizer.vocab_size
        self.inputs: Dict[str, Tensor] = {
            "inputs": 0.1 * torch.randn(batch, samples),
            "lens": torch.full((batch,), samples),
            "active": torch.ones(batch, len(TASKS)),
            "tokens": torch.randint(1, vocabulary, (batch, targets)),
            "token_lens": torch.full((batch,), targets),
        }
        self.inputs = {name: tensor.to(run.device) for name, tensor in self.inputs.items()}
        self.loss = torch.zeros(())

    def _forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def whole(self) -> None:
        """Forward, backward, update."""
        with autocast(self.run.device, "bf16"):
            losses = self.model(**self.inputs)
        loss = losses.simple.sum() + losses.pruned.sum()
        loss.backward()
        self.loss = loss.detach()
        self.optimizer.step()
        self._forget()

    def in_parts(self) -> Dict[str, float]:
        """The milliseconds of each part of a step; the encoder's output cuts forward and backward in two."""
        mark, i = Marks(self.run.device), self.inputs
        mark("")
        with autocast(self.run.device, "bf16"):
            out, lens = self.model.encode(i["inputs"], i["lens"], i["active"])
            mark("encoder_forward")
            leaf = out.detach().requires_grad_()
            losses = self.model.losses(leaf, lens, i["tokens"], i["token_lens"])
        mark("loss_forward")
        (losses.simple.sum() + losses.pruned.sum()).backward()
        mark("loss_backward")
        out.backward(leaf.grad)
        mark("encoder_backward")
        self.optimizer.step()
        self._forget()
        mark("optimiser")
        return mark.milliseconds()

    def measure(self) -> Record:
        """The record of the step."""
        run, repeats = self.run, 1 if self.run.dry else 4
        times = timed(self.whole, run.device, repeats)
        peak = peak_mb(self.whole, run.device, self._forget)
        held = torch.cuda.memory_allocated() / 2**20 if run.device.type == "cuda" else None
        self.in_parts()
        parts = [self.in_parts() for _ in range(repeats)]
        sums = [sum(p.values()) for p in parts]
        shares = [(p["loss_forward"] + p["loss_backward"]) / total for p, total in zip(parts, sums)]
        parameters = sum(p.numel() for p in self.model.encoder.parameters())
        audio = self.batch * self.seconds
        frames = audio / self.model.encoder.output_frame_shift
        return {
            **times,
            **median_parts(parts),
            "loss_share": round(sorted(shares)[len(shares) // 2], 4),  # with predictor and joiner
            "audio_s_per_s": round(1000 * audio / times["ms"], 1),
            "peak_gb": None if peak is None or held is None else round((peak + held) / 1024, 2),
            "tflops": round(6 * parameters * frames / times["ms"] / 1e9, 3),  # attention left out
            "parameters": parameters,
            "loss": round(float(self.loss), 3),
            "ok": math.isfinite(float(self.loss)),
        }

    def by_trainer(self) -> Record:
        """The same batch through the step that recipes/train.py makes, with its checks, clipping and reductions."""
        config = self.bundle.config
        world = DistributedContext(device=self.run.device)
        stepper = Stepper(self.model, self.optimizer, config, world)
        on_host = {name: tensor.cpu() for name, tensor in self.inputs.items()}
        batch = {**on_host, "cut_ids": [str(i) for i in range(self.batch)], "seconds": self.batch * self.seconds}
        times = timed(lambda: stepper([batch], 1), self.run.device, 1 if self.run.dry else 4)
        return {**times, "audio_s_per_s": round(1000 * self.batch * self.seconds / times["ms"], 1)}


def step_of(
    run: GpuRun, batch: int, checkpointing: bool = False, trainer: bool = False, compiled: bool = False
) -> None:
    """Record one size of training step."""
    seconds = 0.4 if run.dry else 15.0
    batch = 2 if run.dry else batch
    about = {"batch": batch, "audio_seconds": seconds, "checkpointing": checkpointing, "compiled": compiled}
    name = f"{batch} x {seconds:g} s{', checkpointing' * checkpointing}{', compiled' * compiled}"
    step = TrainStep(run, batch, seconds, checkpointing, compiled)
    run.case("step", name, step.measure, kind="plain", **about)
    if trainer:
        run.case("step", f"{name}, trainer", step.by_trainer, kind="trainer", **about)


def step(run: GpuRun) -> None:
    """A training step of XLSR-53's size, 16 x 15 s, and with compiled layers (``training.compile``)."""
    step_of(run, 16, trainer=True)
    step_of(run, 16, compiled=True)


def more_steps(run: GpuRun) -> None:
    """A smaller batch, and a larger one with activation checkpointing."""
    step_of(run, 8)
    step_of(run, 32, checkpointing=True)


def decode(run: GpuRun) -> None:
    """The rate of decode.py's path: reading audio, encoder of XLSR-53's size, beam 4, records; and its parts."""
    seconds, count, max_duration = (0.5, 4, 1.0) if run.dry else (15.0, 512, 480.0)
    bundle = make_bundle(run)
    bundle.model.eval()
    options = DecodeOptions(SearchOptions("beam", 4), max_duration=max_duration, precision="bf16")
    with tempfile.TemporaryDirectory() as folder:
        cuts = noise_cuts(Path(folder), seconds, count)
        recognizer = Recognizer(bundle, options)
        batch = cuts[: max(1, int(max_duration / seconds))]
        calibrate_blank(recognizer, load_inputs(cuts[0]))

        def rate() -> Record:
            world = DistributedContext(device=run.device)
            outcome = decode_all(bundle, cuts, options, Path(folder) / "parts", world, False, lambda line: None)
            assert outcome is not None and not outcome.failures, "cuts were refused"
            speed = outcome.speed
            characters = sum(len(record["text"]) for record in outcome.records)
            times_real_time = round(speed["audio_seconds"] / speed["wall_seconds"], 1)
            wall = round(speed["wall_seconds"], 3)
            return {"audio_s_per_s": times_real_time, "wall_s": wall, "characters": characters}

        def in_parts() -> Record:
            items = [load_inputs(cut) for cut in batch]
            audio = torch.stack(items)
            lens = torch.full((len(items),), audio.size(1))
            weights = recognizer.weights.expand(len(items), -1)
            encoded = recognizer.encode(audio, lens, weights, False, None)
            repeats = 1 if run.dry else 3
            calls = {
                "read": lambda: [load_inputs(cut) for cut in batch],
                "encoder": lambda: recognizer.encode(audio, lens, weights, False, None),
                "search": lambda: recognizer.search(*encoded),
            }
            found = recognizer.search(*encoded)
            tokens = sum(len(best[0].tokens) for best in found if best) / (len(batch) * seconds)
            times = {f"{name}_ms": timed(call, run.device, repeats)["ms"] for name, call in calls.items()}
            return {**times, "tokens_per_s": round(tokens, 2)}

        about = {"cuts": count, "audio_seconds": seconds, "beam": 4}
        run.case("decode", "parts of a batch", in_parts, kind="parts", **{**about, "cuts": len(batch)})
        run.case("decode", f"{count} x {seconds:g} s", rate, kind="whole", **about)


def noise_cuts(folder: Path, seconds: float, count: int) -> List[Any]:
    """Cuts of 16 files of noise, each of which several cuts name."""
    recordings = []
    for number in range(min(count, 16)):
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * SAMPLES_A_SECOND))
        soundfile.write(folder / f"{number}.wav", noise.clip(-1, 1), SAMPLES_A_SECOND)
        recordings.append(Recording.from_file(folder / f"{number}.wav"))
    cuts = [recordings[i % len(recordings)].to_cut() for i in range(count)]
    return list(CutSet.from_cuts(dataclasses.replace(cut, id=f"cut-{i}") for i, cut in enumerate(cuts)))


def calibrate_blank(recognizer: Recognizer, audio: Tensor) -> None:
    """Raise the blank's logit until about a tenth of the frames write a token, as in a trained model."""
    model = recognizer.loaded.model
    lens, weights = torch.tensor([len(audio)]), recognizer.weights[None]
    out, _ = recognizer.encode(audio[None], lens, weights, False, None)
    with torch.no_grad():
        state = model.predictor(torch.zeros(1, 0, dtype=torch.long, device=out.device))
        logits = model.joiner(model.joiner.encoder_proj(out.float()), model.joiner.predictor_proj(state))
        lead = logits[..., 1:].amax(-1) - logits[..., 0]
        model.joiner.output.bias[0] += torch.quantile(lead.flatten(), 0.9)


def toy(run: GpuRun) -> None:
    """Train the toy recipe for a fixed number of steps through recipes/train.py; its loss must fall."""
    steps, every, utterances = (12, 3, 24) if run.dry else (150, 15, 400)

    def measure() -> Record:
        with tempfile.TemporaryDirectory() as folder:
            prepare = import_script(ROOT / "recipes" / "toy" / "prepare.py")
            prepare.prepare_toy(Path(folder) / "data", {"test": 1, "train": utterances})
            options = {
                "data.train": f"[{folder}/data/cuts_train.jsonl.gz]",
                "data.valid": "[]",
                "model.encoder.name": f"{folder}/data/encoder",
                "tokenizer.vocab_size": 36 if run.dry else 38,
                "optim.warmup_steps": 3 if run.dry else 50,
                "training.exp_dir": f"{folder}/exp",
                "training.max_steps": steps,
                "training.log_every": every,
                "training.save_every": steps,
                **({"data.max_duration": 8, "data.num_buckets": 1} if run.dry else {}),
            }
            words = [f"--{name}={value}" for name, value in options.items()]
            train = import_script(ROOT / "recipes" / "train.py")
            train.main(["--config", str(ROOT / "recipes" / "toy" / "conf" / "toy.yaml"), *words])
            logged = [record for record in read_log(Path(folder) / "exp" / "log.jsonl") if record["kind"] == "train"]
        losses = [round(record["pruned"], 4) for record in logged]
        falls = len(losses) > 1 and losses[-1] < losses[0]
        speeds = sorted(record["speed"] for record in logged)
        return {"losses": losses, "falls": falls, "audio_s_per_s": round(speeds[len(speeds) // 2], 1), "ok": falls}

    run.case("toy", f"{steps} steps", measure, steps=steps)
