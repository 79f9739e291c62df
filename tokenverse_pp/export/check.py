"""The exported graphs beside the model in torch, on random audio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import numpy as np
import torch

from tokenverse_pp.errors import UserError
from tokenverse_pp.export.options import RMS_TOLERANCES, TOLERANCES
from tokenverse_pp.model.masks import ChunkOptions
from tokenverse_pp.runtime import Runtime
from tokenverse_pp.runtime.exported import Exported
from tokenverse_pp.runtime.folder import SAMPLING_RATE
from tokenverse_pp.streaming.encoder import StreamingEncoder
from tokenverse_pp.training.setup import Loaded

if TYPE_CHECKING:
    from tokenverse_pp.runtime import StreamingRuntime

# Seconds of each utterance of a batch: one alone, odd numbers of samples, very different lengths, and the padding at
# either side of the tracer's example.
BATCHES = ((1.0,), (0.51, 3.017, 1.2343), (6.3,), (2.0, 2.0), (0.3, 0.9))
CHUNKS = (1, 2, 9)  # of streams
JOINED = 64  # pairs of a frame and a context


def compare(loaded: Loaded, folder: Path, precision: str, chunks: Optional[ChunkOptions] = None) -> Dict[str, Any]:
    """Run both, in chunks if there are any -> report: largest and RMS error of encoder and logits, over torch's RMS.

    Raises:
        UserError: where they differ by more than the tolerance, or in the number of frames.
    """
    random = np.random.default_rng(0)
    runtime: Exported
    if chunks is None:
        runtime = whole = Runtime(folder)
        cases = [_encoder_case(loaded, whole, seconds, random) for seconds in BATCHES]
    else:
        from tokenverse_pp.runtime import StreamingRuntime

        runtime = streams = StreamingRuntime(folder)
        cases = [_stream_case(loaded, streams, chunks, count, random) for count in CHUNKS]
    joined = _joiner_case(loaded, runtime, random)
    report: Dict[str, Any] = {
        "precision": precision,
        "tolerance": {"max": TOLERANCES[precision], "rms": RMS_TOLERANCES[precision]},
        "encoder": {key: max(case[key] for case in cases) for key in ("max", "rms")},
        "logits": joined,
    }
    parts: Dict[str, Dict[str, float]] = {part: report[part] for part in ("encoder", "logits")}
    for part, errors in parts.items():
        for kind, most in (("max", TOLERANCES[precision]), ("rms", RMS_TOLERANCES[precision])):
            error = errors[kind]
            if not error <= most:
                raise UserError(
                    f"export: {part} of the graphs and of torch differ by {error:.2g} ({kind}), more than {most:g}: "
                    "nothing was written"
                )
    return report


def _encoder_case(
    loaded: Loaded, runtime: Runtime, seconds: Sequence[float], random: np.random.Generator
) -> Dict[str, float]:
    """Errors of one batch of random audio, with random tasks."""
    sizes = [max(int(s * SAMPLING_RATE), runtime.description.min_samples) for s in seconds]
    audio = [(random.standard_normal(size) * random.uniform(0.01, 0.3)).astype(np.float32) for size in sizes]
    names = _tasks(loaded, random)
    frames = runtime.encode(audio, names)
    expected = torch_frames(loaded, audio, names)
    if [len(item) for item in frames] != [len(item) for item in expected]:
        raise UserError("export: the graphs give another number of frames than torch: nothing was written")
    return _errors(np.concatenate(frames), np.concatenate(expected))


def _stream_case(
    loaded: Loaded, runtime: StreamingRuntime, chunks: ChunkOptions, count: int, random: np.random.Generator
) -> Dict[str, float]:
    """Errors of one stream of random audio of ``count`` chunks, with random tasks."""
    audio = list((0.1 * random.standard_normal((count, runtime.chunk_samples))).astype(np.float32))
    names = _tasks(loaded, random)
    stream = runtime.open(names)
    frames = [runtime.encode_chunk(stream, chunk) for chunk in audio]
    expected = torch_stream(loaded, chunks, audio, names)
    if [len(item) for item in frames] != [len(item) for item in expected]:
        raise UserError("export: the graphs give another number of frames than torch: nothing was written")
    return _errors(np.concatenate(frames), np.concatenate(expected))


def torch_stream(
    loaded: Loaded, chunks: ChunkOptions, audio: Sequence[np.ndarray], names: Sequence[str]
) -> List[np.ndarray]:
    """What `StreamingRuntime.encode_chunk` gives for the chunks of one stream, by torch."""
    encoder = StreamingEncoder(loaded.model, chunks)
    state = encoder.start(torch.tensor(loaded.tasks.mask(names), dtype=torch.float32))
    found = []
    for chunk in audio:
        (out,), (state,) = encoder.step([torch.from_numpy(chunk)], [state], [False])
        with torch.no_grad():
            found.append(loaded.model.joiner.encoder_proj(out).numpy())
    return found


def torch_frames(loaded: Loaded, audio: Sequence[np.ndarray], names: Sequence[str]) -> List[np.ndarray]:
    """What `Runtime.encode` gives, by torch: projected frames (T, J) of each utterance, encoded as one batch."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in audio], batch_first=True)
    lens = torch.tensor([len(item) for item in audio])
    active = torch.tensor([loaded.tasks.mask(names)] * len(audio), dtype=torch.float32)
    with torch.inference_mode():
        out, lens = loaded.model.encode(padded, lens, active)
        frames = loaded.model.joiner.encoder_proj(out)
    return [row[:length].numpy() for row, length in zip(frames, lens.tolist())]


def _tasks(loaded: Loaded, random: np.random.Generator) -> List[str]:
    """A random choice of tasks that the model can decode together."""
    vectors = loaded.model.feature_vectors or loaded.model.encoder_vectors
    if vectors is not None and vectors.strategy == "combination" and bool(vectors.trained.any()):
        row = int(random.choice(np.flatnonzero(vectors.trained.numpy())))
        return [name for i, name in enumerate(loaded.tasks.names[1:]) if row >> i & 1]
    return [name for name in loaded.tasks.names if random.random() < 0.5]


def _joiner_case(loaded: Loaded, runtime: Exported, random: np.random.Generator) -> Dict[str, float]:
    """Errors of the logits of random frames and contexts."""
    d = runtime.description
    contexts = random.integers(0, d.vocab_size, (JOINED, d.context_size))
    frames = random.standard_normal((JOINED, d.joiner_dim)).astype(np.float32)
    found = runtime.joiner(frames, runtime.predictor([tuple(context) for context in contexts.tolist()]))
    model = loaded.model
    with torch.inference_mode():
        state = model.joiner.predictor_proj(model.predictor.step(torch.from_numpy(contexts)))
        expected = model.joiner(torch.from_numpy(frames), state).numpy()
    return _errors(found, expected)


def _errors(found: np.ndarray, expected: np.ndarray) -> Dict[str, float]:
    scale = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2))) or 1.0
    difference = np.abs(found - expected).astype(np.float64)
    return {"max": float(difference.max()) / scale, "rms": float(np.sqrt(np.mean(difference**2))) / scale}
