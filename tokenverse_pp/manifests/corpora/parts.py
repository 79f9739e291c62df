"""What the corpora share: running a recipe of lhotse, and writing labelled cuts that were checked."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import replacing
from tokenverse_pp.manifests.labels import find_problems
from tokenverse_pp.manifests.reading import read_cuts
from tokenverse_pp.manifests.stats import SECONDS_PER_HOUR, count_cuts, stats_table

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A pair of lhotse manifests that becomes ``cuts_<name>.jsonl.gz``.

    Attributes:
        name: the split, and after an underscore what tells it from others of the split: ``train``, ``train_de``.
        language: ISO 639 code of all its supervisions.
    """

    name: str
    recordings: RecordingSet
    supervisions: SupervisionSet
    language: str


@dataclass
class LeftOut:
    """Turns that are in no cut, each with the reason: nothing is dropped without a word."""

    items: List[Dict[str, object]] = field(default_factory=list)

    def add(self, turn: SupervisionSegment, reason: str) -> None:
        """Note a turn."""
        self.items.append({"id": turn.id, "seconds": round(turn.duration, 3), "reason": reason})


@contextlib.contextmanager
def lhotse_recipe(corpus: str, corpus_dir: Path, layout: str) -> Iterator[None]:
    """Run a recipe of lhotse; whatever it throws at a foreign folder becomes one line that says what was expected."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the recipes assert, index and open: any type can come out of them
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{corpus_dir}: lhotse's recipe for {corpus} cannot read it ({type(error).__name__}: {reason}); "
            f"expected {layout}"
        ) from error


def require(corpus_dir: Path, patterns: Sequence[str], layout: str) -> None:
    """See that each glob pattern finds something under a folder.

    Raises:
        UserError: one line with what was expected.
    """
    if not corpus_dir.is_dir():
        raise UserError(f"{corpus_dir}: no such folder; expected {layout}")
    for pattern in patterns:
        if next(corpus_dir.glob(pattern), None) is None:
            raise UserError(f"{corpus_dir}: found no {pattern}; expected {layout}")


def write_parts(
    parts: Sequence[Part], output_dir: Path, to_cuts: Callable[[Part, LeftOut], Iterable[Cut]], say: Say = print
) -> Dict[str, Path]:
    """Write the cuts of all parts, once every one of them was checked against the label schema; print what is in them.

    ``left_out.jsonl`` lists the supervisions that are in no cut (``part``, ``id``, ``seconds``, ``reason``).

    Args:
        to_cuts: the cuts of a part, in the order in which they are written; notes what it leaves out.

    Raises:
        UserError: for a part without cuts, and for a cut that breaks the schema. Nothing is written then.
    """
    paths = {part.name: output_dir / f"cuts_{part.name}.jsonl.gz" for part in parts}
    files: Dict[Path, Tuple[Iterable[Cut], LeftOut]] = {}
    for part in parts:
        left_out = LeftOut()
        files[paths[part.name]] = (to_cuts(part, left_out), left_out)
    write_checked_files(files, output_dir / "left_out.jsonl", say)
    return paths


def write_checked_files(files: Dict[Path, Tuple[Iterable[Cut], LeftOut]], list_file: Path, say: Say = print) -> None:
    """Write cuts to their files, checked against the label schema, all of the files or none; print what is in them.

    Args:
        files: cuts, not yet made, and the list that fills while they are made.
        list_file: for what was left out, JSON lines: ``part`` (see `stem`), ``id``, ``seconds``, ``reason``.

    Raises:
        UserError: see `write_parts`.
    """
    with contextlib.ExitStack() as stack:
        for path, (cuts, left_out) in files.items():
            if not _write_checked(cuts, stack.enter_context(replacing(path)), str(path)):
                reasons = Counter(str(item["reason"]) for item in left_out.items)
                why = "; ".join(f"{count} turns: {reason}" for reason, count in reasons.most_common(2))
                raise UserError(f"{path}: no cut is left for it ({why or 'no turns'})")
        with open(stack.enter_context(replacing(list_file)), "w", encoding="utf-8") as file:
            for path, (_, left_out) in files.items():
                for item in left_out.items:
                    file.write(json.dumps({"part": stem(path), **item}, ensure_ascii=False) + "\n")
    for path, (_, left_out) in files.items():
        _report(path, left_out, say)


def stem(path: Path) -> str:
    """The name of a cuts' file without its endings, and without ``cuts_``."""
    name = path.name.split(".")[0]
    return name[len("cuts_") :] if name.startswith("cuts_") else name


def _write_checked(cuts: Iterable[Cut], path: Path, where: str) -> int:
    """Write cuts one by one -> how many."""
    count = 0

    def counted(writer) -> Iterator[Cut]:  # type: ignore[no-untyped-def]  # lhotse's writers share no public type
        nonlocal count
        for cut in cuts:
            count += 1
            writer.write(cut)
            yield cut

    with CutSet.open_writer(path) as writer:
        for cut_id, problem in find_problems(counted(writer)):
            raise UserError(f"{where}: cut {cut_id}: {problem}")
    return count


def _report(path: Path, left_out: LeftOut, say: Say) -> None:
    seconds: Dict[str, float] = {}
    for item in left_out.items:
        seconds[str(item["reason"])] = seconds.get(str(item["reason"]), 0.0) + float(str(item["seconds"]))
    turns = Counter(str(item["reason"]) for item in left_out.items)
    say(f"\n{path}")
    say(stats_table(count_cuts(read_cuts(path))))
    for reason, count in turns.most_common():
        say(f"left out: {count} turns ({seconds[reason] / SECONDS_PER_HOUR:.2f} h): {reason}")
