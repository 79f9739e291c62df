"""How to export.

The README of an exported folder.

The exported graphs beside the model in torch, on random audio.

The export: graphs, vocabulary and description in a folder that appears whole, once it agrees with torch.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

import numpy as np
import torch

import tokenverse_pp
from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import check_links
from tokenverse_pp.base.options import ExportOptions
from tokenverse_pp.decoding.hypothesis import CALIBRATION
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.checkpoint import checksum
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx.folder import (
    AUDIO,
    DESCRIPTION,
    ENCODER,
    FIRST,
    JOINER,
    LOG_MEL,
    MEL_FILTERS,
    PACKAGES,
    PREDICTOR,
    SAMPLING_RATE,
    TOKENIZER,
    WEIGHTS,
    Description,
)
from tokenverse_pp.onnx.graphs import (
    EncoderGraph,
    JoinerGraph,
    PredictorGraph,
    describe,
    log_mel_of,
    prepared,
    require_onnx,
    to_float16,
    to_int8,
    trace,
)
from tokenverse_pp.onnx.runtime import Exported, Runtime
from tokenverse_pp.onnx.streaming_graphs import ChunkExport, share_weights
from tokenverse_pp.tasks import task_options

if TYPE_CHECKING:
    from tokenverse_pp.onnx.streaming_runtime import StreamingRuntime

# Largest error of the encoder's output over the root mean square of what torch gives. Weights in 8 bits are another
# model, whose words have to be scored: their tolerance only finds graphs that are wrong.
TOLERANCES = {"float32": 2e-3, "float16": 5e-2, "int8": 5.0}
RMS_TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "int8": 0.5}


TEXT = """# An exported tokenverse_pp model

{about}

    python -m tokenverse_pp.runtime THIS_FOLDER recording.wav

or

    from tokenverse_pp.runtime import Runtime

    print(Runtime("THIS_FOLDER").transcribe("recording.wav", tasks={tasks}).text)

Neither torch nor lhotse nor transformers is needed, only (soundfile to read files, soxr for other rates than 16 kHz):

    pip install --no-deps tokenverse_pp && pip install {packages}

| file | what | inputs | outputs |
|---|---|---|---|
| {encoder} | encoder | {inputs}, {rest} | `frames` (N, T, {dim}), `frame_lens` (N,) |
| {predictor} | predictor | `context` (M, {context}) int64 | `state` (M, {dim}) |
| {joiner} | joiner | `frame` (M, {dim}), `state` (M, {dim}) | `logits` (M, {vocabulary}) |
| tokenizer.model | SentencePiece vocabulary; id {blank} is the blank | | |
| {description} | all that decoding needs to know, sums of the files, and how they compare with torch | | |

`active` holds 1 for each task that is to be decoded: {columns}. A frame lasts {shift:g} s.
"""


STREAMING = """
Streams: `{first}` takes the first chunk of {samples} samples of a stream, `{encoder}` every other one. Both take what
is kept of the stream (names, shapes and types: `streaming.states` in {description}, zeros at the start) and `active`,
and give `frames` and what is to be kept, under the same names with `.next`. They share `{weights}`. In Python:
`tokenverse_pp.runtime.StreamingRuntime`, `open`, `push`, `close`.
"""


def readme(d: Description) -> str:
    """Markdown: what the folder is, how to use it, and its graphs with their shapes."""
    languages = f", languages {', '.join(d.languages)}" if d.languages else ""
    about = f"Tasks {', '.join(d.tasks)}{languages}; weights in {d.precision}; tokenverse_pp {d.tokenverse_pp}."
    inputs = "`inputs` (N, S) float32 audio at 16 kHz"
    if d.input == LOG_MEL and d.mel is not None:
        inputs = f"`inputs` (N, {d.mel['bins']}, T') float32 log-mel (`tokenverse_pp.onnx.inputs`)"
    more = ""
    if d.streaming is not None:
        names = {"first": FIRST, "encoder": ENCODER, "description": DESCRIPTION, "weights": WEIGHTS}
        more = STREAMING.format(samples=d.streaming["chunk_samples"], **names)
    text = TEXT.format(
        about=about,
        packages=" ".join(PACKAGES),
        tasks=d.tasks,
        encoder=ENCODER,
        predictor=PREDICTOR,
        joiner=JOINER,
        description=DESCRIPTION,
        inputs=inputs,
        rest=f"`lens` (N,) int64 samples, `active` (N, {len(d.tasks)}) float32",
        dim=d.joiner_dim,
        context=d.context_size,
        vocabulary=d.vocab_size,
        blank=d.blank,
        columns=", ".join(d.tasks),
        shift=d.frame_shift,
    )
    return text + more


# Seconds of each utterance of a batch: one alone, odd numbers of samples, very different lengths, and the padding at
# either side of the tracer's example.
BATCHES = ((1.0,), (0.51, 3.017, 1.2343), (6.3,), (2.0, 2.0), (0.3, 0.9))
CHUNKS = (1, 2, 9)  # of streams
JOINED = 64  # pairs of a frame and a context


def compare(loaded: ModelBundle, folder: Path, precision: str, chunks: Optional[ChunkOptions] = None) -> Dict[str, Any]:
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
        from tokenverse_pp.onnx.streaming_runtime import StreamingRuntime

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
    loaded: ModelBundle, runtime: Runtime, seconds: Sequence[float], random: np.random.Generator
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
    loaded: ModelBundle, runtime: StreamingRuntime, chunks: ChunkOptions, count: int, random: np.random.Generator
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
    loaded: ModelBundle, chunks: ChunkOptions, audio: Sequence[np.ndarray], names: Sequence[str]
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


def torch_frames(loaded: ModelBundle, audio: Sequence[np.ndarray], names: Sequence[str]) -> List[np.ndarray]:
    """What `Runtime.encode` gives, by torch: projected frames (T, J) of each utterance, encoded as one batch."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in audio], batch_first=True)
    lens = torch.tensor([len(item) for item in audio])
    active = torch.tensor([loaded.tasks.mask(names)] * len(audio), dtype=torch.float32)
    with torch.inference_mode():
        out, lens = loaded.model.encode(padded, lens, active)
        frames = loaded.model.joiner.encoder_proj(out)
    return [row[:length].numpy() for row, length in zip(frames, lens.tolist())]


