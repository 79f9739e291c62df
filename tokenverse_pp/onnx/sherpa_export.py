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

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import ExportOptions, Inactive
from tokenverse_pp.data.tokenizer import UNK_ID
from tokenverse_pp.decoding.constraints import check_known
from tokenverse_pp.decoding.inactive import select
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.whisper import LogMel
from tokenverse_pp.models.predictor import StatelessPredictor
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx.folder import PACKAGES, TOKENS, WEIGHTS, Description
from tokenverse_pp.onnx.graphs import (
    check_agreement,
    check_frames,
    describe,
    errors_of,
    prepared,
    reduce_precision,
    share_weights,
    trace,
    windowed_waves,
)
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
        tasks: tasks that are requested.
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
        self.register_buffer("waves", windowed_waves(log_mel.window, self.n_fft).float().unsqueeze(1))

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return torch.div(lens + self.hop - 1, self.hop, rounding_mode="floor")

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
        model: model with a CTC head.
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
    """Write the files of an export for sherpa-onnx, except the README.

    Args:
        loaded: the model.
        folder: an empty folder.
        description: description of the model, without ``sherpa`` and ``check``.
        options: export options; ``form`` is not None.

    Returns:
        The description, with ``sherpa`` and the comparison with torch.

    Raises:
        UserError: if the form does not support the model, with the reason; or if graphs differ from torch.
    """
    from tokenverse_pp.onnx.sherpa_online import DELAY, check_online, write_online  # these import this module
    from tokenverse_pp.onnx.sherpa_prompt import prompt_sets, prompt_tokens, write_prompt

    predictor = loaded.model.predictor
    if options.form != "ctc" and not isinstance(predictor, StatelessPredictor):
        said = "its predictor remembers more than the last few tokens, which a graph here cannot"
        raise UserError(f"export for sherpa-onnx, form {options.form}: {said}")
    if options.form != "ctc" and predictor.symbols_per_frame > 1:
        said = "it writes several symbols a frame (model.symbols_per_frame), and a graph here one"
        raise UserError(f"export for sherpa-onnx, form {options.form}: {said}")
    about: Dict[str, Any] = {"form": options.form}
    if options.chunks is None:
        check_ctc(loaded, description.frame_shift)
    else:
        check_online(loaded, description, options)
        about.update(delay=DELAY, **{key: getattr(options.chunks, key) for key in ("chunk_ms", "left_chunks", "sinks")})
    pieces = loaded.tokenizer.pieces(range(loaded.tokenizer.vocab_size))
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
        graph = CtcGraph(with_product_log_mel(loaded.model), item, level, repeat)
        axes = {"x": {1: "S"}, "logits": {1: "T"}}
        trace(graph, folder / item.file, {"x": torch.randn(1, SAMPLE_RATE)}, ["logits"], options.opset, axes, rows="")
        reduce_precision(folder / item.file, options.precision)
    if len(sets) > 1:
        share_weights(folder, [item.file for item in sets], WEIGHTS)
    errors = []
    for item in sets:
        describe(folder / item.file, {"tokenverse_pp": description.tokenverse_pp, "tasks": list(item.tasks)})
        errors.append(compare_ctc(folder / item.file, CtcGraph(loaded.model, item, level, repeat), options.precision))
    return errors


def chosen_sets(loaded: ModelBundle, options: ExportOptions, inactive: Inactive) -> List[SherpaSet]:
    """The sets of tasks, each with its file (raises UserError for unknown tasks and untrained combinations)."""
    tasks, tokenizer = loaded.tasks, loaded.tokenizer
    for names in options.task_sets:
        check_known(tasks, names)
    named = [tasks.subset(names).names for names in options.task_sets]
    sets = []
    for names in dict.fromkeys(named or [tasks.names]):
        selection = select(tasks, names, tokenizer, inactive)
        active = torch.tensor([tasks.mask(selection.decoded)], dtype=torch.float32)
        for vectors in (loaded.model.feature_vectors, loaded.model.encoder_vectors):
            if vectors is not None:
                vectors(active)  # refuses combinations that were not trained
        others = [symbol for task in tasks.tasks if task.name not in selection.decoded for symbol in task.symbols]
        suppressed = [UNK_ID, *(tokenizer.id_of(symbol) for symbol in others)]
        end = ".onnx" if len(set(named)) < 2 else f"-{'-'.join(names)}.onnx"
        file = f"{'model' if options.form == 'ctc' else 'encoder'}{end}"
        removed = sorted(selection.removed)
        sets.append(SherpaSet(file, f"joiner{end}", names, active, removed, sorted(suppressed)))
    return sets


