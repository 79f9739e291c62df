"""Export for sherpa-onnx: folders that its stock releases run (C++, Android, iOS, the browser, Python).

Most model types of sherpa-onnx have no input for tasks, so a set of tasks is a constant of its encoder. The searches of
sherpa-onnx have no constraints, so the logits of the tokens of other tasks and of ``<unk>`` are -inf.

``ctc`` uses sherpa-onnx's model type Omnilingual ASR: one graph from audio (1, S), which sherpa-onnx normalises to zero
mean and unit variance, to logits (1, T, V). Its frames last 20 ms and its blank is id 0. For ``online``, see
`tokenverse_pp.onnx.sherpa_online`.

Written for sherpa-onnx 2.0.1, whose model types are those of 1.13.4
(sherpa-onnx/csrc/offline-recognizer-ctc-impl.h and offline-omnilingual-asr-ctc-model.cc).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import IN_CHUNKS, SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import ExportOptions, Inactive
from tokenverse_pp.data.tokenizer import UNK_ID
from tokenverse_pp.decoding.inactive import select
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.base import stacked_lens
from tokenverse_pp.models.encoders.whisper import LogMel
from tokenverse_pp.models.predictor import StatelessPredictor
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx import graphs
from tokenverse_pp.onnx.folder import TOKENS, WEIGHTS, Description
from tokenverse_pp.onnx.runtime import open_graph

CTC_FRAME = 0.02  # seconds, fixed in sherpa-onnx
NORMALISED_EPS = 1e-5  # sherpa-onnx adds it to the variance
DROPPED = ("SIL", "</s>")  # pieces that sherpa-onnx leaves out of its results
LAST_BYTE_PIECE = 0xC6  # the largest byte of a vocabulary of byte-level BPE
SPACES = " \t\n\r\f\v"
# RMS of the audio for encoders that do not normalise it. With the example model, levels from -30 to -12 dB (relative to
# full scale) change the WER of human speech by less than 0.3 points.
LEVEL = 10 ** (-18 / 20)
LENGTHS = (1.0, 0.51, 3.017, 6.3)  # seconds of the utterances that are compared with torch


class SherpaSet(NamedTuple):
    """A set of tasks and its graph.

    Attributes:
        file: name of the graph; with ``online`` and ``prompt`` of the encoder's graph.
        joiner: name of the joiner's graph (``online``).
        active: (1, K + 1), 1 for tasks that are decoded, else 0.
        removed: ids of tokens that are decoded, but not requested (`tokenverse_pp.decoding.inactive`).
        suppressed: ids that are never emitted.
    """

    file: str
    joiner: str
    tasks: Tuple[str, ...]
    active: Tensor
    removed: List[int]
    suppressed: List[int]


class ProductLogMel(nn.Module):
    """`LogMel` of one utterance as products, which any ONNX runtime computes fast.

    An utterance that ends within 25 ms of 30 s is followed by silence here, and by its mirror image in `LogMel`.
    """

    filters: Tensor
    waves: Tensor

    def __init__(self, log_mel: LogMel):
        super().__init__()
        self.hop, self.n_fft = log_mel.hop, log_mel.n_fft
        self.register_buffer("filters", log_mel.filters.clone())
        self.register_buffer("waves", graphs.windowed_waves(log_mel.window, self.n_fft).float().unsqueeze(1))

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return stacked_lens(lens, self.hop)

    def forward(self, audio: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Audio (1, S), lens (1,) = S -> (1, num_mel_bins, T), its lens (1,)."""
        half = self.n_fft // 2
        padded = nn.functional.pad(audio, (0, self.n_fft + half))
        padded = torch.cat([padded[:, 1 : half + 1].flip(1), padded], dim=1)
        spectrum = nn.functional.conv1d(padded.unsqueeze(1), self.waves, stride=self.hop)
        power = spectrum.square().unflatten(1, (2, half + 1)).sum(1)
        mel = torch.matmul(self.filters, power).clamp(min=1e-10).log10()
        mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        frames = (audio.shape[1] + self.hop - 1) // self.hop
        return (mel[:, :, :frames] + 4.0) / 4.0, self.frame_lens(lens)


