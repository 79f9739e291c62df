"""The export: graphs, vocabulary and description in a folder that appears whole, once it agrees with torch."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import torch

import tokenverse_pp
from tokenverse_pp.errors import UserError
from tokenverse_pp.export.check import compare
from tokenverse_pp.export.graphs import EncoderGraph, JoinerGraph, PredictorGraph, log_mel_of, prepared
from tokenverse_pp.export.options import ExportOptions
from tokenverse_pp.export.readme import readme
from tokenverse_pp.export.streaming import ChunkExport, share_weights
from tokenverse_pp.export.tracing import require_onnx, trace
from tokenverse_pp.export.weights import describe, to_float16, to_int8
from tokenverse_pp.files import check_links
from tokenverse_pp.model.transducer import Transducer
from tokenverse_pp.runtime.folder import (
    AUDIO,
    DESCRIPTION,
    ENCODER,
    FIRST,
    JOINER,
    LOG_MEL,
    MEL_FILTERS,
    PREDICTOR,
    SAMPLING_RATE,
    TOKENIZER,
    WEIGHTS,
    Description,
)
from tokenverse_pp.search.confidence import CALIBRATION
from tokenverse_pp.tasks import task_options
from tokenverse_pp.training.checkpoint import checksum
from tokenverse_pp.training.setup import Loaded


def export_onnx(loaded: Loaded, output: Path, options: Optional[ExportOptions] = None) -> Description:
    """Write a model as a folder for `tokenverse_pp.runtime.Runtime`.

    Args:
        loaded: the model (`tokenverse_pp.training.setup.load_model`), in eval mode on the CPU.
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


def _write(loaded: Loaded, folder: Path, options: ExportOptions) -> Description:
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


def _described(loaded: Loaded, options: ExportOptions) -> Description:
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
