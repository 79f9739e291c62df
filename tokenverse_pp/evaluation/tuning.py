"""Search parameters fitted to held-out speech: the encoder runs once, the search once for each value.

Parameters are fitted one after the other: ``blank_penalty`` for the word error rate, then ``token_bias`` of each task
token for the F1 of its task. Neighbouring values should hardly differ, so a value is rated by the mean of itself and
its two neighbours; this avoids choosing a single lucky value. Of the values that gain nearly as much as the best one
(three quarters of its gain, and at most 5 points less), the nearest to 0 is chosen, since a small development set
favours larger changes than the next set does.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import compress
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from lhotse.cut import Cut
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import aligned
from tokenverse_pp.base.options import DecodeOptions, SearchOptions
from tokenverse_pp.data.dataset import collate
from tokenverse_pp.decoding.hypothesis import NOTHING
from tokenverse_pp.decoding.recognizer import NOT_FINITE, Recognizer, is_long, plan_batches
from tokenverse_pp.evaluation.scoring import score_hypotheses
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.tasks.endp import Endpoint
from tokenverse_pp.tasks.ner import OPEN
from tokenverse_pp.tasks.punct import ALLCAPS, CAP, TOKENS
from tokenverse_pp.tasks.scd import SpeakerChange

Scores = Dict[str, Any]
PENALTY = "blank_penalty"
STEP = 0.25
VALUES = tuple(STEP * i for i in range(-4, 9))  # nats
MOST = 5.0  # nats; tried as long as higher values are better
GAIN, LOSS, ROUNDING = 0.75, 0.05, 1e-9
# What the bias of a token is to maximise: where its F1 is in the scores.
F1_OF = {
    SpeakerChange.token: ("scd", "text"),
    Endpoint.token: ("endp", "text"),
    OPEN: ("ner", "exact"),
    **{token: ("punct", token.strip("[]")) for token in (*TOKENS, CAP, ALLCAPS)},
}


class Tried(NamedTuple):
    """The scores with a value of a parameter (``blank_penalty`` or a token); ``measure`` is to be maximised."""

    name: str
    value: float
    measure: float
    scores: Scores


class HeldOut:
    """Labelled cuts and the encoder's output of each.

    Args:
        loaded: the model, on its device.
        cuts: checked by `tokenverse_pp.data.labels.validate_cuts`; the encoder's output of all of them is kept on the
            device: for Whisper-base 0.2 GB per hour.
        options: how to decode; their search options are not used.

    Raises:
        UserError: for a cut that cannot be read, or is longer than the window.
    """

    def __init__(self, loaded: ModelBundle, cuts: Sequence[Cut], options: DecodeOptions):
        self.loaded, self.options = loaded, options
        recognizer = Recognizer(loaded, options)
        self.tasks = recognizer.active
        self.encoded: List[Tuple[List[Cut], Tensor, Tensor]] = []
        self.silent: List[Cut] = []  # shorter than a frame
        for group in plan_batches(cuts, options):
            if is_long(group[0], options):
                raise UserError(
                    f"cut {group[0].id}: {group[0].duration:.1f} s; expected at most the window, {options.window:g} s"
                )
            items = [recognizer.load(cut) for cut in group]
            long_enough = [recognizer.input_frames(item) > 0 for item in items]
            self.silent += [cut for cut, is_long_enough in zip(group, long_enough) if not is_long_enough]
            group = list(compress(group, long_enough))
            if not group:
                continue
            inputs, lens = collate(list(compress(items, long_enough)))
            weights = recognizer.weights.expand(len(group), -1)
            out, lens = recognizer.encode(inputs, lens, weights, options.stored_features, options.chunks)
            self.encoded.append((group, out, lens))

    def scores(self, search: SearchOptions) -> Scores:
        """Search all cuts, and score them (`score_hypotheses`)."""
        recognizer = Recognizer(self.loaded, replace(self.options, search=search))
        cuts = list(self.silent)
        records = [recognizer.transcript(cut, NOTHING).to_record() for cut in cuts]
        for group, out, lens in self.encoded:
            for cut, found in zip(group, recognizer.search(out, lens)):
                if found is None:
                    raise UserError(f"cut {cut.id}: {NOT_FINITE}")
                cuts.append(cut)
                records.append(recognizer.transcript(cut, found[0]).to_record())
        return score_hypotheses(cuts, records, self.loaded.tasks)


def measure_of(name: str, scores: Scores) -> float:
    """Return what a parameter is to maximise: 1 - WER, or an F1 (raises KeyError if it was not measured)."""
    if name == PENALTY:
        return 1 - float(scores["wer"]["all"]["wer"])
    task, key = F1_OF[name]
    return float(scores[task][key]["f1"])


def tokens_to_tune(written: Sequence[str], scores: Scores, tokens: Sequence[str]) -> List[str]:
    """Return the tokens of decoded tasks to tune: those named (raises UserError), or all that the cuts have."""

    def has_references(token: str) -> bool:
        found = scores.get(F1_OF[token][0], {}).get(F1_OF[token][1], {})
        return found.get("tp", 0) + found.get("fn", 0) > 0

    known = [token for token in F1_OF if token in written and has_references(token)]
    for token in tokens:
        if token not in known:
            raise UserError(f"--token: {token!r}: these cuts have references of {', '.join(known) or 'no token'}")
    return list(tokens) or known


def tune(
    held_out: HeldOut, search: SearchOptions, tokens: Sequence[str] = (), tell: Callable[[Tried], None] = lambda _: None
) -> SearchOptions:
    """Fit ``blank_penalty``, then ``token_bias``.

    Args:
        held_out: the speech that they are fitted to.
        search: the initial options; values of these parameters in it are replaced.
        tokens: whose bias is fitted, in this order; by default those of all tasks that the cuts are labelled for.
        tell: called with each value that was tried.

    Returns:
        The options with the values found; a parameter that does not help is 0.

    Raises:
        UserError: for cuts without labels of asr, and for a token that they are not labelled for.
    """
    search = replace(search, blank_penalty=0.0, token_bias=())
    scores = held_out.scores(search)
    if "wer" not in scores:
        raise UserError("no cut is labelled for asr, so the word error rate cannot be measured")
    for name in (PENALTY, *tokens_to_tune(held_out.tasks.symbols, scores, tokens)):
        tried = list(_try(held_out, search, name, tell))
        search = with_value(search, name, best_value([t.value for t in tried], [t.measure for t in tried]))
    return search


def _try(held_out: HeldOut, search: SearchOptions, name: str, tell: Callable[[Tried], None]) -> Iterator[Tried]:
    values, measures = list(VALUES), []
    for value in values:
        scores = held_out.scores(with_value(search, name, value))
        tried = Tried(name, value, measure_of(name, scores), scores)
        tell(tried)
        yield tried
        measures.append(tried.measure)
        rises = measures.index(max(measures)) >= len(measures) - 2
        if len(measures) == len(values) and rises and value + STEP <= MOST:
            values.append(value + STEP)


def with_value(search: SearchOptions, name: str, value: float) -> SearchOptions:
    """The options with ``blank_penalty``, or the bias of a token, set to a value; a bias of 0 is left out."""
    if name == PENALTY:
        return replace(search, blank_penalty=value)
    others = tuple(pair for pair in search.token_bias if pair[0] != name)
    return replace(search, token_bias=(*others, (name, value)) if value else others)


def best_value(values: Sequence[float], measures: Sequence[float]) -> float:
    """Return the value nearest to 0 with `GAIN` of the best value's gain over 0, and at most `LOSS` below the best.

    Values are rated as in the module's docstring.

    >>> best_value([-1, 0, 1, 2, 3], [0.1, 0.5, 0.6, 0.6, 0.5])
    1
    """

    def rating(at: int) -> float:
        around = measures[max(0, at - 1) : at + 2]
        return sum(around) / len(around)

    ratings = {value: rating(at) for at, value in enumerate(values)}
    best = max(ratings.values())
    needed = best - min((1 - GAIN) * (best - ratings[0]), LOSS) - ROUNDING
    return min((value for value in values if ratings[value] >= needed), key=abs)


def table_of(tried: Sequence[Tried], found: Scores) -> str:
    """Format what was tried, a block per parameter: value, WER, F1 of each token; last, the scores with all found."""
    names = list(dict.fromkeys(t.name for t in tried))
    columns = [PENALTY, *(name for name in names if name != PENALTY)]

    def cells(scores: Scores) -> List[str]:
        numbers = [measure_of(name, scores) for name in columns]
        return [f"{100 * (1 - numbers[0]):.1f}", *(f"{100 * number:.1f}" for number in numbers[1:])]

    rows = [["", "value", "WER %", *(f"{name} F1" for name in columns[1:])]]
    rows += [[t.name, f"{t.value:g}", *cells(t.scores)] for t in tried]
    return aligned([*rows, ["all found", "", *cells(found)]])