class CtcGraph(nn.Module):
    """The encoder with one set of tasks, and the CTC head.

    Args:
        tasks: the set. Its ``removed`` tokens count as blanks: they separate equal pieces, and are not emitted.
        level: factor of the normalised audio.
        repeat: output frames per encoder frame, to keep its duration. CTC collapses repetitions.
    """

    def __init__(self, model: Transducer, tasks: SherpaSet, level: float = 1.0, repeat: int = 1):
        super().__init__()
        self.model, self.tasks, self.level, self.repeat = model, tasks, level, repeat
        self.mask = torch.zeros(model.joiner.output.out_features)
        self.mask[[*tasks.removed, *tasks.suppressed]] = -math.inf

    def forward(self, x: Tensor) -> Tensor:
        """Normalised audio (1, S) -> logits (1, T, V)."""
        lens = torch.ones_like(x, dtype=torch.int64).sum(1)
        out, _ = self.model.encode(x if self.level == 1 else x * self.level, lens, self.tasks.active)
        assert self.model.ctc is not None
        logits = self.model.ctc(out)
        if self.tasks.removed:
            blank = logits[:, :, [0, *self.tasks.removed]].amax(-1, keepdim=True)
            logits = torch.cat([blank, logits[:, :, 1:]], dim=-1)
        return (logits + self.mask).repeat_interleave(self.repeat, dim=1)


def normalised(audio: np.ndarray) -> np.ndarray:
    """Normalise audio (S,) as sherpa-onnx does for a graph of the form ``ctc``."""
    centred = audio - audio.mean()
    return (centred / np.sqrt(np.mean(centred**2) + NORMALISED_EPS)).astype(np.float32)


def write_sherpa(loaded: ModelBundle, folder: Path, description: Description, options: ExportOptions) -> Description:
    """Write the files of an export for sherpa-onnx, except the README, to an empty folder.

    Returns:
        The description, with ``sherpa`` and the comparison with torch.

    Raises:
        UserError: if the form does not support the model, with the reason; or if graphs differ from torch.
    """
    from tokenverse_pp.onnx.sherpa_online import DELAY, check_online, write_online  # these import this module
    from tokenverse_pp.onnx.sherpa_prompt import prompt_sets, prompt_tokens, write_prompt

    predictor = loaded.model.predictor
    said = ""
    if not isinstance(predictor, StatelessPredictor):
        said = "its predictor remembers more than the last few tokens, which a graph here cannot"
    elif predictor.symbols_per_frame > 1:
        said = "it writes several symbols a frame (model.symbols_per_frame), and a graph here one"
    if said and options.form != "ctc":
        raise UserError(f"export for sherpa-onnx, form {options.form}: {said}")
    about: Dict[str, Any] = {"form": options.form}
    if options.chunks is None:
        check_ctc(loaded, description.frame_shift)
    else:
        check_online(loaded, description, options)
        about.update(delay=DELAY, **{key: getattr(options.chunks, key) for key in IN_CHUNKS})
    pieces = loaded.tokenizer.pieces()
    choose = chosen_sets
    if options.form == "prompt":
        choose, pieces = prompt_sets, prompt_tokens(pieces)
    sets = choose(loaded, options, description.vectors["inactive"])
    (folder / TOKENS).write_text(tokens_text(pieces), encoding="utf-8")
    write = {"ctc": write_ctc, "online": write_online, "prompt": write_prompt}[str(options.form)]
    errors = write(loaded, folder, sets, description, options)
    about["sets"] = {item.file: list(item.tasks) for item in sets}
    if options.form == "prompt":
        about["prompts"] = {",".join(item.tasks): list(item.tasks) for item in sets}
        about["sets"] = {sets[0].file: list(sets[0].tasks)}
    part = "logits" if options.chunks is None else "encoder"
    check = {"precision": options.precision, part: {key: max(one[key] for one in errors) for key in errors[0]}}
    return replace(description, sherpa=about, check=check)


