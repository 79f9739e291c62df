"""What was prepared, in plain text: licences, speakers, hours."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from corpus.packages import LICENCES
from corpus.split import SPLITS


def licence_lines(licence_files: Sequence[str], corpora: Sequence[str]) -> List[str]:
    """One line: the licence of each corpus, and the folder of the packages' own licence texts."""
    folders = sorted({str(Path(file).parent) for file in licence_files})
    named = ", ".join(f"{corpus} {LICENCES[corpus]}" for corpus in sorted(corpora))
    return [f"licences: {named}; texts: {', '.join(folders)}"]


def hour_lines(cuts: Mapping[str, Sequence[Any]]) -> List[str]:
    """A table of cuts, turns, minutes and speakers per corpus and language; one column group per set."""
    table: Dict[Tuple[str, str], Dict[str, List[float]]] = defaultdict(lambda: {s: [0, 0, 0.0] for s in SPLITS})
    speakers: Dict[Tuple[str, str], set] = defaultdict(set)
    for split in SPLITS:
        for cut in cuts[split]:
            row = (cut.custom["corpus"], cut.supervisions[0].language)
            entry = table[row][split]
            entry[0] += 1
            entry[1] += len(cut.supervisions)
            entry[2] += cut.duration / 60
            speakers[row].update(s.speaker for s in cut.supervisions)
    lines = ["corpus    lang  speakers " + "".join(f"| {split:>5}: cuts turns    min " for split in SPLITS)]
    for row in sorted(table):
        cells = "".join(f"| {'':5} {int(n):5d} {int(t):5d} {m:6.1f} " for n, t, m in (table[row][s] for s in SPLITS))
        lines.append(f"{row[0]:9} {row[1]:4}  {len(speakers[row]):8d} {cells}")
    hours = {split: sum(cut.duration for cut in cuts[split]) / 3600 for split in SPLITS}
    return lines + ["hours: " + ", ".join(f"{split} {hours[split]:.2f}" for split in SPLITS)]
