"""Export of a model to ONNX: graphs, vocabulary and a description, in a folder.

The graphs are compared with torch on random audio first. The folder appears only if they agree.
"""

from __future__ import annotations

import copy
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

import tokenverse_pp
from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import check_links, checksum, replacing_folder
from tokenverse_pp.base.options import ExportOptions, SearchOptions
from tokenverse_pp.decoding.hypothesis import CALIBRATION
from tokenverse_pp.decoding.inactive import inactive_of
from tokenverse_pp.decoding.scorer import biased_joiner
from tokenverse_pp.evaluation.report.tables import render
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.predictor import LstmPredictor
from tokenverse_pp.onnx import graphs
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
    TOKENIZER,
    WEIGHTS,
    Description,
)
from tokenverse_pp.onnx.inputs import MAX_SAMPLES
from tokenverse_pp.onnx.runtime import Exported, Runtime, StreamingRuntime
from tokenverse_pp.onnx.sherpa_export import write_sherpa
from tokenverse_pp.tasks import task_options

# Test cases: seconds of each utterance in a batch (single utterances, odd numbers of samples, very different lengths,
# more and less padding than in the traced example), chunks per stream, and pairs of a frame and some tokens.
BATCHES = ((1.0,), (0.51, 3.017, 1.2343), (6.3,), (2.0, 2.0), (0.3, 0.9))
CHUNKS = (1, 2, 9)
PAIRS, TOKENS = 64, 5
Frames = Tuple[List[np.ndarray], List[np.ndarray]]  # from the graphs, and from torch


def export_onnx(loaded: ModelBundle, output: Path, options: Optional[ExportOptions] = None) -> Description:
    """Export a model to a folder for `tokenverse_pp.runtime.Runtime`, or for sherpa-onnx if ``options.form`` is set.

    Args:
        loaded: the model (`tokenverse_pp.models.bundle.load_model`), in eval mode on the CPU.
        output: folder to write; an earlier export there is replaced.

    Returns:
        The contents of ``export.json``; ``check`` is the comparison with torch.

    Raises:
        UserError: if the encoder cannot be exported, the graphs do not agree with torch (nothing is written
            then), the folder holds something else, or a package is missing.
    """
    options = options or ExportOptions()
    graphs.require_onnx()
    if options.chunks is not None and options.chunks.left_chunks < 0:
        raise UserError(f"--left-chunks={options.chunks.left_chunks}: a graph's caches cannot grow: expected 0 or more")
    loaded = with_biases(loaded, options)
    if output.exists() and not (output / DESCRIPTION).is_file():
        if not output.is_dir() or any(output.iterdir()):
            raise UserError(f"--output-dir {output}: there is something else; expected a new folder, or an export")
    with replacing_folder(output) as new:
        new.mkdir()
        description = _write(loaded, new, options)
    return description


def with_biases(loaded: ModelBundle, options: ExportOptions) -> ModelBundle:
    """Return the model with ``options.token_bias`` in its joiner (`biased_joiner`); the other weights are shared."""
    if not options.token_bias:
        return loaded
    model = loaded.model
    joiner = biased_joiner(model.joiner, SearchOptions(token_bias=options.token_bias), loaded.tokenizer)
    shared: Dict[int, Any] = {id(x): x for x in model.parameters()}
    return replace(loaded, model=copy.deepcopy(model, {**shared, id(model.joiner): joiner}))


def _write(loaded: ModelBundle, folder: Path, options: ExportOptions) -> Description:
    """Write an export to a folder, and compare it with torch."""
    description = _described(loaded, options)
    write = _write_runtime if options.form is None else write_sherpa
    description = write(loaded, folder, description, options)
    description = replace(description, files={path.name: checksum(path) for path in sorted(folder.iterdir())})
    if options.form is None:
        description.save(folder)  # the comparison reads the folder as users do
        description = replace(description, check=compare(loaded, folder, options.precision, options.chunks))
    description.save(folder)
    (folder / "README.md").write_text(readme(description), encoding="utf-8")
    return description