def write_ctc(
    loaded: ModelBundle, folder: Path, sets: Sequence[SherpaSet], description: Description, options: ExportOptions
) -> List[Dict[str, float]]:
    """Write the graphs of the form ``ctc``; return the errors of the logits of each."""
    normalises = bool(getattr(loaded.model.encoder.backbone, "normalise", False))
    level, repeat = 1.0 if normalises else LEVEL, round(description.frame_shift / CTC_FRAME)
    for item in sets:
        graph = CtcGraph(graphs.prepared(loaded.model, ProductLogMel), item, level, repeat)
        example, axes = {"x": torch.randn(1, SAMPLE_RATE)}, {"x": {1: "S"}, "logits": {1: "T"}}
        graphs.trace(graph, folder / item.file, example, ["logits"], options.opset, axes, rows="")
        graphs.reduce_precision(folder / item.file, options.precision)
    if len(sets) > 1:
        graphs.share_weights(folder, [item.file for item in sets], WEIGHTS)
    errors = []
    for item in sets:
        graphs.describe(folder / item.file, {"tokenverse_pp": description.tokenverse_pp, "tasks": list(item.tasks)})
        errors.append(compare_ctc(folder / item.file, CtcGraph(loaded.model, item, level, repeat), options.precision))
    return errors


def chosen_sets(loaded: ModelBundle, options: ExportOptions, inactive: Inactive) -> List[SherpaSet]:
    """The sets of tasks, each with its file (raises UserError for unknown tasks and untrained combinations)."""
    tasks, tokenizer = loaded.tasks, loaded.tokenizer
    named = [tasks.chosen(names).names for names in options.task_sets]
    sets = []
    for names in dict.fromkeys(named or [tasks.names]):
        selection = select(tasks, names, tokenizer, inactive)
        active = torch.tensor([tasks.mask(selection.decoded)], dtype=torch.float32)
        for vectors in loaded.model.task_vectors:
            vectors(active)  # refuses combinations that were not trained
        others = [symbol for task in tasks.tasks if task.name not in selection.decoded for symbol in task.symbols]
        suppressed = [UNK_ID, *(tokenizer.id_of(symbol) for symbol in others)]
        end = ".onnx" if len(set(named)) < 2 else f"-{'-'.join(names)}.onnx"
        file = f"{'model' if options.form == 'ctc' else 'encoder'}{end}"
        removed = sorted(selection.removed)
        sets.append(SherpaSet(file, f"joiner{end}", names, active, removed, sorted(suppressed)))
    return sets


def tokens_text(pieces: Sequence[str]) -> str:
    """The text of ``tokens.txt``: a piece and its id per line (raises UserError if sherpa-onnx would misread it)."""
    wrong = [piece for piece in pieces if piece in DROPPED or any(space in piece for space in SPACES) or not piece]
    if wrong:
        raise UserError(f"export: sherpa-onnx cannot write the piece {wrong[0]!r} of this vocabulary")
    if max(byte for piece in pieces for byte in piece.replace("▁", "").encode()) == LAST_BYTE_PIECE:
        raise UserError("export: sherpa-onnx would take the pieces of this vocabulary for byte-level BPE")
    return "".join(f"{piece} {number}\n" for number, piece in enumerate(pieces))


def check_ctc(loaded: ModelBundle, frame_shift: float) -> None:
    """Check that the form ``ctc`` supports a model (raises UserError)."""
    if loaded.model.ctc is None:
        said = "the model has no CTC head: train it with model.loss.ctc_scale above 0"
        raise UserError(f"export for sherpa-onnx, form ctc: {said}")
    frames = frame_shift / CTC_FRAME
    if frames < 0.5 or abs(frames - round(frames)) > 1e-6:
        said = f"a frame of the encoder lasts {1000 * frame_shift:g} ms, and sherpa-onnx counts frames of 20 ms"
        raise UserError(f"export for sherpa-onnx, form ctc: {said}: expected a multiple of it (encoder.stack)")


def compare_ctc(path: Path, reference: CtcGraph, precision: str) -> Dict[str, float]:
    """Compare a graph with the same module in torch, on random audio of several lengths (`agreement`)."""
    random, session = np.random.default_rng(0), open_graph(path, 1)
    found, expected = [], []
    for seconds in LENGTHS:
        audio = normalised(random.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32))[None]
        found.append(session.run(None, {"x": audio})[0][0])
        with torch.inference_mode():
            expected.append(reference(torch.from_numpy(audio))[0].numpy())
    return graphs.agreement("logits", [(found, expected)], precision)
