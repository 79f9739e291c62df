"""Hypotheses of every system, scored by the package over the same cuts; and per cut, so that they can be compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from cascade import Rules, change_tokens, end_tokens, entity_tokens, to_record
from lhotse.cut import Cut
from whisper_words import spoken_words

from tokenverse_pp.base.files import replacing, write_text
from tokenverse_pp.evaluation.scoring import corpus_of, score_hypotheses

Records = Mapping[str, Mapping[str, Any]]

# name -> (how the language is chosen, whether numbers are put into letters)
WHISPER = {
    "whisper_given": ("given", True),
    "whisper_given_digits": ("given", False),
    "whisper_seven": ("seven", True),
    "whisper_auto": ("auto", True),
}
CASCADES = {"cascade": False, "cascade_punctuation": True}  # name -> whether Whisper's punctuation is used
COUNTED = ("scd", "endp", "ner")
COLUMNS = ["system", "id", "words", "errors", "language"] + [f"{t}_{n}" for t in COUNTED for n in ("tp", "fp", "fn")]


def whisper_hyps(cuts: Sequence[Cut], whisper: Records, choice: str, spell: bool) -> List[Dict[str, Any]]:
    """Whisper alone: words, and the language where it was not given."""
    names = ["asr"] if choice == "given" else ["asr", "lid"]
    hyps = []
    for cut in cuts:
        language = whisper[cut.id]["language"][choice]
        words = spoken_words(whisper[cut.id]["segments"][language], language, spell)
        hyps.append(to_record(cut.id, words, [], names, language))
    return hyps


def cascade_hyps(cuts: Sequence[Cut], whisper: Records, turns: Records, rules: Rules) -> List[Dict[str, Any]]:
    """The cascade: all tasks; no turns where `turns_pass` was not run (nobody scores them there)."""
    hyps = []
    for cut in cuts:
        language = whisper[cut.id]["language"]["seven"]
        words = spoken_words(whisper[cut.id]["segments"][language], language)
        names, tokens = ["asr", "ner", "lid"], entity_tokens(words, language)
        if cut.id in turns:
            names = ["asr", "scd", "endp", "ner", "lid"]
            tokens += change_tokens(turns[cut.id]["places"], rules.change)
            tokens += end_tokens(turns[cut.id], words, rules.end)
        hyps.append(to_record(cut.id, words, tokens, names, language))
    return hyps


def scored(cuts: Sequence[Cut], hyps: Sequence[Mapping[str, Any]]) -> Dict[str, Any]:
    """`score_hypotheses`, and the language accuracy of each corpus."""
    scores = score_hypotheses(cuts, hyps)
    scores.pop("not_decoded")
    if "lid" in scores:
        by_id = {hyp["id"]: hyp for hyp in hyps}
        groups: Dict[str, List[Cut]] = {}
        for cut in cuts:
            groups.setdefault(corpus_of(cut, {}) or "", []).append(cut)
        scores["lid_by_corpus"] = {
            corpus: score_hypotheses(group, [by_id[cut.id] for cut in group])["lid"]["accuracy"]
            for corpus, group in sorted(groups.items())
        }
    return scores


def write_hyps(folder: Path, hyps: Sequence[Mapping[str, Any]]) -> None:
    """``hyps.jsonl`` in a folder of the system's own."""
    write_text(folder / "hyps.jsonl", "".join(json.dumps(hyp, ensure_ascii=False) + "\n" for hyp in hyps))


def counts(name: str, cuts: Sequence[Cut], hyps: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """One row a cut: what the scores are sums of, without any text."""
    rows = []
    for cut, hyp in zip(cuts, hyps):
        scores = score_hypotheses([cut], [hyp])
        wer = scores["wer"]["all"]
        row: Dict[str, Any] = {"system": name, "id": cut.id, "words": wer["words"], "errors": wer["errors"]}
        if "lid" in scores:
            row["language"] = int(scores["lid"]["accuracy"])
        for task in COUNTED:
            found: Optional[Mapping[str, Any]] = scores.get(task)
            if found is not None:
                found = found["exact"] if task == "ner" else found["text"]
                row.update({f"{task}_{key}": found[key] for key in ("tp", "fp", "fn")})
        rows.append(row)
    return rows


def write_counts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as CSV; the cells of a task that a cut is not labelled for, or a system does not do, are empty."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
