"""The tasks of docs/new_task.md, and the toy corpus labelled for them (pytest puts this folder on the path)."""

import re

from lhotse import CutSet
from scripts import ROOT
from toy_runs import read_cuts

DIGITS = set("ba di gu ka le po ta se".split())
HIGH_VOICES = {"toy-3", "toy-4"}
DOCUMENT = ROOT / "docs" / "new_task.md"


def write_plugin(folder):
    """The code of the document as one file."""
    path = folder / "my_tasks.py"
    path.write_text("\n\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)))
    return path


def commands(**places):
    """The command lines of the document, as lists of words, with other paths in them."""
    (block,) = re.findall(r"```\n(tokenverse-pp .*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    lines = [re.findall(r"'[^']*'|\S+", line) for line in block.strip().split("\n")]
    return [[replaced(word.strip("'"), places) for word in line] for line in lines]


def replaced(word, places):
    for name, place in places.items():
        word = word.replace(name, str(place))
    return word


def number_spans(words):
    """Runs of digits as [first word, one past the last]."""
    spans = []
    for i, word in enumerate(words):
        if word in DIGITS:
            if spans and spans[-1][1] == i:
                spans[-1][1] = i + 1
            else:
                spans.append([i, i + 1])
    return spans


def label(cut):
    """Label a toy cut: happy if its first voice is high; numbers are runs of words that stand for digits."""
    emotion = "happy" if cut.supervisions[0].speaker in HIGH_VOICES else "sad"
    for turn in cut.supervisions:
        turn.custom.update(emotion=emotion, numbers=number_spans(turn.text.split()))
    cut.custom["tasks"] = ["asr", "scd", "endp", "lid", "emo", "num"]
    return cut


def write_cuts(corpus, folder, longest=None):
    """Labelled manifests cuts_train and cuts_test of a toy corpus, without cuts of more than ``longest`` seconds."""
    paths = {}
    for split in ("train", "test"):
        cuts = [label(cut) for cut in read_cuts(corpus, split) if longest is None or cut.duration <= longest]
        paths[split] = folder / f"cuts_{split}.jsonl.gz"
        CutSet.from_cuts(cuts).to_file(paths[split])
    return paths
