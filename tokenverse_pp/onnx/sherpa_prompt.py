"""The form ``prompt`` of exports for sherpa-onnx: a streaming Whisper transducer whose tasks each stream chooses.

It uses the model type of NeMo's streaming transducers, whose encoder has an input ``prompt_index``: sherpa-onnx looks
the stream's option ``language`` up in the metadata ``prompt_dictionary``. Here the entries are sets of tasks, such as
``asr,scd``, and the encoder converts the index to the task vectors. The rest is as in the form ``online``, except that

- the features are Kaldi's, not Whisper's: the same window of 25 ms, but with pre-emphasis, an FFT of 512 points,
  natural logarithms, and as many mel bins as the graph specifies. `FbankFront` requires bins whose edges include those
  of Whisper's filters, and computes Whisper's mel powers from them;
- the search emits up to ten tokens per frame, but our models are trained and decoded with one. Neither joiner nor
  predictor knows whether a frame is new, so each frame is followed by a row that emits ``<nop>`` if the predictor has
  just read a token. Between the token and this row the joiner gives blanks. sherpa-onnx takes ``<nop>`` for the name of
  a language, which it leaves out of results;
- the predictor of that type is an LSTM. Here its state is the context;
- the blank is the last token.
(sherpa-onnx/csrc/online-recognizer-transducer-nemo-impl.h, online-transducer-nemo-model.cc,
online-transducer-greedy-search-nemo-decoder.cc; kaldi-native-fbank/csrc/mel-computations.cc.)
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import ExportOptions, Inactive
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.whisper import LEAST, WhisperBackbone
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx.folder import Description
from tokenverse_pp.onnx.graphs import describe, prepared, reduce_precision, trace
from tokenverse_pp.onnx.runtime import open_graph
from tokenverse_pp.onnx.sherpa_export import SherpaSet, chosen_sets
from tokenverse_pp.onnx.sherpa_online import CHUNKS, DECODER, OnlineGraph, SherpaFront, errors_of_stream, mel_windows

NOP = "<nop>"
LANGUAGE = re.compile(r"<[a-z]{2,3}(-[A-Z]{2})?>")  # pieces that sherpa-onnx leaves out of results of this type
MOST_TASKS = 6  # besides asr, for which all sets are exported by default
ROWS = 2  # of the encoder's output per frame
FFT, PRE_EMPHASIS = 512, 0.97
# Each of Kaldi's filters has to hold a frequency of the FFT, or sherpa-onnx aborts: half of a filter in the linear part
# of the mel scale has to be wider than half of 31.25 Hz.
MOST_INTERVALS = 192
NEVER = 1e4  # subtracted from logits


def slaney_frequencies(count: int) -> np.ndarray:
    """``count`` frequencies (Hz) from 0 to 8 kHz, equally spaced on Slaney's mel scale."""
    mels = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), count)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))


def mel_from_fbank(bins: int) -> np.ndarray:
    """The matrix (bins, M) that converts mel powers of Kaldi's filters (M,) to Whisper's (bins,).

    Kaldi's filters are an integer number of times as dense, and their edges include those of Whisper's: a triangle of
    Whisper's is a weighted sum of theirs. Each is divided by the effect of pre-emphasis on the power at its centre, and
    scaled to an FFT of 400 points. Two differences remain: where the two FFTs sample the spectrum, and pre-emphasis
    below 100 Hz, where it changes within a filter.

    Raises:
        UserError: if ``bins`` are more than sherpa-onnx can compute.
    """
    dense = MOST_INTERVALS // (bins + 1)
    if dense == 0:
        raise UserError(f"export for sherpa-onnx, form prompt: {bins} mel bins, sherpa-onnx computes 191 at most")
    coarse, fine = slaney_frequencies(bins + 2), slaney_frequencies(dense * (bins + 1) + 1)
    low, centre, high = (coarse[i : i + bins, None] for i in range(3))
    places = fine[1:-1]
    triangles = np.maximum(0, np.minimum((places - low) / (centre - low), (high - places) / (high - centre)))
    response = np.abs(1 - PRE_EMPHASIS * np.exp(-2j * math.pi * places / SAMPLE_RATE)) ** 2
    widths = (fine[2:] - fine[:-2]) / (high - low)  # both kinds of filters are divided by their width
    return (triangles * widths / response * (400 / FFT)).astype(np.float32)