def _write_runtime(loaded: ModelBundle, folder: Path, description: Description, options: ExportOptions) -> Description:
    """Write the files that `tokenverse_pp.runtime` reads, except the description."""
    model = graphs.prepared(loaded.model, graphs.GivenMel if options.chunks is None else None)
    encoders = [ENCODER]
    if options.chunks is None:
        graphs.trace_encoder(model, description, folder, options.opset)
    else:
        encoders = [FIRST, ENCODER]
        streaming = graphs.trace_chunks(model, options.chunks, description, folder, options.opset)
        description = replace(description, streaming=streaming, max_samples=None)
    graphs.trace_search(model, description, folder, options.opset)
    for name in encoders:
        graphs.reduce_precision(folder / name, options.precision)
    if options.chunks is not None:
        graphs.share_weights(folder, encoders, WEIGHTS)
    for name in (*encoders, PREDICTOR, JOINER):
        about = {key: value for key, value in description.as_dict().items() if key not in ("files", "check")}
        graphs.describe(folder / name, {**about, "part": name.split(".")[0]})
    loaded.tokenizer.save(folder / TOKENIZER)
    log_mel = graphs.log_mel_of(loaded.model)
    if log_mel is not None:
        buffer = io.BytesIO()
        np.save(buffer, log_mel.filters.cpu().numpy())
        (folder / MEL_FILTERS).write_bytes(buffer.getvalue())
    # A calibration was fitted to the scores without biases.
    if loaded.folder is not None and not options.token_bias and (loaded.folder / CALIBRATION).is_file():
        check_links([loaded.folder / CALIBRATION])
        shutil.copyfile(loaded.folder / CALIBRATION, folder / CALIBRATION)
    return description


def _described(loaded: ModelBundle, options: ExportOptions) -> Description:
    """The description of a model, without ``files`` and ``check``."""
    model, log_mel, predictor = loaded.model, graphs.log_mel_of(loaded.model), loaded.model.predictor
    backbone: Any = model.encoder.backbone
    lens = torch.arange(1, SAMPLE_RATE)
    config = model.config.vectors
    about: Dict[str, Any] = {key: getattr(config, key) for key in ("placement", "strategy", "code", "scale")}
    vectors = model.feature_vectors or model.encoder_vectors
    about["inactive"] = inactive_of(loaded)
    if vectors is not None and vectors.strategy == "combination":
        tasks = (len(vectors.trained) - 1).bit_length()
        rows = [i for i, seen in enumerate(vectors.trained.tolist()) if seen]
        about["trained"] = [[1, *(row >> bit & 1 for bit in range(tasks))] for row in rows]
    limit = None if log_mel is None else backbone.max_samples or MAX_SAMPLES
    return Description(
        tokenverse_pp=tokenverse_pp.__version__,
        tasks=list(loaded.tasks.names),
        task_options=task_options(loaded.tasks),
        symbols=list(loaded.tasks.symbols),
        vocab_size=loaded.tokenizer.vocab_size,
        blank=predictor.blank_id,
        context_size=predictor.context_size,
        joiner_dim=model.joiner.output.in_features,
        frame_shift=model.encoder.output_frame_shift,
        input=AUDIO if log_mel is None else LOG_MEL,
        min_samples=int(lens[model.encoder.feature_lens(lens) >= 1][0]),
        max_samples=limit,
        normalise=bool(getattr(backbone, "normalise", False)),
        vectors=about,
        precision=options.precision,
        lstm=[predictor.lstm.num_layers, predictor.dim] if isinstance(predictor, LstmPredictor) else None,
        symbols_per_frame=predictor.symbols_per_frame,
        mel=None if log_mel is None else {"bins": len(log_mel.filters), "n_fft": log_mel.n_fft, "hop": log_mel.hop},
    )


def readme(d: Description) -> str:
    """The README of an exported folder: how to use it, and its graphs with their shapes or what sherpa-onnx lacks."""
    languages = f", languages {', '.join(d.languages)}" if d.languages else ""
    sets = [] if d.sherpa is None else (d.sherpa.get("prompts") or d.sherpa["sets"]).values()
    return render(
        f"onnx/{'readme' if d.sherpa is None else 'sherpa_readme'}.md.j2",
        d=d,
        about=f"Tasks {', '.join(d.tasks)}{languages}; weights in {d.precision}; tokenverse_pp {d.tokenverse_pp}",
        packages=PACKAGES,
        strips=d.vectors["inactive"] == "strip" and any(set(names) != set(d.tasks) for names in sets),
    )