def _tasks(loaded: ModelBundle, random: np.random.Generator) -> List[str]:
    """A random choice of tasks that the model can decode together."""
    vectors = loaded.model.feature_vectors or loaded.model.encoder_vectors
    if vectors is not None and vectors.strategy == "combination" and bool(vectors.trained.any()):
        row = int(random.choice(np.flatnonzero(vectors.trained.numpy())))
        return [name for i, name in enumerate(loaded.tasks.names[1:]) if row >> i & 1]
    return [name for name in loaded.tasks.names if random.random() < 0.5]


def _joiner_case(loaded: ModelBundle, runtime: Exported, random: np.random.Generator) -> Dict[str, float]:
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


def export_onnx(loaded: ModelBundle, output: Path, options: Optional[ExportOptions] = None) -> Description:
    """Write a model as a folder for `tokenverse_pp.runtime.Runtime`.

    Args:
        loaded: the model (`tokenverse_pp.models.bundle.load_model`), in eval mode on the CPU.
        output: the folder; an export that is there already is replaced.
        options: how to export.

    Returns:
        What ``export.json`` holds; ``check`` is the comparison with torch.

    Raises:
        UserError: for an encoder that cannot be exported, graphs that do not agree with torch (nothing is left then),
            a folder that is something else, and packages that are missing.
    """
    options = options or ExportOptions()
    require_onnx()
    _refuse_other(output)
    temporary, old = (output.with_name(output.name + end) for end in (".tmp", ".old"))
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        description = _write(loaded, temporary, options)
        if output.exists():
            os.replace(output, old)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return description


def _refuse_other(output: Path) -> None:
    if output.exists() and not (output / DESCRIPTION).is_file():
        if not output.is_dir() or any(output.iterdir()):
            raise UserError(f"--output-dir {output}: there is something else; expected a new folder, or an export")


def _write(loaded: ModelBundle, folder: Path, options: ExportOptions) -> Description:
    """Fill a folder, and compare it with torch."""
    description = _described(loaded, options)
    model = prepared(loaded.model, given_mel=options.chunks is None)
    if options.chunks is None:
        encoders = [ENCODER]
        _trace_encoder(model, description, folder / ENCODER, options.opset)
    else:
        encoders = [FIRST, ENCODER]
        chunks = ChunkExport(model, options.chunks)
        description = replace(description, streaming=chunks.describe(), max_samples=None)
        chunks.write(folder, description, options.opset)
    _trace_search(model, description, folder, options.opset)
    for name in encoders:
        if options.precision == "int8":
            to_int8(folder / name)
        elif options.precision == "float16":
            to_float16(folder / name)
    if options.chunks is not None:
        share_weights(folder, encoders, WEIGHTS)
    for name in (*encoders, PREDICTOR, JOINER):
        about = {key: value for key, value in description.as_dict().items() if key not in ("files", "check")}
        describe(folder / name, {**about, "part": name.split(".")[0]})
    loaded.tokenizer.save(folder / TOKENIZER)
    log_mel = log_mel_of(loaded.model)
    if log_mel is not None:
        buffer = io.BytesIO()
        np.save(buffer, log_mel.filters.cpu().numpy())
        (folder / MEL_FILTERS).write_bytes(buffer.getvalue())
    if loaded.folder is not None and (loaded.folder / CALIBRATION).is_file():
        check_links([loaded.folder / CALIBRATION])
        shutil.copyfile(loaded.folder / CALIBRATION, folder / CALIBRATION)
    description = replace(description, files={path.name: checksum(path) for path in sorted(folder.iterdir())})
    _save(folder, description)
    description = replace(description, check=compare(loaded, folder, options.precision, options.chunks))
    _save(folder, description)
    (folder / "README.md").write_text(readme(description), encoding="utf-8")
    return description