class FbankFront(SherpaFront):
    """`SherpaFront` for Kaldi's log-mels (N, M, T)."""

    def __init__(self, backbone: WhisperBackbone) -> None:
        super().__init__(backbone)
        self.matrix = torch.from_numpy(mel_from_fbank(len(backbone.log_mel.filters)))

    def mel(self, x: Tensor) -> Tensor:
        """See SherpaFront. A convolution, because int8 quantises products, and powers must not be quantised."""
        return F.conv1d(x.exp(), self.matrix[:, :, None]).clamp(min=10.0**LEAST).log10()


class PromptGraph(OnlineGraph):
    """One call of N streams, each with its own tasks.

    Args:
        model: model in eval mode, with a Whisper encoder.
        chunks: as in `StreamingEncoder`.
        sets: the sets of tasks to choose from.

    Attributes:
        bins: M, mel bins that sherpa-onnx has to compute.
    """

    def __init__(self, model: Transducer, chunks: ChunkOptions, sets: Sequence[SherpaSet]):
        super().__init__(model, chunks, torch.cat([item.active for item in sets]))
        front: Any = self.stages[0]
        self.stages[0] = front = FbankFront(front.backbone)
        self.bins = front.matrix.shape[1]

    def start(self, streams: int) -> Dict[str, Tensor]:
        """The states of new streams, by their names in the graph, in sherpa-onnx's order."""
        return {
            "cache_last_channel": torch.zeros(streams, 1, 1, self.size),
            "cache_last_time": torch.zeros(streams, 1, 1, 1),
            "cache_last_channel_len": torch.zeros(streams, dtype=torch.int64),
        }

    def forward(self, x: Tensor, *others: Tensor) -> Tuple[Tensor, ...]:
        """x (N, M, T), lengths (N,), caches (N, 1, 1, size), unused (N, 1, 1, 1), chunks (N,), prompts (N,).

        Returns:
            Rows (N, J + 2, 2 T'), their number (N,), and the states. The last two values of a row are 1 if it cannot
            emit a token, else 0; and the prompt.
        """
        lengths, caches, unused, chunks, prompts = others
        frames, following = self.encode(x, caches[:, 0, 0], chunks, self.active[prompts])
        closed = torch.cat([torch.zeros_like(frames[:, :, :-1]), torch.ones_like(frames[:, :, -1:])], dim=2)
        rows = torch.stack([frames, closed], dim=2).flatten(1, 2)  # (N, 2 T', J + 1)
        chosen = prompts.to(rows.dtype)[:, None, None].expand(-1, rows.shape[1], -1)
        rows = torch.cat([rows, chosen], dim=2).transpose(1, 2)
        counted = torch.zeros_like(lengths) + rows.shape[2]
        return rows, counted, following[:, None, None], unused, chunks + 1


class PromptPredictor(nn.Module):
    """The predictor in place of an LSTM with one layer, whose first state is the context.

    Ids are sherpa-onnx's: those of tokens are one less than the model's, then follow ``<nop>`` and the blank.
    """

    def __init__(self, model: Transducer):
        super().__init__()
        self.predictor, self.projection = model.predictor, model.joiner.predictor_proj
        self.nop = model.joiner.output.out_features - 1

    def forward(self, targets: Tensor, lengths: Tensor, context: Tensor, unused: Tensor) -> Tuple[Tensor, ...]:
        """targets (1, 1), lengths (1,) int32, context (1, 1, context_size), unused -> (1, J + 1, 1), lengths, states.

        The last value of the output is 1 if a token was read, 0 for ``<nop>`` and the blank.
        """
        history = context[0].round().to(torch.int64)
        token = targets.to(torch.int64)
        is_token = token < self.nop
        history = torch.where(is_token, torch.cat([history[:, 1:], token + 1], dim=1), history)
        state = self.projection(self.predictor.step(history))
        out = torch.cat([state, is_token.to(state.dtype)], dim=1)
        return out[:, :, None], lengths, history.to(context.dtype)[None], unused