def compare(loaded: ModelBundle, folder: Path, precision: str, chunks: Optional[ChunkOptions] = None) -> Dict[str, Any]:
    """Compare the graphs with torch; return the tolerance, and the errors of encoder and logits (`agreement`)."""
    random = np.random.default_rng(0)
    runtime: Exported
    pairs: List[Frames] = []
    if chunks is None:
        runtime = offline = Runtime(folder)
        for seconds in BATCHES:
            sizes = [max(int(s * SAMPLE_RATE), offline.description.min_samples) for s in seconds]
            audio = [(random.standard_normal(size) * random.uniform(0.01, 0.3)).astype(np.float32) for size in sizes]
            tasks = _random_tasks(loaded, random)
            pairs.append((offline.encode(audio, tasks), torch_frames(loaded, audio, tasks)))
    else:
        runtime = streaming = StreamingRuntime(folder)
        streaming.inactive = "suppress"  # the graphs then run with exactly the tasks of the stream
        for count in CHUNKS:
            audio = list((0.1 * random.standard_normal((count, streaming.chunk_samples))).astype(np.float32))
            tasks = _random_tasks(loaded, random)
            stream = streaming.open(tasks)
            found = [streaming.encode_chunk(stream, chunk) for chunk in audio]
            pairs.append((found, graphs.torch_stream(loaded, chunks, audio, tasks)))
    encoder = graphs.agreement("encoder", pairs, precision)
    logits = graphs.agreement("logits", [_logits(loaded, runtime, random)], precision)
    tolerance = {"max": graphs.TOLERANCES[precision], "rms": graphs.RMS_TOLERANCES[precision]}
    return {"precision": precision, "tolerance": tolerance, "encoder": encoder, "logits": logits}


def _random_tasks(loaded: ModelBundle, random: np.random.Generator) -> List[str]:
    """A random choice of tasks that the model can decode together."""
    vectors = loaded.model.feature_vectors or loaded.model.encoder_vectors
    if vectors is not None and vectors.strategy == "combination" and bool(vectors.trained.any()):
        row = int(random.choice(np.flatnonzero(vectors.trained.numpy())))
        return [name for i, name in enumerate(loaded.tasks.names[1:]) if row >> i & 1]
    return [name for name in loaded.tasks.names if random.random() < 0.5]


def _logits(loaded: ModelBundle, runtime: Exported, random: np.random.Generator) -> Frames:
    """The logits for random frames after random tokens, from the graphs and from torch."""
    d, model, contexts = runtime.description, loaded.model, runtime.contexts
    tokens = random.integers(1, d.vocab_size, (PAIRS, TOKENS))
    frames = random.standard_normal((PAIRS, d.joiner_dim)).astype(np.float32)
    read: List[Any] = [contexts.start] * PAIRS
    for column in tokens.T.tolist():
        contexts.look_up(read)  # type: ignore[arg-type]
        read = [contexts.longer(context, token) for context, token in zip(read, column)]
    found = runtime.join(frames, contexts.look_up(read))
    with torch.inference_mode():
        state = model.joiner.predictor_proj(model.predictor(torch.from_numpy(tokens))[:, -1])
        return [found], [model.joiner(torch.from_numpy(frames), state).numpy()]


def torch_frames(loaded: ModelBundle, audio: Sequence[np.ndarray], names: Sequence[str]) -> List[np.ndarray]:
    """`Runtime.encode` in torch: projected frames (T, J) of each utterance, encoded as one batch."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in audio], batch_first=True)
    lens = torch.tensor([len(item) for item in audio])
    active = torch.tensor([loaded.tasks.mask(names)] * len(audio), dtype=torch.float32)
    with torch.inference_mode():
        out, lens = loaded.model.encode(padded, lens, active)
        frames = loaded.model.joiner.encoder_proj(out)
    return [row[:length].numpy() for row, length in zip(frames, lens.tolist())]