def tokens_text(pieces: Sequence[str]) -> str:
    """The text of ``tokens.txt``: a piece and its id per line.

    Raises:
        UserError: for pieces that sherpa-onnx would misread.
    """
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


def with_product_log_mel(model: Transducer) -> Transducer:
    """Return a copy that can be traced for the audio of one utterance."""
    model = prepared(model, given_mel=False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LogMel):
                setattr(parent, name, ProductLogMel(child))
    return model


def compare_ctc(path: Path, reference: CtcGraph, precision: str) -> Dict[str, float]:
    """Compare a graph with the same module of the model in torch, on random audio of several lengths.

    Returns:
        Largest and RMS error of the logits, relative to the RMS of torch's.

    Raises:
        UserError: if an error exceeds the tolerance.
    """
    random, session = np.random.default_rng(0), open_graph(path, 1)
    found, expected = [], []
    for seconds in LENGTHS:
        audio = normalised(random.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32))[None]
        found.append(session.run(None, {"x": audio})[0][0])
        with torch.inference_mode():
            expected.append(reference(torch.from_numpy(audio))[0].numpy())
    check_frames(found, expected)
    errors = errors_of(np.concatenate(found), np.concatenate(expected))
    check_agreement("logits", errors, precision)
    return errors


README = """# A tokenverse_pp model for sherpa-onnx

{about}

Written for the stock sherpa-onnx 2.0.1 (`pip install sherpa-onnx`, or its releases for C++, Android, iOS, the browser;
C++ programs also by `pip install sherpa-onnx-bin`).

| {named} | tasks |
|---|---|
{files}

{use}
`text` holds the task tokens where they were written: `[SCD]` between two speakers, `[ENDP]` at the end of an utterance,
`[NE]` and `[/NE]` around an entity, a language token such as `[FR]` first. `tokenverse_pp.onnx.from_sherpa` turns a
result, or its JSON, into words, turns, entities, endpoints and language; it needs no torch. Install a wheel of
tokenverse_pp (`make wheel` in a checkout writes it to `dist/`) without its requirements, and what it needs here:

    pip install {packages} && pip install --no-deps tokenverse_pp-*.whl

## What sherpa-onnx cannot do here

{limits}"""
CTC_USE = """Python:

    import sherpa_onnx, soundfile
    from tokenverse_pp.onnx import from_sherpa

    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(model="{file}", tokens="tokens.txt")
    samples, rate = soundfile.read("call.wav", dtype="float32")  # one channel
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, samples)
    recognizer.decode_stream(stream)
    print(stream.result.text)
    print(from_sherpa(stream.result, "THIS_FOLDER"{tasks}).to_json())

C++:

    sherpa-onnx-offline --omnilingual-asr-model={file} --tokens=tokens.txt call.wav

Android (Kotlin):

    OfflineModelConfig(
        omnilingual = OfflineOmnilingualAsrCtcModelConfig(model = "{file}"),
        tokens = "tokens.txt",
    )
"""
ONLINE_USE = """Python:

    import numpy, sherpa_onnx, soundfile
    from tokenverse_pp.onnx import from_sherpa

    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        encoder="{file}", decoder="decoder.onnx", joiner="{joiner}", tokens="tokens.txt"{feature_dim}
    )
    samples, rate = soundfile.read("call.wav", dtype="float32")  # one channel
    stream = recognizer.create_stream()
{choose}    stream.accept_waveform(rate, samples)  # or piece by piece
    stream.accept_waveform(rate, numpy.zeros(rate * {flush} // 1000, numpy.float32))  # or the last chunk is not decoded
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    print(recognizer.get_result(stream))
    print(from_sherpa(recognizer.get_result_all(stream), "THIS_FOLDER"{tasks}).to_json())

C++ (by default, half a second of silence precedes the audio, and times count it):

    sherpa-onnx --encoder={file} --decoder=decoder.onnx --joiner={joiner} --tokens=tokens.txt \\
        {option} --left-padding=0 --right-padding={padding:g} call.wav

Android (Kotlin):

    OnlineModelConfig(
        transducer = OnlineTransducerModelConfig(
            encoder = "{file}", decoder = "decoder.onnx", joiner = "{joiner}",
        ),
        tokens = "tokens.txt",
    )
{kotlin}"""
KOTLIN = """    // in an OnlineRecognizerConfig with decodingMethod = "greedy_search"; then, for each stream:
    stream.setOption("language", "{prompt}")
"""
SETS = """- Choose tasks while it runs: a set of tasks is a constant of its graph. {several}
"""
SEVERAL = """The graphs share `{weights}`,
  which has to lie beside them in a folder: sherpa-onnx cannot read it from Android's assets."""