class PromptJoiner(nn.Module):
    """The joiner, which gives one token per frame, and never the tokens of tasks that were not chosen."""

    def __init__(self, model: Transducer, sets: Sequence[SherpaSet]):
        super().__init__()
        self.joiner = model.joiner
        self.mask = torch.zeros(len(sets), model.joiner.output.out_features)
        for row, item in zip(self.mask, sets):
            row[item.suppressed] = -math.inf

    def forward(self, encoder_outputs: Tensor, decoder_outputs: Tensor) -> Tensor:
        """A row (1, J + 2, 1), an output of the predictor (1, J + 1, 1) -> logits (1, 1, 1, V + 1)."""
        row, state = encoder_outputs[:, :, 0], decoder_outputs[:, :, 0]
        closed, prompt, read = row[:, -2:-1], row[:, -1].round().to(torch.int64), state[:, -1:]
        logits = self.joiner(row[:, :-2], state[:, :-1]) + self.mask[prompt]
        blank = logits[:, :1]
        tokens = logits[:, 1:] - NEVER * torch.maximum(closed, read)
        nop = blank + NEVER * (2 * closed * read - 1)
        return torch.cat([tokens, nop, blank], dim=1)[None, None]


def prompt_tokens(pieces: Sequence[str]) -> List[str]:
    """The pieces in sherpa-onnx's order, then ``<nop>`` and the blank (raises UserError for pieces it leaves out)."""
    wrong = [piece for piece in pieces[2:] if LANGUAGE.fullmatch(piece)]
    if wrong:
        raise UserError(f"export for sherpa-onnx, form prompt: it never writes the piece {wrong[0]!r}")
    return [*pieces[1:], NOP, pieces[0]]


def prompt_sets(loaded: ModelBundle, options: ExportOptions, inactive: Inactive) -> List[SherpaSet]:
    """The sets of tasks to choose from, the default first; without ``options.task_sets`` all sets that can be decoded.

    Raises:
        UserError: for unknown tasks, untrained combinations, and too many tasks to export all sets.
    """
    sets = options.task_sets
    if not sets:
        others = loaded.tasks.names[1:]
        if len(others) > MOST_TASKS:
            raise UserError(f"--tasks: needed for form prompt: this model knows {len(others)} tasks beside asr")
        sizes = range(len(others), -1, -1)
        sets = tuple(("asr", *names) for size in sizes for names in combinations(others, size))
    found = []
    for names in sets:
        try:
            (one,) = chosen_sets(loaded, replace(options, task_sets=(names,)), inactive)
        except UserError:
            if options.task_sets:
                raise
            continue  # a combination that was never trained
        found.append(one)
    return list({item.tasks: item for item in found}.values())


