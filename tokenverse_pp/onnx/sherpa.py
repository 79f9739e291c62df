"""Convert results of sherpa-onnx with an exported model (`tokenverse-pp export --for sherpa-onnx`) to a `Transcript`.

sherpa-onnx returns pieces of words and task tokens with times. They are converted to words, turns, entities, endpoints
and the language. Neither torch nor sherpa-onnx is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import is_finite, json_of
from tokenverse_pp.onnx.folder import Description, read_folder
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.punct import Punctuation
from tokenverse_pp.tasks.result import WITH_FIELDS, Transcript, transcript_of_words, words_of_tokens
from tokenverse_pp.tasks.transcript import UNKNOWN, Word, is_task_token

SPACE = "▁"  # of SentencePiece; sherpa-onnx replaces it by a space at the start of a piece
FIELDS = ("tokens", "timestamps", "start_time", "ys_probs", "ys_log_probs")  # of a result
FRAME_SHIFT = 0.04  # seconds that a piece lasts if no export is given


def from_sherpa(
    result: Any,
    folder: Union[str, Path, None] = None,
    tasks: Optional[Sequence[str]] = None,
    duration: Optional[float] = None,
    name: str = "audio",
) -> Transcript:
    """Convert a result of sherpa-onnx to a transcript with turns, entities, endpoints and language.

    Args:
        result: ``OfflineStream.result`` or the value of ``OnlineRecognizer.get_result_all``, or the same as JSON text
            or dict, as the C++ programs and other languages return it. ``tokens`` and ``timestamps`` are read, and
            ``start_time`` of a result that is not a stream's first.
        folder: the export, which holds the model's tasks and frame shift. Without it, the tokens of all registered
            tasks are read, and any other token in brackets is taken for a language.
        tasks: tasks that were decoded; needed only if the folder has several sets of tasks.
        duration: duration of the audio in seconds; by default the end of the last word.
        name: name of the recording in the transcript.

    Returns:
        The transcript. Its confidences are None if sherpa-onnx gives no probabilities (form ``ctc``). Those of the
        form ``online`` are sherpa-onnx's, which by default divides logits by a temperature of 2.

    Raises:
        UserError: if ``result`` is not a result, the export did not decode these tasks, or the folder is not an
            export for sherpa-onnx.
    """
    pieces, times, log_probs = read_result(result)
    known, frame_shift, delay = None, FRAME_SHIFT, 0
    if folder is not None:
        about = read_folder(folder, check_files=False, sherpa=True)
        known, frame_shift = build_tasks(about.tasks, about.task_options), about.frame_shift
        delay = (about.sherpa or {}).get("delay", 0)
        tasks = decoded_tasks(about, tasks, str(folder))
        symbols = known.subset(tasks).symbols
        kept = [i for i, piece in enumerate(pieces) if not is_task_token(piece) or piece in symbols]
        pieces, times = [pieces[i] for i in kept], [times[i] for i in kept]
        log_probs = log_probs and [log_probs[i] for i in kept]
    frames = [max(0, round(time / frame_shift) - delay) for time in times]
    written = words_of_tokens(pieces, frames, log_probs or [0.0] * len(pieces), frame_shift)
    words = [word.rounded() for word in written]
    if not log_probs:
        words = [Word(word.text, word.start, word.end, UNKNOWN) for word in words]
    end = max((word.end for word in words), default=0.0)
    if not tasks:  # it is unknown what was decoded; most models write no punctuation
        has_marks = not set(pieces).isdisjoint(Punctuation.symbols)
        tasks = [name for name in WITH_FIELDS if has_marks or name != Punctuation.name]
    return transcript_of_words(words, tasks, end if duration is None else duration, name, known)


def read_result(result: Any) -> Tuple[List[str], List[float], List[float]]:
    """Pieces, times in seconds and log-probabilities (if it has any) of a result (raises UserError if it is none)."""
    if isinstance(result, str):
        result = json_of(result, "result of sherpa-onnx")
    values: Mapping[str, Any] = result if isinstance(result, Mapping) else {n: getattr(result, n, None) for n in FIELDS}
    tokens: Any = values.get("tokens")
    times: Any = values.get("timestamps")
    if not _list_of(tokens, str) or not _list_of(times, float) or len(tokens) != len(times):
        raise UserError("result of sherpa-onnx: expected tokens and as many timestamps")
    start: Any = values.get("start_time") or 0.0
    log_probs: Any = values.get("ys_probs") or values.get("ys_log_probs")
    if not is_finite(start):
        raise UserError(f"result of sherpa-onnx: start_time: expected seconds, found {start!r:.60}")
    pieces = [SPACE + token[1:] if token.startswith(" ") else token for token in tokens]
    usable = _list_of(log_probs, float) and len(log_probs) == len(tokens)
    return pieces, [start + time for time in times], [min(0.0, float(x)) for x in log_probs] if usable else []


def _list_of(values: Any, kind: type) -> bool:
    """Whether ``values`` is a list of texts or of numbers."""
    if not isinstance(values, (list, tuple)):
        return False
    return all(is_finite(value) if kind is float else isinstance(value, kind) for value in values)


def decoded_tasks(about: Description, tasks: Optional[Sequence[str]], folder: str) -> Sequence[str]:
    """The set of tasks that an export for sherpa-onnx has decoded (raises UserError if this is not clear)."""
    sherpa = about.sherpa or {}
    sets = [tuple(names) for names in (sherpa.get("prompts") or sherpa["sets"]).values()]
    if tasks is None:
        if len(sets) > 1:
            told = " or ".join(",".join(names) for names in sets)
            raise UserError(f"{folder}: has several sets of tasks; say which was decoded: tasks={told}")
        return sets[0]
    wanted = {"asr", *tasks}
    found = next((names for names in sets if set(names) == wanted), None)
    if found is None:
        raise UserError(f"{folder}: has no set of the tasks {', '.join(tasks)}, but {'; '.join(map(', '.join, sets))}")
    return found