def _save(folder: Path, description: Description) -> None:
    text = json.dumps(description.as_dict(), indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def _described(loaded: ModelBundle, options: ExportOptions) -> Description:
    model, log_mel = loaded.model, log_mel_of(loaded.model)
    limit = None
    if log_mel is not None:
        limit = 2 * log_mel.hop * int(model.encoder.backbone.encoder.config.max_source_positions)  # type: ignore
    return Description(
        tokenverse_pp=tokenverse_pp.__version__,
        tasks=list(loaded.tasks.names),
        task_options=task_options(loaded.tasks),
        symbols=list(loaded.tasks.symbols),
        vocab_size=loaded.tokenizer.vocab_size,
        blank=model.predictor.blank_id,
        context_size=model.predictor.context_size,
        joiner_dim=model.joiner.output.in_features,
        frame_shift=model.encoder.output_frame_shift,
        input=AUDIO if log_mel is None else LOG_MEL,
        min_samples=_fewest_samples(model),
        max_samples=limit,
        normalise=bool(getattr(model.encoder.backbone, "normalise", False)),
        vectors=_vectors(model),
        precision=options.precision,
        mel=None if log_mel is None else {"bins": len(log_mel.filters), "n_fft": log_mel.n_fft, "hop": log_mel.hop},
    )


def _vectors(model: Transducer) -> Dict[str, Any]:
    about: Dict[str, Any] = {"placement": model.config.vectors.placement, "strategy": model.config.vectors.strategy}
    vectors = model.feature_vectors or model.encoder_vectors
    if vectors is not None and vectors.strategy == "combination":
        tasks = (len(vectors.trained) - 1).bit_length()
        rows = [i for i, seen in enumerate(vectors.trained.tolist()) if seen]
        about["trained"] = [[1, *(row >> bit & 1 for bit in range(tasks))] for row in rows]
    return about


def _fewest_samples(model: Transducer) -> int:
    """How many samples give one frame."""
    lens = torch.arange(1, SAMPLING_RATE)
    return int(lens[model.encoder.feature_lens(lens) >= 1][0])


def _trace_encoder(model: Transducer, description: Description, path: Path, opset: int) -> None:
    lens = torch.tensor([SAMPLING_RATE, SAMPLING_RATE * 7 // 10])
    time = {1: "samples"}
    if description.mel is None:
        inputs = torch.randn(2, SAMPLING_RATE)
    else:
        inputs, time = (
            torch.randn(2, description.mel["bins"], SAMPLING_RATE // description.mel["hop"]),
            {2: "mel_frames"},
        )
    active = torch.ones(2, len(description.tasks))
    axes = {"inputs": {0: "N", **time}, "frames": {0: "N", 1: "T"}}
    axes.update({name: {0: "N"} for name in ("lens", "active", "frame_lens")})
    names = (["inputs", "lens", "active"], ["frames", "frame_lens"])
    trace(EncoderGraph(model), (inputs, lens, active), path, *names, axes, opset)


def _trace_search(model: Transducer, d: Description, folder: Path, opset: int) -> None:
    context = torch.ones(2, d.context_size, dtype=torch.int64)
    axes = {name: {0: "M"} for name in ("context", "state")}
    trace(PredictorGraph(model), (context,), folder / PREDICTOR, ["context"], ["state"], axes, opset)
    pair = torch.randn(2, d.joiner_dim), torch.randn(2, d.joiner_dim)
    axes = {name: {0: "M"} for name in ("frame", "state", "logits")}
    trace(JoinerGraph(model), pair, folder / JOINER, ["frame", "state"], ["logits"], axes, opset)