def write_prompt(
    loaded: ModelBundle, folder: Path, sets: Sequence[SherpaSet], description: Description, options: ExportOptions
) -> List[Dict[str, float]]:
    """Write the graphs of the form ``prompt``; return the errors of the encoder's frames, in a list."""
    assert options.chunks is not None
    model, (encoder, joiner) = prepared(loaded.model), sets[0][:2]
    graph, size = PromptGraph(model, options.chunks, sets).eval(), description.context_size
    numbers, states = torch.tensor([graph.mel_frames] * 2), graph.start(2)
    inputs = {"audio_signal": torch.randn(2, graph.bins, graph.mel_frames), "length": numbers, **states}
    inputs["prompt_index"] = torch.tensor([0, len(sets) - 1])
    outputs = ["outputs", "encoded_lengths", *(f"{name}_next" for name in states)]
    trace(graph, folder / encoder, inputs, outputs, options.opset)
    reduce_precision(folder / encoder, options.precision)
    token = {"targets": torch.tensor([[0]], dtype=torch.int32), "target_length": torch.ones(1, dtype=torch.int32)}
    token.update({name: torch.zeros(1, 1, size) for name in ("context", "unused")})
    read = ["outputs", "lengths", "context_next", "unused_next"]
    trace(PromptPredictor(model), folder / DECODER, token, read, options.opset, rows="")
    pair = {"encoder_outputs": torch.zeros(1, description.joiner_dim + 2, 1)}
    pair["decoder_outputs"] = torch.zeros(1, description.joiner_dim + 1, 1)
    trace(PromptJoiner(model, sets), folder / joiner, pair, ["outputs"], options.opset, rows="")
    about = {"tokenverse_pp": description.tokenverse_pp}
    describe(folder / DECODER, about)
    describe(folder / joiner, about)
    names = {",".join(item.tasks): number for number, item in enumerate(sets)}
    names.update({name[4:]: number for name, number in names.items() if name != "asr"})  # asr may be left out
    metadata: Dict[str, Any] = {f"cache_last_{part}_dim{i}": "1" for part in ("channel", "time") for i in (1, 2, 3)}
    metadata.update(vocab_size=str(description.vocab_size), subsampling_factor=str(4 // ROWS), normalize_type="NA")
    metadata.update(window_size=str(graph.mel_frames), chunk_shift=str(graph.mel_frames))
    metadata.update(pred_rnn_layers="1", pred_hidden=str(size), cache_last_channel_dim3=str(graph.size))
    describe(folder / encoder, {**metadata, **about, "prompt_dictionary": {"auto": 0, **names}, "auto_prompt_id": "0"})
    return [compare_prompt(loaded, folder / encoder, graph, sets, options)]


def compare_prompt(
    loaded: ModelBundle, path: Path, graph: PromptGraph, sets: Sequence[SherpaSet], options: ExportOptions
) -> Dict[str, float]:
    """Compare an encoder with torch over some chunks of random audio, a stream for each set, all at once (`agreement`).

    The features are such that `mel_from_fbank` yields exactly Whisper's mel powers.
    """
    assert options.chunks is not None
    front: Any = graph.stages[0]
    matrix, streams = front.matrix.numpy(), len(sets)
    centres = matrix.shape[1] // len(matrix) * np.arange(1, len(matrix) + 1) - 1  # filters that only one row uses
    session, states = open_graph(path, 1), {name: tensor.numpy() for name, tensor in graph.start(streams).items()}
    samples = graph.mel_frames * SAMPLE_RATE // 100
    audio = (0.1 * np.random.default_rng(0).standard_normal((CHUNKS, samples))).astype(np.float32)
    found: List[List[np.ndarray]] = [[] for _ in sets]
    for window in mel_windows(front.backbone.log_mel, audio.ravel(), graph.mel_frames):
        powers = 10.0 ** (4.0 * window.T - 4.0) / matrix[np.arange(len(matrix)), centres][:, None]
        features = np.full((streams, graph.bins, graph.mel_frames), -60.0, np.float32)
        features[:, centres] = np.log(powers)
        lengths, prompts = np.full(streams, graph.mel_frames), np.arange(streams)
        inputs = {"audio_signal": features, "length": lengths, **states, "prompt_index": prompts}
        rows, _, *following = session.run(None, inputs)
        states = dict(zip(states, following))
        for one, of_stream in zip(found, rows):
            one.append(of_stream[:-2, ::ROWS].T)
    cases = [errors_of_stream(loaded, item, options, list(audio), one) for item, one in zip(sets, found)]
    return {key: max(case[key] for case in cases) for key in cases[0]}
