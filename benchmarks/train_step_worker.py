"""One case of train_step.py: builds the model, times the parts of a step, writes the records."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from torch import Tensor

from tokenverse_pp.base.config import Config
from tokenverse_pp.data.dataset import Activation, Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext, start_distributed, stop_distributed
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.losses.devices import autocast
from tokenverse_pp.models.encoders import build_encoder
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.training.optim import make_optimizer
from tokenverse_pp.training.steps import Stepper

PHASES = (
    "data",
    "encoder",
    "predictor_joiner_loss",
    "loss_backward",
    "encoder_backward",
    "optimiser",
    "step",
    "matmul",
)
BASE: Dict[str, Any] = {}  # the defaults of Wav2Vec2Config are wav2vec2-base
XLSR = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "activation_dropout": 0.0,  # as in its config.json; transformers' default is 0.1
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# Name -> ``model_type`` of transformers, and what differs from its defaults. For the last ones, the defaults are the
# sizes of data2vec-audio-base, unispeech-sat-base, w2v-bert-2.0, Parakeet and Nemotron 0.6B, Moonshine streaming tiny
# and Qwen3-ASR-1.7B's encoder.
ENCODERS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "base": ("wav2vec2", BASE),
    "xlsr": ("wav2vec2", XLSR),
    "tiny": ("wav2vec2", TINY),
    "data2vec": ("data2vec-audio", {}),
    "unispeech-sat": ("unispeech-sat", {}),
    "conformer": ("wav2vec2-conformer", {**LARGE, "feat_extract_norm": "layer", "conv_bias": True}),
    "w2v-bert": ("wav2vec2-bert", {}),
    "parakeet": ("parakeet_encoder", {"num_mel_bins": 128}),
    "nemotron": ("nemotron_asr_streaming_encoder", {"num_mel_bins": 128}),
    "moonshine": ("moonshine_streaming", {}),
    "qwen3-asr": ("qwen3_asr_encoder", {}),
}
TASKS = ["asr", "scd", "endp", "ner", "lid"]
WORD = "abcdefghijklmnopqrstuvwxyz"


def memory_mb(key: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def measure(job: Dict[str, Any]) -> None:
    """Run one case; the first rank writes the records to ``job["output"]``."""
    world = start_distributed()
    base_mb = memory_mb("VmRSS")
    try:
        with tempfile.TemporaryDirectory() as folder:
            step = Step(job, Path(folder), world)
            wanted = job["phases"] or PHASES
            phases = {name: best(part, job["repeats"]) for name, part in step.parts().items() if name in wanted}
        # A step waits for the slowest rank.
        slowest = {name: max(world.gather(ms)) for name, ms in phases.items()}
        sizes = {key: value for key, value in job.items() if key not in ("output", "phases")}
        records = [
            {**sizes, "phase": name, "ms": ms, "peak_mb": memory_mb("VmHWM") - base_mb, **step.about()}
            for name, ms in slowest.items()
        ]
        if world.is_first:
            Path(job["output"]).write_text(json.dumps(records))
    finally:
        stop_distributed()


def best(part: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of the fastest of some runs, after one to warm up; a part may return the seconds that count."""
    part()
    times: List[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        counted = part()
        times.append(time.perf_counter() - start if counted is None else counted)
    return 1000 * min(times)


def matmul() -> None:
    """About 70 GFLOP of plain float32 matrix products: what the machine gives to anybody."""
    x = torch.ones(1024, 1024)
    for _ in range(32):
        x @ x


class Step:
    """The model, a batch of audio files, and the parts of a training step over them."""

    def __init__(self, job: Dict[str, Any], folder: Path, world: DistributedContext):
        torch.manual_seed(0)
        self.job = job
        config = self._config(folder / "encoder")
        tasks = build_tasks(config.tasks.names, config.tasks.options())
        # Random words: no piece is frequent, so that the tokenizer fills its vocabulary.
        random = np.random.default_rng(0)
        texts = ["".join(random.choice(list(WORD), 6)) for _ in range(4000)]
        self.tokenizer = train_tokenizer(texts, tasks, job["vocabulary"])
        self.model = Transducer(config.model, build_encoder(config.model.encoder), len(tasks.tasks), job["vocabulary"])
        self.dataset = TransducerDataset(tasks, self.tokenizer, Activation())
        self.cuts = self._cuts(folder, texts, config.tasks.names)
        self.optimizer = make_optimizer(self.model, config.optim, ("encoder.backbone.",))
        self.stepper = Stepper(world.wrap(self.model), self.optimizer, config, world)
        self.batch: Batch = self.dataset[self.cuts]
        self.precision = config.training.precision
        self.loss = float("nan")

    def _config(self, folder: Path) -> Config:
        from transformers import AutoConfig

        job, config = self.job, Config()
        model_type, changes = ENCODERS[job["encoder"]]
        AutoConfig.for_model(model_type, **changes).save_pretrained(folder)
        encoder = config.model.encoder
        encoder.name, encoder.random_init = str(folder), True
        encoder.gradient_checkpointing = job["checkpoint"]
        config.tasks.names = TASKS[: job["tasks"]]
        config.tasks.languages = ["en", "fr"] if job["tasks"] == len(TASKS) else []
        config.model.vectors.placement = "features" if job["tasks"] > 1 else "none"
        config.model.loss.backend = job["backend"]
        config.training.precision = job["precision"]
        return config

    def _cuts(self, folder: Path, texts: List[str], tasks: List[str]) -> CutSet:
        """Noise, and as many words as make about the wanted number of tokens."""
        cuts = []
        per_word = np.mean([len(self.tokenizer.encode(text)) for text in texts[:200]])
        words = max(1, round(self.job["tokens"] / per_word))
        for number in range(self.job["batch"]):
            path = folder / f"{number}.wav"
            noise = torch.randn(round(self.job["duration"] * 16000)).mul(0.1).clamp(-1, 1).numpy()
            soundfile.write(path, noise, 16000)
            recording = Recording.from_file(path)
            cut = recording.to_cut()
            text = " ".join(texts[number * words : (number + 1) * words])
            cut.supervisions = [
                SupervisionSegment(
                    id=cut.id,
                    recording_id=recording.id,
                    start=0,
                    duration=cut.duration,
                    text=text,
                    speaker="s",
                    language="en",
                    custom={"entities": [], "endpoint": True},
                )
            ]
            cut.custom = {"tasks": tasks}
            cuts.append(cut)
        return CutSet.from_cuts(cuts)

    def about(self) -> Dict[str, Any]:
        """What else a record should say."""
        parameters = sum(p.numel() for p in self.model.encoder.parameters())
        return {
            "encoder_parameters": parameters,
            "target_tokens": float(self.batch["token_lens"].float().mean()),
            "loss": self.loss,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def parts(self) -> Dict[str, Callable[[], Any]]:
        """Each phase as a function."""
        return {
            "data": self._load,
            "encoder": lambda: self._encode() and None,
            "predictor_joiner_loss": lambda: self._losses()[0],
            "loss_backward": lambda: self._losses()[1],
            "encoder_backward": self._encoder_backward,
            "optimiser": self._optimise,
            "step": self._whole,
            "matmul": matmul,
        }

    def _load(self) -> None:
        self.dataset[self.cuts]

    def _encode(self) -> Tuple[Tensor, Tensor]:
        with autocast(torch.device("cpu"), self.precision):
            return self.model.encode(self.batch["inputs"], self.batch["lens"], self.batch["active"])

    def _losses(self) -> Tuple[float, float]:
        """Seconds of the forward and of the backward pass from the encoder's output on."""
        with torch.no_grad():
            out, lens = self._encode()
        out = out.detach().requires_grad_()
        start = time.perf_counter()
        with autocast(torch.device("cpu"), self.precision):
            losses = self.model.losses(out, lens, self.batch["tokens"], self.batch["token_lens"])
        middle = time.perf_counter()
        (losses.simple.sum() + losses.pruned.sum()).backward()
        end = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        return middle - start, end - middle

    def _encoder_backward(self) -> float:
        """Seconds of the backward pass below the encoder's output."""
        out, _ = self._encode()
        start = time.perf_counter()
        out.backward(torch.ones_like(out))
        seconds = time.perf_counter() - start
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    def _optimise(self) -> float:
        """Seconds of an AdamW step on gradients of zero."""
        for parameter in self.stepper.parameters:
            parameter.grad = torch.zeros_like(parameter)
        start = time.perf_counter()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        self.optimizer.zero_grad(set_to_none=True)
        return seconds

    def _whole(self) -> None:
        self.loss = self.stepper([self.batch], 1).loss