CTC_LIMITS = """\
{sets}- Search: the words are the best path of the CTC head, which is less accurate than the transducer. No
  hotwords, no language models, no confidences.
- Keep `[NE]` and `[/NE]` in pairs, one language token, or a language that is known: nothing constrains the order of
  tokens. `from_sherpa` reads what is well-formed, and drops the rest.
{longest}"""
ONLINE_LIMITS = """\
{sets}- Compute exactly the model's log-mel: its frames are 5 ms later than Whisper's. Times are late by a
  frame of 40 ms besides, which `from_sherpa` subtracts.
- Write the whole of a task token at the start of `text`: streams leave out its bracket (`CS] to ..`), as they do with
  punctuation. `tokens`, which `from_sherpa` reads, are whole.
- Keep `[NE]` and `[/NE]` in pairs, one language token, or a language that is known: nothing constrains the order of
  tokens. `from_sherpa` reads what is well-formed, and drops the rest{strip}.
"""
PROMPT_LIMITS = """\
- Compute exactly the model's log-mel: its own is 5 ms later and has pre-emphasis. The encoder computes Whisper's from
  it, except for frequencies below 100 Hz. Times are late by a frame of 40 ms besides, which
  `from_sherpa` subtracts.
- Write the whole of a task token at the start of `text`: streams leave out its bracket (`CS] to ..`), as they do with
  punctuation. `tokens`, which `from_sherpa` reads, are whole.
- Search with a beam, hotwords or a language model.
- Say that a set of tasks is unknown, but for a line on stderr: the stream then decodes the default.
- Keep `[NE]` and `[/NE]` in pairs, one language token, or a language that is known: nothing constrains the order of
  tokens. `from_sherpa` reads what is well-formed, and drops the rest{strip}.
"""
PROMPTS = """A stream chooses its tasks by its option `language`, in which sherpa-onnx's own models take languages: one
of the sets above, in this order; `asr,` may be left out. Without it, the first set is decoded. A change counts from the
next chunk on.

"""
STRIP = """. This model decodes all of its tasks:
  `text` also has the tokens of those that were not asked for, and `from_sherpa` removes them"""
LONGEST = """- Audio of more than {seconds:g} s: cut it first, for example by sherpa-onnx's voice activity detection.
"""


def sherpa_readme(d: Description) -> str:
    """The README of a folder for sherpa-onnx."""
    assert d.sherpa is not None
    sets: Dict[str, List[str]] = d.sherpa["sets"]
    file = next(iter(sets))
    form, prompts = d.sherpa["form"], d.sherpa.get("prompts")
    languages = f", languages {', '.join(d.languages)}" if d.languages else ""
    several = SEVERAL.format(weights=WEIGHTS) if len(sets) > 1 else "Export with several `--tasks` for several graphs."
    values: Dict[str, Any] = {"file": file, "tasks": f", {sets[file]}" if len(sets) > 1 else ""}
    use, limits, chunks = CTC_USE, CTC_LIMITS, ""
    if form != "ctc":
        use, limits, chunks = ONLINE_USE, ONLINE_LIMITS, f"; chunks of {d.sherpa['chunk_ms']} ms"
        bins, flush = (d.mel or {})["bins"], d.sherpa["chunk_ms"] + 40
        values.update(joiner=file.replace("encoder", "joiner"), flush=flush, padding=flush / 1000)
        values.update(feature_dim=f", feature_dim={bins}", option=f"--feat-dim={bins}", choose="", kotlin="")
    if prompts:
        limits, chosen = PROMPT_LIMITS, list(prompts)[-1]
        values.update(feature_dim="", option=f"--language={chosen}", kotlin=KOTLIN.format(prompt=chosen))
        values.update(choose=f'    stream.set_option("language", "{chosen}")\n', tasks=f", {prompts[chosen]}")
    named = prompts or sets
    strips = d.vectors["inactive"] == "strip" and any(set(names) != set(d.tasks) for names in named.values())
    return README.format(
        about=f"Tasks {', '.join(d.tasks)}{languages}; weights in {d.precision}; tokenverse_pp {d.tokenverse_pp}; "
        f"a token is timed to {1000 * d.frame_shift:g} ms{chunks}.",
        named="set" if prompts else "file",
        files="\n".join(f"| {name} | {', '.join(names)} |" for name, names in named.items()),
        use=(PROMPTS if prompts else "") + use.format(**values),
        packages=" ".join(PACKAGES[1:]),
        limits=limits.format(
            sets=SETS.format(several=several),
            longest=LONGEST.format(seconds=d.max_samples / SAMPLE_RATE) if d.max_samples else "",
            strip=STRIP if strips else "",
        ),
    )
