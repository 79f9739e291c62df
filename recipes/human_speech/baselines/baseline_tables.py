"""results.json as the tables of README.md, between markers."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence

from turns_pass import WINDOWS

from tokenverse_pp.base.errors import UserError

NAMES = {
    "whisper_given": "Whisper-base, language given",
    "whisper_given_digits": "the same, digits left as they are",
    "whisper_seven": "Whisper-base, language of the seven",
    "whisper_auto": "Whisper-base, language of 99",
    "cascade": "cascade: pauses and voices",
    "cascade_punctuation": "cascade: also Whisper's punctuation",
    "ours": "TokenVerse++ (human-speech-small)",
}
STAGES = {
    "vad": "silero-vad",
    "language": "Whisper: encoder, language",
    "words": "Whisper: words, their times",
    "voices": "Resemblyzer",
    "rules": "numbers, entities, thresholds",
}
SUMS = {
    "Whisper alone": ("language", "words"),
    "the cascade": tuple(STAGES),
}
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = Mapping[str, Any]


def fill(document: str, results: Results) -> str:
    """The document with every ``<!-- table: NAME --> .. <!-- end -->`` filled.

    Raises:
        UserError: for a table of an unknown name.
    """

    def table(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise UserError(f"no table is named {match[2]!r}: expected one of {', '.join(TABLES)}")
        measured = NEEDS.get(match[2], "scores") in results
        body = TABLES[match[2]](results) if measured else "Not measured yet."
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return MARK.sub(table, document)


def words(results: Results) -> str:
    """WER by corpus and language."""
    systems = results["scores"]["systems"]
    columns = [
        (corpus, language)
        for corpus, rates in next(iter(systems.values()))["wer_by_corpus_and_language"].items()
        for language in rates
    ]
    head = ["WER %", "all", *next(iter(systems.values()))["wer_by_corpus"], *(f"{c[:4]}. {x}" for c, x in columns)]
    rows = []
    for name, scores in systems.items():
        if name in ("cascade", "cascade_punctuation"):
            continue  # their words are those of whisper_seven
        row = [scores["wer"]["all"]["wer"], *(rates["wer"] for rates in scores["wer_by_corpus"].values())]
        row += [scores["wer_by_corpus_and_language"][corpus][language]["wer"] for corpus, language in columns]
        rows.append([NAMES[name], *map(percent, row)])
    first = next(iter(systems.values()))
    counted = [first["wer"]["all"]["words"], *(r["words"] for r in first["wer_by_corpus"].values())]
    counted += [first["wer_by_corpus_and_language"][c][x]["words"] for c, x in columns]
    rows.append(["words", *map(str, counted)])
    return markdown(head, rows)


def tasks(results: Results) -> str:
    """Every task of every system; F1 of speaker changes and endpoints by text and by time."""
    head = ["", "WER %", "SCD F1", "SCD 0.5 s", "ENDP F1", "ENDP 0.5 s", "NER exact", "NER soft", "language %"]
    rows = []
    for name, scores in results["scores"]["systems"].items():
        if name == "whisper_given_digits":
            continue
        row = [NAMES[name], percent(scores["wer"]["all"]["wer"])]
        for task in ("scd", "endp"):
            found = scores.get(task)
            row += [f1(found["text"]), f1(found["time"]["0.5"])] if found else ["", ""]
        ner = scores.get("ner")
        row += [f1(ner["exact"]), f1(ner["soft"])] if ner else ["", ""]
        row.append(percent(scores["lid"]["accuracy"]) if "lid" in scores else "")
        rows.append(row)
    return markdown(head, rows)


def languages(results: Results) -> str:
    """Language accuracy by corpus."""
    systems = {name: s for name, s in results["scores"]["systems"].items() if "lid" in s and "cascade" not in name}
    corpora = list(next(iter(systems.values()))["lid_by_corpus"])
    head = ["language right %", "all", *corpora]
    rows = [
        [NAMES[name], percent(scores["lid"]["accuracy"]), *(percent(scores["lid_by_corpus"][c]) for c in corpora)]
        for name, scores in systems.items()
    ]
    return markdown(head, rows)


def thresholds(results: Results) -> str:
    """What tuning chose, and its F1 on dev."""
    head = ["", "SCD: distance", "window", "pause s", "mark", "dev F1", "ENDP: pause s", "mark", "dev F1"]
    rows = []
    for name, tuned in results["scores"]["tuned"].items():
        change, end, dev = tuned["rules"]["change"], tuned["rules"]["end"], tuned["dev_f1"]
        first = [
            f"{change['distance']:g}",
            f"{WINDOWS[change['window']]:g} s",
            f"{change['pause']:g}",
            mark(change["mark"]),
        ]
        second = [f"{end['pause']:g}", mark(end["mark"])]
        rows.append([NAMES[name], *first, f"{dev['scd']:.3f}", *second, f"{dev['endp']:.3f}"])
    return markdown(head, rows)


def speed(results: Results) -> str:
    """Wall-clock and CPU seconds per second of audio, by stage."""
    measured = results["speed"]
    audio = measured["audio_seconds"]
    kinds = list(measured["cascade"])
    head = ["seconds per second of audio", *(f"{kind}, {clock}" for kind in kinds for clock in ("wall", "CPU"))]

    def row(name: str, stages: Iterable[str]) -> List[str]:
        chosen = list(stages)
        cells = [
            sum(measured["cascade"][kind][stage][clock] for stage in chosen) / audio
            for kind in kinds
            for clock in ("wall", "cpu")
        ]
        return [name, *(f"{cell:.4f}" for cell in cells)]

    rows = [row(name, [stage]) for stage, name in STAGES.items()]
    rows += [row(f"**{name}**", stages) for name, stages in SUMS.items()]
    lines = [markdown(head, rows), ""]
    for name, found in measured["ours"].items():
        how = "cut by cut" if name.endswith("one_by_one") else "in batches of 120 s"
        lists = ", lists of words, beam 16" if name.startswith("words_") else ""
        lines.append(f"- one pass of ours, all tasks, float32{lists}, {how}: {found['rtf']:.4f} (wall)")
    return "\n".join(lines)


def origin(results: Results) -> str:
    """What was run, where from, on how much."""
    lines = []
    for part, kept in results.items():
        versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
        cuts = f"{kept['cuts']} of {kept['cuts_of_the_test_set']}" if "cuts" in kept else str(kept["clips"])
        lines.append(f"- {part}: `{kept['command']}`, commit {str(kept['commit'])[:7]}, {cuts} test cuts; {versions}")
    return "\n".join(lines)


TABLES: Dict[str, Callable[[Results], str]] = {
    function.__name__: function for function in (words, tasks, languages, thresholds, speed, origin)
}
NEEDS = {"speed": "speed"}  # the part of results.json that a table is made of; of the others `scores`


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def percent(fraction: float) -> str:
    """One decimal."""
    return f"{100 * fraction:.1f}"


def f1(found: Mapping[str, float]) -> str:
    """Three decimals."""
    return f"{found['f1']:.3f}"


def mark(sign: str) -> str:
    """What a rule asks of the punctuation, in words."""
    return {"": "any", ",": "a comma or more", ".": "a sentence's end"}[sign]
