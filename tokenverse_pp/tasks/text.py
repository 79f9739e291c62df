"""Text with task tokens <-> structured transcript, and labelled cut -> transcript."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, cast

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.lid import CODE, language_code, language_token
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks
from tokenverse_pp.tasks.transcript import Answers, CutWithTurns, FixedTurns, is_task_token, split_marks, turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut


def render(transcript: Answers, tasks: TaskSet) -> str:
    """Write a transcript with the tokens of ``tasks``.

    >>> render(Transcript(("oui",), {"lid": "fr", "endp": (1,)}), build_tasks(["lid", "endp"]))
    '[FR] oui [ENDP]'
    """
    return tasks.render(transcript)


def parse(text: str, tasks: Optional[TaskSet] = None) -> Answers:
    """Read text with task tokens; never fails (each task's class says how it reads malformed output).

    Without ``tasks``, every registered task is read, and any other ``[XX]`` is taken as a language token.

    >>> parse("[FR] oui [ENDP]", build_tasks(["lid", "endp"], {"lid": {"languages": ["fr"]}}))
    Transcript(words=('oui',), answers={'endp': (1,), 'lid': 'fr'})
    """
    words = text.split()
    return (tasks or tasks_for_tokens(words)).read(*split_marks(words))


def tasks_for_tokens(words: Sequence[str]) -> TaskSet:
    """All registered tasks, with the options that the tokens among ``words`` show (languages, entity types)."""
    tokens = [word for word in words if is_task_token(word)]
    options: Dict[str, Dict[str, Any]] = {name: cls.options_for(tokens) for name, cls in REGISTRY.items()}
    others = [name for name in REGISTRY if name != "lid"]
    known = {*build_tasks(others).symbols, *build_tasks(others, options).symbols}
    # Any token that no other task owns is taken as a language.
    codes = [language_code(token) for token in dict.fromkeys(tokens) if token not in known]
    languages = [c for c in dict.fromkeys(codes) if CODE.fullmatch(c) and language_token(c) not in known]
    return build_tasks(list(REGISTRY), {**options, "lid": {"languages": languages}})


def transcript_of(cut: Cut, tasks: TaskSet) -> Answers:
    """The transcript of a labelled cut: answers for those of ``tasks`` that the cut is labelled for.

    Raises:
        UserError: for labels that nobody has validated and that cannot be read.
    """
    if not isinstance(cut, FixedTurns):
        cut = cast("Cut", CutWithTurns(cut))
    try:
        labelled = (cut.custom or {}).get("tasks", ())
        words = tuple(word for turn in turns_of(cut) for word in turn.words)
        answers = {t.name: t.from_cut(cut) for t in tasks.tasks if t.name != "asr" and t.name in labelled}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        message = (
            f"cut {cut.id}: labels that cannot be read ({kind}: {error}); `tokenverse-pp manifest validate` tells more"
        )
        raise UserError(message) from error
    return Answers(words, answers)
