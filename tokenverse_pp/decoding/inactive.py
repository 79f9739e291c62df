"""Inactive tasks: suppressed in the search, or decoded with the others and stripped from the result.

A model trained with some of the labelled tasks inactive writes few tokens of inactive tasks; the search suppresses the
rest (``suppress``). A model trained with all tasks active, or without task vectors, has learnt no other state: its
predictor expects the tokens, and suppressing them also causes word errors. The model of recipes/toy, trained as its
README says, has a WER of 40% with ``asr`` alone if all task tokens are suppressed, and of 5% if all tasks are decoded
and the tokens of inactive tasks are removed from the result (``strip``). This module imports neither torch nor lhotse.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple, Union, get_args

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import Inactive, SearchOptions
from tokenverse_pp.decoding.constraints import check_language_task
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.tasks.base import TaskSet

if TYPE_CHECKING:
    from tokenverse_pp.data.tokenizer import Tokenizer
    from tokenverse_pp.models.bundle import ModelBundle


class Selection(NamedTuple):
    """What is decoded for a set of requested tasks."""

    decoded: Tuple[str, ...]  # the tasks that are active in encoder and search
    removed: FrozenSet[int]  # ids of the tokens that are removed from the result of the search


def inactive_of(loaded: ModelBundle, wanted: Optional[Inactive] = None) -> Inactive:
    """Return how inactive tasks are handled: as ``wanted``, or by default as the model was trained.

    The default is ``strip`` for a model without task vectors, and for one trained with all labelled tasks of each
    utterance active (``tasks.activation=labelled``, not paired); ``suppress`` for any other. The latter includes a
    model with one vector per combination of tasks that was never trained with all of them: it cannot decode them
    together.
    """
    if wanted is not None:
        return wanted
    config, model = loaded.config, loaded.model
    vectors = model.feature_vectors or model.encoder_vectors
    if vectors is None:
        return "strip"
    if config.tasks.activation != "labelled" or config.tasks.paired:
        return "suppress"
    if vectors.strategy == "combination" and bool(vectors.trained.any()) and not bool(vectors.trained[-1]):
        return "suppress"
    return "strip"


def chosen_by_language(
    lm: Union[str, Path, None], inactive: Inactive, languages: Optional[Sequence[str]] = None
) -> bool:
    """Whether a language model needs the task ``lid``: it is a folder, where the language token selects a file.

    With ``strip`` the token is decoded without the task too. But then it can be any of the model's languages, also if
    ``languages`` are chosen, and a folder may have files for these only.
    """
    return lm is not None and Path(lm).is_dir() and (inactive == "suppress" or languages is not None)


def search_for(tasks: Sequence[str], search: SearchOptions, inactive: Inactive) -> SearchOptions:
    """Return the search options for these tasks: without ``lid``, the options that need it are removed."""
    if "lid" in tasks:
        return search
    if chosen_by_language(search.lm, inactive, search.languages):
        search = search.without_lm()
    return replace(search, languages=None)


def select(
    tasks: TaskSet,
    names: Sequence[str],
    tokenizer: Tokenizer,
    inactive: Inactive,
    languages: Optional[Sequence[str]] = None,
) -> Selection:
    """Determine what is decoded for the requested tasks; ``languages``: those that may be written, if restricted.

    Raises UserError for a task that the model does not know, for languages without the task ``lid``, and for a wrong
    ``inactive``, which Python does not check.
    """
    active = tasks.chosen(names)
    if inactive not in get_args(Inactive):
        raise UserError(f"inactive: expected {' or '.join(get_args(Inactive))}, got {inactive!r}")
    if inactive == "suppress":
        return Selection(active.names, frozenset())
    check_language_task(active, languages)
    others = [symbol for task in tasks.tasks if task.name not in active for symbol in task.symbols]
    return Selection(tasks.names, frozenset(tokenizer.id_of(symbol) for symbol in others))


def stripped(found: Sequence[Hypothesis], removed: FrozenSet[int]) -> List[Hypothesis]:
    """Remove the tokens ``removed`` from an n-best list. Of hypotheses that then have the same tokens, keep the best.

    ``log_prob`` and ``score`` remain those with all tokens.
    """
    if not removed:
        return list(found)
    kept: Dict[Tuple[int, ...], Hypothesis] = {}
    for one in found:
        left = [i for i, token in enumerate(one.tokens) if token not in removed]
        bare = replace(
            one,
            tokens=tuple(one.tokens[i] for i in left),
            frames=tuple(one.frames[i] for i in left),
            log_probs=tuple(one.log_probs[i] for i in left),
            pauses=None if one.pauses is None else tuple(one.pauses[i] for i in left),
        )
        kept.setdefault(bare.tokens, bare)
    return list(kept.values())
