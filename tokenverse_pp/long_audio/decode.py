"""A recording of any length -> one hypothesis; only a few windows of it are in memory at a time."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Tuple, TypeVar, Union

import torch
from lhotse.cut import Cut

from tokenverse_pp.dataset import collate, load_inputs
from tokenverse_pp.errors import UserError
from tokenverse_pp.long_audio.merge import Merger, Window
from tokenverse_pp.search import Hypothesis, SearchOptions, bonus_for, constraints_for, search_frames
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.training.distributed import autocast
from tokenverse_pp.training.setup import Loaded

Item = TypeVar("Item")
NOTHING = Hypothesis(tokens=(), frames=(), log_probs=(), log_prob=0.0, score=0.0)


def decode_long(
    loaded: Loaded,
    audio: Union[Cut, str, Path],
    active: TaskSet,
    options: Optional[SearchOptions] = None,
    window: float = 28.0,
    overlap: float = 6.0,
    batch: int = 4,
    precision: str = "fp32",
    weights: Optional[torch.Tensor] = None,
) -> Hypothesis:
    """Decode audio of any length in overlapping windows (see `merge` for how they are joined).

    Audio of one window or less gives exactly what the plain search gives. In a merged hypothesis ``log_prob`` is the
    sum of its tokens' log-probabilities (blanks belong to windows, and are left out).

    Args:
        loaded: the model, on the device that it is to run on.
        audio: a cut, or an audio file; any sampling rate and number of channels.
        active: the tasks to decode.
        options: of the search; the best hypothesis of each window is taken.
        window: seconds; not more than the encoder can take (Whisper: 30).
        overlap: seconds that two windows have in common, less than half a window.
        batch: windows that are decoded at once.
        precision: of the encoder: fp32, bf16 or fp16.
        weights: (K + 1,) of the task vectors; by default 1 for the active tasks, 0 for the others.

    Raises:
        UserError: naming the file or option, for audio that cannot be read and windows that cannot be.
    """
    options = options or SearchOptions()
    check_windows(window, overlap)
    cut = cut_of(audio) if isinstance(audio, (str, Path)) else audio
    decoder = _WindowDecoder(loaded, active, options, precision, weights)
    if cut.duration <= window:
        return decoder(cut, [cut])[0]
    shift = loaded.model.encoder.output_frame_shift
    tokenizer = loaded.tokenizer
    merger = Merger(tokenizer.pieces(range(tokenizer.vocab_size)), active, shift, decoder.constraints)
    for group in in_groups(windows_of(cut, window, overlap, shift), batch):
        found = decoder(cut, [part for _, part in group])
        for (start, part), hypothesis in zip(group, found):
            merger.add(Window(start, start + round(part.duration / shift), hypothesis))
    tokens, frames, log_probs = merger.result()
    log_prob = sum(log_probs)
    scale = len(tokens) + loaded.model.predictor.context_size if options.length_norm else 1
    return Hypothesis(tokens, frames, log_probs, log_prob, log_prob / scale)


def check_windows(window: float, overlap: float) -> None:
    """See that windows of these lengths can be joined (raises UserError)."""
    if not 0 < window < math.inf:
        raise UserError(f"window: expected seconds above 0, got {window:g}")
    if not 0 < 2 * overlap < window:
        raise UserError(
            f"overlap: expected seconds above 0, less than half the window of {window:g} s, got {overlap:g}"
        )


def cut_of(path: Union[str, Path]) -> Cut:
    """An audio file as a cut (raises UserError)."""
    from tokenverse_pp.api.inputs import open_audio  # a room below this one

    return open_audio(path).cut


def windows_of(cut: Cut, window: float, overlap: float, shift: float) -> Iterator[Tuple[int, Cut]]:
    """Windows of a cut that is longer than one: first frame, and the part of the cut.

    They start at multiples of the encoder's output frame, so that frames of all windows are on one clock, and the last
    one, which ends with the cut, is longer than the overlap.
    """
    bare = cut.drop_supervisions()
    step = max(1, math.floor((window - overlap) / shift + 1e-6))
    start = 0
    while True:
        offset = start * shift
        is_last = offset + window >= cut.duration - 1e-6
        duration = cut.duration - offset if is_last else window
        yield start, bare.truncate(offset=offset, duration=duration, preserve_id=True)
        if is_last:
            return
        start += step


def in_groups(items: Iterable[Item], size: int) -> Iterator[List[Item]]:
    """Lists of ``size`` items, the last one maybe shorter; no item is asked for before it is needed."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


class _WindowDecoder:
    """Cuts -> their best hypotheses, with the plain encoder and search."""

    def __init__(
        self,
        loaded: Loaded,
        active: TaskSet,
        options: SearchOptions,
        precision: str,
        weights: Optional[torch.Tensor] = None,
    ):
        self.model, self.options, self.precision = loaded.model, options, precision
        self.device = next(loaded.model.parameters()).device
        self.constraints = constraints_for(
            loaded.tasks, active.names, loaded.tokenizer, options.languages, options.force_language
        )
        self.bonus = bonus_for(options, loaded.tokenizer, active)
        mask = torch.tensor(loaded.tasks.mask(active.names), dtype=torch.float32) if weights is None else weights
        self.mask = mask.to(self.device)

    @torch.no_grad()
    def __call__(self, cut: Cut, parts: List[Cut]) -> List[Hypothesis]:
        """Hypotheses of parts of ``cut``; one that is shorter than a frame says nothing."""
        samples = [load_inputs(part, convert=True) for part in parts]
        found = [NOTHING] * len(parts)
        encoder = self.model.encoder
        heard = [i for i, x in enumerate(samples) if len(x) and int(encoder.feature_lens(torch.tensor([len(x)]))) > 0]
        if not heard:
            return found
        audio, lens = collate([samples[i] for i in heard])
        with autocast(self.device, self.precision):
            out, lens = self.model.encode(
                audio.to(self.device), lens.to(self.device), self.mask.expand(len(heard), -1), False
            )
        if not all(torch.isfinite(frames[:length]).all() for frames, length in zip(out, lens.tolist())):
            raise UserError(f"cut {cut.id}: the encoder gave NaN or infinity; do its inputs or the model hold any?")
        model = self.model
        best = search_frames(
            model.predictor, model.joiner, out.float(), lens, self.options, self.constraints, self.bonus
        )
        for i, hypotheses in zip(heard, best):
            found[i] = hypotheses[0]
        return found
