"""Read and check decoded hypotheses (``hyps.jsonl``, one JSON object per line).

`tokenverse_pp.tasks.result.Transcript.from_record` converts a hypothesis to a transcript.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import is_finite, json_of
from tokenverse_pp.data.lines import text_lines

Hypothesis = Mapping[str, Any]  # a line of hyps.jsonl
SPAN = ("start", "end")


def read_hypotheses(path: Union[str, os.PathLike[str]]) -> List[Dict[str, Any]]:
    """Read ``hyps.jsonl`` (raises UserError naming file and line if a line is not a hypothesis)."""
    hyps = []
    for number, line in text_lines(path, "hypotheses"):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        hyp = json_of(line, where)
        problem = check_hypothesis(hyp)
        if problem:
            raise UserError(f"{where}: {problem}")
        hyps.append(hyp)
    return hyps


def check_hypothesis(hyp: Any) -> str:
    """Return the problem of a hypothesis, or an empty string. It needs an ``id``, and ``tokens`` or ``text``."""
    if not isinstance(hyp, dict):
        return "expected an object with 'id' and 'text'"
    if not isinstance(hyp.get("id"), str):
        return f"field 'id': expected the id of a cut, found {hyp.get('id')!r}"
    tokens, times = hyp.get("tokens"), hyp.get("times")
    if tokens is None and not isinstance(hyp.get("text"), str):
        return f"field 'text': expected words and task tokens, found {hyp.get('text')!r}"
    for name in ("tokens", "tasks"):
        items = hyp.get(name)
        if items is not None and not (isinstance(items, list) and all(isinstance(x, str) for x in items)):
            return f"field '{name}': expected a list of strings"
    if times is not None:
        if not isinstance(times, list) or not all(map(is_finite, times)):
            return "field 'times': expected a list of seconds"
        if len(times) != len(tokens or ()):
            return f"field 'times': expected one a token, found {len(times)} for {len(tokens or ())} tokens"
    if not isinstance(hyp.get("language"), (str, type(None))):
        return f"field 'language': expected a code, found {hyp['language']!r}"
    for name in ("speaker_changes", "endpoints"):
        items = hyp.get(name)
        if items is not None and not (isinstance(items, list) and all(map(is_finite, items))):
            return f"field '{name}': expected a list of seconds"
    # A confidence may be null: sherpa-onnx gives none for the CTC head (`tokenverse_pp.onnx.from_sherpa`).
    for name, numbers in (("words", (*SPAN, "confidence")), ("turns", SPAN), ("entities", SPAN)):
        items = hyp.get(name)
        if items is None:
            continue
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return f"field '{name}': expected a list of objects"
        for item in items:
            known = [key for key in numbers if key != "confidence" or item.get(key, 0) is not None]
            if not isinstance(item.get("text"), str) or not all(is_finite(item.get(key)) for key in known):
                return f"field '{name}': expected text, {', '.join(numbers)} in each, found {item!r}"
    return ""
